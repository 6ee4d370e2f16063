"""Files that come into memory, past the page cache unless it has them, each once: hashed and handed out on the way.

The loader's hands, as `direct_io` is the writer's. A chunk that has been read is hashed and copied to where its numbers
belong while it is still in the processor's cache. Reading, hashing and copying all leave the interpreter to others.
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
"""One huge page: small enough to stay in the processor's cache, large enough for a disk."""
_BLOCK_BYTES = 4096
_MORE_THREADS = 6
"""While some hash, others read: with one thread per core the disk would stand still at times, and when only the last
files of a rank are left."""
_NOT_TAKEN = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class ReadTarget:
    """Where a stretch of a file goes."""

    start: int
    """In the file."""
    into: "Tensor"
    """Bytes in a row, on the CPU."""
    landed: Callable[[], object] | None = None
    """What to do when all of them are there."""

    @property
    def end(self) -> int:
        """Of the stretch, in the file."""
        return self.start + len(self.into)


@dataclass(frozen=True, kw_only=True)
class ReadJob:
    """A file to read."""

    name: str
    entry: FileEntry
    is_verified: bool
    """Read all of it and hash it; else only what has somewhere to go."""
    is_cached: bool = False
    """Read it by way of the page cache."""
    landings: deque[ReadTarget] = field(default_factory=deque)
    """By their place in the file, none over another. They are gone when they are done."""


def read_files(folder: Path, jobs: Iterable[ReadJob], retry: Retry) -> str | None:
    """Do all jobs, the largest files first, on some threads more than this process may use cores.

    Returns:
        What is wrong with the first file that is not what the manifest says; None when nothing is. Where something is
        wrong, what has landed is worthless.

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
    """Do a job; what is wrong with the file.

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
    """The digest of what was read."""
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
    """The file is missing, or not as long as its manifest says."""


class _Source:
    """A file. What the page cache holds is taken from there, the rest comes past it, unless the job wants it cached.

    After a read that failed it is opened again: a descriptor may be stale for ever.
    """

    def __init__(self, path: Path, job: ReadJob, retry: Retry) -> None:
        self._path = path
        self._entry = job.entry
        self._wants_cache = job.is_cached
        self._retry = retry
        self._plain = self._direct = -1
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        """Close it."""
        for descriptor in {self._plain, self._direct} - {-1}:
            with suppress(OSError):  # it was only read
                os.close(descriptor)
        self._plain = self._direct = -1
        if self._map is not None:
            self._map.close()
            self._map = None

    def check_size(self) -> None:
        """Make sure that the file is there, and as long as its entry says.

        Raises:
            _WrongSizeError: it is not.
            VolumeLost: nobody can tell.
        """
        if problem := self._retry(partial(layout.wrong_size, self._path, self._entry), self._path):
            raise _WrongSizeError(problem)

    def fill(self, buffer: memoryview, position: int, wanted: int) -> None:
        """Read at least so many bytes into the buffer.

        Raises:
            _WrongSizeError: the file has another size than its entry.
            VolumeLost: they cannot be read.
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
        with suppress(OSError, ValueError):  # without a map nobody can tell what is cached
            self._map = mmap.mmap(self._plain, 0, access=mmap.ACCESS_COPY)
        with suppress(OSError):  # O_DIRECT is not taken here
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
                descriptor = self._plain  # it is not taken here after all, or not in the middle of a block
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
    """A chunk's memory in one huge page, if the kernel has one: a disk takes a read into 256 scattered pages apart."""
    memory = mmap.mmap(-1, 2 * CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = -_address(memory) % CHUNK_BYTES
    return memoryview(memory)[start : start + CHUNK_BYTES]


def _address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _hand_out(landings: deque[ReadTarget], address: int, position: int, end: int) -> None:
    """Copy from the buffer, which holds the file from `position` to `end`, what has somewhere to go."""
    while landings and (landing := landings[0]).start < end:
        first, last = max(landing.start, position), min(landing.end, end)
        # ctypes lets other threads have the interpreter meanwhile, and a tensor's own copy would start threads.
        ctypes.memmove(landing.into.data_ptr() + first - landing.start, address + first - position, last - first)
        if landing.end > end:
            return
        landings.popleft()
        if landing.landed is not None:
            landing.landed()
