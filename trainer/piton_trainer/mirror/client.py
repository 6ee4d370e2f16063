"""Client of the mirror process: starts it, notifies it of commits, reads its state, and replaces it when it dies.

    the loop     committed(step)   lag()                     finish()  end(outcome)
    a thread     starts the process; receives its messages; starts another one
    the process  process.py

The loop only takes a lock that is never held for long. One commit at a time is sent to the process: until it is
acknowledged only the newest is kept, so that the connection never fills up and blocks.
"""

import logging
import math
import threading
import uuid
from collections.abc import Callable
from typing import assert_never

from piton.contract.assignment import MirrorPolicy
from piton.contract.duration import format_duration
from piton.contract.termination import Outcome
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence, Holder
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import NotMirrored, VolumeLost
from piton_trainer.mirror import Lag
from piton_trainer.mirror.health import MirrorHealth
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.mirror.messages import (
    Answer,
    Committed,
    LogMessage,
    MirrorProcess,
    MirrorSettings,
    MirrorState,
    Restore,
    RestoreDone,
    Timeouts,
    Transfer,
)
from piton_trainer.runtime.child_process import ChildProcess, Failed
from piton_trainer.s3 import Tuning

logger = logging.getLogger(__name__)

_LEAVE_SECONDS = 2.0
_DEATHS_MAX = 3
"""Maximum number of deaths of the process during one wait of the trainer."""
_LOOK_SECONDS = 0.1
_REPORT_SECONDS = 10.0
"""Seconds between two progress reports while the trainer waits."""


def start() -> MirrorProcess:
    """Start a separate process."""
    return ChildProcess("piton_trainer.mirror.process")


