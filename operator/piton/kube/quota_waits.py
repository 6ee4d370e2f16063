"""The objects of one controller that wait for room in a ResourceQuota, and which of them is tried when there is some.

        refused          room            created            room for no more
    ---> [line] ---> first of the line ---> the next one ---> ... ---> refused: to the end of the line

One at a time in each namespace: k freed places cost k + 1 tries, however many wait. How much each one needs is not
looked at, so one that does not fit may be tried before one that would: that one has its turn with the next room, or
when its own time has come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from piton.kube.events import Key
from piton.kube.store import Change
from piton.kube.workqueue import WorkQueue

SETTLE_SECONDS = 1.0
"""Seconds between news of room and the first try: each API server has its own copy of the quota, perhaps an older one
than ours."""


@dataclass
class _Pass:
    """A pass that is under way."""

    was_refused: bool = False
    room_came: bool = False
    """True if room came after it had begun: it may have been refused before that."""


class QuotaWaits:
    """The objects that wait for room, in the order in which they are tried. For one event loop."""

    def __init__(self, queue: WorkQueue[Key]) -> None:
        self._queue = queue
        self._lines: dict[str, dict[Key, None]] = {}
        """By namespace; the first has waited longest since it was tried for room."""
        self._tried: dict[str, Key] = {}
        """By namespace: the one that is tried for room now, or soon."""
        self._passes: dict[Key, _Pass] = {}

    def __contains__(self, key: Key) -> bool:
        """True if the object waits for room."""
        return key in self._lines.get(key[0], ())

    def room_came(self, namespace: str) -> None:
        """Have the object tried that has waited longest in this namespace."""
        for key, found in self._passes.items():
            found.room_came = found.room_came or key[0] == namespace
        self._try_next(namespace, SETTLE_SECONDS)

    def pass_began(self, key: Key) -> None:
        """A pass over the object begins; `pass_ended` has to follow."""
        self._passes[key] = _Pass()

    def was_refused(self, key: Key) -> None:
        """The pass over the object met a quota without room."""
        self._passes[key].was_refused = True

    def pass_ended(self, key: Key, *, failed: bool) -> None:
        """The pass is over. One that failed says nothing about room: the object stays in line, and is tried again."""
        found = self._passes.pop(key)
        if found.was_refused:
            self._lines.setdefault(key[0], {}).setdefault(key)
        if found.was_refused or (failed and key in self):
            self._stay(key)
        else:
            self._leave(key)
        if found.room_came:
            self._try_next(key[0], SETTLE_SECONDS)

    def _stay(self, key: Key) -> None:
        """Go to the end of the line after a try for room; after any other pass the object keeps its place."""
        namespace, line = key[0], self._lines[key[0]]
        if self._tried.get(namespace) == key:
            del self._tried[namespace]
            line[key] = line.pop(key)

    def _leave(self, key: Key) -> None:
        """Leave the line. What was created, or wants nothing more, may have left room for the next one."""
        namespace = key[0]
        if key not in self:
            return
        del self._lines[namespace][key]
        if not self._lines[namespace]:
            del self._lines[namespace]
        if self._tried.get(namespace) == key:
            del self._tried[namespace]
        self._try_next(namespace, 0.0)

    def _try_next(self, namespace: str, seconds: float) -> None:
        line = self._lines.get(namespace)
        if line and namespace not in self._tried:
            key = self._tried[namespace] = next(iter(line))
            self._queue.add_after(key, seconds, urgent=True)


def gives_room(change: Change) -> bool:
    """True if the quota has more room for any resource than before, or does not limit it any more."""
    before = _status(change.before)
    after = {"hard": {}} if change.deleted else _status(change.after)
    return any(_has_more(resource, before, after) for resource in before.get("hard") or ())


def _has_more(resource: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if resource not in (after.get("hard") or {}):
        return True
    return _room(resource, after) > max(_room(resource, before), Decimal(0))


def _room(resource: str, status: Mapping[str, Any]) -> Decimal:
    used = (status.get("used") or {}).get(resource, "0")
    return Decimal(parse_quantity(status["hard"][resource])) - Decimal(parse_quantity(used))


def _status(quota: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (quota or {}).get("status") or {}
