"""The operator's half for TrainingSweeps: what it sees of one, and how it creates and steers its runs.

A run of a sweep is served like any other, by the runs' own half; here it is only created, held back, let go, and given
what is left of the sweep's time.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, assert_never

from piton.api import parse as runs
from piton.api.deadline import deadline_of
from piton.api.spec import Meta
from piton.contract import names
from piton.core.decide import REFUSED
from piton.drive import independent, run_pass
from piton.kube.cache import ClusterCache
from piton.kube.client import Client, Reads
from piton.kube.controller_base import Worker
from piton.kube.errors import NotFound
from piton.kube.events import EventAnnouncer, EventRateLimiter, Key
from piton.kube.metrics import SWEEP, OperatorMetrics
from piton.kube.operator_errors import tells_only_error
from piton.kube.ownership import create, owned
from piton.kube.resources import RUNS, SWEEPS, Body
from piton.kube.settings import PitonSettings
from piton.kube.store import Change, version_of
from piton.kube.workqueue import Timer
from piton.ports import Clock, Conflict, Refused, Unavailable
from piton.rendering.pytorchjob import owner
from piton.sweep.decide import decide, is_binding
from piton.sweep.expand import PlannedRun, as_duration, limited
from piton.sweep.observed import (
    CreateRun,
    MoveDeadline,
    Refusals,
    ResumeRun,
    RunSeen,
    SuspendRun,
    SweepDecision,
    SweepEffect,
    SweepObserved,
    name_of,
)
from piton.sweep.parse import parse
from piton.sweep.refusals import refused
from piton.sweep.status import SweepStatus

TOGETHER_SECONDS = 1.0
"""Changes of runs within this time are one for their sweep."""

_PARSED_AT_ONCE = 20
"""Runs that are parsed before others have their turn; up to 30 ms."""
_SEEN_MOST = 4096
"""Runs whose parsed form is kept; about 20 KB each."""

_log = logging.getLogger(__name__)


class SweepWorld:
    """One sweep on a cluster, for one pass."""

    def __init__(
        self, client: Client, clock: Clock, namespace: str, name: str, *, cache: Reads | None = None, seen: "SeenRuns"
    ) -> None:
        self._client = client
        self._cache = cache
        self._read_live = False
        self._seen = seen
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._manifest: Body = {}
        self.observed: SweepObserved | None = None

    @property
    def meta(self) -> Meta | None:
        """The sweep's metadata as last observed."""
        return self.observed.meta if self.observed else None

    @property
    def is_cached(self) -> bool:
        """True if the last observation came from the cache."""
        return self._cache is not None and not self._read_live

    async def observe(self, *, live: bool = False) -> SweepObserved | None:
        """Read the sweep and its runs."""
        self.observed, self._read_live = None, live
        reads = self._client if live or self._cache is None else self._cache
        try:
            manifest = await reads.get(SWEEPS, self._name, namespace=self._namespace)
            if manifest is None:
                return None
            selector = f"{names.LABEL_SWEEP}={self._name}"
            found = await reads.list(RUNS, namespace=self._namespace, labels=selector)
        except Refused as refusal:
            raise Unavailable(f"this operator may not read what it has to: {refusal}") from refusal
        self._manifest, parsed = manifest, parse(manifest)
        runs = await self._parsed(run for run in found if owned(run, parsed.meta))
        self.observed = SweepObserved(
            meta=parsed.meta,
            spec=parsed.spec,
            plan=parsed.plan,
            problems=parsed.problems,
            meanwhile=parsed.meanwhile,
            status=parsed.status,
            runs=runs,
        )
        return self.observed

    async def _parsed(self, manifests: Iterable[Body]) -> tuple[RunSeen, ...]:
        """Parse the runs, some at a time: others need the event loop as well."""
        found = []
        for number, manifest in enumerate(manifests, start=1):
            found.append(self._seen.of(manifest))
            if number % _PARSED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return tuple(found)

    async def apply(self, effect: SweepEffect) -> None:
        """Carry out one effect."""
        match effect:
            case CreateRun():
                await self._create(effect)
            case SuspendRun(name=name):
                await self._patch(name, {"spec": {"suspend": True}, **_mark(names.SWEEP_KIND)})
            case ResumeRun(name=name):
                await self._patch(name, {"spec": {"suspend": False}, **_mark(None)})
            case MoveDeadline(name=name, seconds=seconds):
                deadline = None if seconds is None else as_duration(seconds)
                await self._patch(name, {"spec": {"limits": {"deadline": deadline}}})
            case _:
                assert_never(effect)

    async def write_status(self, status: SweepStatus) -> None:
        """Replace the status, unless anybody has written to the sweep since it was observed."""
        try:
            await self._client.replace_status(SWEEPS, {**self._manifest, "status": status.to_wire()})
        except NotFound as error:
            raise Conflict(f"the sweep is gone: {error}") from error

    async def _create(self, effect: CreateRun) -> None:
        assert self.observed is not None, "observe comes first"
        body = _manifest(self.observed.meta, effect.run, limited(effect.run, effect.until, self._clock.now()))
        await create(self._client, RUNS, body, self.observed.meta, owner="sweep")

    async def _patch(self, name: str, body: Body) -> None:
        """Merge into a run. One that is gone is one that has changed: the next look finds out."""
        try:
            await self._client.patch(RUNS, name, body, namespace=self._namespace)
        except NotFound as error:
            raise Conflict(f"the run is gone: {error}") from error


