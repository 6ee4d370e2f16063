"""`piton run`: drives one run on this machine from here to its end, or to Ctrl-C.

    check -> take the folder -> kill what an earlier command left -> loop -> draw the curve

The loop reconciles whenever something happens: a report, the end of a process, a signal, a moment that the core named.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

from piton.api.checkpoint_spec import Mirror
from piton.api.conditions import SUCCEEDED, SUSPENDED, TRAINING
from piton.api.reasons import Reason
from piton.api.spec import Spec
from piton.api.status_base import Phase
from piton.clock import SystemClock
from piton.contract import InputError
from piton.contract.progress import Progress
from piton.core import retries
from piton.core.effects import Announcement
from piton.drive import reconcile
from piton.local import metrics, orphans, own_files, plot, preflight, processes, resume
from piton.local.drills import Drill
from piton.local.observers import Courteous, RunObserver, View
from piton.local.progress_server import receiving
from piton.local.run_folder import LocalState, RunFolder, opened
from piton.local.summary import Summary, summarise
from piton.local.world import LocalWorld, Machine
from piton.ports import Announcer, Clock, Conflict, Unavailable
from piton.timing import GRACE_SECONDS, Timing

LOCAL_PACE = Timing(
    backoff_seconds=1.0,
    backoff_seconds_max=60.0,
    evidence_seconds=1.0,  # no machine is far away: peers that fall together fall within a second
    start_seconds=0.0,  # a program that is not there will not come
    fails_when_stalled=True,  # the same command takes it up again
    kept_records=1000,  # recovery is summed up over all attempts
    progress_seconds=1.0,
    after_training_seconds=3600.0,
)
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_INTERRUPTED = "Interrupted: the trainers save and stop; once more kills them"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Request of the user."""

    name: str
    spec: Spec
    root: Path
    """The run's folder."""
    fresh: bool = False
    """Delete the previous state in the folder, and start over."""
    drills: tuple[Drill, ...] = ()
    notice_seconds: float = 30.0
    """From SIGTERM to SIGKILL in a drill with notice. A spot machine gives 120."""
    timing: Timing = LOCAL_PACE
    devices: tuple[str, ...] | None = None
    """GPUs that it may use; None: all that this command may use."""
    share: int = 1
    """Runs that this machine trains at the same time; its cores are divided among them."""
    price: Fraction | None = None
    """Dollars per hour of this machine; None: capacity.maxPricePerHour stands for it, where that is given."""
    goes_on: bool = False
    """Train on where the script has left its loop by `break`, although the run has Succeeded."""
    rehearsal: int | None = None
    """Stop after so many steps, resume, and end after as many again; None: in earnest."""


class Stop:
    """Order to stop a run: after the first, the run saves and ends; after the second, the command does not wait."""

    def __init__(self) -> None:
        self.signum: signal.Signals | None = None
        """Signal that stopped it first."""
        self.times = 0

    def order(self, signum: signal.Signals) -> None:
        """Record an order to stop."""
        self.signum = self.signum or signum
        self.times += 1


@dataclass(frozen=True, kw_only=True)
class Ending:
    """End of the command."""

    summary: Summary
    trained: bool = True
    """False: the run was finished before."""
    interrupted: signal.Signals | None = None
    failed_log: Path | None = None
    """The log of the replica that failed first, for a run that failed."""


def run(order: RunRequest, observer: RunObserver, clock: Clock | None = None) -> Ending:
    """Drive the run until it ends or is interrupted.

    Raises:
        ValueError: it cannot be started; one sentence that says why and what to do.
    """
    preflight.check(order.spec)
    preflight.check_price(order.spec, order.price)
    return asyncio.run(_alone(order, observer, clock or SystemClock()))


async def _alone(order: RunRequest, observer: RunObserver, clock: Clock) -> Ending:
    stop = Stop()
    with signals(stop.order):
        return await train(order, observer, clock, stop)


