"""Files that come past the page cache into memory, each read once: hashed and handed out on the way.

The loader's hands, as `direct` is the writer's. A chunk that has been read is hashed and copied to where its numbers
belong while it is still in the processor's cache. Reading, hashing and copying all leave the interpreter to others.
"""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import layout

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 20
"""Small enough to stay in the cache of a core, large enough for a disk."""
_BLOCK_BYTES = 4096
_MORE_THREADS = 2
"""While some hash, others read: with one thread per core the disk would stand still at times."""
_NOT_TAKEN = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


@dataclass(frozen=True, kw_only=True)
class Landing:
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
class Job:
    """A file to read."""

    name: str
    entry: FileEntry
    is_verified: bool
    """Read all of it and hash it; else only what has somewhere to go."""
    landings: deque[Landing] = field(default_factory=deque)
    """By their place in the file, none over another. They are gone when they are done."""


def read_files(folder: Path, jobs: Iterable[Job]) -> str | None:
    """Do all jobs, the largest files first, on a few threads more than this process may use cores.

    Returns:
        What is wrong with the first file that is not what the manifest says; None when nothing is. Where something is
        wrong, what has landed is worthless.
    """
    left = sorted(jobs, key=lambda job: (job.entry.size, job.name))
    problems: list[str] = []
    errors: list[Exception] = []

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
        while not problems and not errors:
            try:
                job = left.pop()
            except IndexError:
                return
            try:
                if problem := read_file(folder / job.name, job, buffer):
                    problems.append(problem)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

    count = min(len(left), len(os.sched_getaffinity(0)) + _MORE_THREADS)
    threads = [threading.Thread(target=work, name="piton-load") for _ in range(count - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return next(iter(problems), None)


def read_file(path: Path, job: Job, buffer: memoryview) -> str | None:
    """Do a job; what is wrong with the file."""
    if problem := layout.wrong_size(path, job.entry):
        return problem
    try:
        descriptor = _open(path)
        try:
            digest = _read(descriptor, job, buffer)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return layout.wrong_digest(path, job.entry, digest) if job.is_verified else None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_TAKEN:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read(descriptor: int, job: Job, buffer: memoryview) -> str:
    """The SHA-256 of what was read."""
    digest, address = hashlib.sha256(), ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    position, size = 0, job.entry.size
    while position < size and (job.is_verified or job.landings):
        if not job.is_verified:
            position = max(position, job.landings[0].start // _BLOCK_BYTES * _BLOCK_BYTES)
        end = position + _fill(descriptor, buffer, position, min(len(buffer), size - position))
        if job.is_verified:
            digest.update(buffer[: end - position])
        _hand_out(job.landings, address, position, end)
        position = end
    return digest.hexdigest()


def _fill(descriptor: int, buffer: memoryview, position: int, wanted: int) -> int:
    """Read at least so many bytes into the buffer, or say that the file has ended; how many are wanted of them."""
    got = 0
    while got < wanted:
        try:
            count = os.preadv(descriptor, [buffer[got:]], position + got)
        except OSError as error:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if error.errno not in _NOT_TAKEN or not flags & os.O_DIRECT:
                raise
            # It is not taken here after all, or not in the middle of a block: on the ordinary way.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            continue
        if count == 0:
            raise OSError(errno.EIO, "it ended early")
        got += count
    return wanted


def _hand_out(landings: deque[Landing], address: int, position: int, end: int) -> None:
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
