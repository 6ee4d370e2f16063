"""A process that dies, or a disk that fails, at the n-th file operation.

The hook that sees the operations cannot be taken back, so this is for processes that a test forks.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPERATIONS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"})
LISTINGS = frozenset({"os.listdir", "os.scandir"})


def die_at(operation: int, directory: Path) -> None:
    """From now on, count what this process does to files in the directory, and die before the n-th time."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in OPERATIONS and str(directory) in str(arguments):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class KilledError(BaseException):
    """From here on nothing is done any more: no handler and no `finally` gets a file operation through."""


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th operation from now."""

    operation: int
    code: int | None = None
    """The error that this operation ends with, once; None: the process dies."""


class Faults:
    """Watches the file operations in a directory; who dies here leaves the process alive, for the next attempt."""

    def __init__(self) -> None:
        self._directory = Path()
        self._fault: Fault | None = None
        self._done = 0
        self.struck: Fault | None = None
        """The fault that has happened in the last `armed`."""
        sys.addaudithook(self._hook)

    @contextmanager
    def armed(self, directory: Path, fault: Fault | None) -> Iterator[None]:
        """Have it happen inside the block, if there are as many operations."""
        self._directory, self._fault, self._done, self.struck = directory, fault, 0, None
        try:
            yield
        except KilledError:
            pass
        finally:
            self._fault = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        fault = self._fault
        if fault is None or event not in OPERATIONS | LISTINGS or not self._is_inside(arguments[0]):
            return
        self._done += 1
        if fault.code is None and self._done >= fault.operation:
            self.struck = fault
            raise KilledError
        if self._done == fault.operation:
            self.struck = fault
            assert fault.code is not None
            raise OSError(fault.code, os.strerror(fault.code), str(arguments[0]))

    def _is_inside(self, path: object) -> bool:
        """Of what a deletion does relative to a folder there is only the name."""
        if not isinstance(path, str | os.PathLike):
            return False
        return not Path(path).is_absolute() or Path(path).is_relative_to(self._directory)
