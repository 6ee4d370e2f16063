"""A process beside a trainer: started by exec, connected by a socket, ended with its trainer.

    the trainer    ChildProcess(module)    line.send(settings)    line.send(request)    line.recv()
    the process    join()                  line.recv()            line.recv()           line.send(answer)

The writer of checkpoints and the mirror are such processes. Messages are dataclasses: settings first, then requests; an
answer to a request that fails is `Failed`. Started by exec, because a fork would copy a process that has threads and
perhaps CUDA. This module needs no torch.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from piton.contract import output
from piton.contract.termination import Outcome
from piton_trainer.errors import BY_OUTCOME, Ended, Fenced

NICE = 10
"""Not the lowest: on a machine whose cores are all busy, the work would then take many times as long."""
_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """One such process, as its trainer sees it. The thread that makes it has to live as long as it is needed."""

    def __init__(self, module: str, *descriptors: int) -> None:
        """Start `python -m module`; it inherits the descriptors.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            passed = (theirs.fileno(), *descriptors)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, passed), str(os.getpid())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                # Signals to a terminal's whole group are the trainer's to answer: it may want to save.
                start_new_session=True,
            )
            self.line = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True if it has not ended yet."""
        return self._process.poll() is None

    def leave(self, seconds: float) -> None:
        """Hang up, and wait for the process to end; what is still there after so long is killed.

        What it has said until then can still be read.
        """
        with suppress(OSError), socket.socket(fileno=os.dup(self.line.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the process at once, whatever it is at. Who waits for a word from it hears that the line is dead."""
        self._process.kill()
        self._process.wait()


def join() -> tuple[Connection, list[int]]:
    """In the process: the line to the trainer that started it, and the other descriptors."""
    output.keep_going()
    line, *descriptors, parent = (int(argument) for argument in sys.argv[1:])
    end_with(parent)
    os.nice(NICE)
    return Connection(line), descriptors


def outlive() -> None:
    """In the process: do not die with the trainer any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def end_with(parent: int) -> None:
    """Die when the trainer does, also when it is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Answer that a request failed."""

    detail: str
    outcome: Outcome | None = None
    """Outcome of the attempt that it causes; None for any other error."""
    holder: int | None = None

    @classmethod
    def by(cls, error: BaseException) -> "Failed":
        """Convert an error to an answer."""
        if isinstance(error, Ended):
            return cls(detail=error.detail, outcome=error.outcome, holder=getattr(error, "holder", None))
        return cls(detail=f"{type(error).__name__}: {error}")

    def error(self, what: str) -> BaseException:
        """Return the error for the trainer to raise; `what` describes the failed operation, for generic errors."""
        if self.outcome is Outcome.FENCED:
            return Fenced(self.detail, holder=self.holder)
        if self.outcome is not None:
            kind: type[Ended] = BY_OUTCOME[self.outcome]
            return kind(self.detail)
        return RuntimeError(f"{what}: {self.detail}")
