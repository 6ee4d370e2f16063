"""The operator's own copy of the objects that matter, kept in step by watches.

A pass over a run reads from here, and costs the API server nothing. What it then creates or deletes is decided again on
live reads; see docs/decisions/0058.
"""

import asyncio
import logging
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from piton.contract import names
from piton.engine.job import LABEL_JOB
from piton.kube import kept_fields
from piton.kube.client import Client
from piton.kube.errors import NotFound
from piton.kube.kueue import WORKLOADS
from piton.kube.reflector import Listener, Reflector
from piton.kube.resources import (
    CLAIMS,
    EVENTS,
    JOBS,
    NODES,
    PODS,
    QUOTAS,
    RUNS,
    SERVICES,
    SWEEPS,
    Body,
    Resource,
    Selector,
)
from piton.kube.store import Change, IndexValue, KeepFields, Store
from piton.kube.workqueue import Timer
from piton.ports import PortError
from piton.rendering.affinity import ZONE

EVENTS_MOST = 20_000
"""Events of pods that are kept, of all pods of the cluster; about 0.5 KB each."""

Reflectors = list[Reflector]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WatchedKind:
    """A kind of object that is watched, and what is kept of it."""

    resource: Resource
    keep: KeepFields
    labels: str | None = None
    fields: str | None = None
    indexes: Mapping[str, IndexValue] = field(default_factory=dict)
    most: int | None = None


def by_label(label: str) -> dict[str, IndexValue]:
    """Return an index by the value of a label."""

    def value(body: Mapping[str, Any]) -> str | None:
        found = (body["metadata"].get("labels") or {}).get(label)
        return None if found is None else str(found)

    return {label: value}


def by_presence(label: str) -> dict[str, IndexValue]:
    """Return indexes of the objects that have a label, and of those that lack it."""

    def lacks(body: Mapping[str, Any]) -> bool:
        return label not in (body["metadata"].get("labels") or {})

    return {
        f"+{label}": lambda body: None if lacks(body) else "",
        f"!{label}": lambda body: "" if lacks(body) else None,
    }


def by_subject() -> dict[str, IndexValue]:
    """Return an index of Events by the uid of the object that they are about."""

    def value(body: Mapping[str, Any]) -> str | None:
        return str((body.get("involvedObject") or {}).get("uid") or "") or None

    return {"involvedObject.uid": value}


def watched_kinds(*, engine: bool) -> tuple[WatchedKind, ...]:
    """Return all that is watched; services only for the bundled controller of PyTorchJobs."""
    run, own = by_label(names.LABEL_RUN), kept_fields.of_own
    of_jobs = by_label(LABEL_JOB) if engine else {}
    found = [
        WatchedKind(resource=RUNS, keep=own, indexes=by_label(names.LABEL_SWEEP)),
        WatchedKind(resource=SWEEPS, keep=own),
        WatchedKind(resource=JOBS, keep=own, labels=names.LABEL_RUN, indexes=run),
        WatchedKind(resource=PODS, keep=kept_fields.of_pod, labels=names.LABEL_RUN, indexes=run | of_jobs),
        WatchedKind(resource=CLAIMS, keep=own),
        WatchedKind(resource=NODES, keep=kept_fields.of_node, indexes=by_presence(ZONE)),
        WatchedKind(resource=WORKLOADS, keep=own, labels=names.LABEL_RUN, indexes=run),
        WatchedKind(resource=QUOTAS, keep=kept_fields.of_quota),
    ]
    if engine:
        keep = kept_fields.of_service
        found.append(WatchedKind(resource=SERVICES, keep=keep, labels=names.LABEL_RUN, indexes=of_jobs))
    return (*found, *map(_events_about, ("Pod", "PyTorchJob")))


def _events_about(kind: str) -> WatchedKind:
    return WatchedKind(
        resource=EVENTS,
        keep=kept_fields.of_event,
        fields=f"involvedObject.kind={kind}",
        indexes=by_subject(),
        most=EVENTS_MOST,
    )


