"""Files that go past the page cache onto the disk, hashed on the way.

The writer's hands: no torch here. Where a file system does not take O_DIRECT, the same bytes go the ordinary way.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from piton.contract.manifest import FileEntry

CHUNK_BYTES = 4 << 20
_MORE_THREADS = 2
"""While one hashes, another one writes: with one thread per core the disk would stand still at times."""
_NOT_TAKEN = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class Part(NamedTuple):
    """A file, and where its bytes lie in memory; whole blocks of it."""

    name: str
    start: int
    size: int


def write_parts(folder: Path, parts: Sequence[Part], memory: memoryview) -> dict[str, FileEntry]:
    """Write files, durably, on a few threads more than this process may use cores.

    Raises:
        OSError: the first that went wrong.
    """
    entries: dict[str, FileEntry] = {}
    errors: list[OSError] = []
    left = list(reversed(parts))

    def work() -> None:
        while left and not errors:
            try:
                part = left.pop()
            except IndexError:
                return
            try:
                entries[part.name] = write_file(folder / part.name, memory[part.start : part.start + part.size])
            except OSError as error:
                errors.append(error)

    count = min(len(parts), len(os.sched_getaffinity(0)) + _MORE_THREADS)
    threads = [threading.Thread(target=work) for _ in range(count - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return entries


def write_file(path: Path, data: memoryview) -> FileEntry:
    """Write a file, durably."""
    try:
        return _write(path, data, os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_TAKEN:
            raise
        return _write(path, data, 0)


def _write(path: Path, data: memoryview, flags: int) -> FileEntry:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | flags, 0o666)
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            digest.update(chunk)
            _write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(size=len(data), sha256=digest.hexdigest())


def _write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]
