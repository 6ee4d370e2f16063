"""Karpenter with its kwok provider, which launches Node objects for pods that wait, and takes them away.

No machine is behind them: `kwok` plays their kubelets. Karpenter runs as the cluster's admin. What its provider can
launch is a file that it reads once, when it starts: start it again with another one where capacity has to come or go.
NodeClaims that it has launched stay.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hack.cluster import api, processes, programs
from hack.cluster.layout import KUBECONFIG, STATE
from hack.neighbours import instance_types, manifests, probes, webhooks

PROCESS = "karpenter"
NODE_CLASS = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"}
CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
POOLS = "/apis/karpenter.sh/v1/nodepools"
POOL_LABEL = "karpenter.sh/nodepool"
DISRUPTED = "karpenter.sh/disrupted"
"""Taint of a node that it takes away."""

_FAMILY = "karpenter"
_CLASSES = "/apis/karpenter.kwok.sh/v1alpha1/kwoknodeclasses"
_TYPES = STATE / "instance-types.json"
_METRICS_PORT = 19446
_PROBE_PORT = 19447


def start(types: Sequence[Mapping[str, Any]] | None = None, *, say: programs.Say = print) -> None:
    """Start it and wait until it serves. One that runs is stopped before.

    `types` is what its provider can launch, as `instance_types.document` says it; None is all of it.

    Raises:
        BoxError: It cannot be built or does not come up; quotes the end of its log.
    """
    stop()
    programs.need([_FAMILY], say)
    webhooks.establish(definitions())
    _TYPES.write_text(json.dumps(instance_types.document() if types is None else types))
    processes.start(PROCESS, ["env", *_environment(), programs.folder(_FAMILY) / "karpenter"])
    processes.wait_for("Karpenter to serve", lambda: probes.answers(_PROBE_PORT), seconds=60, of=PROCESS)


def stop() -> None:
    """Stop it. Its definitions, NodePools and NodeClaims stay, and what has its finalizer cannot go."""
    processes.stop(PROCESS, seconds=1.0)


def definitions() -> list[api.Object]:
    """Its CustomResourceDefinitions, with those of the kwok provider."""
    folder = programs.folder(_FAMILY)
    files = sorted(file for part in ("crds", "kwok-crds") for file in (folder / part).glob("*.yaml"))
    return [manifests.read(file) for file in files]


def create_node_class() -> None:
    """Have the node class that all NodePools name."""
    kind, name = NODE_CLASS["kind"], NODE_CLASS["name"]
    api.create(_CLASSES, {"apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": kind, "metadata": {"name": name}})


def delete_node_class() -> None:
    """Take it away: nothing can be launched any more."""
    api.delete(f"{_CLASSES}/{NODE_CLASS['name']}")


def pool(name: str, published: api.Object) -> api.Object:
    """A published NodePool, for AWS, under another name and of the kwok provider's machines."""
    template = published["spec"]["template"]
    spec = {**template["spec"], "nodeClassRef": NODE_CLASS}
    return {
        **published,
        "metadata": {"name": name},
        "spec": {**published["spec"], "template": {**template, "spec": spec}},
    }


def create_pool(document: api.Object) -> None:
    """Create a NodePool, or change it."""
    path = f"{POOLS}/{document['metadata']['name']}"
    api.call("PATCH", f"{path}?fieldManager=piton-box&force=true", document, kind="application/apply-patch+yaml")


def delete_pool(name: str) -> None:
    """Delete a NodePool; its NodeClaims and their nodes go with it."""
    api.delete(f"{POOLS}/{name}")


def claims(pool: str) -> list[api.Object]:
    """The NodeClaims of a NodePool."""
    found: list[api.Object] = api.call("GET", f"{CLAIMS}?labelSelector={POOL_LABEL}%3D{pool}")["items"]
    return found


def interrupt(claim: str) -> None:
    """Delete a NodeClaim, which is what Karpenter itself does when the cloud announces that it takes the machine."""
    api.delete(f"{CLAIMS}/{claim}")


def _environment() -> list[str]:
    settings = {
        "KUBECONFIG": KUBECONFIG,
        "SYSTEM_NAMESPACE": "kube-system",
        "DISABLE_LEADER_ELECTION": "true",
        "KUBERNETES_MIN_VERSION": "1.29.0-0",
        "METRICS_PORT": _METRICS_PORT,
        "HEALTH_PROBE_PORT": _PROBE_PORT,
        "BATCH_IDLE_DURATION": "500ms",
        "INSTANCE_TYPES_FILE_PATH": _TYPES,
    }
    return [f"{name}={value}" for name, value in settings.items()]
