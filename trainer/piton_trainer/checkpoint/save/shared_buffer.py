"""Memory that the trainer fills and its writer reads.

It is anonymous (memfd): no limit of /dev/shm applies, which is 64 MB in most pods, and whatever dies leaves nothing
behind. Its pages are touched before they are needed, by a thread that does not hold the interpreter.

Before the first save it holds nothing, and can be lent to whoever needs warm memory while a checkpoint is loaded.
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
"""MADV_POPULATE_WRITE, Linux 5.14; before that, the pages are allocated and read one by one."""
_POPULATE_BYTES = 64 << 20
_SHARE_MAX = 0.5
"""Of the memory that is free, which is looked at once, after the first step. Loader workers and evaluations take more
later, and what is taken here can only be freed by a kill: the kernel cannot write it out."""
_SHARE_EARLY = 0.25
"""While the rest of the training is not there yet."""


_Piece = bytes  # in the class, that name is a property


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
        """So many bytes will be reserved, by all that is known: begin to warm them, if there is memory in plenty."""
        if 0 < size <= _SHARE_EARLY * free_bytes():
            with suppress(OSError):  # whoever reserves them will hear of it
                self.reserve(size, then=lambda: None)

    def put_behind(self, pieces: Iterable[_Piece]) -> list[int]:
        """Put some more bytes behind all that is reserved, until the next ones; where each piece begins.

        Raises:
            OSError: there is not enough memory.
        """
        starts, end = [], self._bytes.numel()
        for piece in pieces:
            starts.append(end)
            rest = memoryview(piece)
            while rest:  # the kernel may take a part of it only
                written = os.pwrite(self.descriptor, rest, end)
                rest, end = rest[written:], end + written
        return starts

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
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        device = torch.cuda.current_device() if is_on_gpu else None
        self._warming = threading.Thread(target=self._warm, args=(grows, device, then), name="piton-warm", daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Wait until it is warm. Raises what went wrong with that."""
        if self._warming is not None:
            self._warming.join()
            self._warming = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def release(self) -> None:
        """Give the memory back, for nothing will be saved from it for now."""
        with suppress(Exception):  # what went wrong with memory that nobody wants
            self.settle()
        self._unpin()
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Give the memory back, once nothing made from it is left."""
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
        """Let a GPU write here without a detour. This thread would take the first of them for its own."""
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
    """Touch each page and change none: somebody may be writing already."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in range(0, memory.numel(), _POPULATE_BYTES):
        part = memory[start : start + _POPULATE_BYTES]
        if madvise(part.data_ptr(), part.numel(), _POPULATE_WRITE) != 0:
            os.posix_fallocate(descriptor, start, part.numel())
            part[:: mmap.PAGESIZE].max()
