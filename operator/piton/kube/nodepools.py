"""Karpenter's NodePools: how they drain their nodes. Read rarely, because only administrators change them.

Where there is no Karpenter, or no right to read its NodePools, nothing is known and nothing is said.
"""

from collections.abc import Mapping
from typing import Any

from piton.contract.duration import parse_duration
from piton.kube.client import Client
from piton.kube.resources import NODE_POOLS
from piton.kube.workqueue import Timer
from piton.observed import NodePoolSeen
from piton.ports import PortError

POOL_LABEL = "karpenter.sh/nodepool"
_CAPACITY = "karpenter.sh/capacity-type"
FRESH_SECONDS = 600.0
"""Seconds for which an answer is cached, including the answer that nothing is known."""


class NodePools:
    """The NodePools of one cluster, as they were when they were last read."""

    def __init__(self, client: Client, timer: Timer) -> None:
        self._client = client
        self._timer = timer
        self._read: dict[str, tuple[float, Mapping[str, Any] | None]] = {}

    async def of(self, node: Mapping[str, Any]) -> NodePoolSeen | None:
        """The NodePool of a node; None where it has none, or nothing is known of it."""
        labels = node["metadata"].get("labels") or {}
        name = labels.get(POOL_LABEL)
        pool = await self._pool(name) if name else None
        if pool is None:
            return None
        text = (((pool.get("spec") or {}).get("template") or {}).get("spec") or {}).get("terminationGracePeriod")
        try:
            seconds = None if text is None else parse_duration(text)
        except ValueError:
            return None
        return NodePoolSeen(name=str(name), drain_seconds=seconds, is_spot=labels.get(_CAPACITY) == "spot")

    async def _pool(self, name: str) -> Mapping[str, Any] | None:
        at, pool = self._read.get(name, (float("-inf"), None))
        if self._timer.time() - at < FRESH_SECONDS:
            return pool
        try:
            pool = await self._client.get(NODE_POOLS, name)
        except PortError:
            pool = None
        self._read[name] = self._timer.time(), pool
        return pool
