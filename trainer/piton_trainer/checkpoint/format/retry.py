"""Retries of reads from a failing volume: a read error is no evidence that the file is damaged.

A network volume that does not answer (ETIMEDOUT, EIO, ESTALE, a short read) may answer a minute later, with an intact
checkpoint. Only positive answers of the volume count: a different digest, a different size, no such file.
"""

import errno
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from piton.contract.duration import format_duration
from piton_trainer.clock import Clock
from piton_trainer.errors import Stopped, VolumeLost

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_SECONDS = 300.0
"""Time for which one read is retried. A file server that fails over to another zone takes one to three minutes."""
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 10.0
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Error numbers of a working volume."""


class Retry:
    """Retries failed reads, with back-off."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        seconds: float = READ_SECONDS,
        answers: Collection[int] = NOT_THERE,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Retry each read for at most this many seconds.

        Args:
            clock: the clock for the back-off.
            seconds: the timeout, from the first failure of a read.
            answers: error numbers that are not retried.
            is_stopping: returns True if this process was asked to stop; then nothing is retried.
        """
        self._clock = clock or Clock()
        self._seconds = seconds
        self._answers = answers
        self._is_stopping = is_stopping

    def __call__(self, read: Callable[[], T], path: Path) -> T:
        """Return the result of `read`, an idempotent read of this path.

        Raises:
            OSError: its error number is one of `answers`.
            VolumeLost: the read failed for too long.
            Stopped: the read failed, and this process was asked to stop.
        """
        since, delay = self._clock.monotonic(), BACKOFF_SECONDS
        is_first = True
        while True:
            try:
                result = read()
            except OSError as error:
                if error.errno in self._answers:
                    raise
                trouble, reason = error, error.strerror or str(error)
            else:
                if not is_first:
                    logger.warning("%s can be read again", path)
                return result
            tried = self._clock.monotonic() - since
            if self._is_stopping():
                raise Stopped(
                    f"told to stop while {path} could not be read ({reason}); nothing was trained yet"
                ) from trouble
            if tried + delay > self._seconds:
                waited = format_duration(tried)
                raise VolumeLost(f"{path} could not be read for {waited} ({reason})") from trouble
            if is_first:
                logger.warning("%s cannot be read (%s); it is tried again", path, reason)
            is_first = False
            self._clock.sleep(delay)
            delay = min(2 * delay, BACKOFF_SECONDS_MAX)
