"""Kueue, which gives out quota: its webhooks, and the API that says who is where in a queue.

It runs as the cluster's admin and needs no ServiceAccount. Only the webhooks of its own kinds and of PyTorchJobs are
registered: the others would refuse pods and deployments, whose integrations are off.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from hack.cluster import api, processes, programs
from hack.cluster.layout import GATEWAY, KUBECONFIG, STATE
from hack.neighbours import manifests, probes, webhooks

PROCESS = "kueue"
NAMESPACE = "kueue-system"
VERSION = "v1beta2"
"""Of its API, the one that it stores."""

_FAMILY = "kueue"
_SERVICE = "kueue-webhook-service"
_SECRET = "kueue-webhook-server-cert"  # noqa: S105 - the Secret's name
_VISIBILITY_SERVICE = "visibility-server"
_VISIBILITY = f"/apis/apiregistration.k8s.io/v1/apiservices/{VERSION}.visibility.kueue.x-k8s.io"
_FLAVOR: api.Object = {
    "apiVersion": f"kueue.x-k8s.io/{VERSION}", "kind": "ResourceFlavor", "metadata": {"name": "probe"}, "spec": {},
}  # fmt: skip
"""A flavor that is never created: whether the webhook answers for it is all that counts."""
_CONVERTED = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")
"""Kinds of which Kueue converts the versions; it does not start before their definitions name its webhook."""
_FOLDER = STATE / "kueue"
_CERTIFICATES = _FOLDER / "certificates"
_OWN_CERTIFICATES = Path("/visibility")
"""Where its visibility API keeps the certificate that it makes for itself; the program has it built in."""
_WEBHOOK_PORT = 19453
_METRICS_PORT = 19454
_PROBE_PORT = 19455
_VISIBILITY_PORT = 19456


def start(*, say: programs.Say = print) -> None:
    """Start it and wait until it, its webhooks and its visibility API serve. One that runs is stopped before.

    Raises:
        BoxError: It cannot be built or does not come up; quotes the end of its log.
    """
    stop()
    programs.need([_FAMILY], say)
    webhooks.establish([definition for definition in _definitions() if not _there(definition)])
    webhooks.namespace(NAMESPACE)
    webhooks.empty_secret(_SECRET, namespace=NAMESPACE)
    webhooks.publish(_SERVICE, namespace=NAMESPACE, ports={"webhook": (443, _WEBHOOK_PORT)})
    webhooks.publish(_VISIBILITY_SERVICE, namespace=NAMESPACE, ports={"https": (443, _VISIBILITY_PORT)})
    webhooks.clear(_CERTIFICATES)
    for configuration in _configurations():  # before the program, which puts its authority into them and waits for that
        webhooks.apply(configuration)
    processes.start(PROCESS, _command())
    webhooks.fill(_CERTIFICATES, secret=_SECRET, namespace=NAMESPACE, of=PROCESS)
    processes.wait_for("Kueue to be ready", lambda: probes.answers(_PROBE_PORT), seconds=90, of=PROCESS)
    webhooks.wait_until_called(f"/apis/kueue.x-k8s.io/{VERSION}/resourceflavors", _FLAVOR, of=PROCESS)
    api.create(_VISIBILITY.rpartition("/")[0], _visibility())
    processes.wait_for("Kueue's visibility API to be served", _visible, seconds=60, of=PROCESS)


def stop() -> None:
    """Stop it, and take its webhooks and its API away. Its definitions and its objects stay."""
    processes.stop(PROCESS)
    api.delete(_VISIBILITY)
    if _FOLDER.exists():
        for configuration in _configurations():
            webhooks.remove(configuration)
    for path in _OWN_CERTIFICATES.glob("apiserver.*"):
        path.unlink()
    with contextlib.suppress(OSError):
        _OWN_CERTIFICATES.rmdir()


def _definitions() -> list[api.Object]:
    found = [manifests.read(path) for path in sorted((_folder() / "crds").glob("*.yaml"))]
    return [_converted(definition) for definition in found]


def _there(definition: api.Object) -> bool:
    """Whether it is there, from an earlier start. The API server is long in changing one whose webhook is away."""
    try:
        found = api.call("GET", webhooks.path_of(definition))
    except api.ApiError:
        return False
    wanted, strategy = (one["spec"].get("conversion", {}).get("strategy", "None") for one in (definition, found))
    return bool(wanted == strategy)


def _converted(definition: api.Object) -> api.Object:
    if definition["spec"]["names"]["plural"] not in _CONVERTED:
        return definition
    service = {"namespace": NAMESPACE, "name": _SERVICE, "path": "/convert"}
    webhook = {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]}
    spec = {**definition["spec"], "conversion": {"strategy": "Webhook", "webhook": webhook}}
    return {**definition, "spec": spec}


def _configurations() -> list[api.Object]:
    text = (_folder() / "webhook" / "manifests.yaml").read_text()
    names = {"MutatingWebhookConfiguration": "mutating", "ValidatingWebhookConfiguration": "validating"}
    return [
        webhooks.pointed_at(
            published,
            name=f"kueue-{names[published['kind']]}-webhook-configuration",
            service=_SERVICE,
            namespace=NAMESPACE,
            keep=lambda path: "-kueue-x-k8s-io-" in path or path.endswith("-pytorchjob"),
        )
        for published in yaml.safe_load_all(text)
    ]


def _configuration() -> api.Object:
    return {
        "apiVersion": f"config.kueue.x-k8s.io/{VERSION}",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{_PROBE_PORT}"},
        "metrics": {"bindAddress": f"127.0.0.1:{_METRICS_PORT}"},
        "webhook": {"port": _WEBHOOK_PORT, "certDir": str(_CERTIFICATES)},
        "visibilityServer": {"bindAddress": GATEWAY, "bindPort": _VISIBILITY_PORT},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": _SERVICE,
            "webhookSecretName": _SECRET,
        },
        "integrations": {"frameworks": ["kubeflow.org/pytorchjob"]},
    }


def _command() -> Sequence[str | Path]:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / "config.yaml"
    path.write_text(yaml.safe_dump(_configuration()))
    return [_folder() / "kueue", f"--config={path}", f"--kubeconfig={KUBECONFIG}", "--zap-log-level=2"]


def _visibility() -> api.Object:
    group, version = "visibility.kueue.x-k8s.io", VERSION
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": _VISIBILITY_SERVICE, "namespace": NAMESPACE},
        },
    }


def _visible() -> bool:
    conditions = api.call("GET", _VISIBILITY).get("status", {}).get("conditions", [])
    return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)


def _folder() -> Path:
    return programs.folder(_FAMILY)
