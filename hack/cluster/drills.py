"""How a node goes away, and comes: the drills of the tests and of curious users.

reclaim   the cloud says when it takes the machine: notice, cordon, eviction, death at the deadline, Node deleted
kill      it is gone, without a word; its Node object stays until somebody deletes it
cut       nobody reaches it, and it reaches nobody; what runs there lives on
heal      the cable is plugged in again
add       a new machine, under a new name or that of a dead one
"""

import contextlib
import time
from typing import Any

from hack.cluster import api, network, nodes
from hack.cluster.layout import Node
from hack.cluster.shell import BoxError

_NOTICE_TAINT = "aws-node-termination-handler/spot-itn"
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.1


def add(node: Node) -> None:
    """Boot a machine and wait until it is Ready.

    What the cluster knows under that name belonged to another machine: a kubelet that found old pods bound to it would
    start them anew.

    Raises:
        BoxError: It runs already.
    """
    if nodes.alive(node):
        raise BoxError(f"{node.name} runs already")
    for pod in _pods(node):
        api.delete(f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}", grace_seconds=0)
    _forget(node)
    nodes.start(node)
    nodes.wait_until_ready(node)


def kill(node: Node) -> None:
    """SIGKILL to everything on it, at one moment."""
    _require_alive(node)
    nodes.power_off(node)


def cut(node: Node) -> None:
    """Partition it off."""
    _require_alive(node)
    network.cut(node)


def heal(node: Node) -> None:
    """Let it back in."""
    _require_alive(node)
    network.heal(node)


def reclaim(node: Node, *, notice_seconds: float) -> None:
    """Give notice, drain, and kill it at the deadline, whatever still runs there."""
    _require_alive(node)
    deadline = time.monotonic() + notice_seconds
    _give_notice(node)
    while time.monotonic() < deadline:
        _evict_all(node)
        _sleep_until(min(deadline, time.monotonic() + _RETRY_SECONDS))
    nodes.power_off(node)
    _forget(node)


def evictable(pod: dict[str, Any]) -> bool:
    """Whether a drain would evict it: not twice, not what has ended, not what belongs to every node."""
    owners = pod["metadata"].get("ownerReferences") or []
    ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    return not (ended or pod["metadata"].get("deletionTimestamp") or any(o["kind"] == "DaemonSet" for o in owners))


def _give_notice(node: Node) -> None:
    path = f"/api/v1/nodes/{node.hostname}"
    taint = {"key": _NOTICE_TAINT, "value": f"spot-itn-{node.number:08x}", "effect": "NoSchedule"}
    taints = [t for t in api.call("GET", path)["spec"].get("taints", []) if t["key"] != _NOTICE_TAINT]
    api.patch(path, {"spec": {"unschedulable": True, "taints": [*taints, taint]}})


def _evict_all(node: Node) -> None:
    """Ask for each; a disruption budget may refuse, and is asked again."""
    for pod in _pods(node):
        if evictable(pod):
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": namespace},
            }
            with contextlib.suppress(api.ApiError):
                api.call("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", eviction)


def _pods(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node.hostname}")[
        "items"
    ]
    return found


def _forget(node: Node) -> None:
    """Delete its Node object, as the cloud's controller does when the machine no longer exists."""
    api.delete(f"/api/v1/nodes/{node.hostname}")


def _require_alive(node: Node) -> None:
    if not nodes.alive(node):
        raise BoxError(f"{node.name} does not run")


def _sleep_until(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, _POLL_SECONDS))
