"""The operator's half for TrainingRuns, without its watches: what wakes a run, and what a pass over one is."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from piton.api.conditions import TRAINING, WAITING
from piton.api.status import RunStatus
from piton.contract import names
from piton.contract.progress import Progress, TrainerRequests
from piton.core.decide import NO_ROOM, REFUSED
from piton.core.effects import Decision
from piton.core.increments import increments
from piton.core.trainer_requests import requests_for
from piton.core.wait_reasons import waited_seconds
from piton.drive import reconcile
from piton.kube.cache import ClusterCache
from piton.kube.client import Client
from piton.kube.controller_base import Worker
from piton.kube.events import EventAnnouncer, EventRateLimiter, Key
from piton.kube.kueue import WORKLOADS, QueuePositions
from piton.kube.last_seen import Sightings
from piton.kube.metrics import RUN, OperatorMetrics
from piton.kube.nodepools import NodePools
from piton.kube.operator_errors import tells_only_error
from piton.kube.outages import Outages
from piton.kube.pods import disruption_of
from piton.kube.report_store import Reports, Sender
from piton.kube.resources import CLAIMS, EVENTS, JOBS, NODES, PODS, QUOTAS, RUNS, Body
from piton.kube.run_world import KubeWorld
from piton.kube.settings import PitonSettings
from piton.kube.snapshot import SharedMemory
from piton.kube.store import Change
from piton.kube.taints import NodeTaints
from piton.kube.workqueue import Timer
from piton.observed import Observed
from piton.ports import Clock
from piton.rendering.appdef import ReportEndpoint
from piton.timing import Timing

ServerNow = Callable[[], ReportEndpoint | None]
"""The address for the reports of new attempts, with the current certificate; None: there is none."""

ROOM_SECONDS = 1200.0
"""Seconds between two tries of a run whose job or claim a ResourceQuota has no room for, while quotas are watched. Room
wakes it before that. Twice those of a job whose pods wait: a try of a later attempt reads all of the run live, which
takes six requests in place of two, and quotas count jobs by one, so the one that is tried fits."""

_PASSES_MOST = 2
"""Passes over a run in one turn, where each asks for the next at once: as many as it takes to start a new run. Others
follow through the queue."""
_AFTER_WRITE_SECONDS = 1.0
"""Seconds between a write of a run's status, or the deletion of its job, and the look that follows."""

_log = logging.getLogger(__name__)


