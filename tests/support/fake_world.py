"""An in-memory world for one run: a cluster with trainers that train, save, are fenced, and lose their machines.

Of a run's other stages it knows how long they take. It implements `piton.ports.World` and breaks on command: machines
die with and without notice, observations are stale or missing, and the operator's process dies before or after any
single call. Time is virtual; one tick is one second.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Any

from piton.api.conditions import settled
from piton.api.parse import Parsed, parse
from piton.api.spec import Meta, Spec, Stage, StuckPods
from piton.api.status import RunStatus
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
from piton.contract.termination import EXIT_CODES, Outcome, ScriptEnd, Termination
from piton.core.effects import (
    AddFinalizer,
    Announcement,
    CreateVolume,
    DeleteRun,
    Effect,
    LeaveQueue,
    OwnVolume,
    RemoveFinalizer,
    RemoveReplica,
    ReportPodsReady,
    RequestQuota,
    ReturnQuota,
    StartAttempt,
    StopAttempt,
)
from piton.observed import (
    AttemptSeen,
    ClusterMessage,
    JobState,
    LeavingPod,
    LostReplica,
    Observed,
    ReplicaSeen,
    ReplicaState,
    ReservationSeen,
    VolumeSeen,
)
from piton.ports import Conflict, Refused, Unavailable
from piton.rendering.workload import asked
from piton.sweep.expand import merge
from support.builders import NOW, a_manifest, a_spec
from support.fake_denials import Denials
from support.fake_trainer import ENDED_STARTS, START_WORDS, Store, Trainer

TOTAL_STEPS = 60
SAVE_EVERY = 7
STEPS_PER_SECOND = 2
GRACE_SECONDS = 3
NOTICE_SECONDS = 5
PRICE = Fraction(3600)
"""Of a machine per hour: a dollar per second."""
REST_SECONDS = 4
"""What the script does after its training takes: an export."""
STAGE_SECONDS = 9
"""What a stage beside the training takes."""
_START_EVENTS = {"no sandbox": "FailedCreatePodSandBox", "pulling": "Pulling"}


class Crash(BaseException):
    """The operator's process dies here. Not an Exception, so that nothing in between can catch it."""


@lru_cache(maxsize=1024)
def _parsed(written: str, accepted: str, has_begun: bool) -> Parsed:
    known = {} if accepted == "null" else {"accepted": {"generation": 1, "spec": json.loads(accepted)}}
    return parse({**a_manifest(), "spec": json.loads(written), "status": {"attempt": int(has_begun), **known}})


