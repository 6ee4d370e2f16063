"""Saves that fail because of the volume: back-off, and the time for which training continues without saves.

    a save fails       logged once, counted; retried after 1 s, 2 s, 4 s … up to a minute
    a save succeeds    logged once; the failure is over
    timeout            `patience_seconds` after the first failure, the attempt ends with the error of the last one
    a save hangs       logged once, nothing else: a wait for an answer that does not come cannot be given up

Ending the attempt saves nothing: the progress since the newest checkpoint is then lost for certain, and a full volume
is full for the next attempt as well. But an ignored warning must not cost money for ever, and the volume may work on
another machine. So training continues for a while, with a warning in the log, the reports and the metrics.
"""

import logging

from piton.contract.duration import format_duration
from piton.contract.progress import CHECKPOINTS_SKIPPED, CHECKPOINTS_THAT_FIT
from piton_trainer.checkpoint import Saved
from piton_trainer.clock import Clock
from piton_trainer.errors import OutOfSpace, VolumeLost

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 60.0
STOP_SECONDS = 20.0
"""Time for which a run that was asked to stop retries a save: it is killed soon after."""
HANGS_SECONDS = 600.0
"""Time after which a save in flight is assumed to hang."""
FIT_MIN = 2
"""The volume is nearly full if fewer than this many checkpoints fit in addition to those that are kept."""

Troubles = (OutOfSpace, VolumeLost)
Trouble = OutOfSpace | VolumeLost


class VolumeHealth:
    """State of the volume, on rank 0."""

    def __init__(self, clock: Clock, *, patience_seconds: float) -> None:
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._since: float | None = None
        self._stop_since: float | None = None
        self._next_try = self._backoff_seconds = 0.0
        self._logged: set[type[Trouble]] = set()
        self._fit: int | None = None
        self._flight_since: float | None = None
        self._hang_is_logged = False
        self.skipped = 0
        """Number of failed saves in this attempt."""

    @property
    def stuck_seconds(self) -> float:
        """Seconds for which nothing could be saved; 0 if there is no failure."""
        since = self._since
        if since is None and self._hang_is_logged:
            since = self._flight_since
        return 0.0 if since is None else self._clock.monotonic() - since

    @property
    def holds_back(self) -> bool:
        """True if the back-off is not over yet."""
        return self._since is not None and self._clock.monotonic() < self._next_try

    @property
    def is_stuck(self) -> bool:
        """True if the newest save failed."""
        return self._since is not None

    def failed(self, trouble: Trouble, *, durable_step: int | None, is_stopping: bool = False) -> None:
        """Record a failed save, which is to be retried later.

        Raises:
            OutOfSpace: saves have failed for too long, the last one because the volume is full.
            VolumeLost: saves have failed for too long, the last one for another reason.
        """
        now = self._clock.monotonic()
        if self._since is None:
            self._since, self._backoff_seconds = now, BACKOFF_SECONDS
        self.skipped += 1
        newest = "nothing is saved yet" if durable_step is None else f"step {durable_step} is the newest checkpoint"
        left = self._left(now, is_stopping=is_stopping)
        if left <= 0:
            waited = format_duration(self.stuck_seconds)
            raise type(trouble)(f"nothing could be saved for {waited}: {trouble.detail}; {newest}") from trouble
        self._next_try = now + self._backoff_seconds
        self._backoff_seconds = min(2 * self._backoff_seconds, BACKOFF_SECONDS_MAX)
        if type(trouble) not in self._logged:
            self._logged.add(type(trouble))
            logger.warning(
                "a checkpoint cannot be saved: %s; %s. Training goes on and tries again, for %s at most",
                *(trouble.detail, newest, format_duration(left)),
            )

    def _left(self, now: float, *, is_stopping: bool) -> float:
        """Return the seconds for which a save is still retried."""
        left = self._patience_seconds - self.stuck_seconds
        if is_stopping:
            if self._stop_since is None:
                self._stop_since = now
            left = min(left, self._stop_since + STOP_SECONDS - now)
        return left

    def look(self, *, in_flight: bool) -> None:
        """Check between two steps for a save that hangs: a volume that does not answer raises no error."""
        now = self._clock.monotonic()
        if not in_flight:
            self._flight_since, self._hang_is_logged = None, False
        elif self._flight_since is None:
            self._flight_since = now
        elif now - self._flight_since >= HANGS_SECONDS and not self._hang_is_logged:
            self._hang_is_logged = True
            logger.warning("a save has been under way for %s; training goes on", format_duration(HANGS_SECONDS))

    def saved(self, saved: Saved) -> None:
        """Record that a checkpoint has become durable."""
        if self._since is not None:
            logger.warning("checkpoints can be saved again: step %d is", saved.step)
        self._since = None
        self._logged.clear()
        was_low, self._fit = self.is_nearly_full, None if saved.free is None else saved.free // max(1, saved.size)
        if self.is_nearly_full and not was_low:
            logger.warning(
                "the volume of %s is nearly full: beside what is kept, %s bytes were free for a checkpoint of %s",
                *(saved.folder.parent, f"{saved.free:,}", f"{saved.size:,}"),
            )

    @property
    def is_nearly_full(self) -> bool:
        """True if fewer than `FIT_MIN` checkpoints fit in addition to those that are kept."""
        return self._fit is not None and self._fit < FIT_MIN

    def metrics(self) -> dict[str, float]:
        """Return the metrics for the reports; empty while there is no failure."""
        metrics: dict[str, float] = {}
        if self.skipped:
            metrics[CHECKPOINTS_SKIPPED] = self.skipped
        if self._fit is not None and self.is_nearly_full:
            metrics[CHECKPOINTS_THAT_FIT] = self._fit
        return metrics
