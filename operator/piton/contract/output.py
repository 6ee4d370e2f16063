"""Output that goes nowhere: the reader of a pipe has ended, the disk of a log is full, a terminal is gone.

No training ends because of it. What cannot be written is lost, and the program hears nothing of it. Results of a
command are different: `report_loss_of_stdout` makes their loss an error.
"""

import io
import os
import select
import sys
from contextlib import suppress
from pathlib import Path

from piton.contract import InputError

_FULL_SECONDS = 1.0
"""Seconds for which a stream that others have made non-blocking may be full, before something is lost."""


class OutputLostError(InputError):
    """Results do not arrive where the user has sent them."""


def open_closed_descriptors() -> None:
    """Lead each standard stream that was closed before the program began to nowhere.

    Else the next file that is opened would get its number, and a child process would write into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one


def report_loss_of_stdout() -> None:
    """Raise OutputLostError, once, for what cannot be written to stdout. A stream that somebody replaced is theirs."""
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_ClosedFile()), encoding="utf-8", line_buffering=True)
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _wrapped(sys.stdout, _ReportingFile)


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
        setattr(sys, name, _wrapped(stream, _LossyFile))


def _wrapped(stream: io.TextIOWrapper, kind: type[io.FileIO]) -> io.TextIOWrapper:
    """Return a stream to the same file, by way of a file of this kind."""
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "wb", closefd=False)),
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


class _ReportingFile(io.FileIO):
    """A file that reports the first loss. After that it takes all, so that nobody hears of the same loss again."""

    _is_lost = False

    def write(self, data: object) -> int:
        """Write it, or raise OutputLostError: not an OSError, which libraries take for a reader that wants no more."""
        if self._is_lost:
            return memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type]
                select.select([], [self.fileno()], [])  # somebody has made it non-blocking, and it is full
        except OSError as error:
            self._is_lost = True
            raise OutputLostError(
                f"stdout: not everything could be written ({error.strerror}); send it to a program that reads all of "
                "it, or to a file on a disk with room"
            ) from error
        return written


class _ClosedFile(io.RawIOBase):
    """Stdout that was closed before the program began: there is nowhere to write to."""

    _is_lost = False

    def writable(self) -> bool:
        """Return True: it fails when something is written, and a command without results has none to lose."""
        return True

    def write(self, data: object) -> int:
        """Raise OutputLostError, once."""
        if not self._is_lost:
            self._is_lost = True
            raise OutputLostError("stdout: it is closed, and there are results to print; lead it somewhere")
        return memoryview(data).nbytes  # type: ignore[arg-type]