async def train(order: RunRequest, observer: RunObserver, clock: Clock, stop: Stop) -> Ending:
    """Drive the run until it ends or is told to stop; others may be driven beside it. It was checked before.

    Raises:
        ValueError: its folder is not its own, or holds another run.
    """
    observer = Courteous(observer)
    with opened(order.root, order.name) as folder:
        left = orphans.kill_marked(folder.mark, _recorded(folder))
        if order.fresh:
            await delete(folder.root, own_files.made_by_run(folder.root), observer, order.spec.checkpoint.mirror)
        state = resume.state_of(folder, name=order.name, spec=order.spec, now=clock.now())
        if order.goes_on and retries.may_go_on(state.status):
            state = resume.go_on(state, now=clock.now())
            held = state.status.condition(TRAINING)
            assert held is not None
            await observer.announce(Announcement(reason=Reason.RETRYING, message=held.message))
        if state.status.is_true(SUCCEEDED):
            return Ending(summary=summarise(folder, state, order.drills), trained=False)
        _save_first(folder, state)
        return await _train(order, observer, clock, folder, state, left, stop)


async def delete(root: Path, made: Sequence[Path], announcer: Announcer, mirror: Mirror | None) -> None:
    """Delete what an earlier command has made in this folder, after saying what that is.

    Raises:
        ValueError: something cannot be deleted.
    """
    if not made:
        return
    text = own_files.describe(root, made) + (f"; {mirror.uri} is left as it is" if mirror else "")
    await announcer.announce(Announcement(severity="Warning", reason=Reason.FIRST_ATTEMPT, message=text))
    own_files.delete(root, made)


def _recorded(folder: RunFolder) -> tuple[orphans.Process, ...]:
    """The processes of the last command, if it left word of them."""
    with contextlib.suppress(ValueError):
        state = folder.load()
        return state.leftovers if state else ()
    return ()


def _save_first(folder: RunFolder, state: LocalState) -> None:
    try:
        folder.save(state)
    except OSError as error:
        raise InputError(
            f"{folder.root} cannot be written ({error.strerror}); name another folder with --dir"
        ) from error


async def _train(
    order: RunRequest, observer: RunObserver, clock: Clock, folder: RunFolder, state: LocalState, left: int, stop: Stop
) -> Ending:
    def on_report(attempt: int, progress: Progress) -> None:
        if world.trains(attempt):
            metrics.append(folder.metrics_file, attempt, progress)

    with receiving(on_report) as receiver, processes.watchdog(folder.mark, GRACE_SECONDS):
        world = LocalWorld(
            folder=folder,
            state=state,
            receiver=receiver,
            clock=clock,
            drills=order.drills,
            notice_seconds=order.notice_seconds,
            devices=_devices(order) if preflight.gpus_wanted(order.spec) else (),
            share=order.share,
            machine=Machine(price=order.price, share=_part(order)),
            rehearsal=order.rehearsal,
        )
        try:
            interrupted = await _Loop(world, clock, observer, order, stop).drive(left)
        finally:
            world.kill()
    await _draw(folder, world.state, observer)
    return Ending(
        summary=summarise(folder, world.state, order.drills),
        interrupted=interrupted,
        failed_log=world.failed_log() if world.state.status.phase is Phase.FAILED else None,
    )


def _devices(order: RunRequest) -> tuple[str, ...]:
    return preflight.gpus() if order.devices is None else order.devices


def _part(order: RunRequest) -> Fraction:
    """The part of this machine that the run has: of its GPUs, else of its cores."""
    wanted = preflight.gpus_wanted(order.spec)
    return Fraction(wanted, max(wanted, len(preflight.gpus()))) if wanted else Fraction(1, order.share)


async def _draw(folder: RunFolder, state: LocalState, observer: RunObserver) -> None:
    """Draw the curve. It is a courtesy: whatever prevents it changes nothing about the run, and is said."""
    objective = state.spec.objective.metric if state.spec.objective else None
    try:
        plot.draw(
            folder.curve_file,
            name=state.name,
            points=metrics.read(folder.metrics_file),
            objective=objective,
            attempts=state.status.attempts,
        )
    except Exception as error:  # noqa: BLE001 - matplotlib's, of any kind
        message = f"{folder.curve_file.name} is not drawn ({type(error).__name__}: {error}); the run is not affected"
        await observer.announce(Announcement(severity="Warning", reason=Reason.FINISHED, message=message))


