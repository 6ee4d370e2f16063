"""Taints of Piton's on nodes with a broken device: a few at a time, and for a while.

A node that Piton has tainted carries a label as well, by which it is found again without a look at all nodes, and the
time at which the taint goes. A taint without that label is a person's, and stays.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from piton.contract import names
from piton.core.effects import TaintNode
from piton.kube.client import Client
from piton.kube.resources import NODES, Body
from piton.ports import Clock, Conflict, PortError, Refused

_PART = 10
"""One of so many nodes with GPUs may be tainted at a time, or a single one: a program that is wrong about its device
must not take a fleet away from all others."""

_log = logging.getLogger(__name__)


class NodeTaints:
    """The writes to nodes. Each names the version of the node that was read, so no other taint is lost."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._lock = asyncio.Lock()

    async def put(self, effect: TaintNode) -> None:
        """Taint a node, unless it is gone, tainted, or too many are. What is forbidden is logged and holds up no run.

        Raises:
            Conflict, Unavailable: look again.
        """
        async with self._lock:  # two passes that count at the same time would both find room
            try:
                await self._put(effect)
            except Refused as refusal:
                _log.warning("node not tainted", extra={"fields": {"node": effect.node, "error": str(refusal)}})

    async def expire(self) -> None:
        """Take back what has been there for long enough. A failure is logged: this is called again."""
        async with self._lock:
            try:
                for node in await self._client.list(NODES, labels=names.TAINT_DEVICE_FAULT):
                    if _is_over(node, self._clock.now()):
                        await self._remove(node)
            except PortError as error:
                _log.warning("taints not taken back", extra={"fields": {"error": str(error)}})

    async def _put(self, effect: TaintNode) -> None:
        nodes = await self._client.list(NODES)
        node = next((node for node in nodes if node["metadata"]["name"] == effect.node), None)
        if node is None or _is_tainted(node):
            return
        tainted, most = sum(map(_is_tainted, nodes)), max(1, sum(map(_has_gpus, nodes)) // _PART)
        if tainted >= most:
            _log.warning("node not tainted: %d are, and at most %d may be", tainted, most)
            return
        taint = {"key": names.TAINT_DEVICE_FAULT, "value": effect.value, "effect": "NoSchedule"}
        await self._write(node, [*_taints(node), taint], label=effect.value, until=effect.until.isoformat())

    async def _remove(self, node: Body) -> None:
        others = [taint for taint in _taints(node) if taint.get("key") != names.TAINT_DEVICE_FAULT]
        try:
            await self._write(node, others, label=None, until=None)
        except Conflict:  # the node has changed: the next time
            return

    async def _write(
        self, node: Body, taints: Sequence[dict[str, Any]], *, label: str | None, until: str | None
    ) -> None:
        metadata = {
            "resourceVersion": node["metadata"]["resourceVersion"],
            "labels": {names.TAINT_DEVICE_FAULT: label},
            "annotations": {names.ANNOTATION_DEVICE_FAULT_UNTIL: until},
        }
        body = {"metadata": metadata, "spec": {"taints": list(taints)}}
        await self._client.patch(NODES, node["metadata"]["name"], body)


def _taints(node: Body) -> list[dict[str, Any]]:
    return list((node.get("spec") or {}).get("taints") or ())


def _is_tainted(node: Body) -> bool:
    return any(taint.get("key") == names.TAINT_DEVICE_FAULT for taint in _taints(node))


def _has_gpus(node: Body) -> bool:
    """Capacity, not what is allocatable: that of a broken node may be 0."""
    return str(((node.get("status") or {}).get("capacity") or {}).get(names.GPU, "0")) != "0"


def _is_over(node: Body, now: datetime) -> bool:
    """A time that a person has made unreadable never comes."""
    text = (node["metadata"].get("annotations") or {}).get(names.ANNOTATION_DEVICE_FAULT_UNTIL, "")
    try:
        return datetime.fromisoformat(text) <= now
    except (ValueError, TypeError):
        return False
