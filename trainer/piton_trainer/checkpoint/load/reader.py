"""Reads of files into memory, each once, hashed and copied on the way. Pages that are not cached bypass the page cache.

This is the I/O layer of the loader, as `direct_io` is that of the writer. A chunk is hashed and copied to its targets
while it is still in the CPU cache. Reading, hashing and copying all release the GIL.
"""

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.runtime.resources import cores

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 2 << 20
"""One huge page: small enough to stay in the CPU cache, large enough for a disk."""
_BLOCK_BYTES = 4096
_MORE_THREADS = 6
"""Threads in addition to one per core. While some hash, others read: otherwise the disk would be idle at times, and
when only the last files of a rank are left."""
_NOT_TAKEN = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class ReadTarget:
    """Target in memory of a range of a file."""

    start: int
    """Start offset in the file."""
    into: "Tensor"
    """Contiguous bytes on the CPU."""
    landed: Callable[[], object] | None = None
    """Called when all bytes of the range have been read."""

    @property
    def end(self) -> int:
        """End offset in the file."""
        return self.start + len(self.into)


@dataclass(frozen=True, kw_only=True)
class ReadJob:
    """A file to read."""

    name: str
    entry: FileEntry
    is_verified: bool
    """Read and hash the whole file; otherwise read only the ranges with a target."""
    is_cached: bool = False
    """Read the file through the page cache."""
    landings: deque[ReadTarget] = field(default_factory=deque)
    """Targets by offset in the file, without overlap. Each is removed when it is complete."""


def read_files(folder: Path, jobs: Iterable[ReadJob], retry: Retry) -> str | None:
    """Run all jobs, the largest files first, on more threads than there are usable cores.

    Returns:
        The problem with the first file that differs from its manifest; None if there is none. If there is a problem,
        the data that was read must not be used.

    Raises:
        VolumeLost: a file cannot be read.
    """
    left = sorted(jobs, key=lambda job: (job.entry.size, job.name))
    problems: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        buffer = _buffer()
        while not problems and not errors:
            try:
                job = left.pop()
            except IndexError:
                return
            try:
                if problem := read_file(folder / job.name, job, buffer, retry):
                    problems.append(problem)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

    count = min(len(left), cores() + _MORE_THREADS)
    threads = [threading.Thread(target=work, name="piton-load") for _ in range(count - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return next(iter(problems), None)


def read_file(path: Path, job: ReadJob, buffer: memoryview, retry: Retry) -> str | None:
    """Run a job; return the problem with the file, or None.

    Raises:
        VolumeLost: it cannot be read.
    """
    with closing(_Source(path, job, retry)) as source:
        try:
            source.check_size()
            digest = _read(source, job, buffer)
        except _WrongSizeError as problem:
            return str(problem)
    return layout.wrong_digest(path, job.entry, digest) if job.is_verified else None


def _read(source: "_Source", job: ReadJob, buffer: memoryview) -> str:
    """Read the file, and return the digest of the data."""
    digest, address = FileDigest(job.entry), _address(buffer)
    position, size = 0, job.entry.size
    while position < size and (job.is_verified or job.landings):
        if not job.is_verified:
            position = max(position, job.landings[0].start // _BLOCK_BYTES * _BLOCK_BYTES)
        wanted = min(len(buffer), size - position)
        source.fill(buffer, position, wanted)
        if job.is_verified:
            digest.update(buffer[:wanted])
        _hand_out(job.landings, address, position, position + wanted)
        position += wanted
    return digest.text()


class _WrongSizeError(Exception):
    """The file is missing, or its size differs from its manifest."""


class _Source:
    """An open file. Cached pages are read from the page cache, others bypass it, unless the job requests caching.

    After a failed read the file is opened again, because a stale descriptor may never work again.
    """

    def __init__(self, path: Path, job: ReadJob, retry: Retry) -> None:
        self._path = path
        self._entry = job.entry
        self._wants_cache = job.is_cached
        self._retry = retry
        self._plain = self._direct = -1
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        """Close the file."""
        for descriptor in {self._plain, self._direct} - {-1}:
            with suppress(OSError):  # the file was only read
                os.close(descriptor)
        self._plain = self._direct = -1
        if self._map is not None:
            self._map.close()
            self._map = None

    def check_size(self) -> None:
        """Check that the file exists and has the size in its entry.

        Raises:
            _WrongSizeError: the file is missing, or its size differs.
            VolumeLost: the size cannot be read.
        """
        if problem := self._retry(partial(layout.wrong_size, self._path, self._entry), self._path):
            raise _WrongSizeError(problem)

    def fill(self, buffer: memoryview, position: int, wanted: int) -> None:
        """Read at least this many bytes into the buffer.

        Raises:
            _WrongSizeError: the size of the file differs from its entry.
            VolumeLost: the bytes cannot be read.
        """
        self._retry(partial(self._try, buffer, position, wanted), self._path)

    def _try(self, buffer: memoryview, position: int, wanted: int) -> None:
        try:
            if self._plain == -1:
                self._open()
            self._fill(buffer, position, wanted)
        except OSError:
            self.close()
            if problem := layout.wrong_size(self._path, self._entry):
                raise _WrongSizeError(problem) from None
            raise

    def _open(self) -> None:
        self._plain = self._direct = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        if self._wants_cache:
            return
        with suppress(OSError, ValueError):  # without a map, the cached pages are unknown
            self._map = mmap.mmap(self._plain, 0, access=mmap.ACCESS_COPY)
        with suppress(OSError):  # the file system does not support O_DIRECT
            self._direct = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)

    def _fill(self, buffer: memoryview, position: int, wanted: int) -> None:
        descriptor = self._plain if self._is_cached(position, wanted) else self._direct
        got = 0
        while got < wanted:
            try:
                count = os.preadv(descriptor, [buffer[got:]], position + got)
            except OSError as error:
                if error.errno not in _NOT_TAKEN or descriptor == self._plain:
                    raise
                descriptor = self._plain  # O_DIRECT is not supported here after all, or not in the middle of a block
                continue
            if count == 0:
                raise OSError(errno.EIO, "it ended early")
            got += count

    def _is_cached(self, position: int, size: int) -> bool:
        if self._map is None:
            return False
        pages = -(-size // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        start = ctypes.c_void_p(_address(self._map) + position)
        return _libc.mincore(start, ctypes.c_size_t(size), resident) == 0 and bytes(resident).count(1) == pages


def _buffer() -> memoryview:
    """Allocate a chunk in one huge page, if there is one: a disk read into 256 scattered pages would be split."""
    memory = mmap.mmap(-1, 2 * CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the kernel does not support huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = -_address(memory) % CHUNK_BYTES
    return memoryview(memory)[start : start + CHUNK_BYTES]


def _address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _hand_out(landings: deque[ReadTarget], address: int, position: int, end: int) -> None:
    """Copy ranges with a target from the buffer, which holds the file from `position` to `end`."""
    while landings and (landing := landings[0]).start < end:
        first, last = max(landing.start, position), min(landing.end, end)
        # ctypes releases the GIL, and a copy by torch would start threads.
        ctypes.memmove(landing.into.data_ptr() + first - landing.start, address + first - position, last - first)
        if landing.end > end:
            return
        landings.popleft()
        if landing.landed is not None:
            landing.landed()