class MirrorClient:
    """Second copy of the checkpoints, managed by rank 0."""

    def __init__(
        self,
        config: Config,
        place: BucketPrefix,
        policy: MirrorPolicy,
        *,
        fence: Fence,
        clock: Clock,
        patience: Timeouts,
        report: Callable[[Transfer], None],
        tuning: Tuning | None = None,
        start: Callable[[], MirrorProcess] = start,
    ) -> None:
        self.place = place
        self._patience = patience
        self._clock = clock
        self._start = start
        self._report = report
        speed, directory = policy.megabytes_per_second, config.checkpoint_dir
        self._settings = MirrorSettings(
            place=place,
            directory=directory,
            attempt=config.attempt,
            owner=uuid.uuid4().hex,
            fence=Holder(attempt=fence.attempt, owner=fence.owner),
            run=config.uid,
            durable_step=config.durable_step,
            is_empty=Retry(clock)(lambda: next(layout.committed(directory), None) is None, directory),
            policy=config.assignment.save,
            objective=config.assignment.objective,
            tuning=tuning or Tuning(bytes_per_second=None if speed is None else speed * 1_000_000),
            encryption=policy.encryption,
            patience=patience,
        )
        self._changed = threading.Condition()
        self._process: MirrorProcess | None = None
        self._state = MirrorState(known=None, mirrored=None, is_idle=True, is_over=False)
        """State that the process has reported last."""
        self._commits: list[tuple[int, float]] = []
        """Steps newer than everything in the bucket, with the times of their commits."""
        self._wanted: int | None = None
        self._sent: int | None = None
        self._mirrored: int | None = None
        self._generation: Restore | None = None
        self._answer: RestoreDone | Failed | None = None
        self._health = MirrorHealth(str(place), patience.behind)
        self._deaths = 0
        self._logged: list[str] = []
        self._is_awaited = self._has_waited = False
        self._moved_at = self._reported_at = 0.0
        """Times of the last progress and of its last report."""
        self._is_over = False
        # The kernel kills the process when the thread that started it ends, so this thread lives as long as needed.
        self._thread = threading.Thread(target=self._attend, name="mirror", daemon=True)
        self._thread.start()

    def restore(self, newer_than: int | None) -> int | None:
        """Fetch a checkpoint from the bucket that is newer than this step of the volume (None: it has no good one).

        Raises:
            BadConfig: the bucket refuses access, and the volume has no checkpoint; or the settings cannot work.
            VolumeLost: the volume fails; or the bucket does not answer until the timeout, so another attempt should
                try; or a newer version of Piton wrote its checkpoint.
            OutOfSpace: the volume is full.
        """
        with self._changed:
            self._generation = Restore(newer_than=newer_than)
            self._send(self._generation)
            last = self._deaths + _DEATHS_MAX
            self._await()
            self._changed.wait_for(lambda: self._answer or self._state.is_over or self._is_over or self._deaths >= last)
            self._generation, answer, self._answer, self._is_awaited = None, self._answer, None, False
        match answer:
            case RestoreDone():
                return answer.step
            case None if newer_than is not None:
                return None  # its deaths are logged; the volume has a checkpoint to resume from
            case None:
                raise VolumeLost(f"the process that restores from {self.place} ends before it has done so")
            case Failed():
                raise answer.error(f"nothing is restored from {self.place}")

    def committed(self, step: int) -> None:
        """Record that this step is durable on the volume. Returns at once."""
        with self._changed:
            self._wanted = step
            self._commits.append((step, self._clock.monotonic()))
            self._send_newest()

    def lag(self) -> Lag | None:
        """Return the lag of the bucket; None before the first commit."""
        with self._changed:
            if self._wanted is None:
                return None
            if not self._commits:
                return Lag(steps=0, seconds=0.0)
            seconds = self._clock.monotonic() - self._commits[0][1]
            return Lag(steps=self._wanted - (self._mirrored or 0), seconds=seconds)

    def errors(self) -> dict[str, int]:
        """Return the number of failures in this attempt, by class."""
        with self._changed:
            return self._health.errors(self._state)

    @property
    def mirrored_step(self) -> int | None:
        """Newest step in the bucket; None before this attempt has mirrored."""
        with self._changed:
            return self._mirrored if self._health.has_mirrored else None

    @property
    def refusal(self) -> str | None:
        """Reason why nothing is mirrored: the bucket is another's, or refuses, or nothing has moved for long."""
        with self._changed:
            return self._health.reason(self._state, self._still_seconds())

    def finish(self, is_stop_requested: Callable[[], bool]) -> bool:
        """Wait, after the training, for the remaining uploads while they make progress.

        Return True if the bucket has the newest checkpoint, or belongs to another process, which has been logged.
        Return False if asked to stop before that.

        Raises:
            NotMirrored: there was no progress until the timeout.
        """
        stop_at = math.inf
        with self._changed:
            self._await()
            deaths_max = self._deaths + _DEATHS_MAX
            while not self._is_settled() and self._deaths < deaths_max:
                now = self._clock.monotonic()
                if now >= min(stop_at, self._moved_at + self._finish_seconds):
                    break
                if stop_at == math.inf and is_stop_requested():
                    stop_at = now + self._patience.stop
                self._changed.wait(_LOOK_SECONDS)
            self._is_awaited, self._has_waited = False, True
            if not self._commits or self._state.is_over:
                return True
            if stop_at < math.inf:
                return False
            raise NotMirrored(self._what_is_missing())

    def end(self, outcome: Outcome) -> bool:
        """Wait for the remaining uploads if the outcome allows it, unless `finish` has; True if all are done."""
        is_calm = outcome in (Outcome.FINISHED, Outcome.STOPPED, Outcome.DIVERGED, Outcome.OUT_OF_SPACE)
        return self.close(self._patience.stop if is_calm and not self._has_waited else 0.0)

    def close(self, seconds: float) -> bool:
        """Wait at most this long for the remaining uploads, then end the process; return True if all are done."""
        with self._changed:
            self._changed.wait_for(self._is_settled, seconds)
            done, mirrored, self._is_over = not self._commits, self._mirrored, True
            self._changed.notify_all()
            process = self._process
        if process is not None:
            process.leave(_LEAVE_SECONDS if done else 0.0)
        self._thread.join()
        if not done:
            logger.warning("%s is behind: it has step %s of %s", self.place, mirrored, self._wanted)
        return done

    def _await(self) -> None:
        """Note that the trainer waits from now on, so that progress is reported."""
        self._is_awaited = True
        self._note_progress()
        self._reported_at = self._moved_at

    @property
    def _finish_seconds(self) -> float:
        """Time without progress that ends the wait. What only the user can change is not waited for with machines."""
        finish = self._patience.finish
        return min(self._patience.stop, finish) if self._state.is_refused else finish

    def _what_is_missing(self) -> str:
        has = "no checkpoint" if self._mirrored is None else f"step {self._mirrored}"
        waited = self._clock.monotonic() - self._moved_at
        why = f"nothing has moved for {format_duration(waited)}" if waited >= self._finish_seconds else "it cannot be"
        last = f". Said last: {told}" if (told := self._state.trouble or "".join(self._logged[-1:])) else ""
        return (
            f"the training is done at step {self._wanted}, which is on the volume but not in {self.place}: {why}. "
            f"There is {has}; another attempt makes up for what is missing{last}"
        )

    def _is_settled(self) -> bool:
        """Return True if there is nothing to wait for."""
        nothing_left = self._state.is_idle and self._state.known == self._wanted
        return self._wanted is None or self._state.is_over or nothing_left or not self._thread.is_alive()

    def _attend(self) -> None:
        """Run one process after the other until the mirror ends. This is the thread's main function."""
        delay = self._patience.backoff
        while True:
            before = self._mirrored
            detail = self._follow()
            with self._changed:
                self._process = None
                if self._is_over or self._state.is_over:
                    return
                self._deaths += 1
                self._health.on_death(self._state, f"the process that mirrors {detail}")
                self._state = MirrorState(known=None, mirrored=None, is_idle=False, is_over=False)
                self._changed.notify_all()
                self._log(f"the process that mirrors to {self.place} {detail}, and is started again")
                delay = self._patience.backoff if self._mirrored != before else delay
                if self._changed.wait_for(lambda: self._is_over, delay):
                    return
            delay = min(2 * delay, self._patience.backoff_max)

    def _follow(self) -> str:
        """Start a process and receive its messages until it ends; return a description of the end."""
        try:
            process = self._start()
        except OSError as error:
            return f"cannot be started ({error})"
        try:
            with self._changed:
                self._process, self._sent = process, None
                process.line.send(self._settings)
                if self._generation is not None:
                    self._send(self._generation)
                self._send_newest()
                is_over = self._is_over
            while not is_over:
                self._receive(process.line.recv())
        except (EOFError, OSError):
            pass
        process.kill()
        return "has died"

    def _receive(self, answer: Answer) -> None:
        with self._changed:
            match answer:
                case MirrorState():
                    if self._state.mirrored != answer.mirrored:
                        self._note_progress()
                    self._health.on_state(self._state, answer)
                    self._state = answer
                    if answer.mirrored is not None:
                        self._mirrored = mirrored = answer.mirrored
                        self._commits = [(step, at) for step, at in self._commits if step > mirrored]
                    self._send_newest()
                case Transfer():
                    self._note_progress()
                    if self._is_awaited and self._moved_at - self._reported_at >= _REPORT_SECONDS:
                        self._reported_at = self._moved_at
                        self._report(answer)
                case LogMessage():
                    self._log(answer.sentence)
                case RestoreDone() | Failed():
                    self._answer = answer
                case _:
                    assert_never(answer)
            self._changed.notify_all()

    def _still_seconds(self) -> float | None:
        """Return the seconds for which an upload waits and nothing has moved; None if none waits."""
        if not self._commits:
            return None
        return self._clock.monotonic() - max(self._commits[0][1], self._moved_at)

    def _note_progress(self) -> None:
        """Restart the time without progress."""
        self._health.on_progress(self._still_seconds())
        self._moved_at = self._clock.monotonic()

    def _send_newest(self) -> None:
        if self._process is not None and self._sent == self._state.known != self._wanted:
            assert self._wanted is not None
            self._sent = self._wanted
            self._send(Committed(step=self._wanted))

    def _send(self, request: Restore | Committed) -> None:
        """Send a message to the process, if there is one; the next process receives it at its start."""
        if self._process is None:
            return
        try:
            self._process.line.send(request)
        except OSError:
            return  # it is dead, which the thread notices as well

    def _log(self, sentence: str) -> None:
        if sentence not in self._logged:
            self._logged.append(sentence)
            logger.warning("%s", sentence)
