"""Output that goes nowhere: the reader of a pipe has ended, the disk of a log is full, a terminal is gone.

No training ends because of it. What cannot be written is lost, and the program hears nothing of it.
"""

import io
import os
import select
import sys
from contextlib import suppress
from pathlib import Path

_FULL_SECONDS = 1.0
"""Seconds for which a stream that others have made non-blocking may be full, before something is lost."""


def keep_going() -> None:
    """Lose what cannot be written to stdout and stderr, from here to the end of this process.

    A stream that somebody has replaced is theirs.
    """
    for name in ("stdout", "stderr"):
        keep_going_without(name)


def keep_going_without(name: str) -> None:
    """Lose what cannot be written to this stream: `stdout` or `stderr`."""
    stream = getattr(sys, name)
    if stream is None:  # its descriptor was closed before the program began
        setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - it stays open
    elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
        setattr(sys, name, _forgiving(stream))


def _forgiving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a stream to the same file that loses what cannot be written."""
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LossyFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _LossyFile(io.FileIO):
    """A file that takes all that is written to it; what fails is lost."""

    def write(self, data: object) -> int:
        """Write what can be written; return as if that were all, so that no stream above keeps the rest."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written = super().write(data)  # type: ignore[arg-type]
            if written is None:  # somebody has made it non-blocking, and it is full
                select.select([], [self.fileno()], [], _FULL_SECONDS)
                written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            return size
        return size if written is None else written
