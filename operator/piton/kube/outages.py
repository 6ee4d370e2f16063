"""Nodes that turn silent together. One dead machine is a preemption; a zone that goes dark comes back, mostly.

While at least three nodes, and more than a third of their zone's or of all, have turned silent within minutes, silence
alone restarts nothing for ten minutes; then the zone's attempts go one after the other (`zone_turns.py`). What is known
of this is read from the nodes when it matters, so an operator that restarts in the middle decides the same. Only whose
turn it was is in memory.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from piton.api.conditions import settled
from piton.api.deadline import deadline_after
from piton.api.spec import Meta, Spec
from piton.api.status import AttemptState, RunStatus, Verdict
from piton.kube.client import Reads
from piton.kube.nodes import Outage, condition, moment
from piton.kube.resources import NODES
from piton.kube.workqueue import Timer
from piton.kube.zone_turns import TOGETHER_SECONDS, Urgency, ZoneTurns
from piton.observed import AttemptSeen
from piton.rendering.affinity import ZONE

NODES_MIN = 3
PART = 3
"""More than one in so many nodes have to be silent."""
FRESH_SECONDS = 10.0
"""Seconds for which what is known of all nodes is used: during an outage hundreds of runs ask for it."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The facts of one node by which an outage is judged. Times are in seconds since 1970."""

    zone: str
    born: float
    ready: str
    changed: float | None
    """The time at which it turned ready or silent."""

    @property
    def silent_since(self) -> float | None:
        """Since when it is silent; None: it is not."""
        return self.changed if self.ready == "Unknown" else None


@dataclass(frozen=True, kw_only=True)
class SilentNodes:
    """Nodes that have turned silent together: how many of how many, and where."""

    nodes: int
    silent: int
    where: str
    zone: str
    since: datetime


def silence(node: Mapping[str, Any] | NodeFacts, nodes: Iterable[Mapping[str, Any] | NodeFacts]) -> SilentNodes | None:
    """Return the outage that this silent node is part of; None: it is silent alone."""
    return Digest(map(_kept, nodes)).silence(_kept(node))


class Digest:
    """All nodes at one time. Nodes of a zone that turned silent in the same second are judged once."""

    def __init__(self, nodes: Iterable[NodeFacts] = ()) -> None:
        self._nodes = list(nodes)
        self._zones: defaultdict[str, list[NodeFacts]] = defaultdict(list)
        for node in self._nodes:
            self._zones[node.zone].append(node)
        self._known: dict[tuple[str, float], SilentNodes | None] = {}

    def silence(self, node: NodeFacts) -> SilentNodes | None:
        """Return the outage that this silent node is part of; None: it is silent alone."""
        since = node.silent_since
        if since is None:
            return None
        key = node.zone, since
        if key not in self._known:
            self._known[key] = self._judge(node.zone, since)
        return self._known[key]

    def _judge(self, zone: str, since: float) -> SilentNodes | None:
        for where, some in (
            (f"zone {zone}" if zone else "the cluster", self._zones[zone]),
            ("the cluster", self._nodes),
        ):
            # Nodes that were launched since replace the silent ones, and say nothing about those that were there.
            older = [node for node in some if node.born <= since]
            silent = sum(_turned_silent(node, since) for node in older)
            if silent >= NODES_MIN and silent * PART > len(older):
                at = datetime.fromtimestamp(since, UTC)
                return SilentNodes(nodes=len(older), silent=silent, where=where, zone=zone, since=at)
        return None


class Outages:
    """Judges silent nodes of one cluster, and lets the attempts on them go one after the other."""

    def __init__(self, reads: Reads, timer: Timer) -> None:
        self._reads = reads
        self._timer = timer
        self._digest = Digest()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._turns = ZoneTurns()

    async def of(
        self, node: Mapping[str, Any], job: str, *, now: datetime, urgency: Urgency | None = None
    ) -> Outage | None:
        """The outage that a silent node is a part of, with the moment at which it counts as gone for this job's pods.

        Raises:
            PortError: the nodes cannot be listed, and nothing may be decided.
        """
        found = (await self._all()).silence(_kept(node))
        if found is None:
            return None
        words = (
            f"{found.silent} of {found.nodes} nodes of {found.where} have turned silent at {found.since:%H:%M:%S} UTC"
        )
        gone_at = self._turns.take(found.zone, job, found.since, urgency or Urgency(), now)
        return Outage(gone_at=gone_at, words=words)

    def follow(self, run: str, *, unplaced_since: datetime | None) -> None:
        """Note since when the newest attempt of a run waits for a machine; None: it does not."""
        self._turns.follow(run, unplaced_since=unplaced_since)

    def forget(self, run: str) -> None:
        """Forget a run that is gone."""
        self._turns.forget(run)

    async def _all(self) -> Digest:
        async with self._reading:
            if self._timer.time() - self._read_at >= FRESH_SECONDS:
                self._digest = Digest([_kept(node) for node in await self._reads.list(NODES)])
                self._read_at = self._timer.time()
            return self._digest


def starts_another(meta: Meta, status: RunStatus, spec: Spec | None) -> bool:
    """True if the end of the current attempt would start another one. Else no machine is asked for elsewhere."""
    last = status.current
    over = last is not None and (last.permanent or last.verdict in (Verdict.STOPPED, Verdict.FINISHED))
    return not (meta.deleting or settled(status) or over or (spec is not None and spec.suspend))


def urgency_of(meta: Meta, spec: Spec | None, workload: Mapping[str, Any] | None) -> Urgency:
    """Return the place of the run among those that leave a zone; its priority is that of its Workload."""
    priority = int(((workload or {}).get("spec") or {}).get("priority") or 0)
    after = spec.limits.deadline if spec else None
    deadline = deadline_after("limits", after, meta.created).time if after else None
    return Urgency(priority=priority, deadline=deadline, created=meta.created)


def unplaced_since(meta: Meta, status: RunStatus, attempts: Iterable[AttemptSeen]) -> datetime | None:
    """Return since when the newest attempt waits for machines; None: it has them, has ended, or is to end."""
    record = status.current
    if meta.deleting or record is None or record.state in (AttemptState.STOPPING, AttemptState.ENDED):
        return None
    replicas = [replica for seen in attempts if seen.number == record.number for replica in seen.replicas]
    return None if replicas and all(replica.node for replica in replicas) else record.created_time


def _kept(node: Mapping[str, Any] | NodeFacts) -> NodeFacts:
    """Keep the facts of a node that are needed: whole nodes of a large cluster would take many megabytes."""
    if isinstance(node, NodeFacts):
        return node
    ready = condition(node, "Ready")
    return NodeFacts(
        zone=str((node["metadata"].get("labels") or {}).get(ZONE) or ""),
        born=_seconds(node["metadata"].get("creationTimestamp")) or 0.0,
        ready=str(ready.get("status") or ""),
        changed=_seconds(ready.get("lastTransitionTime")),
    )


def _turned_silent(node: NodeFacts, since: float) -> bool:
    """True if it turned silent at about that time. One that has answered again since then has been silent as well.

    Otherwise the last nodes of a zone that comes back would be few, and their runs restarted at once.
    """
    if node.changed is None:
        return False
    if node.ready == "True":
        return node.changed > since
    return node.ready == "Unknown" and abs(node.changed - since) <= TOGETHER_SECONDS


def _seconds(text: str | None) -> float | None:
    found = moment(text)
    return None if found is None else found.timestamp()
