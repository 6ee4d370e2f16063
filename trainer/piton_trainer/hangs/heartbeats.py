"""Heartbeats of the ranks of a node: step and phase, in shared memory. No system call per step."""

import ctypes
import faulthandler
import hashlib
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from piton.contract.termination import ExitCode

STACKS_SIGNAL = signal.SIGRTMAX - 5
"""A rank that gets it writes the stacks of its threads, in C: it needs no GIL."""
EXIT_SIGNAL = int(ExitCode.HUNG)
"""A rank that gets it calls _exit with the signal's number, in C: one of Linux' real-time signals, 34 to 64.

SIGKILL from inside its container would not reach a process with PID 1."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of the node's memory, in which ours is private
_RECORD = struct.Struct("<qqqqd")
_NONE = -1


class RankPhase(IntEnum):
    """The phase of a rank."""

    STARTING = 0
    """Until its first step is done: imports, restoring, compiling."""
    STEPPING = 1
    """Computing a step, or agreeing with the other ranks on it."""
    BETWEEN = 2
    """Waiting for a batch; in a loop of a framework's whatever comes between two steps."""
    SAVING = 3
    UNTIMED = 4
    """Evaluating, compiling: nobody knows how long that takes."""
    ENDING = 5


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The heartbeat of one rank."""

    rank: int
    pid: int
    step: int
    durable_step: int | None
    phase: RankPhase
    time: float
    """Start of the phase, or end of the last step: seconds of the node's monotonic clock."""


def folder_of(checkpoint_dir: Path) -> Path:
    """Return the folder for the ranks of this node: processes of one run with one parent."""
    name = hashlib.blake2b(f"{checkpoint_dir} {os.getppid()}".encode(), digest_size=8).hexdigest()
    memory = os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
    return (_SHARED_MEMORY if memory else Path(tempfile.gettempdir())) / f"piton-beats-{name}"


class Heartbeats:
    """Heartbeats in the rank's own memory, which no watchdog reads."""

    def __init__(self) -> None:
        self._step, self._durable, self._phase = 0, _NONE, RankPhase.STARTING
        self._watches_compiles = False
        self._memory: bytearray | mmap.mmap = bytearray(_RECORD.size)

    def enter(self, phase: RankPhase) -> None:
        """Something else begins."""
        self._phase = phase
        self._memory[:] = _RECORD.pack(os.getpid(), self._step, self._durable, phase, time.monotonic())

    def begin_step(self) -> None:
        """A step begins. The first one belongs to the start: it compiles."""
        if self._phase is not RankPhase.STARTING:
            self.enter(RankPhase.STEPPING)

    def end_step(self) -> None:
        """Record the end of the step's computation. A framework may still evaluate before the step's boundary."""
        if self._phase is RankPhase.STEPPING:
            self.enter(RankPhase.BETWEEN)

    def stepped(self, step: int, *, durable_step: int | None) -> None:
        """All ranks have ended a step. What follows at its boundary is saving, if anything."""
        self._step, self._durable = step, _NONE if durable_step is None else durable_step
        self.enter(RankPhase.SAVING)

    @contextmanager
    def during(self, phase: RankPhase) -> Iterator[None]:
        """A phase inside another one."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def watch_compiles(self) -> None:
        """From now on, what torch compiles again is untimed; nothing where it has compiled nothing so far."""
        dynamo = sys.modules.get("torch._dynamo.callback")
        if dynamo is None or self._watches_compiles:
            return
        self._watches_compiles = True
        before = [self._phase]

        def begin(_: object) -> None:
            before[0] = self._phase
            self.enter(RankPhase.UNTIMED)

        dynamo.callback_handler.register_start_callback(begin)
        dynamo.callback_handler.register_end_callback(lambda _: self.enter(before[0]))

    def close(self) -> None:
        """It tells nothing any more."""
        self._memory = bytearray(_RECORD.size)  # what torch compiles later still calls


class SharedHeartbeats(Heartbeats):
    """The same, where the watchdog of the node reads it."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Begin to tell.

        Raises:
            OSError: there is no place for it.
        """
        super().__init__()
        folder.mkdir(mode=0o700, exist_ok=True)
        self._path, self._stacks_path = folder / f"rank-{rank}", stacks_path(folder, rank)
        self._stacks = self._stacks_path.open("wb")
        faulthandler.register(STACKS_SIGNAL, file=self._stacks, all_threads=True, chain=False)
        _exit_on(EXIT_SIGNAL)
        aside = self._path.with_suffix(".tmp")
        aside.write_bytes(bytes(_RECORD.size))
        with aside.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _RECORD.size)
        self.enter(RankPhase.STARTING)
        aside.replace(self._path)

    def close(self) -> None:
        """It tells nothing any more."""
        super().close()
        faulthandler.unregister(STACKS_SIGNAL)
        self._stacks.close()
        for path in (self._path, self._stacks_path):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self._path.parent.rmdir()  # the last one does


NCCL_DUMP, NCCL_PIPE = "nccl-", "nccl-pipe-"
"""Prefix of the files of NCCL's flight recorder, and of the pipes that request them; the rank follows."""


def record_collectives(checkpoint_dir: Path) -> None:
    """Have torch remember the newest collectives of NCCL, before there is a process group. The user's word wins.

    See torch_nccl_environment_variables of PyTorch's documentation; two of them have an older name as well.
    """
    folder = folder_of(checkpoint_dir)
    with suppress(OSError):  # then there is no watchdog either, which says so
        folder.mkdir(mode=0o700, exist_ok=True)
    for value, *variables in (
        ("2000", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        ("1", "TORCH_NCCL_DUMP_ON_TIMEOUT"),
        (str(folder / NCCL_DUMP), "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"),
        (str(folder / NCCL_PIPE), "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"),
    ):
        if not any(variable in os.environ for variable in variables):
            os.environ[variables[0]] = value


def stacks_path(folder: Path, rank: int) -> Path:
    """Return the path of a rank's stacks."""
    return folder / f"rank-{rank}.stacks"


@dataclass(frozen=True)
class Reader:
    """The watchdog's side."""

    folder: Path

    def read(self) -> list[Heartbeat]:
        """Return the heartbeats of the living ranks."""
        return [beat for path in sorted(self.folder.glob("rank-*")) if (beat := self._read(path)) is not None]

    @staticmethod
    def _read(path: Path) -> Heartbeat | None:
        try:
            pid, step, durable, phase, moment = _RECORD.unpack(path.read_bytes())
            os.kill(pid, 0)
            rank = int(path.name.removeprefix("rank-"))
        except (OSError, struct.error, ValueError):
            return None
        return Heartbeat(
            rank=rank,
            pid=pid,
            step=step,
            durable_step=None if durable == _NONE else durable,
            phase=RankPhase(phase),
            time=moment,
        )


def _exit_on(signum: int) -> None:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signum, ctypes.cast(libc["_exit"], ctypes.c_void_p))