@dataclass
class FakeWorld:
    """See the module's docstring."""

    spec: Spec = field(default_factory=a_spec)
    """What the user wants."""
    typo: Mapping[str, Any] = field(default_factory=dict)
    """What is wrong with it, merged into it as it is written."""
    time: datetime = NOW
    slow_seconds: float = 0.0
    """By how much the operator's clock is behind."""
    price: Fraction | None = PRICE
    exists: bool = True
    deleting: bool = False
    held: bool = False
    generation: int = 1
    version: int = 0
    status: RunStatus = field(default_factory=RunStatus)
    written: list[RunStatus] = field(default_factory=list)
    """All that it ever was."""
    volume: bool = False
    is_volume_owned: bool = False
    """By the run: then it goes with the run."""
    is_volume_shared: bool = False
    """Pods on several nodes may mount it at once."""
    reservation: ReservationSeen | None = None
    """What the run has in its queue; None: it is in none."""
    without_quota: list[str] = field(default_factory=list)
    """What was done with pods that had no quota."""
    store: Store = field(default_factory=Store)
    reads_volume: bool = True
    """The operator reads the final manifest, as on one machine; else it is told by a report and by the last words."""
    exported_by: list[int] = field(default_factory=list)
    """Attempts whose scripts came to their end after the training."""
    jobs: dict[int, Trainer] = field(default_factory=dict)
    job_exists: set[int] = field(default_factory=set)
    zombies: list[Trainer] = field(default_factory=list)
    created: list[int] = field(default_factory=list)
    stages_created: list[Stage] = field(default_factory=list)
    """What the attempts were created for, in order."""
    evaluated: list[int | None] = field(default_factory=list)
    """Of which checkpoints evaluations were told."""
    announced: list[Announcement] = field(default_factory=list)
    seconds_per_call: int = 0
    """How long the API server takes for each call. What it has answered may be old by then."""
    is_busy: bool = False
    """It answers 429, to everything."""
    next_start: str | None = None
    """What keeps the next attempt from starting, for so many seconds."""
    next_start_seconds: int = 0
    failed_starts: list[tuple[str, bool]] = field(default_factory=list)
    """All of these, and whether what was to run had reported a step before."""
    evicted: list[int] = field(default_factory=list)
    """Attempts whose node ran short of memory; they had asked for none."""
    unserved: str = ""
    """The kind that the API server does not serve now, `jobs` or `workloads`: nobody can tell what there is of it."""
    half_a_gang_seconds: int = 0
    """For so long the next attempt has half of its machines."""
    denials: Denials = field(default_factory=Denials)
    unfounded: list[str] = field(default_factory=list)
    """What was done before that was done which it builds on."""
    calls_until_crash: int | None = None
    crash_after_the_call: bool = False
    stale: int = 0
    """Observe as many passes ago as this."""
    lag: int = 0
    """The cache is so many passes behind in all but the run itself."""
    history: list[tuple[int, Observed]] = field(default_factory=list)
    has_mesh: bool = False
    """Pods get a container beside the trainer, which does not end with it."""
    beside_leftovers: list[int] = field(default_factory=list)
    """Attempts that began while something of an earlier one had a machine, and nobody had told it to go."""
    listens_since: datetime = NOW
    """Since when the operator takes reports."""
    are_reports_blocked: bool = False
    """Attempts that begin meanwhile cannot report."""
    failing_reads: int = 0
    """So many attempts from now find that their checkpoint cannot be read."""
    is_volume_empty: bool = False
    """Whether another, empty volume is mounted where the checkpoints should be."""
    volumes_lost: int = 0
    """Attempts that ended for either of these reasons."""
    lost_by: list[int] = field(default_factory=list)
    """Attempts that trained from step 0 although a durable step had been reported."""
    writes: int = 0
    gone_nodes: set[str] = field(default_factory=set)
    """Machines that went without a word, and took their pods' objects along."""
    _observed_version: int = 0
    _owners: int = 0

    # --- the ports ---------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        return self.time - timedelta(seconds=self.slow_seconds)

    async def announce(self, announcement: Announcement) -> None:
        self.announced.append(announcement)

    @property
    def is_cached(self) -> bool:
        return self.lag > 0

    async def observe(self, *, live: bool = False) -> Observed | None:
        if self.is_busy:
            raise Unavailable("the API server answered 429")
        if not self.exists:
            return None
        self.denials.begin_pass(self.time)
        self.history.append((self.version, self._look()))
        self.history = self.history[-8:]
        self._observed_version, observed = self._seen_before(self.stale)
        if self.lag and not live:
            _, old = self._seen_before(self.lag)
            return replace(observed, attempts=old.attempts, volume=old.volume, reservation=old.reservation)
        return observed

    def _seen_before(self, passes: int) -> tuple[int, Observed]:
        return self.history[max(0, len(self.history) - 1 - passes)]

    async def apply(self, effect: Effect) -> None:
        self._call(lambda: self.denials.carry_out(effect, lambda: self._apply(effect), self.time))

    async def write_status(self, status: RunStatus) -> None:
        self._call(lambda: self.denials.carry_out(status, lambda: self._write(status), self.time))

    def _call(self, act: Callable[[], None]) -> None:
        for _ in range(self.seconds_per_call):
            self.tick()
        if self.calls_until_crash is not None:
            self.calls_until_crash -= 1
        dies = self.calls_until_crash == 0
        if not dies or self.crash_after_the_call:
            act()
        if dies:
            raise Crash

    def _write(self, status: RunStatus) -> None:
        self._check_version()
        self.status = status
        self.written.append(status)
        self.version += 1
        self.writes += 1

    def _check_version(self) -> None:
        if not self.exists:
            raise Unavailable("the run is gone")
        if self._observed_version != self.version:
            raise Conflict("the run was written in between")

    def _apply(self, effect: Effect) -> None:
        self.writes += 1
        match effect:
            case AddFinalizer() | RemoveFinalizer():
                self._check_version()
                self.held = isinstance(effect, AddFinalizer)
                self.version += 1
                self._observed_version = self.version
                self._forget()
            case DeleteRun():
                self._check_version()
                self.deleting = True
                self.version += 1
                self._forget()
            case CreateVolume():
                self.volume = True
            case OwnVolume(owned=owned):
                self.is_volume_owned = owned
            case StartAttempt():
                self._start(effect)
            case StopAttempt(number=number):
                self._end_job(number)
            case RemoveReplica():
                self._remove(effect)
            case RequestQuota() | ReturnQuota() | LeaveQueue() | ReportPodsReady():
                self._queue(effect)

    def restore(self, status: RunStatus) -> None:
        """Make that the status: etcd was restored, or writes that came after it were lost."""
        self.status = status
        self.version += 1

    def _queue(self, effect: RequestQuota | ReturnQuota | LeaveQueue | ReportPodsReady) -> None:
        found = self.reservation
        assert found is not None
        if isinstance(effect, ReturnQuota | LeaveQueue) and found.held and self.billed():
            self.without_quota.append(f"{effect} while attempts {[t.number for t in self.billed()]} ran")
        match effect:
            case RequestQuota(stage=stage) if not found.exists and (spec := self.spec_in_effect()) is not None:
                wanted = asked(self._meta(), spec, stage)
                self.reservation = ReservationSeen(exists=True, queue="gpus", asked=wanted)
            case ReturnQuota() if found.evicted:
                self.reservation = replace(found, held=False, admitted=False, ready=False)
            case LeaveQueue():
                self.reservation = ReservationSeen()
            case ReportPodsReady(ready=ready) if found.exists:
                self.reservation = replace(found, ready=ready)

    def admit(self) -> None:
        """Kueue lets the run start, if it waits."""
        if self.reservation and self.reservation.exists and not self.reservation.held:
            self.reservation = replace(self.reservation, held=True, admitted=True, evicted=False)

    def evict(self) -> None:
        """Kueue wants the quota back, if the run has some."""
        if self.reservation and self.reservation.held:
            self.reservation = replace(self.reservation, evicted=True)

    # --- what it does ------------------------------------------------------------------------------------------------

    def _start(self, effect: StartAttempt) -> None:
        number = effect.number
        if self.unserved == "jobs":
            raise Refused("PyTorchJobs cannot be created here (404 page not found); is their CRD installed?")
        if number in self.job_exists or (number in self.jobs and self.jobs[number].shown):
            return
        if self.deleting or not (self.held and self.volume):
            self.unfounded.append(f"attempt {number} was started without finalizer or claim, or under a deletion")
        self.created.append(number)
        if self.reservation is not None and not self.reservation.usable:
            self.without_quota.append(f"attempt {number} was started")
        self.stages_created.append(effect.stage)
        self._owners += 1
        trainer = Trainer(number=number, stage=effect.stage, resumed_from=0, step=0, owner=self._owners)
        trainer.placed_at = trainer.heard_at = self.time
        trainer.cannot_report, trainer.has_sidecar = self.are_reports_blocked, self.has_mesh
        if any(self._lingers(other) and not other.deleting for other in self.jobs.values()):
            self.beside_leftovers.append(number)
        if self.half_a_gang_seconds:
            trainer.waits_for_peer_until = self.time + timedelta(seconds=self.half_a_gang_seconds)
            self.half_a_gang_seconds = 0
        assert not self.is_volume_owned, "whatever deletes the run in the foreground deletes what this attempt saves"
        trainer.told = effect
        if number in self.jobs:
            self.zombies.append(self.jobs[number])
        self.jobs[number] = trainer
        self.job_exists.add(number)
        trainer.start, self.next_start = self.next_start, None
        if trainer.start is None:
            self._begin(trainer, effect)
            return
        is_proven = self.status.checkpoint is not None and (
            trainer.start == "wrong name" or effect.stage is Stage.TRAIN
        )
        self.failed_starts.append((trainer.start, is_proven))
        trainer.begins_at = self.time + timedelta(seconds=self.next_start_seconds)
        trainer.waits_for_peer_until = None
        if trainer.start in ENDED_STARTS:
            self._exit(trainer, 128)

    def _begin(self, trainer: Trainer, effect: StartAttempt) -> None:
        """Its container runs now."""
        trainer.start, trainer.begun_at = None, self.time
        if effect.stop_after is not None:
            trainer.stops_at = self.time + timedelta(seconds=effect.stop_after.seconds)
            trainer.limit = effect.stop_after.limit
        if effect.stage is Stage.TRAIN:
            self._claim(trainer, effect.checkpoint_step)
            return
        trainer.done_at = self.time + timedelta(seconds=STAGE_SECONDS)
        if effect.stage is Stage.EVALUATE:
            self.evaluated.append(effect.checkpoint_step)

    def _claim(self, trainer: Trainer, reported_step: int | None) -> None:
        if trainer.number < self.store.fence:
            self._exit(trainer, 81, Termination(outcome=Outcome.FENCED, fence=self.store.fence))
            return
        self.store.fence, self.store.owner = trainer.number, trainer.owner
        if self.failing_reads or (self.is_volume_empty and reported_step is not None):
            self.failing_reads = max(0, self.failing_reads - 1)
            self.volumes_lost += 1
            self._exit(trainer, 82, Termination(outcome=Outcome.VOLUME_LOST))
            return
        if self.is_volume_empty:
            if self.status.checkpoint is not None:
                self.lost_by.append(trainer.number)
            return
        trainer.resumed_from = trainer.step = max((step for step, _ in self.store.steps), default=0)

    def _remove(self, effect: RemoveReplica) -> None:
        trainer = self.jobs.get(effect.number)
        if trainer is None or not trainer.shown or not (trainer.node_gone or effect.grace_seconds == 0):
            return
        if not (trainer.node_gone or self.may_be_forced(trainer)):
            self.unfounded.append(f"the pod of attempt {trainer.number} was forced")
        trainer.shown = False

    def is_late(self, trainer: Trainer, seconds: float) -> bool:
        """True if its grace period was over so many seconds ago, and a look."""
        since = trainer.deleted_at if trainer.deleting else None
        return since is not None and self.time > since + timedelta(seconds=GRACE_SECONDS + seconds)

    def may_be_forced(self, trainer: Trainer) -> bool:
        """True if the user wants such a pod to be forced, and nothing else could meet its process."""
        spec = self.spec_in_effect()
        is_stuck = trainer.never_ends and trainer.deleted_at and self.time >= self._leaves_by(trainer)
        starts_no_other = self.deleting or settled(self.status)
        wanted = spec is not None and spec.limits.stuck_pods is StuckPods.FORCE_DELETE
        return bool(is_stuck) and wanted and self.is_volume_shared and (trainer.is_cordoned or starts_no_other)

    def _end_job(self, number: int) -> None:
        if self.deleting and number > self.status.attempt and not self.status.unreadable:
            self.unfounded.append(f"attempt {number} was stopped by a deletion before it was written down")
        self._stop(number)

    def _stop(self, number: int) -> None:
        if self.unserved != "jobs":  # else only its pods can be deleted
            self.job_exists.discard(number)
        trainer = self.jobs.get(number)
        if trainer and trainer.shown and not trainer.deleting:
            trainer.deleting, trainer.deleted_at = True, self.time
            if trainer.silent:
                return
            if not trainer.alive or trainer.node_gone:
                self._leave(trainer)
            else:
                trainer.dies_at = self.time + timedelta(seconds=GRACE_SECONDS)

    def _leave(self, trainer: Trainer) -> None:
        """Take the pod away if it is to go, and if its kubelet, or what runs beside the trainer, lets it."""
        if self._lingers(trainer):
            trainer.sidecar_ends_at = self.time + timedelta(seconds=GRACE_SECONDS) if trainer.deleting else None
            return
        trainer.shown = not trainer.deleting or trainer.silent or trainer.node_gone

    def _lingers(self, trainer: Trainer) -> bool:
        """True if something has a machine beside a trainer that has ended."""
        return trainer.shown and trainer.has_sidecar and not trainer.alive and not trainer.node_gone

    def unfenced(self) -> list[Trainer]:
        """Processes that could commit now, wherever they are."""
        return [t for t in [*self.jobs.values(), *self.zombies] if t.alive and t.owner == self.store.owner]

    def billed(self) -> list[Trainer]:
        """Processes on machines that answer."""
        return [t for t in self.jobs.values() if t.alive and not t.node_gone]

    def idle(self) -> list[Trainer]:
        """Those on machines that are paid for and, as far as anybody hears, do nothing."""
        there = [t for t in self.jobs.values() if not (t.node_gone or t.silent) and (t.alive or self._lingers(t))]
        return [trainer for trainer in there if not self._works(trainer)]

    def _works(self, trainer: Trainer) -> bool:
        """True if it gets on."""
        waits = trainer.waits_for_peer_until is not None and self.time < trainer.waits_for_peer_until
        return trainer.alive and trainer.start is None and not trainer.never_ends and not waits

    def heard(self) -> list[Trainer]:
        """Those of them of which anything is known."""
        return [trainer for trainer in self.billed() if not trainer.silent]

    def tick(self) -> None:
        """One second passes."""
        self.time += timedelta(seconds=1)
        for trainer in [*self.jobs.values(), *self.zombies]:
            if trainer.never_ends:
                pass
            elif trainer.sidecar_ends_at is not None and self.time >= trainer.sidecar_ends_at:
                trainer.has_sidecar, trainer.sidecar_ends_at = False, None
                self._leave(trainer)
            elif trainer.alive and trainer.start is not None:
                self._try_to_begin(trainer)
            elif trainer.alive and trainer.stage is Stage.TRAIN:
                self._train(trainer)
            elif trainer.alive:
                self._work(trainer)
            if trainer.goes_at is not None and self.time >= trainer.goes_at and trainer.alive:
                self.kill_node(trainer)
        self._forget()

    def _try_to_begin(self, trainer: Trainer) -> None:
        assert trainer.begins_at is not None
        assert trainer.told is not None
        if trainer.dies_at is not None:
            trainer.alive = False
            self._leave(trainer)
        elif self.time >= trainer.begins_at and not trainer.node_gone:
            self._begin(trainer, trainer.told)

    def _work(self, trainer: Trainer) -> None:
        """A stage beside the training. It reports a step like any program that may have one, and heeds SIGTERM."""
        trainer.step += 1
        if trainer.dies_at is not None:
            self._exit(trainer, 143)
            self._leave(trainer)
        elif trainer.done_at is not None and self.time >= trainer.done_at:
            metrics = {"accuracy": 0.75} if trainer.stage is Stage.EVALUATE else {}
            said = Termination(outcome=Outcome.FINISHED, step=TOTAL_STEPS, checkpoint_step=TOTAL_STEPS, metrics=metrics)
            self._exit(trainer, 0, said if trainer.stage is Stage.EVALUATE else None)

    def _train(self, trainer: Trainer) -> None:
        if trainer.done_at is not None:
            self._do_the_rest(trainer)
            return
        is_over_budget = trainer.stops_at is not None and self.time >= trainer.stops_at
        if trainer.dies_at is not None or is_over_budget:
            self._save(trainer)
            if trainer.alive:
                limit = None if trainer.dies_at else trainer.limit
                saved = Termination(
                    outcome=Outcome.STOPPED, step=trainer.step, checkpoint_step=trainer.step, limit=limit
                )
                self._exit(trainer, 143, saved)
            self._leave(trainer)
            return
        if trainer.waits_for_peer_until is not None and self.time < trainer.waits_for_peer_until:
            return
        if trainer.busy_until is not None and self.time < trainer.busy_until:
            return
        for _ in range(STEPS_PER_SECOND):
            trainer.step = min(trainer.step + 1, TOTAL_STEPS)
            if trainer.step % SAVE_EVERY == 0 or trainer.step == TOTAL_STEPS:
                self._save(trainer)
            if not trainer.alive:
                return
        if trainer.step == TOTAL_STEPS:
            digest = f"sha256:{TOTAL_STEPS}"
            self.store.complete = Complete(attempt=trainer.number, step=TOTAL_STEPS, weights_digest=digest)
            trainer.done_at = self.time + timedelta(seconds=REST_SECONDS)

    def _do_the_rest(self, trainer: Trainer) -> None:
        """The script goes on after its training; nothing of it heeds a stop."""
        assert trainer.done_at is not None
        if trainer.dies_at is not None:
            self._exit(trainer, 143, self._proof(trainer, ScriptEnd.RUNNING))
            self._leave(trainer)
        elif self.time >= trainer.done_at:
            self.exported_by.append(trainer.number)
            self._exit(trainer, 0, self._proof(trainer, ScriptEnd.ENDED))

    def _proof(self, trainer: Trainer, script: ScriptEnd) -> Termination:
        digest = f"sha256:{TOTAL_STEPS}"
        return self._last_words(trainer, Outcome.FINISHED, weights_digest=digest, script=script)

    def _save(self, trainer: Trainer) -> None:
        if trainer.owner != self.store.owner:
            self._exit(trainer, 81, self._last_words(trainer, Outcome.FENCED, fence=self.store.fence))
            return
        if (trainer.step, trainer.number) not in self.store.steps:
            self.store.steps.append((trainer.step, trainer.number))
        trainer.checkpoint_step = trainer.step

    def _last_words(self, trainer: Trainer, outcome: Outcome, **said: Any) -> Termination:
        """The last words of one that has trained. They never leave a checkpoint out."""
        return Termination(outcome=outcome, step=trainer.step, checkpoint_step=trainer.checkpoint_step, **said)

    def _exit(self, trainer: Trainer, code: int, termination: Termination | None = None) -> None:
        trainer.alive, trainer.exit_code, trainer.termination = False, code, termination

    def _forget(self) -> None:
        """What Kubernetes collects: pods that are gone, jobs without pods, a released run that goes, what it owns."""
        for number in list(self.jobs):
            trainer = self.jobs[number]
            if not trainer.shown and number not in self.job_exists:
                if trainer.alive:
                    self.zombies.append(trainer)
                del self.jobs[number]
        if self.deleting and not self.held:
            self.exists = False
            self.volume = self.volume and not self.is_volume_owned
            self.reservation = self.reservation and ReservationSeen()  # the run owns its Workload

    def _look(self) -> Observed:
        current = self.status.attempt
        trainer = self.jobs.get(current)
        is_heard = trainer is not None and not (trainer.silent or trainer.cannot_report)
        has_news = trainer is not None and (trainer.step > trainer.resumed_from or trainer.done_at is not None)
        tells = is_heard and has_news
        if trainer is not None and is_heard and trainer.alive:
            trainer.heard_at = self.time
        if trainer is not None and tells:
            trainer.newest_report = self._report(trainer)
        heard_at = None if trainer is None else trainer.heard_at
        return Observed(
            meta=self._meta(),
            reservation=self._reservation(),
            spec=self.spec_in_effect(),
            problems=self._parsed()[1],
            status=self.status,
            volume=VolumeSeen(exists=self.volume, made=True, owned=self.is_volume_owned),
            attempts=self._without_jobs() if self.unserved == "jobs" else tuple(map(self._seen, sorted(self.jobs))),
            jobs_unknown="the cluster does not serve PyTorchJobs" if self.unserved == "jobs" else "",
            progress=trainer.newest_report if trainer else None,
            complete=self.store.complete if self.reads_volume else None,
            silent_seconds=(self.time - (heard_at or self.listens_since)).total_seconds(),
        )

    def spec_in_effect(self) -> Spec | None:
        """The spec in effect: the user's, or while that is refused the one that was accepted before."""
        return self._parsed()[0]

    def _parsed(self) -> tuple[Spec | None, tuple[str, ...]]:
        if not self.typo:
            return self.spec, ()
        accepted = self.status.accepted
        written = merge(self.spec.model_dump(mode="json", by_alias=True, exclude_unset=True), self.typo)
        found = _parsed(json.dumps(written), json.dumps(accepted and accepted.spec), self.status.attempt > 0)
        return found.spec, found.problems

    def _reservation(self) -> ReservationSeen | None:
        unreadable = self.unserved == "workloads" and self.reservation is not None
        return ReservationSeen(unreadable="404 page not found") if unreadable else self.reservation

    def _without_jobs(self) -> tuple[AttemptSeen, ...]:
        """What pods alone show of the attempts."""
        shown = [trainer for trainer in self.jobs.values() if trainer.shown]
        return tuple(
            replace(self._seen(trainer.number), job=None, deleting=trainer.deleting, lost=()) for trainer in shown
        )

    def _meta(self) -> Meta:
        return Meta(
            name="ragcun",
            namespace="team",
            uid="uid-of-the-run",
            generation=self.generation,
            created=NOW,
            deleting=self.deleting,
            held=self.held,
            queue="gpus" if self.reservation is not None else "",
        )

    def _report(self, trainer: Trainer) -> Progress:
        return Progress(
            updated=self.time.isoformat(),
            step=trainer.step,
            total_steps=TOTAL_STEPS,
            checkpoint_step=trainer.checkpoint_step,
            resumed_from=trainer.resumed_from or None,
            complete=self.store.complete if trainer.stage is Stage.TRAIN and trainer.done_at else None,
        )

    def _seen(self, number: int) -> AttemptSeen:
        trainer = self.jobs[number]
        exists = number in self.job_exists
        failed = trainer.exit_code not in (None, 0) or trainer.deleting or trainer.disruption is not None
        job = JobState.FAILED if failed else JobState.ACTIVE
        return AttemptSeen(
            number=number,
            stage=trainer.stage,
            evaluated_step=trainer.told.checkpoint_step if trainer.told and trainer.stage is Stage.EVALUATE else None,
            job=job if exists else None,
            deleting=not exists,
            replicas=self._replicas(trainer) if trainer.shown else (),
            leaving=self._leaving(trainer),
            expected_replicas=1 if trainer.waits_for_peer_until is None else 2,
            lost=self._lost(trainer) if exists else (),
        )

    def _leaving(self, trainer: Trainer) -> tuple[LeavingPod, ...]:
        """The pod while its kubelet is to end it."""
        if not (trainer.shown and trainer.deleting and trainer.deleted_at) or trainer.node_gone or trainer.silent:
            return ()
        name = f"ragcun-{trainer.number}-master-0"
        pod = LeavingPod(
            name=name,
            uid=trainer.pod,
            node=trainer.node,
            leaves_by=self._leaves_by(trainer),
            unshared_claims=() if self.is_volume_shared else ("ragcun-checkpoints",),
            is_node_closed=trainer.is_cordoned,
        )
        return (pod,)

    @staticmethod
    def _leaves_by(trainer: Trainer) -> datetime:
        """When the kubelet is to have ended a pod that is being deleted."""
        return max(filter(None, (trainer.deleted_at, trainer.answers_since))) + timedelta(seconds=GRACE_SECONDS)

    def _lost(self, trainer: Trainer) -> tuple[LostReplica, ...]:
        """Of what the status knows of the current attempt, that of which nothing is left."""
        record = self.status.current
        if record is None or record.number != trainer.number:
            return ()
        there = {replica.uid for replica in self._replicas(trainer)} if trainer.shown else set()
        return tuple(
            LostReplica(name=placed.name, node=placed.node, node_gone=placed.node in self.gone_nodes)
            for placed in record.replicas
            if placed.uid not in there
        )

    def _replicas(self, trainer: Trainer) -> tuple[ReplicaSeen, ...]:
        if trainer.waits_for_peer_until is None:
            return (self._replica(trainer),)
        master = self._replica(trainer)
        if self.time < trainer.waits_for_peer_until:
            waits = replace(master, state=ReplicaState.WAITING, node=None, placed_at=None, never_started=True)
            waits = replace(waits, name=f"ragcun-{trainer.number}-worker-0", uid=f"{trainer.pod}-peer")
            return (master,) if trainer.deleting else (master, waits)
        peer = replace(master, name=f"ragcun-{trainer.number}-worker-0", uid=f"{trainer.pod}-peer")
        peer = replace(peer, node_price=Fraction(0))  # what a world costs is a dollar per second
        return (master, peer)

    def _replica(self, trainer: Trainer) -> ReplicaSeen:
        state = ReplicaState.RUNNING if trainer.start is None else ReplicaState.WAITING
        if trainer.silent:
            return ReplicaSeen(
                name=f"ragcun-{trainer.number}-master-0",
                uid=trainer.pod,
                node=trainer.node,
                state=state,
                deleting=trainer.deleting,
                placed_at=trainer.placed_at,
                node_price=self.price,
            )
        if not trainer.alive:
            state = ReplicaState.SUCCEEDED if trainer.exit_code == 0 else ReplicaState.FAILED
        return ReplicaSeen(
            name=f"ragcun-{trainer.number}-master-0",
            uid=trainer.pod,
            node=trainer.node,
            state=state,
            exit_code=trainer.exit_code,
            termination=trainer.termination,
            out_of_memory=trainer.out_of_memory,
            out_of_disk=trainer.out_of_disk,
            short_of_memory=trainer.short_of_memory,
            never_started=trainer.start is not None and trainer.alive,
            cannot_start=bool(trainer.start and START_WORDS[trainer.start]),
            waiting=START_WORDS[trainer.start] if trainer.start else None,
            words=self._words(trainer),
            outlives_trainer=self._lingers(trainer),
            deleting=trainer.deleting,
            disruption=trainer.disruption,
            node_reclaimed=trainer.is_cordoned,
            leaving="taint karpenter.sh/disrupted" if trainer.goes_at and not trainer.node_gone else None,
            node_gone=trainer.node_gone,
            placed_at=trainer.placed_at,
            node_price=self.price,
        )

    def _words(self, trainer: Trainer) -> tuple[ClusterMessage, ...]:
        """The kubelet's event about a pod that has not begun."""
        event = _START_EVENTS.get(trainer.start or "")
        if event is None:
            return ()
        return (ClusterMessage(reason=event, first_time=trainer.placed_at, last_time=trainer.placed_at),)

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def running(self) -> Trainer | None:
        """A trainer to break."""
        return next((t for t in self.heard() if not t.node_gone), None)

    def preempt(self, trainer: Trainer) -> None:
        """Eviction with notice: SIGTERM, a save, the pod goes."""
        trainer.disruption, trainer.deleting, trainer.deleted_at = "EvictionByEvictionAPI", True, self.time
        trainer.dies_at = self.time + timedelta(seconds=GRACE_SECONDS)

    def kill_node(self, trainer: Trainer) -> None:
        """The machine is gone, and the process with it."""
        trainer.node_gone = True
        self._exit(trainer, 137)
        trainer.exit_code = None

    def vanish(self, trainer: Trainer) -> None:
        """Pod and machine go within seconds, before anybody looks; the job fails, and nothing says why."""
        self.kill_node(trainer)
        trainer.exit_code, trainer.shown = 1, False
        self.gone_nodes.add(trainer.node)

    def reclaim(self, trainer: Trainer) -> None:
        """The machine goes after a notice. Nobody evicts the pod: it asks not to be disrupted."""
        trainer.goes_at = self.time + timedelta(seconds=NOTICE_SECONDS)

    def cut_node(self, trainer: Trainer) -> None:
        """The network is gone; the process goes on, and so does its access to the volume."""
        trainer.node_gone = True

    def fall_silent(self, trainer: Trainer) -> None:
        """With its zone, say: the process goes on, and what becomes of it nobody hears."""
        trainer.silent = True

    def answer(self, trainer: Trainer) -> None:
        """Its machine answers again, and tells what has become of it; a pod that was to go goes now."""
        trainer.silent, trainer.answers_since = False, self.time
        if trainer.deleting:
            trainer.dies_at = trainer.dies_at or self.time + timedelta(seconds=GRACE_SECONDS)
            if not trainer.alive:
                self._leave(trainer)

    def listen_anew(self) -> None:
        """Another operator listens, which has heard nothing yet."""
        self.listens_since = self.time
        for trainer in self.jobs.values():
            trainer.heard_at, trainer.newest_report = self.time, None

    def unheard_since(self, trainer: Trainer) -> datetime | None:
        """Return since when it trains and nobody hears of it; None: somebody does, or it does not train."""
        if not (trainer.cannot_report and trainer.alive and trainer.stage is Stage.TRAIN and trainer.done_at is None):
            return None
        known = (trainer.begun_at, trainer.waits_for_peer_until, trainer.heard_at)
        return None if trainer.begun_at is None else max(time for time in known if time is not None)

    def evict_for_memory(self, trainer: Trainer) -> None:
        """Its node runs short of memory, and it has asked for none."""
        self.evicted.append(trainer.number)
        trainer.short_of_memory, trainer.disruption = True, "Evicted"
        self._exit(trainer, 137)

    def break_device(self, trainer: Trainer) -> None:
        """Its GPU is lost, and the trainer says so."""
        self._exit(trainer, int(EXIT_CODES[Outcome.DEVICE_LOST]), self._last_words(trainer, Outcome.DEVICE_LOST))

    def crash(self, trainer: Trainer, *, out_of_memory: bool = False, out_of_disk: bool = False) -> None:
        """A bug of the user's."""
        trainer.out_of_memory, trainer.out_of_disk = out_of_memory, out_of_disk
        is_trained = trainer.stage is Stage.TRAIN and trainer.done_at is not None
        words = self._proof(trainer, ScriptEnd.FAILED) if is_trained else None
        self._exit(trainer, 137 if out_of_memory or out_of_disk else 1, words)
