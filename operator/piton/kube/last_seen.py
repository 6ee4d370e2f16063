"""The last state of pods and nodes that are gone, from watches.

The reason for which the cluster took a pod is evidence, and stands in the pod's last state. In memory and bounded: an
operator that was away has seen nothing, and judges by what is left.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from piton.api.status import PlacedReplica
from piton.kube.nodes import reclaim_notice
from piton.kube.ownership import controller
from piton.kube.pods import as_placed, disruption_of

_MOST = 4096
"""Pods, and nodes, that are remembered; the one that was seen longest ago goes first. A few hundred bytes each."""


class Sightings:
    """The last words about pods, by uid, and about nodes, by name."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._disruptions: OrderedDict[str, str] = OrderedDict()
        self._notices: OrderedDict[str, str] = OrderedDict()
        self._disrupted: OrderedDict[str, list[PlacedReplica]] = OrderedDict()

    def pod_went(self, pod: Mapping[str, Any]) -> None:
        """A pod was deleted, and this was its last state."""
        disruption = disruption_of(pod)
        self._note(self._disruptions, str(pod["metadata"].get("uid", "")), disruption)
        job, placed = controller(pod), as_placed(pod)
        if disruption and job and placed:
            self._disrupted.setdefault(str(job.get("uid")), []).append(placed)
            if len(self._disrupted) > self._most:
                self._disrupted.popitem(last=False)

    def disrupted(self, job_uid: str) -> tuple[PlacedReplica, ...]:
        """Return the pods of a job that the cluster took, as far as their deletion was seen."""
        return tuple(self._disrupted.get(job_uid, ()))

    def node_changed(self, node: Mapping[str, Any]) -> None:
        """A node is so now, or was when it was deleted. What is withdrawn is forgotten."""
        self._note(self._notices, str(node["metadata"]["name"]), reclaim_notice(node))

    def disruption(self, pod_uid: str) -> str | None:
        """Return the cluster's reason for which the pod was taken."""
        return self._disruptions.get(pod_uid)

    def notice(self, node: str) -> str | None:
        """Return the announcement of the node's end."""
        return self._notices.get(node)

    def _note(self, notes: OrderedDict[str, str], key: str, text: str | None) -> None:
        notes.pop(key, None)
        if text is None:
            return
        notes[key] = text
        if len(notes) > self._most:
            notes.popitem(last=False)