class _Loop:
    """The loop over one run."""

    def __init__(self, world: LocalWorld, clock: Clock, observer: RunObserver, order: RunRequest, stop: Stop) -> None:
        self.world = world
        self.clock = clock
        self.observer = observer
        self.order = order
        self.stop = stop
        self.told: set[str] = set()

    async def drive(self, left: int) -> signal.Signals | None:
        """Reconcile until the run is over or stopped; the signal that stopped it."""
        if left:
            message = f"Killed {left} process(es) that an earlier command had left behind"
            await self._announce(Announcement(severity="Warning", reason=Reason.RETRYING, message=message))
        look_at: datetime | None = self.clock.now()
        seen_progress: Progress | None = None
        while True:
            changed = self._heed() or self.world.poll() or self.world.progress is not seen_progress
            changed = changed or self.world.due() is not None
            if silence := self.world.silence():
                await self._announce(silence)
            if changed or (look_at is not None and self.clock.now() >= look_at):
                seen_progress = self.world.progress
                look_at = await self._pass()
            self._show()
            if self.world.over or self._stopped():
                return self.stop.signum
            await asyncio.sleep(_POLL_SECONDS)

    def _heed(self) -> bool:
        """True if it has just been told to stop."""
        if self.stop.times > 1:
            self.world.kill()
        fresh = self.stop.times > 0 and not self.world.interrupted
        self.world.interrupted = self.stop.times > 0
        return fresh

    async def _pass(self) -> datetime | None:
        """Look for a drill and reconcile, again and again while there is something to do at once."""
        seconds: float | None = 0.0
        if self.world.interrupted:
            await self._announce(Announcement(reason=Reason.SUSPENDED, message=_INTERRUPTED))
        try:
            while seconds == 0.0:
                drill = self.world.drill()
                if drill:
                    await self._announce(drill)
                decision = await reconcile(self.world, self.clock, self.observer, self.order.timing)
                assert decision is not None
                seconds = None if self._stopped() else decision.look_again_seconds
        except Conflict:
            seconds = 0.0
        except Unavailable as error:
            self._end_unless_it_trains(error)
            await self._announce(Announcement(severity="Warning", reason=Reason.REFUSED, message=str(error)))
            seconds = _RETRY_SECONDS
        return None if seconds is None else self.clock.now() + timedelta(seconds=seconds)

    def _end_unless_it_trains(self, error: Unavailable) -> None:
        """End the command where the folder takes no state, once nothing trains any more.

        Raises:
            ValueError: the user has stopped the run, or the folder is gone.
        """
        if self.world.interrupted:  # the order to stop would follow the state that is not taken
            self.world.stop()
        if self.world.alive:
            return
        if not self.order.root.exists():
            raise InputError(f"{error}; the folder is gone, and the run with it, unless it was moved") from error
        if self.world.interrupted:
            raise InputError(
                f"{error}; mend that, and the same command continues from the newest checkpoint"
            ) from error

    def _stopped(self) -> bool:
        """True if it holds: on the user's order, or because the budget is spent, which nobody raises meanwhile."""
        status = self.world.state.status
        if status.phase is not Phase.SUSPENDED or self.world.alive:
            return False
        held = status.condition(SUSPENDED)
        return self.world.interrupted or (held is not None and held.reason is Reason.BUDGET_EXCEEDED)

    def _show(self) -> None:
        spec = self.world.state.spec
        self.observer.show(
            View(
                name=self.world.state.name,
                status=self.world.state.status,
                progress=self.world.progress,
                objective=spec.objective.metric if spec.objective else None,
                now=self.clock.now(),
            )
        )

    async def _announce(self, announcement: Announcement) -> None:
        """The same words are told once."""
        if announcement.message not in self.told:
            self.told.add(announcement.message)
            await self.observer.announce(announcement)


@contextlib.contextmanager
def signals(order: Callable[[signal.Signals], None]) -> Iterator[None]:
    """While this lasts, a signal that would end this command is an order instead. A terminal may vanish."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    for signum in _STOP_SIGNALS:
        loop.add_signal_handler(signum, order, signum)
    try:
        yield
    finally:
        for signum in (*_STOP_SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(signum)
