"""Nodes that turn silent together. One dead machine is a preemption; a zone that goes dark comes back, mostly.

While at least three nodes, and more than a third of their zone's or of all, have turned silent within minutes, silence
alone restarts nothing for ten minutes; then one attempt a minute in each zone. What is known of this is read from the
nodes when it matters, so an operator that restarts in the middle decides the same. Only whose turn it was is in memory.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from piton.kube.client import Reads
from piton.kube.nodes import Outage, condition, moment
from piton.kube.resources import NODES, Body
from piton.kube.workqueue import Timer
from piton.rendering.affinity import ZONE

TOGETHER_SECONDS = 300.0
"""Nodes that turn silent within so long of one another do so together."""
NODES_MIN = 3
PART = 3
"""More than one in so many nodes have to be silent."""
PATIENCE_SECONDS = 600.0
"""Seconds for which an outage is waited out."""
TURN_SECONDS = 60.0
"""Between two attempts of a zone that are restarted: a zone's worth of runs must not ask for machines at once."""
FRESH_SECONDS = 10.0
"""Seconds for which a list of all nodes is cached: during an outage hundreds of runs ask for it."""
_FORGOTTEN_SECONDS = 3600.0

_LONG_AGO = datetime.min.replace(tzinfo=UTC)

Turn = tuple[str, str, datetime]
"""The zone, the attempt's job, and since when its node is silent."""


@dataclass(frozen=True, kw_only=True)
class SilentNodes:
    """Nodes that have turned silent together: how many of how many, and where."""

    nodes: int
    silent: int
    where: str
    zone: str
    since: datetime


def silence(node: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> SilentNodes | None:
    """Return the outage that this silent node is part of; None: it is silent alone."""
    since = _silent_since(node)
    if since is None:
        return None
    # Nodes that were launched since replace the silent ones, and say nothing about those that were there.
    zone, everywhere = _zone(node), [other for other in nodes if _born(other) <= since]
    in_zone = [other for other in everywhere if _zone(other) == zone]
    for where, some in ((f"zone {zone}" if zone else "the cluster", in_zone), ("the cluster", everywhere)):
        silent = sum(_turned_silent(other, since) for other in some)
        if silent >= NODES_MIN and silent * PART > len(some):
            return SilentNodes(nodes=len(some), silent=silent, where=where, zone=zone, since=since)
    return None


class Outages:
    """Judges silent nodes of one cluster, and lets the attempts on them go one after the other."""

    def __init__(self, reads: Reads, timer: Timer) -> None:
        self._reads = reads
        self._timer = timer
        self._nodes: list[Body] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._turns: dict[Turn, datetime] = {}
        """Those that have come."""

    async def of(self, node: Mapping[str, Any], job: str, *, now: datetime) -> Outage | None:
        """The outage that a silent node is a part of, with the moment at which it counts as gone for this job's pods.

        Raises:
            PortError: the nodes cannot be listed, and nothing may be decided.
        """
        found = silence(node, await self._all())
        if found is None:
            return None
        words = (
            f"{found.silent} of {found.nodes} nodes of {found.where} have turned silent at {found.since:%H:%M:%S} UTC"
        )
        return Outage(gone_at=self._turn((found.zone, job, found.since), now), words=words)

    async def _all(self) -> list[Body]:
        async with self._reading:
            if self._timer.time() - self._read_at >= FRESH_SECONDS:
                self._nodes = [_kept(node) for node in await self._reads.list(NODES)]
                self._read_at = self._timer.time()
            return self._nodes

    def _turn(self, turn: Turn, now: datetime) -> datetime:
        """Return the time at which the attempt may restart; not after now if it may. A turn is given when it is due."""
        if turn in self._turns:
            return self._turns[turn]
        zone, _, since = turn
        last = max((at for (other, _, _), at in self._turns.items() if other == zone), default=None)
        earliest = since + timedelta(seconds=PATIENCE_SECONDS)
        earliest = earliest if last is None else max(earliest, last + timedelta(seconds=TURN_SECONDS))
        if earliest <= now:
            forgotten = now - timedelta(seconds=_FORGOTTEN_SECONDS)
            self._turns = {known: at for known, at in self._turns.items() if at > forgotten} | {turn: now}
        return earliest


def _kept(node: Mapping[str, Any]) -> Body:
    """Keep the fields of a node that are needed: whole nodes of a large cluster would take many megabytes."""
    labels = {ZONE: _zone(node)}
    born = node["metadata"].get("creationTimestamp")
    conditions = [condition(node, "Ready")]
    return {"metadata": {"labels": labels, "creationTimestamp": born}, "status": {"conditions": conditions}}


def _silent_since(node: Mapping[str, Any]) -> datetime | None:
    ready = condition(node, "Ready")
    return moment(ready.get("lastTransitionTime")) if ready.get("status") == "Unknown" else None


def _turned_silent(node: Mapping[str, Any], since: datetime) -> bool:
    """True if it turned silent at about that time. One that has answered again since then has been silent as well.

    Otherwise the last nodes of a zone that comes back would be few, and their runs restarted at once.
    """
    ready = condition(node, "Ready")
    changed = moment(ready.get("lastTransitionTime"))
    if changed is None:
        return False
    if ready.get("status") == "True":
        return changed > since
    return ready.get("status") == "Unknown" and abs((changed - since).total_seconds()) <= TOGETHER_SECONDS


def _born(node: Mapping[str, Any]) -> datetime:
    return moment(node["metadata"].get("creationTimestamp")) or _LONG_AGO


def _zone(node: Mapping[str, Any]) -> str:
    return str((node["metadata"].get("labels") or {}).get(ZONE) or "")