class Controller(Worker):
    """Serves TrainingRuns."""

    kind = RUN
    resource = RUNS

    def __init__(
        self,
        client: Client,
        clock: Clock,
        timer: Timer,
        settings: PitonSettings,
        meter: OperatorMetrics,
        server: ServerNow = lambda: None,
        *,
        cache: ClusterCache | None = None,
    ) -> None:
        super().__init__(client, clock, timer, settings, meter, cache=cache)
        self._server = server
        self._reports = Reports(timer, pass_seconds=settings.timing.progress_seconds)
        self._ration = EventRateLimiter(clock)
        self._sightings = Sightings()
        self._taints = NodeTaints(client, clock)
        self._outages = Outages(self._reads, timer)
        self._shared = SharedMemory(
            reports=self._reports,
            listens=lambda: server() is not None,
            prices=settings.prices,
            sightings=self._sightings,
            pools=NodePools(client, timer),
            outages=self._outages,
            positions=QueuePositions(client, timer),
            events=cache,
            nodes=cache,
            trouble=None if cache is None else cache.trouble,
        )
        self._runs_on_node: defaultdict[str, set[Key]] = defaultdict(set)

    def subscribe(self, cache: ClusterCache) -> None:
        """Look at a run when it, its jobs, pods, claim or Workload change, its pods' nodes, or Events about them.

        And at one that waits for room, when a ResourceQuota has some.
        """
        cache.subscribe(RUNS, self._on_run)
        cache.subscribe(PODS, self._on_pod_change)
        cache.subscribe(NODES, lambda change: self.on_node(change.body, deleted=change.deleted))
        for resource in (JOBS, CLAIMS, WORKLOADS):
            cache.subscribe(resource, self._on_part)
        cache.subscribe(EVENTS, self._on_event)
        cache.subscribe(QUOTAS, self.on_quota)

    def _on_run(self, change: Change) -> None:
        """Look at once at a run that is new, gone, or wants something else.

        Its status is our own writing. A decision says itself when to look again; the look that follows here would only
        find what a decision has missed, and one that shows no more than progress misses nothing.
        """
        metadata = change.body["metadata"]
        if tells_only_error(change):
            return
        if _asks_for_something(change):
            self.wake(metadata["namespace"], metadata["name"], urgent=True)
        elif not _shows_only_progress(change):
            self.queue.add_after((metadata["namespace"], metadata["name"]), _AFTER_WRITE_SECONDS)

    def _on_pod_change(self, change: Change) -> None:
        metadata = change.body["metadata"]
        run = (metadata.get("labels") or {}).get(names.LABEL_RUN)
        if run:
            self.on_pod(metadata["namespace"], run, change.body, deleted=change.deleted)

    def _on_part(self, change: Change) -> None:
        metadata = change.body["metadata"]
        run = (metadata.get("labels") or {}).get(names.LABEL_RUN)
        if run and change.deleted:  # mostly by us; the garbage collector gets some time to take the pods of a job
            self.queue.add_after((metadata["namespace"], run), _AFTER_WRITE_SECONDS)
        elif run:
            self.wake(metadata["namespace"], run)

    def _on_event(self, change: Change) -> None:
        """Look at the run of the pod or job that an Event is about, if that is known."""
        subject = change.body.get("involvedObject") or {}
        resource = PODS if subject.get("kind") == "Pod" else JOBS
        found = self._cache.peek(resource, subject.get("namespace"), str(subject.get("name"))) if self._cache else None
        run = ((found or {}).get("metadata") or {}).get("labels", {}).get(names.LABEL_RUN)
        if run and not change.deleted:
            self.wake(subject["namespace"], run)

    def on_pod(self, namespace: str, run: str, pod: Body, *, deleted: bool = False) -> None:
        """A pod of the run changed or went. Its node is only a hint: it says whom to wake when the node changes."""
        node = (pod.get("spec") or {}).get("nodeName")
        if node:
            self._runs_on_node[node].add((namespace, run))
        if deleted:
            self._sightings.pod_went(pod)
        self.wake(namespace, run, urgent=deleted or _is_ending(pod))

    def on_node(self, node: Body, *, deleted: bool) -> None:
        """A node changed or went."""
        name = node["metadata"]["name"]
        runs = self._runs_on_node.get(name, ())
        if runs:
            self._sightings.node_changed(node)
        for namespace, run in runs:
            self.wake(namespace, run, urgent=True)
        if deleted:
            self._runs_on_node.pop(name, None)

    async def resync(self, *, seconds: float = 0.0) -> None:
        """Wake every run, and take back taints whose time has come."""
        await super().resync(seconds=seconds)
        if self._settings.timing.device_taint_seconds is not None:
            await self._taints.expire()

    def on_report(self, sender: Sender, progress: Progress) -> None:
        """A trainer reported. Many do, all the time: a pass follows when there is something in it."""
        if self._settings.namespaces and sender.namespace not in self._settings.namespaces:
            return
        self.queue.add_after((sender.namespace, sender.run), self._reports.take(sender, progress))

    def answer(self, sender: Sender) -> TrainerRequests:
        """Return the requests to the sender of a report. May be called from any thread."""
        return self._reports.answer(sender)

    async def reconcile(self, key: Key) -> None:
        """Observe, decide, apply; again while there is more to do at once; and when to look again."""
        world = KubeWorld(
            self._client,
            self._clock,
            *key,
            cache=self.reads(key),
            shared=self._shared,
            server=self._server(),
            taints=self._taints,
            failures=self.failures(key),
        )
        announcer = EventAnnouncer(self._client, self._clock, self._ration, lambda: world.meta)
        for _ in range(_PASSES_MOST):
            seconds = await self._pass(key, world, announcer)
            if seconds is None or seconds > 0:
                break
        if seconds is not None:
            self.queue.add_after(key, seconds, urgent=seconds <= 0)

    async def _pass(self, key: Key, world: KubeWorld, announcer: EventAnnouncer) -> float | None:
        """Return the seconds until the next look; None: only an event makes it necessary."""
        decision = await reconcile(world, self._clock, announcer, self._timing(key), self.failures(key))
        self.hold_back(key, refused=decision is not None and decision.rule in (REFUSED, NO_ROOM))
        if decision is None:
            self._forget(key)
            return None
        if decision.rule == NO_ROOM:
            decision = self._waiting_for_room(key, decision)
        _log_decision(key, decision, world.observed)
        self._request(key, decision, world.observed)
        self._measure(key, decision, world.observed)
        return min(
            (s for s in (decision.look_again_seconds, world.look_again_seconds()) if s is not None), default=None
        )

    def _waiting_for_room(self, key: Key, decision: Decision) -> Decision:
        """Wait for a watch event of the quota. Retry by the clock where the namespace has no such quota."""
        waits = decision.status.condition(WAITING)
        if waits is None or self.speaks(key, waits.message):
            self._waits.was_refused(key)
            return decision
        again = self._settings.timing.try_again_seconds(waited_seconds(decision.status, self._clock.now()))
        return replace(decision, look_again_seconds=min(again, decision.look_again_seconds or again))

    def _timing(self, key: Key) -> Timing:
        """The patience for one pass: what waits for room need hardly be tried where news of room arrive."""
        timing = self._settings.timing
        return replace(timing, room_seconds=self.queue.stretched(ROOM_SECONDS)) if self.hears_of_room(key) else timing

    def _request(self, key: Key, decision: Decision, observed: Observed | None) -> None:
        """The status is written: what follows from it for the trainer is the answer to its next report."""
        if observed is not None:
            meta, status = observed.meta, decision.status
            requests = requests_for(observed, status, now=self._clock.now(), timing=self._settings.timing)
            self._reports.request(key, run_uid=meta.uid, attempt=status.attempt, requests=requests, save=meta.save)

    def _measure(self, key: Key, decision: Decision, observed: Observed | None) -> None:
        """The pass went well, so the status is written: what it says can be shown and counted."""
        self._meter.show(key, decision.status)
        if observed is not None:
            self._meter.count(increments(observed.status, decision.status))

    def _forget(self, key: Key) -> None:
        self.forget_failures(key)
        self._outages.forget("/".join(key))
        self._meter.forget(key)
        self._ration.forget(key)
        self._reports.forget(key)
        for node in [node for node, runs in self._runs_on_node.items() if key in runs]:
            self._runs_on_node[node].discard(key)
            if not self._runs_on_node[node]:
                del self._runs_on_node[node]


