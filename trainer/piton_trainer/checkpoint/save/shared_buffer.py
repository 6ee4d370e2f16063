"""Shared memory that the trainer fills and its writer reads.

It is anonymous (memfd): the limit of /dev/shm, 64 MB in most pods, does not apply, and nothing is left when processes
die. Its pages are touched before they are needed, by a thread that does not hold the GIL.

Before the first save it is empty, and a load can use it as warm memory.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch
from torch import Tensor

from piton_trainer.runtime.resources import free_bytes

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, since Linux 5.14; older kernels allocate and read the pages one by one."""
_POPULATE_BYTES = 64 << 20
_SHARE_MAX = 0.5
"""Maximum share of the free memory, which is measured once, after the first step. Loader workers and evaluations use
more later, and this memory can only be freed by a kill: the kernel cannot write it out."""
_SHARE_EARLY = 0.25
"""Maximum share before the rest of the training is set up."""


_Piece = bytes  # in the class, `bytes` is a property


class NoRoomError(Exception):
    """The state does not fit into memory a second time."""


class SharedBuffer:
    """A piece of shared memory that grows."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("piton-save")
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._warming: threading.Thread | None = None
        self._failure: Exception | None = None
        self._pinned: int | None = None

    def expect(self, size: int) -> None:
        """Start to warm this many bytes, which will probably be reserved, if there is plenty of free memory."""
        if 0 < size <= _SHARE_EARLY * free_bytes():
            with suppress(OSError):  # the real `reserve` raises it
                self.reserve(size, then=lambda: None)

    def put_behind(self, pieces: Iterable[_Piece]) -> list[int]:
        """Write pieces behind the reserved bytes, over those of the previous call; return the offset of each.

        Raises:
            OSError: there is not enough memory.
        """
        starts, end = [], self._bytes.numel()
        for piece in pieces:
            starts.append(end)
            rest = memoryview(piece)
            while rest:  # the kernel may write only a part
                written = os.pwrite(self.descriptor, rest, end)
                rest, end = rest[written:], end + written
        return starts

    @property
    def bytes(self) -> Tensor:
        """All reserved bytes. A tensor made from it before `reserve` must not be used afterwards."""
        return self._bytes

    def reserve(self, size: int, *, then: Callable[[], None]) -> None:
        """Reserve at least this many bytes. They are warm, and `then` has run, when `settle` returns.

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
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        device = torch.cuda.current_device() if is_on_gpu else None
        self._warming = threading.Thread(target=self._warm, args=(grows, device, then), name="piton-warm", daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Wait until the memory is warm, and raise the error if that failed."""
        if self._warming is not None:
            self._warming.join()
            self._warming = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def release(self) -> None:
        """Free the memory, because no save will use it for now."""
        with suppress(Exception):  # an error of memory that is no longer needed
            self.settle()
        self._unpin()
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Free the memory. No tensor made from it may be in use."""
        if self._warming is not None:
            self._warming.join()
        self._unpin()
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")
        os.close(self.descriptor)

    def _warm(self, grown: bool, device: int | None, then: Callable[[], None]) -> None:
        try:
            if grown:
                _populate(self.descriptor, self._bytes)
            if device is not None:
                self._pin(device)
            then()
        except Exception as error:  # noqa: BLE001 - `settle` raises it
            self._failure = error

    def _pin(self, device: int) -> None:
        """Pin the memory for direct copies from the GPU. Set the device, because a new thread uses the first GPU."""
        if self._pinned is None and self._bytes.numel():
            torch.cuda.set_device(device)
            error = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
                self._bytes.data_ptr(), self._bytes.numel(), 0
            )
            self._pinned = self._bytes.data_ptr() if int(error) == 0 else None

    def _unpin(self) -> None:
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)  # type: ignore[no-untyped-call]
            self._pinned = None


def _populate(descriptor: int, memory: Tensor) -> None:
    """Touch each page without a change: the memory may be written to already."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in range(0, memory.numel(), _POPULATE_BYTES):
        part = memory[start : start + _POPULATE_BYTES]
        if madvise(part.data_ptr(), part.numel(), _POPULATE_WRITE) != 0:
            os.posix_fallocate(descriptor, start, part.numel())
            part[:: mmap.PAGESIZE].max()
