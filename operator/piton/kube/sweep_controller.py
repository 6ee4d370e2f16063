"""The operator's half for TrainingSweeps: what it sees of one, and how it creates and steers its runs.

A run of a sweep is served like any other, by the runs' own half; here it is only created, held back, let go, and given
what is left of the sweep's time.
"""

import logging
from typing import Any, assert_never

from piton.api import parse as runs
from piton.api.deadline import deadline_of
from piton.api.spec import Meta
from piton.contract import names
from piton.core.decide import REFUSED
from piton.drive import run_pass
from piton.kube.client import RUNS, SWEEPS, Body, Client
from piton.kube.controller_base import Worker
from piton.kube.errors import NotFound
from piton.kube.events import EventAnnouncer, EventRateLimiter, Key
from piton.kube.metrics import SWEEP, OperatorMetrics
from piton.kube.ownership import create, owned
from piton.kube.settings import PitonSettings
from piton.kube.workqueue import Timer
from piton.ports import Clock, Conflict, Refused, Unavailable
from piton.rendering.pytorchjob import owner
from piton.sweep.decide import decide, refused
from piton.sweep.expand import PlannedRun, as_duration, limited
from piton.sweep.observed import (
    CreateRun,
    MoveDeadline,
    ResumeRun,
    RunSeen,
    SuspendRun,
    SweepDecision,
    SweepEffect,
    SweepObserved,
)
from piton.sweep.parse import parse
from piton.sweep.status import SweepStatus

TOGETHER_SECONDS = 1.0
"""Changes of runs within this time are one for their sweep."""

_log = logging.getLogger(__name__)


class SweepWorld:
    """One sweep on a cluster, for one pass."""

    def __init__(self, client: Client, clock: Clock, namespace: str, name: str) -> None:
        self._client = client
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._manifest: Body = {}
        self.observed: SweepObserved | None = None

    @property
    def meta(self) -> Meta | None:
        """The sweep's metadata as last observed."""
        return self.observed.meta if self.observed else None

    async def observe(self) -> SweepObserved | None:
        """Read the sweep and its runs, live."""
        self.observed = None
        try:
            manifest = await self._client.get(SWEEPS, self._name, namespace=self._namespace)
            if manifest is None:
                return None
            selector = f"{names.LABEL_SWEEP}={self._name}"
            found = await self._client.list(RUNS, namespace=self._namespace, labels=selector)
        except Refused as refusal:
            raise Unavailable(f"this operator may not read what it has to: {refusal}") from refusal
        self._manifest, parsed = manifest, parse(manifest)
        self.observed = SweepObserved(
            meta=parsed.meta,
            spec=parsed.spec,
            plan=parsed.plan,
            problems=parsed.problems,
            status=parsed.status,
            runs=tuple(_seen(run) for run in found if owned(run, parsed.meta)),
        )
        return self.observed

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


class SweepController(Worker):
    """Serves TrainingSweeps."""

    kind = SWEEP
    resource = SWEEPS

    def __init__(
        self, client: Client, clock: Clock, timer: Timer, settings: PitonSettings, meter: OperatorMetrics
    ) -> None:
        super().__init__(client, clock, timer, settings, meter)
        self._ration = EventRateLimiter(clock)

    def saw_run(self, namespace: str, sweep: str) -> None:
        """A run of the sweep changed; so do others, so it is looked at once for all of them."""
        self.queue.add_after((namespace, sweep), TOGETHER_SECONDS)

    async def resync(self) -> None:
        """Have every sweep looked at."""
        try:
            await super().resync()
        except NotFound:  # a cluster whose CRDs are older than this operator has none
            return

    async def reconcile(self, key: Key) -> None:
        """Observe, decide, apply; and when to look again."""
        world = SweepWorld(self._client, self._clock, *key)
        announcer = EventAnnouncer(self._client, self._clock, self._ration, lambda: world.meta, kind=names.SWEEP_KIND)
        decision = await run_pass(world, announcer, self._decide, self._turn_down)
        self.hold_back(key, refused=decision is not None and decision.rule == REFUSED)
        if decision is None:
            self._meter.forget_sweep(key)
            self._ration.forget(key)
            return
        _log_decision(key, decision, world.observed)
        self._meter.show_sweep(key, decision.status)
        if decision.look_again_seconds is not None:
            self.queue.add_after(key, decision.look_again_seconds)

    def _decide(self, observed: SweepObserved) -> SweepDecision:
        return decide(observed, now=self._clock.now(), timing=self._settings.timing)

    def _turn_down(self, observed: SweepObserved, why: str) -> SweepDecision:
        return refused(observed, why, now=self._clock.now(), timing=self._settings.timing)


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
