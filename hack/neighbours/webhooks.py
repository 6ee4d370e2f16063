"""How the API server reaches a program that runs on this machine and not in a pod: its webhooks, its certificates.

In a cluster a Service selects the program's pods, and the kubelet mounts the Secret with its certificates. Here the
Service has no selector, an EndpointSlice names this machine's address on the box's bridge, and the Secret's content is
written to the folder where the program looks for it. Objects are applied on the server's side: what the program itself
writes into them, such as the certificate authority of its webhooks, stays.
"""

import base64
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hack.cluster import api, processes
from hack.cluster.layout import GATEWAY

NOT_CALLED = "failed calling webhook"
"""In the API server's words, where a webhook did not answer; then it has refused nothing."""
_APPLY = "application/apply-patch+yaml"
_MANAGER = "piton-box"
_PATHS = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
    "MutatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings",
    "MutatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "Namespace": "/api/v1/namespaces",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}


def path_of(document: api.Object) -> str:
    """The path of that object."""
    meta = document["metadata"]
    return f"{_PATHS[document['kind']].format(namespace=meta.get('namespace'))}/{meta['name']}"


def apply(document: api.Object) -> None:
    """Create or change the object; fields that others have set and the document does not name stay."""
    api.call("PATCH", f"{path_of(document)}?fieldManager={_MANAGER}&force=true", document, kind=_APPLY)


def remove(document: api.Object) -> None:
    """Delete the object; that it is gone already is as good."""
    api.delete(path_of(document))


def namespace(name: str) -> None:
    """Have that namespace."""
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def establish(definitions: Iterable[api.Object]) -> None:
    """Apply CustomResourceDefinitions and wait until the API server serves them."""
    paths = []
    for definition in definitions:
        apply(definition)
        paths.append(path_of(definition))
    for path in paths:
        processes.wait_for(f"{path} to be established", lambda path=path: _established(path), seconds=30)  # type: ignore[misc]


def _established(path: str) -> bool:
    conditions = api.call("GET", path).get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def publish(name: str, *, namespace: str, ports: Mapping[str, tuple[int, int]]) -> None:
    """A Service whose only endpoint is this machine. `ports`: by name, the Service's port and the program's."""
    meta = {"name": name, "namespace": namespace}
    apply({
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"ports": [
            {"name": port, "port": outside, "targetPort": inside, "protocol": "TCP"}
            for port, (outside, inside) in ports.items()
        ]},
    })  # fmt: skip
    apply({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": True}}],
        "ports": [{"name": port, "port": inside, "protocol": "TCP"} for port, (_, inside) in ports.items()],
    })  # fmt: skip


def empty_secret(name: str, *, namespace: str) -> None:
    """The Secret that the program fills with certificates of its own making; one that is filled stays as it is."""
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}})


def fill(folder: Path, *, secret: str, namespace: str, of: str, needs: str = "tls.crt", seconds: float = 60.0) -> None:
    """Write the Secret's content as files to `folder`, as soon as the process `of` has filled it.

    Raises:
        BoxError: The process has died, or has not filled the Secret in time; quotes the end of its log.
    """
    path = f"/api/v1/namespaces/{namespace}/secrets/{secret}"
    data: dict[str, str] = {}

    def filled() -> bool:
        data.update(api.call("GET", path).get("data") or {})
        return needs in data

    processes.wait_for(f"{of} to fill the secret {secret} with {needs}", filled, seconds=seconds, of=of)
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(data, reverse=True):  # tls.key before tls.crt, which programs wait for
        written = folder / f".{name}"
        written.write_bytes(base64.b64decode(data[name]))
        written.chmod(0o600)
        written.rename(folder / name)


def wait_until_called(path: str, document: api.Object, *, of: str, seconds: float = 60.0) -> None:
    """Wait until the API server reaches the webhooks of the process `of`, which look at this document.

    The program serves some time before the API server has its address and its authority. Nothing is stored.

    Raises:
        BoxError: The process has died, or the API server does not reach it in time; quotes the end of its log.
    """

    def reached() -> bool:
        try:
            api.call("POST", f"{path}?dryRun=All", document)
        except api.ApiError as error:
            return NOT_CALLED not in str(error)
        return True

    processes.wait_for(f"the API server to reach the webhooks of {of}", reached, seconds=seconds, of=of)


def clear(folder: Path) -> None:
    """Take away the files of an earlier process: a program that finds them serves certificates of an old Secret."""
    for path in folder.glob("*"):
        with contextlib.suppress(IsADirectoryError):
            path.unlink()


def pointed_at(
    configuration: api.Object, *, name: str, service: str, namespace: str, keep: Callable[[str], bool]
) -> api.Object:
    """A published webhook configuration under its real name, with its real Service, as kustomize would make it.

    `keep` says by the path of its Service which of the webhooks to register: one whose program does not serve it
    would refuse every object of its kind.
    """
    target = {"name": service, "namespace": namespace}
    webhooks = [
        {**hook, "clientConfig": {**hook["clientConfig"], "service": {**hook["clientConfig"]["service"], **target}}}
        for hook in configuration["webhooks"]
        if keep(hook["clientConfig"]["service"]["path"])
    ]
    return {**configuration, "metadata": {"name": name}, "webhooks": webhooks}