def _mark(holder: str | None) -> Body:
    return {"metadata": {"annotations": {names.ANNOTATION_HELD: holder}}}


def _manifest(meta: Meta, run: PlannedRun, spec: dict[str, Any]) -> Body:
    return {
        "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
        "kind": names.KIND,
        "metadata": {
            "name": run.name,
            "namespace": meta.namespace,
            "labels": {**_queue_labels(meta), **run.labels},
            "annotations": dict(run.annotations),
            "ownerReferences": [owner(meta, names.SWEEP_KIND)],
        },
        "spec": spec,
    }


def _queue_labels(meta: Meta) -> dict[str, str]:
    """A sweep that is labelled for a queue means its runs; what the template says of one goes first."""
    labels = {names.LABEL_QUEUE: meta.queue, names.LABEL_PRIORITY_CLASS: meta.priority_class}
    return {key: value for key, value in labels.items() if value}


def _seen(manifest: Body) -> RunSeen:
    parsed = runs.parse(manifest)
    spec = manifest.get("spec") or {}
    return RunSeen(
        name=parsed.meta.name,
        created=parsed.meta.created,
        suspend=bool(spec.get("suspend")),
        held=names.ANNOTATION_HELD in (manifest["metadata"].get("annotations") or {}),
        ends_at=deadline_of(parsed.meta, parsed.spec) if parsed.spec else None,
        spec=parsed.spec,
        uid=parsed.meta.uid,
        status=parsed.status,
    )


class SeenRuns:
    """Runs of sweeps as they were last parsed. Most of a sweep's runs have not changed since its last pass."""

    def __init__(self, most: int = _SEEN_MOST) -> None:
        self._most = most
        self._seen: OrderedDict[str, tuple[int, RunSeen]] = OrderedDict()

    def of(self, manifest: Body) -> RunSeen:
        """Return the run as the sweep sees it."""
        uid, version = str(manifest["metadata"].get("uid")), version_of(manifest)
        known = self._seen.pop(uid, None)
        if known is None or known[0] != version:
            known = version, _seen(manifest)
        self._seen[uid] = known
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return known[1]


class SweepController(Worker):
    """Serves TrainingSweeps."""

    kind = SWEEP
    resource = SWEEPS

    def __init__(
        self,
        client: Client,
        clock: Clock,
        timer: Timer,
        settings: PitonSettings,
        meter: OperatorMetrics,
        *,
        cache: ClusterCache | None = None,
    ) -> None:
        super().__init__(client, clock, timer, settings, meter, cache=cache)
        self._ration = EventRateLimiter(clock)
        self._seen = SeenRuns()
        self._rules = independent(self._decide, self._turn_down, is_binding, name_of)

    def subscribe(self, cache: ClusterCache) -> None:
        """Look at a sweep when it changes, or one of its runs."""
        cache.subscribe(SWEEPS, self._on_sweep)
        cache.subscribe(RUNS, self._on_run)

    def _on_sweep(self, change: Change) -> None:
        metadata = change.body["metadata"]
        if not tells_only_error(change):
            self.wake(metadata["namespace"], metadata["name"], urgent=change.before is None)

    def _on_run(self, change: Change) -> None:
        metadata = change.body["metadata"]
        sweep = (metadata.get("labels") or {}).get(names.LABEL_SWEEP)
        if sweep:
            self.saw_run(metadata["namespace"], sweep)

    def saw_run(self, namespace: str, sweep: str) -> None:
        """A run of the sweep changed; so do others, so it is looked at once for all of them."""
        self.queue.add_after((namespace, sweep), TOGETHER_SECONDS)

    async def resync(self, *, seconds: float = 0.0) -> None:
        """Have every sweep looked at."""
        try:
            await super().resync(seconds=seconds)
        except NotFound:  # a cluster whose CRDs are older than this operator has none
            return

    async def reconcile(self, key: Key) -> None:
        """Observe, decide, apply; and when to look again."""
        world = SweepWorld(self._client, self._clock, *key, cache=self.reads(key), seen=self._seen)
        announcer = EventAnnouncer(self._client, self._clock, self._ration, lambda: world.meta, kind=names.SWEEP_KIND)
        decision = await run_pass(world, announcer, self._rules, self.failures(key))
        self.hold_back(key, refused=decision is not None and decision.rule == REFUSED)
        if decision is None:
            self.forget_failures(key)
            self._meter.forget_sweep(key)
            self._ration.forget(key)
            return
        _log_decision(key, decision, world.observed)
        self._meter.show_sweep(key, decision.status)
        if decision.look_again_seconds is not None:
            self.queue.add_after(key, decision.look_again_seconds)

    def _decide(self, observed: SweepObserved) -> SweepDecision:
        return decide(observed, now=self._clock.now(), timing=self._settings.timing)

    def _turn_down(self, observed: SweepObserved, decision: SweepDecision, refusals: Refusals) -> SweepDecision:
        return refused(observed, decision, refusals, now=self._clock.now(), timing=self._settings.timing)


def _log_decision(key: Key, decision: SweepDecision, observed: SweepObserved | None) -> None:
    """One line for each decision that changes something."""
    if observed is None or (not decision.effects and decision.status.phase is observed.status.phase):
        return
    fields: dict[str, object] = {
        "sweep": "/".join(key),
        "rule": decision.rule,
        "phase": decision.status.phase.value,
        "done": decision.status.done,
        "effects": [type(effect).__name__ for effect in decision.effects],
        "told": [news.message for news in decision.announcements],
    }
    _log.info("sweep decided", extra={"fields": fields})
