"""`piton run` of a TrainingSweep: its runs on this machine, one after another or `parallelism` at once.

Each run is an ordinary local run in a folder of its own below the sweep's; what is to be done is decided by the same
pure half as on a cluster. A run exists here while this command drives it, and once it has succeeded: what an earlier
command left unfinished is created again, and goes on from its checkpoint.
"""

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import assert_never

from piton.api.conditions import SUCCEEDED, SUSPENDED, settled
from piton.api.deadline import deadline_of
from piton.api.reasons import Reason
from piton.api.spec import Meta
from piton.api.status import RunStatus
from piton.clock import SystemClock
from piton.contract import InputError
from piton.core.effects import Announcement
from piton.cost.spending import forget
from piton.drive import independent, run_pass
from piton.failures import Failures
from piton.local import own_files, preflight, sweep_folder
from piton.local import runner as runs
from piton.local.drills import Drill
from piton.local.observers import CourteousAnnouncer, SweepObserver
from piton.local.run_folder import LocalState, RunFolder, taken
from piton.local.summary import Summary
from piton.local.sweep_folder import SweepState, folder_of
from piton.local.sweep_specs import check, first_runs, fitting, gpus_wanted, spec_of
from piton.ports import Clock, Unavailable
from piton.sweep import decide
from piton.sweep.expand import PlannedRun, limited
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
from piton.sweep.parse import ParsedSweep
from piton.sweep.refusals import refused
from piton.sweep.status import SweepStatus
from piton.timing import Timing

_LOOK_SECONDS = 1.0
"""Seconds between two looks at the runs' progress."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """Request of the user."""

    sweep: ParsedSweep
    root: Path
    """The sweep's folder."""
    fresh: bool = False
    drills: Mapping[str, tuple[Drill, ...]] = field(default_factory=dict)
    """Drills by the name of the run."""
    notice_seconds: float = 30.0
    price: Fraction | None = None
    """Dollars per hour of this machine."""
    timing: Timing = runs.LOCAL_PACE


@dataclass(frozen=True, kw_only=True)
class SweepEnding:
    """End of the command."""

    name: str
    status: SweepStatus
    runs: tuple[Summary, ...]
    """Summaries of the started runs, in the order of the sweep."""
    trained: bool = True
    """False: the sweep was finished before."""
    interrupted: signal.Signals | None = None
    errors: Mapping[str, Exception] = field(default_factory=dict)
    """Errors of runs that could not be driven to an end, by the name of the run. The other runs went on."""


def run(order: SweepRequest, observer: SweepObserver, clock: Clock | None = None) -> SweepEnding:
    """Drive the sweep until it ends or is interrupted.

    Raises:
        ValueError: it cannot be started; one sentence that says why and what to do.
    """
    clock, spec = clock or SystemClock(), order.sweep.spec
    assert spec is not None
    if spec.suspend:
        raise InputError("spec.suspend: the sweep is told to hold; remove the field to train here")
    for variant, first in first_runs(order.sweep).items():
        check(variant, spec_of(first), order.price)
    return asyncio.run(_in_its_folder(order, observer, clock))


async def _in_its_folder(order: SweepRequest, observer: SweepObserver, clock: Clock) -> SweepEnding:
    with taken(order.root, own_files.SWEEP, order.sweep.meta.name) as root:
        if order.fresh:
            made = own_files.made_by_sweep(root, order.sweep.meta.name)
            await runs.delete(root, made, observer, spec_of(order.sweep.plan[0]).checkpoint.mirror)
        state = sweep_folder.state_of(root, order.sweep, clock)
        if state.status.is_true(SUCCEEDED):
            ended = sweep_folder.summaries(root, order.sweep, order.drills)
            return SweepEnding(name=state.name, status=state.status, runs=ended, trained=False)
        sweep = _Sweep(order, root, state, observer, clock)
        sweep_folder.save_first(root, state)
        return await sweep.drive()


@dataclass(kw_only=True)
class _Driven:
    """A run that this command drives."""

    task: asyncio.Task[runs.Ending]
    stop: runs.Stop
    devices: tuple[str, ...]
    created: datetime
    ends_at: datetime | None


