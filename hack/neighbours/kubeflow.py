"""Kubeflow's training operator, which makes pods of PyTorchJobs, with the webhook that looks at each job.

It runs as the cluster's admin and needs no ServiceAccount. Its definition of the PyTorchJob is put over what is there;
objects stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path

from hack.cluster import api, processes, programs
from hack.cluster.layout import KUBECONFIG, STATE
from hack.neighbours import manifests, probes, webhooks

PROCESS = "training-operator"
NAMESPACE = "kubeflow"
INIT_IMAGE = "docker.io/piton-box/busybox:1"
"""In place of alpine:3.10, which the box cannot pull. The program's own template does not work with it: this nslookup,
Debian's, fails where one of the search domains does not know the name."""

_FAMILY = "training-operator"
_SERVICE = "training-operator"
_SECRET = "training-operator-webhook-cert"  # noqa: S105 - the Secret's name
_CONFIGURATION = "validator.training-operator.kubeflow.org"
_WEBHOOK = "/validate-kubeflow-org-v1-pytorchjob"
_JOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
_POD: api.Object = {"spec": {"containers": [{"name": "pytorch", "image": "none:1"}]}}
_JOB: api.Object = {
    "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "probe"},
    "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": _POD}}},
}  # fmt: skip
"""A job that is never created: whether the webhook answers for it is all that counts."""
_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108 - the program has it built in
_TEMPLATE = STATE / "init-container.yaml"
_WEBHOOK_PORT = 19443
_METRICS_PORT = 19444
_PROBE_PORT = 19445


def start(*, say: programs.Say = print, only: str | None = None, init_container: str = "") -> None:
    """Start it and wait until it and its webhook serve. One that runs is stopped before.

    `only` is the one namespace whose jobs it serves, and looks at; None is all of them. `init_container` is the
    template of the container in which workers wait for the master's name; empty: its own.

    Raises:
        BoxError: It cannot be built or does not come up; quotes the end of its log.
    """
    programs.need([_FAMILY], say)
    stop()
    webhooks.establish([definition()])
    webhooks.namespace(NAMESPACE)
    webhooks.empty_secret(_SECRET, namespace=NAMESPACE)
    ports = {"monitoring-port": (8080, _METRICS_PORT), "webhook-server": (443, _WEBHOOK_PORT)}
    webhooks.publish(_SERVICE, namespace=NAMESPACE, ports=ports)
    webhooks.clear(_CERTIFICATES)
    webhooks.apply(_configuration(only))  # before the program, which puts its authority into it and waits for that
    processes.start(PROCESS, _command(only, init_container))
    webhooks.fill(_CERTIFICATES, secret=_SECRET, namespace=NAMESPACE, of=PROCESS)
    processes.wait_for("the training operator to be ready", lambda: probes.answers(_PROBE_PORT), seconds=60, of=PROCESS)
    webhooks.namespace(only or NAMESPACE)
    webhooks.wait_until_called(_JOBS.format(namespace=only or NAMESPACE), _JOB, of=PROCESS)


def pause() -> None:
    """Stop it as a crash would: its webhook is registered still, so no job can be created."""
    processes.stop(PROCESS)


def stop() -> None:
    """Stop it for good, and take its webhook away with it. Its definition and its jobs stay."""
    pause()
    webhooks.remove({"kind": "ValidatingWebhookConfiguration", "metadata": {"name": _CONFIGURATION}})


def definition() -> api.Object:
    """The CustomResourceDefinition of the PyTorchJob."""
    return manifests.read(_folder() / "crds" / "kubeflow.org_pytorchjobs.yaml")


def _configuration(only: str | None) -> api.Object:
    published = manifests.read(_folder() / "webhook" / "manifests.yaml")
    made = webhooks.pointed_at(
        published, name=_CONFIGURATION, service=_SERVICE, namespace=NAMESPACE, keep=lambda path: path == _WEBHOOK
    )
    if only is not None:
        for hook in made["webhooks"]:
            hook["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": only}}
    return made


def _command(only: str | None, init_container: str) -> Sequence[str | Path]:
    if init_container:
        _TEMPLATE.write_text(init_container)
    return [
        _folder() / "training-operator",
        f"--kubeconfig={KUBECONFIG}",
        "--enable-scheme=pytorchjob",
        f"--pytorch-init-container-image={INIT_IMAGE}",
        *([f"--pytorch-init-container-template-file={_TEMPLATE}"] if init_container else []),
        f"--webhook-server-port={_WEBHOOK_PORT}",
        f"--metrics-bind-address=:{_METRICS_PORT}",
        f"--health-probe-bind-address=127.0.0.1:{_PROBE_PORT}",
        "--controller-threads=4",  # one of them, and 20 requests a second, are for clusters with few jobs
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        *([f"--namespace={only}"] if only is not None else []),
    ]


def _folder() -> Path:
    return programs.folder(_FAMILY)
