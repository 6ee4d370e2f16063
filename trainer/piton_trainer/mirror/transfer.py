"""Progress of a checkpoint between volume and bucket: bytes are counted, and reported periodically."""

import threading
from collections.abc import Callable

from piton_trainer.clock import Clock
from piton_trainer.mirror.messages import Transfer

_REPORT_SECONDS = 0.5
_AGAIN_MAX = 5
"""Number of retries of one checkpoint that report progress from their start."""


class TransferMeter:
    """Counts the bytes of one checkpoint at a time. Safe to use from several threads.

    Repeated progress is reported for some retries, because an interrupted large file starts again; then no more. So a
    report means progress, and no receiver waits for ever for a transfer that fails near its end each time.
    """

    def __init__(self, clock: Clock, report: Callable[[Transfer], object], *, is_restore: bool) -> None:
        self._is_restore = is_restore
        self._clock = clock
        self._report = report
        self._lock = threading.Lock()
        self._step = self._total = self._again = 0
        self._moved = self._kept = self._hashed = self._high = 0
        self._began = self._reported_at = 0.0
        self.moved_at: float | None = None
        """Time of the last transfer over the network."""

    def begin(self, step: int, total: int) -> None:
        """Start a transfer of `total` bytes, for the first time or again."""
        with self._lock:
            self._again = self._again + 1 if step == self._step else 0
            if self._again <= _AGAIN_MAX:
                self._high = 0
            self._step, self._total = step, total
            self._moved = self._kept = self._hashed = 0
            self._began = self._reported_at = self._clock.monotonic()

    def moved(self, size: int) -> None:
        """Count bytes sent over the network; negative if they are sent again."""
        self.moved_at = self._clock.monotonic()
        self._count(moved=size)

    def kept(self, size: int) -> None:
        """Count bytes that need no transfer, because they are at the destination; negative if they are damaged."""
        self._count(kept=size)

    def hashed(self, size: int) -> None:
        """Count bytes that were hashed before they are sent."""
        self._count(hashed=size)

    def _count(self, *, moved: int = 0, kept: int = 0, hashed: int = 0) -> None:
        with self._lock:
            self._moved, self._kept, self._hashed = self._moved + moved, self._kept + kept, self._hashed + hashed
            now, done = self._clock.monotonic(), self._moved + self._kept
            if done + self._hashed <= self._high:
                return
            self._high = done + self._hashed
            if now - self._reported_at < _REPORT_SECONDS:
                return
            self._reported_at = now
            transfer = Transfer(
                is_restore=self._is_restore,
                step=self._step,
                done=done,
                total=self._total,
                bytes_per_second=self._moved / max(now - self._began, 0.001),
            )
        self._report(transfer)
