"""One run on this machine: implements `piton.ports.World` on processes and a folder.

It carries out what the core decides and drills that the user orders, and it shows the evidence. It decides nothing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import assert_never

from torchx import specs

from piton.api.conditions import settled
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec, Stage
from piton.api.stages import staged
from piton.api.status import RunStatus
from piton.contract import names
from piton.contract.duration import format_duration
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
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
    TaintNode,
)
from piton.local import environment, processes
from piton.local.attempt import LocalAttempt
from piton.local.drills import Drill, first_due, pending
from piton.local.progress_server import TOKEN, LocalProgressServer
from piton.local.run_folder import LocalState, ProcessRecord, RunFolder, replace_text
from piton.observed import Observed, VolumeSeen
from piton.ports import Clock, Refused, Unavailable
from piton.rendering.appdef import appdef, assignment
from piton.timing import GRACE_SECONDS

REPORT_SECONDS_MAX = 300.0
"""Seconds for which an attempt may train without a report before the user is told that a drill waits for one."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Price of this machine, and the share of the run. Nodes of a run share it."""

    price: Fraction | None = None
    """Dollars per hour; None: unknown."""
    share: Fraction = Fraction(1)


class LocalWorld:
    """A run's world. `poll` and `drill` belong to the loop in runner.py; the rest is the port."""

    def __init__(
        self,
        *,
        folder: RunFolder,
        state: LocalState,
        receiver: LocalProgressServer,
        clock: Clock,
        drills: Sequence[Drill] = (),
        notice_seconds: float = 30.0,
        devices: Sequence[str] = (),
        share: int = 1,
        machine: Machine | None = None,
        rehearsal: int | None = None,
    ) -> None:
        self.folder = folder
        self.state = state
        self.interrupted = False
        """True if the user has interrupted the run; the same as `suspend: true`."""
        self._receiver = receiver
        self._clock = clock
        self._drills = drills
        self._notice_seconds = notice_seconds
        self._devices = devices
        self._share = share
        self._machine = machine or Machine()
        self._rehearsal = rehearsal
        self._attempts: dict[int, LocalAttempt] = {}
        self._proven: Complete | None = None
        """The final manifest as it was at the last poll."""
        self._touched = False
        """True if an attempt was stopped since the last poll, and may have ended already."""

    # --- the port ----------------------------------------------------------------------------------------------------

    is_cached = False

    async def observe(self, *, live: bool = True) -> Observed:  # noqa: ARG002 - it is always live
        """Gather everything about the run."""
        seen = [attempt.seen() for attempt in self._attempts.values()]
        return Observed(
            meta=self._meta(),
            spec=self._spec(),
            status=self.state.status,
            volume=VolumeSeen(exists=self.folder.checkpoints.is_dir()),
            attempts=tuple(attempt for attempt in seen if attempt),
            progress=self.progress,
            complete=self.folder.complete(),
        )

    async def apply(self, effect: Effect) -> None:
        """Carry out one effect."""
        match effect:
            case AddFinalizer() | RemoveFinalizer():
                self._save(held=isinstance(effect, AddFinalizer))
            case CreateVolume():
                self._create(self.folder.checkpoints)
            case OwnVolume() | DeleteRun():
                raise AssertionError(f"a folder has no owner and no time to live, and none was observed: {effect}")
            case StartAttempt():
                self._start(effect)
            case StopAttempt(number=number):
                self._stop(number)
            case RemoveReplica(number=number, name=name):
                if number in self._attempts:
                    self._attempts[number].kill(name)
            case TaintNode():
                raise AssertionError(f"this machine is no node, and its pace has no taint: {effect}")
            case RequestQuota() | ReturnQuota() | ReportPodsReady() | LeaveQueue():
                raise AssertionError(f"there are no queues on this machine, and none was observed: {effect}")
            case _:
                assert_never(effect)

    async def write_status(self, status: RunStatus) -> None:
        """Replace the run's status."""
        self._save(status=status)

    # --- the loop ----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress | None:
        """The newest report of the newest attempt."""
        return self._receiver.newest(self.state.status.attempt)

    @property
    def over(self) -> bool:
        """True if the run has ended for good and nothing of it is left."""
        return settled(self.state.status) and not self.state.held and not self.alive

    @property
    def alive(self) -> bool:
        """True if any process is left."""
        return any(attempt.alive for attempt in self._attempts.values())

    def poll(self) -> bool:
        """Look after the processes; whether something has changed."""
        now = self._clock.now()
        changed = [self._touched, *(attempt.poll(now) for attempt in self._attempts.values())]
        proven = self.folder.complete()
        changed.append(proven != self._proven)
        self._touched, self._proven = False, proven
        return any(changed)

    def trains(self, number: int) -> bool:
        """True if the attempt is one of the training, and not of another stage."""
        return any(r.number == number and r.stage is Stage.TRAIN for r in self.state.status.attempts)

    def drill(self) -> Announcement | None:
        """Carry out the first due drill, if there is a machine to lose; written down first, so that it fires once."""
        due = self.due()
        if due is None:
            return None
        self._save(drills_fired=(*self.state.drills_fired, due.text))
        return self._reclaim(self._attempts[self.state.status.attempt], due, self._clock.now())

    def due(self) -> Drill | None:
        """The first due drill at what runs now; None where nothing runs that could be lost."""
        status = self.state.status
        attempt = self._attempts.get(status.attempt)
        if attempt is None or status.current is None or not attempt.undisturbed:
            return None
        now, stage = self._clock.now(), status.stage(status.current.stage)
        begun = self.state.created if stage.name is Stage.TRAIN else stage.start_time or now
        drills = [drill for drill in self.drills_left() if drill.stage is stage.name]
        return first_due(drills, progress=self.progress, seconds=(now - begun).total_seconds())

    def drills_left(self) -> tuple[Drill, ...]:
        """The drills that have not fired."""
        return pending(self._drills, self.state.drills_fired)

    def silence(self) -> Announcement | None:
        """A warning when drills wait for a report of the training, and none has come so far or will come any more."""
        number = self.state.status.attempt
        attempt = self._attempts.get(number)
        waiting = [drill.text for drill in self.drills_left() if drill.unit != "seconds"]
        if attempt is None or not waiting or self.progress is not None or not self.trains(number):
            return None
        if attempt.ended_by_itself:
            told = "has ended without a report of its progress"
        elif attempt.undisturbed and attempt.seconds(self._clock.now()) >= REPORT_SECONDS_MAX:
            told = f"has not reported any progress for {format_duration(REPORT_SECONDS_MAX)}"
        else:
            return None
        message = f"Attempt {number} {told}, and without reports no drill at a percentage or a step can fire: "
        return Announcement(severity="Warning", reason=Reason.TRAINING, message=message + ", ".join(waiting))

    def stop(self) -> None:
        """SIGTERM to everything, and SIGKILL after the grace period."""
        for attempt in self._attempts.values():
            attempt.stop(self._clock.now(), GRACE_SECONDS)

    def kill(self) -> None:
        """SIGKILL to everything; nobody waits any more."""
        for attempt in self._attempts.values():
            attempt.kill()

    def failed_log(self) -> Path | None:
        """The log of the replica that failed first in the newest attempt of this command."""
        return self._attempts[max(self._attempts)].failed_log() if self._attempts else None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _meta(self) -> Meta:
        return Meta(
            name=self.state.name,
            uid=self.state.uid,
            generation=1,
            created=self.state.created,
            held=self.state.held,
        )

    def _spec(self) -> Spec:
        """The user's, but that a folder has no time to live: it stays until the user deletes it."""
        holds = {"suspend": True} if self.interrupted else {}
        return self.state.spec.model_copy(update={"ttl_after_finished": None, **holds})

    def _save(self, **fields: object) -> None:
        state = self.state.model_copy(update=fields)
        try:
            self.folder.save(state)
        except OSError as error:
            raise Unavailable(f"{self.folder.root} does not take the run's state: {error.strerror}") from error
        self.state = state

    def _create(self, *folders: Path, spec: Spec | None = None) -> None:
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder.config_file, assignment(spec or self.state.spec).to_json())
            replace_text(self.folder.token_file, TOKEN)
        except OSError as error:
            raise Refused(f"{error.filename} cannot be written: {error.strerror}") from error

    def _start(self, effect: StartAttempt) -> None:
        number, spec = effect.number, staged(self.state.spec, effect.stage)
        if number in self._attempts:
            return
        self._create(self.folder.attempt(number), spec=spec)
        self._attempts = {n: a for n, a in self._attempts.items() if a.alive or not a.deleting}
        nodes = range(spec.workers.nodes)
        attempt = LocalAttempt(
            number=number,
            termination_logs=[self.folder.attempt(number) / f"termination-{node}.json" for node in nodes],
            begun=self._clock.now(),
            price=self._machine.price,
            share=self._machine.share / spec.workers.nodes,
        )
        try:
            attempt.replicas = processes.start(
                self._app(effect, spec), logs=self.folder.logs(number), devices=self._devices
            )
        except OSError as error:
            attempt.why_not_started = f"{error.strerror}: {error.filename}"
        self._attempts[number] = attempt
        identities = [replica.identity for replica in attempt.replicas]
        records = tuple(ProcessRecord(pid=i.pid, started=i.started) for i in identities if i)
        self._save(processes=records)

    def _app(self, effect: StartAttempt, spec: Spec) -> specs.AppDef:
        """The attempt's AppDef, in which only our own variables are macros."""
        url = self._receiver.url(effect.number)
        place = environment.place(
            self.folder,
            spec,
            effect.number,
            url=url,
            python=sys.executable,
            share=self._share,
            rehearsal=self._rehearsal,
        )
        app = appdef(
            self._meta(),
            self.state.spec,
            effect.number,
            place,
            stage=effect.stage,
            checkpoint_step=effect.checkpoint_step,
            go_on_after=effect.go_on_after,
            blocking_saves=effect.blocking_saves,
            stop_after=effect.stop_after,
        )
        ours = {*place.env, names.ENV_CHECKPOINT_DIR, names.ENV_CHECKPOINT, names.ENV_CONFIG, names.ENV_TERMINATION_LOG}
        role = app.roles[0]
        role.args = [processes.literal(argument) for argument in role.args]
        role.env = {k: v if k in ours else processes.literal(v) for k, v in role.env.items()}
        return app

    def _stop(self, number: int) -> None:
        attempt = self._attempts.get(number)
        if attempt is None:
            return
        self._touched = True
        if attempt.alive or attempt.why_not_started:
            attempt.stop(self._clock.now(), GRACE_SECONDS)
        else:
            del self._attempts[number]

    def _reclaim(self, attempt: LocalAttempt, drill: Drill, now: datetime) -> Announcement:
        at = _place(self.progress)
        if drill.kind == "kill":
            attempt.lose()
            message = f"Drill {drill.text}{at}: the machine is gone, without notice"
            return Announcement(severity="Warning", reason=Reason.NODE_GONE, message=message)
        attempt.reclaim(now, self._notice_seconds)
        message = f"Drill {drill.text}{at}: the machine goes in {format_duration(self._notice_seconds)}"
        return Announcement(severity="Warning", reason=Reason.NODE_RECLAIMED, message=message)


def _place(progress: Progress | None) -> str:
    """Describe the progress at which a drill hit the training, by its newest report."""
    if progress is None:
        return ""
    if progress.step is not None:
        return f" at step {progress.step}"
    return "" if progress.percentage is None else f" at {progress.percentage}%"
