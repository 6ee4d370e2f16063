"""The watches of an operator in virtual time: what the API server has to tell reaches its cache when a test says so."""

import random
from collections.abc import Callable
from typing import Any

from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.resources import Resource
from piton.kube.workqueue import Timer
from support.apiserver import ApiServer, Body

Event = tuple[str, Any, Body]


class Feed:
    """Events of the server, on their way to one cache."""

    def __init__(self, server: ApiServer, client: Client, timer: Timer, *, engine: bool = False) -> None:
        self.cache = ClusterCache(client, timer, watched_kinds(engine=engine))
        self.hold: Callable[[Event], bool] = lambda event: False
        """Events for which it is true stay on their way."""
        self.rng: random.Random | None = None
        """With it events of different kinds arrive in another order, and some of them twice."""
        self._server = server
        self._pending: list[Event] = []
        self._forgotten = False
        self.relist()
        server.observers.append(self._on_event)

    def close(self) -> None:
        """Receive nothing any more."""
        self._server.observers.remove(self._on_event)

    def relist(self) -> None:
        """Complete lists of all kinds, as after a 410: what was on its way is lost."""
        self._pending.clear()
        for reflector in self.cache._all():
            kind = _kind(self._server, reflector.resource)
            bodies = self._server.all(kind) if kind else []
            reflector._complete(
                [body for body in bodies if _is_watched(body, reflector._selectors)], self._server.version
            )

    def forget(self) -> None:
        """Answer 410 to whatever the cache asks next: it lists everything anew."""
        self._forgotten = True

    def deliver(self) -> bool:
        """Have what is on its way arrive. True if anything did."""
        if self._forgotten:
            self._forgotten = False
            self.relist()
            return True
        arriving: list[Event] = []
        late: list[Event] = []
        for event in self._pending:  # within a kind the order stays
            behind = any(event[1] == other[1] for other in late)
            (late if behind or self.hold(event) else arriving).append(event)
        self._pending = late
        for event in self._disturbed(arriving):
            self._take(event)
        return bool(arriving)

    def _disturbed(self, events: list[Event]) -> list[Event]:
        if self.rng is None:
            return events
        by_kind: dict[str, list[Event]] = {}
        for event in events:
            twice = self.rng.random() < 0.2
            by_kind.setdefault(str(event[1]), []).extend([event, event] if twice else [event])
        order = [kind for kind, found in by_kind.items() for _ in found]
        self.rng.shuffle(order)
        return [by_kind[kind].pop(0) for kind in order]

    def _on_event(self, event: str, kind: Any, body: Body) -> None:
        self._pending.append((event, kind, body))

    def _take(self, event: Event) -> None:
        name, kind, body = event
        for reflector in self.cache._all():
            same = (reflector.resource.group, reflector.resource.plural) == (kind.group or "", kind.plural)
            if same and _is_watched(body, reflector._selectors):
                reflector._take({"type": name, "object": body})


def _kind(server: ApiServer, resource: Resource) -> Any:
    return next((k for k in server.resources if (k.group or "", k.plural) == (resource.group, resource.plural)), None)


def _is_watched(body: Body, selectors: dict[str, str]) -> bool:
    label, field = selectors.get("labelSelector"), selectors.get("fieldSelector", "")
    kind = field.partition("=")[2]
    return (label is None or label in (body["metadata"].get("labels") or {})) and (
        not kind or (body.get("involvedObject") or {}).get("kind") == kind
    )