def _asks_for_something(change: Change) -> bool:
    """True if the run is new or gone, or its spec or metadata have changed."""
    before, after = change.before, change.after
    if before is None or after is None:
        return True
    parts = ("labels", "annotations", "deletionTimestamp")
    changed = any(before["metadata"].get(part) != after["metadata"].get(part) for part in parts)
    return changed or before.get("spec") != after.get("spec")


def _shows_only_progress(change: Change) -> bool:
    """True if phase, conditions and the states of the attempts are as before."""

    def standing(body: Body | None) -> tuple[object, ...]:
        status = (body or {}).get("status") or {}
        states = [attempt.get("state") for attempt in status.get("attempts") or ()]
        return status.get("phase"), status.get("attempt"), status.get("conditions"), states

    return standing(change.before) == standing(change.after)


def _is_ending(pod: Body) -> bool:
    """True if the pod has ended, is being deleted, or is about to be taken from its node."""
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return ended or "deletionTimestamp" in pod["metadata"] or disruption_of(pod) is not None


def _log_decision(key: Key, decision: Decision, observed: Observed | None) -> None:
    """One line for each decision that changes something else than how far the training is."""
    acts = decision.effects or decision.announcements
    if observed is None or (not acts and _stands_alike(observed.status, decision.status)):
        return
    training = decision.status.condition(TRAINING)
    fields: dict[str, object] = {
        "run": "/".join(key),
        "rule": decision.rule,
        "reason": training.reason.value if training else None,
        "phase": decision.status.phase.value,
        "attempt": decision.status.attempt,
        "effects": [f"{type(effect).__name__}({effect.reason})" for effect in decision.effects],
        "told": [news.message for news in decision.announcements],
    }
    _log.info("decided", extra={"fields": fields})


def _stands_alike(before: RunStatus, after: RunStatus) -> bool:
    """True if the two differ in nothing but progress, placement and times."""

    def standing(status: RunStatus) -> tuple[object, ...]:
        conditions = [(each.type, each.status, each.reason) for each in status.conditions]
        return status.phase, status.attempt, status.current and status.current.state, conditions

    return standing(before) == standing(after)
