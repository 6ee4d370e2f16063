"""kwok, which plays the kubelets of nodes that are no machines, and the containers of their pods.

A pod on such a node runs as soon as it is there, for ever, and is gone as soon as it is deleted: nothing is trained,
and nothing is saved. Nodes whose label says that they are real are left to their own kubelet.
"""

from pathlib import Path

import yaml

from hack.cluster import api, processes, programs
from hack.cluster.layout import GATEWAY, KUBECONFIG, STATE
from hack.neighbours import manifests, probes, webhooks

PROCESS = "kwok"
PLAYED = ("kwok.x-k8s.io/node", "fake")
"""Annotation and label of nodes that are played."""
REAL = "box.local/real"
"""Label of a node that a real kubelet takes over, whatever its provider says."""

_FAMILY = "kwok"
_STAGES = ("node/fast/node-initialize", "node/heartbeat-with-lease/node-heartbeat-with-lease", "pod/fast/pod-ready",
           "pod/fast/pod-delete")  # fmt: skip
_REGISTERED = {
    "key": '.spec.taints.[] | select( .key == "karpenter.sh/unregistered" ) | .key',
    "operator": "DoesNotExist",
}
"""A node becomes ready only when Karpenter has taken its first taint away."""
_BOOTING = "piton-box-played-nodes-are-booting"
_NOT_READY = """[JSONPatch{op: "add", path: "/status/conditions", value: [Object.status.conditions{
  type: "Ready", status: "False", reason: "KubeletNotReady", message: "kwok has not played its kubelet yet"}]}]"""
_ADMISSION = "admissionregistration.k8s.io/v1"
_PORT = 10247


def start(*, say: programs.Say = print) -> None:
    """Start it; it serves as soon as it says that it watches nodes. One that runs is stopped before.

    Raises:
        BoxError: It cannot be built, or does not come up; quotes the end of its log.
    """
    stop()
    programs.need([_FAMILY], say)
    folder = programs.folder(_FAMILY)
    stages = STATE / "kwok.yaml"
    found = [manifests.read(folder / "stages" / f"{name}.yaml") for name in _STAGES]
    found[0]["spec"]["selector"]["matchExpressions"].append(_REGISTERED)
    stages.write_text(yaml.safe_dump_all(found))
    for document in _booting():
        webhooks.apply(document)
    processes.wait_for("new nodes to be not ready yet", _is_booting, seconds=60)
    processes.start(PROCESS, _command(folder, stages))
    processes.wait_for("kwok to serve", lambda: probes.answers(_PORT), seconds=30, of=PROCESS)


def stop() -> None:
    """Stop it: nodes and pods stay as they are."""
    processes.stop(PROCESS)
    for document in reversed(_booting()):
        webhooks.remove(document)


def node(name: str, *, labels: dict[str, str], resources: dict[str, str]) -> dict[str, object]:
    """A node that it plays, such as one of a managed node group."""
    key, value = PLAYED
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {key: value, **labels}, "annotations": {key: value}},
        "status": {"capacity": resources, "allocatable": resources},
    }


def _booting() -> list[api.Object]:
    """Return the policy, and its binding, that makes every played node not ready when it is created.

    A real kubelet registers its node so. The cluster then keeps pods away with a taint of its own, and lifts it once it
    has seen the node ready. A node without any condition gets no such taint: a pod is bound the moment Karpenter takes
    its first taint away, runs at once, and may be evicted by a taint manager that still knows the node with it.
    """
    key, value = PLAYED
    selector = {"matchLabels": {key: value}, "matchExpressions": [{"key": REAL, "operator": "DoesNotExist"}]}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nodes"]}
    policy = {
        "matchConstraints": {"objectSelector": selector, "resourceRules": [rule]},
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _NOT_READY}}],
    }
    head = {"apiVersion": _ADMISSION, "metadata": {"name": _BOOTING}}
    return [
        {**head, "kind": "MutatingAdmissionPolicy", "spec": policy},
        {**head, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": _BOOTING}},
    ]


def _is_booting() -> bool:
    created = api.call("POST", "/api/v1/nodes?dryRun=All", node("probe", labels={}, resources={}))
    return bool(created["status"].get("conditions"))


def _command(folder: Path, stages: Path) -> list[str | Path]:
    return [
        folder / "kwok",
        f"--kubeconfig={KUBECONFIG}",
        f"--config={stages}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-label-selector={'='.join(PLAYED)},!{REAL}",
        "--node-lease-duration-seconds=40",
        f"--server-address=127.0.0.1:{_PORT}",
        "--cidr=10.79.0.0/16",
        f"--node-ip={GATEWAY}",
    ]
