"""State of the node that a pod is on: gone, silent, or about to be reclaimed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from piton.observed import NodePoolSeen

UNREACHABLE_SECONDS = 35.0
"""Seconds that a node's Ready is Unknown before it counts as gone. The control plane has waited 50 s before it says
Unknown, and looks every 5 s: that is 90 s since the machine was last heard. Restarts of the kubelet and most partitions
are over by then. Shorter would force-delete pods that still train, longer leaves paid peers of theirs waiting."""
OVERSTAY_SECONDS = 30.0
"""Seconds by which a pod may outstay its deletion before a node whose Ready is Unknown counts as gone. A kubelet that
works is done within the grace period; the rest is the time that it takes to say so."""

_REPLACED_AFTER = timedelta(seconds=30)
"""No cloud launches another machine of the same name sooner, and clocks of a control plane differ by less."""
_GONE_TAINTS = frozenset(
    {
        "node.kubernetes.io/out-of-service",  # somebody vouches that the machine is off
        "node.cloudprovider.kubernetes.io/shutdown",  # the cloud says that the machine is off
    }
)
_RECLAIM_TAINTS = frozenset(
    {
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",  # before Karpenter 1
        "ToBeDeletedByClusterAutoscaler",
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "cloud.google.com/impending-node-termination",
        "remediator.aks.microsoft.com/unschedulable",
        "remediator.kubernetes.azure.com/unschedulable",
    }
)
"""A rebalance recommendation is not among them: the machine may live for hours, and bugs must not hide behind it."""

_RECLAIM_CONDITIONS = ("PreemptScheduled", "TerminateScheduled")
"""By these the node problem detector of AKS passes on what Azure announces."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A node is silent, and many others with it."""

    gone_at: datetime
    """The earliest time at which it counts as gone if it stays silent."""
    words: str
    """A sentence on the outage, for messages."""


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """The state of the node that a pod is on."""

    node: Mapping[str, Any] | None
    """None: the node's object does not exist."""
    now: datetime
    pool: NodePoolSeen | None = None
    outage: Outage | None = None

    def gone_at(self, pod: Mapping[str, Any]) -> datetime | None:
        """Return the time at which the pod's node counts as gone, perhaps in the future; None without any sign.

        A kubelet that says of itself that it is not ready answers: its network plugin starts again, say.
        """
        if self.node is None or _replaced(self.node, pod):
            return self.now
        if any(taint.get("key") in _GONE_TAINTS for taint in self._taints()):
            return self.now
        ready = condition(self.node, "Ready")
        if ready.get("status") != "Unknown":
            return None
        if self.outage is not None:
            return self.outage.gone_at
        moments = []
        if since := moment(ready.get("lastTransitionTime")):
            moments.append(since + timedelta(seconds=UNREACHABLE_SECONDS))
        if leaves := moment(pod["metadata"].get("deletionTimestamp")):
            moments.append(leaves + timedelta(seconds=OVERSTAY_SECONDS))
        return min(moments, default=None)

    def silent_for_long(self) -> bool:
        """True if its silence alone says that it is gone, or is about to."""
        if self.node is None:
            return False
        ready = condition(self.node, "Ready")
        since = moment(ready.get("lastTransitionTime"))
        known = ready.get("status") == "Unknown" and since is not None
        return known and since is not None and self.now - since >= timedelta(seconds=OVERSTAY_SECONDS)

    def reclaimed(self) -> bool:
        """True if the machine is announced to be taken."""
        if self.node is None:
            return False
        cordoned = bool((self.node.get("spec") or {}).get("unschedulable"))
        return cordoned or reclaim_notice(self.node) is not None

    def answers(self) -> bool:
        """True if the kubelet reports, ready or not."""
        return self.node is not None and condition(self.node, "Ready").get("status") in ("True", "False")

    def answers_since(self) -> datetime | None:
        """Return when the node's Ready last changed, by the node's clock; None if the kubelet does not report.

        The kubelet may have been silent until then.
        """
        if self.node is None or not self.answers():
            return None
        return moment(condition(self.node, "Ready").get("lastTransitionTime"))

    def not_ready(self) -> str:
        """Return why the node is not ready, as its kubelet says; empty where it says no such thing."""
        ready = condition(self.node, "Ready") if self.node is not None else {}
        if ready.get("status") != "False":
            return ""
        return ": ".join(str(ready[field]) for field in ("reason", "message") if ready.get(field)) or "NotReady"

    def is_ready(self) -> bool:
        """True if the kubelet can tell what its containers do, so that what the pod's status says is what is."""
        return self.node is not None and condition(self.node, "Ready").get("status") == "True"

    def is_closed_to(self, tolerations: Sequence[Mapping[str, Any]]) -> bool:
        """True if no pod with these tolerations is scheduled to the node, until somebody opens it again."""
        if self.node is None:
            return True
        closing = [taint for taint in self._taints() if taint.get("effect") in ("NoSchedule", "NoExecute")]
        taints = [taint for taint in closing if not _goes_by_itself(taint)]
        if (self.node.get("spec") or {}).get("unschedulable"):
            taints.append({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
        return any(not any(_tolerates(each, taint) for each in tolerations) for taint in taints)

    def _taints(self) -> list[dict[str, Any]]:
        return _taints(self.node) if self.node else []


def unknown_node(name: str) -> dict[str, Any]:
    """Return a node of which nothing is known: neither gone nor reclaimed, and it does not answer."""
    return {"metadata": {"name": name}}


def reclaim_notice(node: Mapping[str, Any]) -> str | None:
    """Return the sign that the machine is about to go, in words: its taint, or the deletion of the node."""
    taint = next((taint["key"] for taint in _taints(node) if taint.get("key") in _RECLAIM_TAINTS), None)
    if taint is not None:
        return f"taint {taint}"
    announced = next((kind for kind in _RECLAIM_CONDITIONS if condition(node, kind).get("status") == "True"), None)
    if announced is not None:
        return f"condition {announced}"
    return "the node is being deleted" if node["metadata"].get("deletionTimestamp") else None


def condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of that type; empty when there is none."""
    found = ((thing.get("status") or {}).get("conditions")) or []
    return next((c for c in found if c.get("type") == kind), {})


def moment(text: str | None) -> datetime | None:
    """A time of the API's."""
    return datetime.fromisoformat(text) if text else None


def scheduled_at(pod: Mapping[str, Any]) -> datetime | None:
    """Return the time at which the scheduler bound the pod to its node, by the clock of the control plane."""
    scheduled = condition(pod, "PodScheduled")
    return moment(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None


def _goes_by_itself(taint: Mapping[str, Any]) -> bool:
    """True if the control plane, or an agent of the node, takes the taint off as soon as a trouble of the node is over.

    Such as node.kubernetes.io/memory-pressure and node.cilium.io/agent-not-ready.
    """
    domain, _, name = str(taint.get("key") or "").rpartition("/")
    return domain.endswith("kubernetes.io") or name.endswith("not-ready")


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """True if the toleration matches the taint, by the rules of the scheduler."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    key = toleration.get("key")
    if key not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(key) and (toleration.get("value") or "") == (taint.get("value") or "")


def _taints(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (node.get("spec") or {}).get("taints") or []


def _replaced(node: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    """True if the node is younger than the pod's placement on it: the cloud has used the name again.

    Both times are the control plane's, whose processes may have clocks of their own. The pod's start is by the clock of
    its node, and says nothing here but that a kubelet has taken it.
    """
    born, placed = moment(node["metadata"].get("creationTimestamp")), scheduled_at(pod)
    taken = bool((pod.get("status") or {}).get("startTime"))
    return born is not None and placed is not None and born - placed > (_REPLACED_AFTER if taken else timedelta())