class _Sweep:
    """Implements `piton.ports.AnyWorld` for a sweep, and the loop over it."""

    def __init__(
        self, order: SweepRequest, root: Path, state: SweepState, observer: SweepObserver, clock: Clock
    ) -> None:
        self.order = order
        self.root = root
        self.state = state
        self.observer = observer
        self.announcer = CourteousAnnouncer(observer)
        self.clock = clock
        self.driven: dict[str, _Driven] = {}
        self.endings: dict[str, runs.Ending] = {}
        self.errors: dict[str, Exception] = {}
        self.states = {run.name: self._folder(run).load() for run in order.sweep.plan}
        """State of each run as it was read last. One that cannot be read at first is refused before anything starts."""
        self.interrupted: signal.Signals | None = None
        self.wake = asyncio.Event()
        self.devices = list(preflight.gpus()) if gpus_wanted(order.sweep) else []
        self.spec = fitting(order.sweep, len(self.devices))

    # --- the port ----------------------------------------------------------------------------------------------------

    is_cached = False

    async def observe(self, *, live: bool = True) -> SweepObserved:  # noqa: ARG002 - it is always live
        """The sweep and the runs that exist here."""
        spec = self.spec.model_copy(update={"suspend": True}) if self.interrupted else self.spec
        seen = [found for run in self.order.sweep.plan if (found := self._seen(run))]
        return SweepObserved(
            meta=Meta(name=self.state.name, uid=self.state.name, generation=1, created=self.state.created),
            spec=spec,
            plan=self.order.sweep.plan,
            status=self.state.status,
            runs=tuple(seen),
        )

    async def apply(self, effect: SweepEffect) -> None:
        """Carry out one effect."""
        match effect:
            case CreateRun(run=run, until=until):
                self._start(run, until)
            case SuspendRun(name=name):
                if name in self.driven:
                    self.driven[name].stop.order(signal.SIGTERM)
            case ResumeRun() | MoveDeadline():  # the next command does both: it begins the run anew, with its deadline
                pass
            case _:
                assert_never(effect)

    async def write_status(self, status: SweepStatus) -> None:
        """Replace the sweep's status."""
        state = self.state.model_copy(update={"status": status})
        try:
            sweep_folder.save(self.root, state)
        except OSError as error:
            raise Unavailable(f"{self.root} does not take the sweep's state: {error.strerror}") from error
        self.state = state

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def drive(self) -> SweepEnding:
        """Pass over the sweep until it has ended, or has been stopped and nothing runs any more."""
        try:
            with runs.signals(self._interrupt):
                while not (settled(self.state.status) or (self.interrupted and not self.driven)):
                    seconds = await self._pass()
                    if seconds is None:
                        break
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.wake.wait(), seconds)
                    self.wake.clear()
                    await self._collect()
        except Exception:
            await self._save_all()
            raise
        finally:
            await self._abandon()
        if not settled(self.state.status):
            await self._pass()
        ended = {name: ending.summary for name, ending in self.endings.items()}
        return SweepEnding(
            name=self.state.name,
            status=self.state.status,
            runs=sweep_folder.summaries(self.root, self.order.sweep, self.order.drills, ended),
            interrupted=self.interrupted,
            errors=self.errors,
        )

    async def _pass(self) -> float | None:
        """One pass; how long to wait for the next. None: nothing runs, and nothing will: a budget is spent."""
        rules = independent(self._decide, self._turn_down, decide.is_binding, name_of)
        try:
            decision = await run_pass(self, self.announcer, rules, Failures(self.clock))
        except Unavailable as error:
            if not self.driven and not self.root.exists():
                raise InputError(f"{error}; the folder is gone, and the sweep with it, unless it was moved") from error
            await self.announcer.announce(Announcement(severity="Warning", reason=Reason.REFUSED, message=str(error)))
            return _LOOK_SECONDS
        wanted = decision.look_again_seconds if decision else None
        if decision and not decision.effects and not self.driven and wanted != 0 and not settled(decision.status):
            return None
        return min(_LOOK_SECONDS, _LOOK_SECONDS if wanted is None else wanted)

    def _decide(self, observed: SweepObserved) -> SweepDecision:
        return decide.decide(observed, now=self.clock.now(), timing=self.order.timing)

    def _turn_down(self, observed: SweepObserved, decision: SweepDecision, refusals: Refusals) -> SweepDecision:
        return refused(observed, decision, refusals, now=self.clock.now(), timing=self.order.timing)

    def _interrupt(self, signum: signal.Signals) -> None:
        self.interrupted = self.interrupted or signum
        for driven in self.driven.values():
            driven.stop.order(signum)
        self.wake.set()

    async def _collect(self) -> None:
        """Take the ends of the runs that have come to one. A run that ends with an error stops no other one."""
        for name, driven in list(self.driven.items()):
            if not driven.task.done():
                continue
            del self.driven[name]
            self.devices += driven.devices
            error = driven.task.exception()
            if error is None:
                self.endings[name] = driven.task.result()
            elif isinstance(error, Exception):
                await self._give_up(name, error)
            else:
                raise error

    async def _give_up(self, name: str, error: Exception) -> None:
        """Note the error of a run. Where its training has succeeded, the error is about its picture or its summary."""
        state = self._load(next(run for run in self.order.sweep.plan if run.name == name))
        if state is None or not state.status.is_true(SUCCEEDED):
            self.errors[name] = error
        message = f"{name} is given up, and the other runs go on: {error}"
        await self.announcer.announce(Announcement(severity="Warning", reason=Reason.CANNOT_START, message=message))

    async def _save_all(self) -> None:
        """Let what runs save and stop, before an error of the sweep itself ends the command."""
        for driven in self.driven.values():
            driven.stop.order(signal.SIGTERM)
        await asyncio.gather(*(driven.task for driven in self.driven.values()), return_exceptions=True)

    async def _abandon(self) -> None:
        """Nobody waits any more: an error, or the loop's cancellation."""
        for driven in self.driven.values():
            driven.task.cancel()
        await asyncio.gather(*(driven.task for driven in self.driven.values()), return_exceptions=True)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _folder(self, run: PlannedRun) -> RunFolder:
        return folder_of(self.root, run, self.state.name)

    def _seen(self, run: PlannedRun) -> RunSeen | None:
        """The run, while this command drives it, has driven it to an end, or finds it trained."""
        driven, ending = self.driven.get(run.name), self.endings.get(run.name)
        saved = self._load(run)
        status = saved.status if saved else RunStatus()
        if driven and settled(status):  # an earlier command's end, or one that is only just being written
            status = RunStatus(cost=forget(status, status.attempts).cost)
        if error := self.errors.get(run.name):
            status = sweep_folder.failed_with(error, status, self.state.created)
        elif driven is None and ending is None and not status.is_true(SUCCEEDED):
            return None
        return RunSeen(
            name=run.name,
            created=driven.created if driven else self.clock.now(),
            suspend=driven.stop.times > 0 if driven else status.is_true(SUSPENDED),
            ends_at=driven.ends_at if driven else None,
            spec=spec_of(run),
            uid=run.name,
            status=status,
        )

    def _load(self, run: PlannedRun) -> LocalState | None:
        """Return the run's state; where it cannot be read, as it was before."""
        with contextlib.suppress(InputError):
            self.states[run.name] = self._folder(run).load()
        return self.states[run.name]

    def _start(self, run: PlannedRun, until: datetime | None) -> None:
        if not self.root.exists():  # a run would make it anew, without what was trained before
            raise Unavailable(f"{self.root} is not there")
        saved = self._load(run)
        created = saved.created if saved else self.clock.now()
        spec = spec_of(replace(run, spec=limited(run, until, created)))
        wanted = preflight.gpus_wanted(spec)
        devices, self.devices = tuple(self.devices[:wanted]), self.devices[wanted:]
        order = runs.RunRequest(
            name=run.name,
            spec=spec,
            root=self._folder(run).root,
            drills=self.order.drills.get(run.name, ()),
            notice_seconds=self.order.notice_seconds,
            timing=self.order.timing,
            devices=devices,
            share=self.spec.parallelism,
            price=self.order.price,
        )
        stop = runs.Stop()
        task = asyncio.create_task(runs.train(order, self.observer.of(run.name), self.clock, stop), name=run.name)
        task.add_done_callback(lambda _: self.wake.set())
        ends_at = deadline_of(Meta(name=run.name, created=created), spec)
        self.driven[run.name] = _Driven(task=task, stop=stop, devices=devices, created=created, ends_at=ends_at)