class ClusterCache:
    """All watched objects. Kinds that are not watched are read live. For one event loop."""

    def __init__(
        self,
        client: Client,
        timer: Timer,
        watched: Iterable[WatchedKind],
        *,
        namespaces: tuple[str, ...] = (),
        stuck_seconds: float = 300.0,
    ) -> None:
        self._client = client
        self._stuck_seconds = stuck_seconds
        """Seconds without an event or a request on one kind after which the operator counts as ill."""
        self._reflectors: defaultdict[Resource, Reflectors] = defaultdict(list)
        self._listeners: defaultdict[Resource, list[Listener]] = defaultdict(list)
        for kind in watched:
            scopes = namespaces if namespaces and kind.resource.namespaced else (None,)
            for namespace in scopes:
                self._reflectors[kind.resource].append(self._reflector(kind, namespace, timer))
        client.on_written = self.take_written

    def subscribe(self, resource: Resource, listener: Listener) -> None:
        """Have the listener called with each change of an object of this kind, in the event loop."""
        self._listeners[resource].append(listener)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._all():
                tasks.create_task(reflector.run(), name=f"watch {reflector.resource.plural}")

    async def synced(self) -> None:
        """Wait until every kind has been listed, or cannot be."""
        for reflector in self._all():
            await reflector.synced.wait()

    def take_written(self, resource: Resource, body: Body) -> None:
        """Take in what the API server has answered to a write of our own: the watch only repeats it."""
        if resource == EVENTS:  # those are about runs, and only those about pods and jobs are kept
            return
        for reflector in self._of(resource, body["metadata"].get("namespace")):
            if not reflector.watches(body):
                continue
            reflector.look_if_absent()
            change = reflector.store.put(body)
            if change is not None:
                self._publish(resource, change)

    def ailment(self) -> str | None:
        """Return the problem of a watch that hangs, in a sentence; None while all work."""
        for reflector in self._all():
            seconds = reflector.idle_seconds()
            if seconds > self._stuck_seconds:
                return f"the watch on {reflector.resource.plural} has done nothing for {seconds:.0f} s"
        return None

    def trouble(self, resource: Resource, namespace: str | None) -> PortError | None:
        """Return the error that keeps this kind from being watched; None while it is watched, or never is."""
        return next((each.unusable for each in self._of(resource, namespace) if each.unusable), None)

    def is_watched(self, resource: Resource, namespace: str | None) -> bool:
        """True if changes of this kind are noticed; False while it may not be watched, or has failed for long."""
        reflectors = self._of(resource, namespace)
        return bool(reflectors) and all(each.unusable is None for each in reflectors)

    def peek(self, resource: Resource, namespace: str | None, name: str) -> Body | None:
        """Return one object as last seen, without any live read."""
        reflectors = self._of(resource, namespace)
        return next((found for each in reflectors if (found := each.store.get(namespace, name))), None)

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Body | None:
        """Return one object as last seen; None: it does not exist.

        Raises:
            PortError: it had to be read live, and that failed.
        """
        if self._is_live(self._of(resource, namespace)):
            return await self._client.get(resource, name, namespace=namespace)
        return self.peek(resource, namespace, name)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        most: int | None = None,
    ) -> list[Body]:
        """Return all objects that match, as last seen.

        Raises:
            PortError: they had to be read live, and that failed.
        """
        reflectors = self._of(resource, namespace)
        if self._is_live(reflectors):
            return await self._client.list(resource, namespace=namespace, labels=labels, fields=fields, most=most)
        selector = Selector.parse(labels, fields)
        terms = {**selector.equal, **{f"+{name}": "" for name in selector.present}}
        terms |= {f"!{name}": "" for name in selector.absent}
        found: list[Body] = []
        for reflector in reflectors:
            indexed = {name: value for name, value in terms.items() if reflector.store.has_index(name)}
            for body in reflector.store.select(namespace, indexed):
                if selector.matches(body):
                    found.append(body)
                if most is not None and len(found) >= most:
                    return found
        return found

    def _reflector(self, kind: WatchedKind, namespace: str | None, timer: Timer) -> Reflector:
        resource = kind.resource
        return Reflector(
            self._client,
            resource,
            Store(kind.keep, kind.indexes, most=kind.most),
            lambda change: self._publish(resource, change),
            timer=timer,
            namespace=namespace,
            labels=kind.labels,
            fields=kind.fields,
            do_others_work=self._do_others_work,
        )

    def _do_others_work(self, failing: Reflector) -> bool:
        """True if the API server answers the watches of other kinds: then it is not the server that is away."""
        return any(each.works() for each in self._all() if each.resource != failing.resource)

    def _publish(self, resource: Resource, change: Change) -> None:
        for listener in self._listeners[resource]:
            try:
                listener(change)
            except Exception:  # noqa: BLE001 - a bug that one object meets must not end the watch
                fields = {"resource": resource.plural, "traceback": traceback.format_exc()}
                _log.exception("a change was not taken in", extra={"fields": fields})

    def _all(self) -> Reflectors:
        return [reflector for group in self._reflectors.values() for reflector in group]

    def _of(self, resource: Resource, namespace: str | None) -> Reflectors:
        return [
            each
            for each in self._reflectors.get(resource, ())
            if None in (namespace, each.namespace) or each.namespace == namespace
        ]

    @staticmethod
    def _is_live(reflectors: Reflectors) -> bool:
        """True if nothing is known of these: not watched, or forbidden. What is not served any more stays as it was."""
        return not reflectors or any(each.unusable and not isinstance(each.unusable, NotFound) for each in reflectors)
