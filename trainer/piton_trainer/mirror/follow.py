"""The thread that mirrors while training goes on, and what the session knows of the mirror.

    restore    before the first step: is there something newer in the bucket?
    committed  a checkpoint is durable; wake up
    lag        how far behind
    close      wait a while for the rest, then let go

Whatever goes wrong is retried with back-off and said once per kind. Training hears of none of it.
"""

import logging
import threading
from dataclasses import dataclass

from piton.contract.assignment import MirrorPolicy
from piton.contract.ends import Outcome
from piton_trainer.checkpoint import layout
from piton_trainer.checkpoint.fence import Fence, read
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.mirror import Lag
from piton_trainer.mirror.bucket import Bucket, Trouble, Tuning
from piton_trainer.mirror.claim import NotOurs
from piton_trainer.mirror.place import Place
from piton_trainer.mirror.restore import restore
from piton_trainer.mirror.upload import Uploader, read_latest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds."""

    backoff: float = 1.0
    """After the first failure; twice as long after each further one."""
    backoff_max: float = 60.0
    restore: float = 600.0
    """For a bucket that does not answer, when the volume has nothing to train on from."""
    finish: float = 300.0
    """For the rest, when the run is finished."""
    stop: float = 10.0
    """For the rest, when told to stop: the machine is about to go, and the volume has it all."""


class Mirror:
    """Rank 0's second copy of the checkpoints."""

    def __init__(
        self,
        config: Config,
        place: Place,
        policy: MirrorPolicy,
        *,
        fence: Fence,
        clock: Clock,
        disk: layout.Disk,
        patience: Patience,
        tuning: Tuning | None = None,
    ) -> None:
        self.place = place
        self._patience = patience
        self._directory = directory = config.checkpoint_dir
        self._fence = fence
        self._attempt = config.attempt
        self._clock = clock
        speed = policy.megabytes_per_second
        tuning = tuning or Tuning(bytes_per_second=None if speed is None else speed * 1_000_000)
        self._bucket = Bucket(place, tuning)
        self._uploader = Uploader(
            self._bucket,
            directory,
            attempt=config.attempt,
            policy=config.assignment.save,
            objective=config.assignment.objective,
            disk=disk,
            check_fence=self._check_fence,
        )
        self._changed = threading.Condition()
        self._commits: list[tuple[int, float]] = []
        """Steps, and when they were committed, that the bucket has nothing as new as."""
        self._wanted: int | None = None
        self._mirrored: int | None = None
        self._errors = 0
        self._said: set[str] = set()
        self._is_idle = True
        self._has_begun = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def restore(self, newer_than: int | None) -> int | None:
        """Fetch what is newer in the bucket than this step of the volume (None: it has nothing good).

        Raises:
            BadConfig: the bucket refuses, and there is nothing else to train on from.
            RuntimeError: it does not answer, for so long that somebody should look.
        """
        if newer_than is None and self._attempt == 1:
            return None  # nobody was here before
        deadline = self._clock.monotonic() + (self._patience.restore if newer_than is None else 0.0)
        delay = self._patience.backoff
        while True:
            try:
                return self._restore(-1 if newer_than is None else newer_than)
            except Trouble as trouble:
                self._say(trouble.kind, f"restoring from {self.place}: {trouble}")
                if newer_than is not None:
                    return None
                if trouble.is_refusal:
                    raise BadConfig(f"the volume has no checkpoint, and {self.place} refuses: {trouble}") from trouble
                if self._clock.monotonic() + delay > deadline:
                    raise RuntimeError(
                        f"the volume has no checkpoint, and {self.place} is gone: {trouble}"
                    ) from trouble
            except ValueError as error:
                if newer_than is None:
                    raise BadConfig(f"the volume has no checkpoint, and of {self.place}: {error}") from error
                self._say("Foreign", f"nothing is restored from {self.place}: {error}")
                return None
            threading.Event().wait(delay)
            delay = min(2 * delay, self._patience.backoff_max)

    def _restore(self, newer_than: int) -> int | None:
        latest, _ = read_latest(self._bucket)
        if latest is None or latest.newest is None or not self._uploader.may_restore(latest):
            return None
        self._uploader.adopt(latest)
        return restore(self._bucket, latest, self._directory, newer_than=newer_than)

    def committed(self, step: int) -> None:
        """This step is durable on the volume. Returns at once."""
        with self._changed:
            self._wanted = step
            self._is_idle = False
            self._commits.append((step, self._clock.monotonic()))
            self._changed.notify_all()
            is_first, self._has_begun = not self._has_begun, True
        if is_first:
            self._thread.start()

    def lag(self) -> Lag | None:
        """How far behind; None before the first commit."""
        with self._changed:
            if self._wanted is None:
                return None
            if not self._commits:
                return Lag(steps=0, seconds=0.0, errors=self._errors)
            seconds = self._clock.monotonic() - self._commits[0][1]
            return Lag(steps=self._wanted - (self._mirrored or 0), seconds=seconds, errors=self._errors)

    def end(self, outcome: Outcome) -> bool:
        """The training is over: wait for the rest as long as this kind of end allows; whether the bucket has it all."""
        if outcome is Outcome.FINISHED:
            return self.close(self._patience.finish)
        is_calm = outcome in (Outcome.STOPPED, Outcome.DIVERGED, Outcome.OUT_OF_SPACE)
        return self.close(self._patience.stop if is_calm else 0.0)

    def close(self, seconds: float) -> bool:
        """Wait at most so long for the rest; whether the bucket has it all."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._is_idle, seconds)
            self._is_over = True
            self._changed.notify_all()
            done = not self._commits
        if done:
            self._bucket.close()
        if not done and self._wanted is not None:
            logger.warning("%s is behind: it has step %s of %s", self.place, self._mirrored, self._wanted)
        return done

    def _run(self) -> None:
        failures = 0
        while self._is_due(failures):
            try:
                self._step()
                failures = 0
            except NotOurs as refusal:
                self._say("NotOurs", f"nothing is mirrored any more: {refusal}")
                self._give_up()
            except Trouble as trouble:
                failures += 1
                self._fail(trouble.kind, str(trouble))
            except Exception as error:  # noqa: BLE001 - no mistake of the mirror may cost the training
                failures += 1
                self._fail(type(error).__name__, str(error))

    def _is_due(self, failures: int) -> bool:
        """Wait until there is something to do; False when there never will be."""
        delay = min(self._patience.backoff * 2 ** (failures - 1), self._patience.backoff_max) if failures else None
        with self._changed:
            if delay is not None:
                self._changed.wait_for(lambda: self._is_over, delay)
            else:
                self._changed.wait_for(lambda: self._is_over or not self._is_idle)
            return not self._is_over

    def _step(self) -> None:
        """One checkpoint into the bucket, or the finding that there is nothing left to do."""
        with self._changed:
            wanted = self._wanted
        assert wanted is not None
        uploaded = self._uploader.sync(wanted)
        with self._changed:
            self._mirrored = self._uploader.mirrored_step
            if self._mirrored is not None:
                self._commits = [(step, at) for step, at in self._commits if step > self._mirrored]
            self._is_idle = not uploaded and wanted == self._wanted
            self._changed.notify_all()

    def _check_fence(self) -> None:
        holder = read(self._directory)
        if holder is not None and (holder.attempt, holder.owner) != (self._fence.attempt, self._fence.owner):
            raise NotOurs(f"attempt {holder.attempt} has claimed {self._directory}")

    def _give_up(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _fail(self, kind: str, detail: str) -> None:
        with self._changed:
            self._errors += 1
        self._say(kind, f"mirroring to {self.place} fails, and is tried again: {detail}")

    def _say(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s", sentence)
