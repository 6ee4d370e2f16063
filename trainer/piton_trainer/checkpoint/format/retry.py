"""Reads of a volume in trouble, tried again: that a file cannot be read says nothing about what is in it.

A network volume that does not answer (ETIMEDOUT, EIO, ESTALE, a short read) may answer a minute later, with a
checkpoint that is whole. Only what the volume does say counts: bytes of another digest, another size, no such file.
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
"""How long one read is tried again. A file server that fails over to another zone takes one to three minutes."""
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 10.0
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Answers of a volume that works."""


class Retry:
    """Repeats reads that fail, with back-off."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        seconds: float = READ_SECONDS,
        answers: Collection[int] = NOT_THERE,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Repeat each read for at most so many seconds.

        Args:
            clock: to wait by.
            seconds: from a read's first failure on.
            answers: error numbers that are not tried again.
            is_stopping: whether this process was told to stop; then nothing is tried again.
        """
        self._clock = clock or Clock()
        self._seconds = seconds
        self._answers = answers
        self._is_stopping = is_stopping

    def __call__(self, read: Callable[[], T], path: Path) -> T:
        """The result of `read`, a read of this path that may be repeated.

        Raises:
            OSError: one of the answers.
            VolumeLost: it failed for too long.
            Stopped: it failed, and this process was told to stop.
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
