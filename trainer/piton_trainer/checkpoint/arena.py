"""Memory that the trainer fills and its writer reads.

It is anonymous (memfd): no limit of /dev/shm applies, which is 64 MB in most pods, and whatever dies leaves nothing
behind. Its pages are touched before they are needed, by a thread that does not hold the interpreter.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, Linux 5.14; before that, the pages are touched one by one."""
_POPULATE_BYTES = 64 << 20
_SHARE_MAX = 0.9
"""Of the memory that is free: the rest is for the next batch."""
_MEMORY_INFO = Path("/proc/meminfo")
_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


class NoRoomError(Exception):
    """The state does not fit into memory a second time."""


class Arena:
    """A piece of shared memory that grows."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("piton-save")
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._warming: threading.Thread | None = None
        self._failure: Exception | None = None
        self._pinned: int | None = None

    @property
    def bytes(self) -> Tensor:
        """All of it. A tensor made from it before `reserve` must not be used after."""
        return self._bytes

    def reserve(self, size: int, *, then: Callable[[], None]) -> None:
        """Have at least so many bytes. They are warm, and `then` is done, when `settle` returns.

        Raises:
            NoRoomError: there is not enough memory.
        """
        self.settle()
        if grows := size > self._bytes.numel():
            if size - self._bytes.numel() > (room := int(_SHARE_MAX * free_bytes())):
                raise NoRoomError(f"the state has {size} bytes, and only {room} may be used for a second one")
            self._unpin()
            os.ftruncate(self.descriptor, size)
            shared = mmap.mmap(self.descriptor, size)
            shared.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = torch.frombuffer(shared, dtype=torch.uint8)
        self._warming = threading.Thread(target=self._warm, args=(grows, then), name="piton-warm", daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Wait until it is warm. Raises what went wrong with that."""
        if self._warming is not None:
            self._warming.join()
            self._warming = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Give the memory back, once nothing made from it is left."""
        if self._warming is not None:
            self._warming.join()
        self._unpin()
        self._bytes = torch.empty(0, dtype=torch.uint8)
        os.close(self.descriptor)

    def _warm(self, grown: bool, then: Callable[[], None]) -> None:
        try:
            if grown:
                _populate(self._bytes)
                self._pin()
            then()
        except Exception as error:  # noqa: BLE001 - `settle` raises it
            self._failure = error

    def _pin(self) -> None:
        """Let a GPU write here without a detour."""
        if torch.cuda.is_available() and self._bytes.numel():
            error = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
                self._bytes.data_ptr(), self._bytes.numel(), 0
            )
            self._pinned = self._bytes.data_ptr() if int(error) == 0 else None

    def _unpin(self) -> None:
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)  # type: ignore[no-untyped-call]
            self._pinned = None


def free_bytes() -> int:
    """How much memory can still be used, by the machine's account and by the container's."""
    lines = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, usage in _LIMITS:
        try:
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
        except (OSError, ValueError):  # there is no such controller, or its limit is "max"
            continue
    return free


def _populate(memory: Tensor) -> None:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in range(0, memory.numel(), _POPULATE_BYTES):
        part = memory[start : start + _POPULATE_BYTES]
        if madvise(part.data_ptr(), part.numel(), _POPULATE_WRITE) != 0:
            part[:: mmap.PAGESIZE].zero_()
