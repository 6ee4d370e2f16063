"""Writes of files with O_DIRECT, past the page cache, hashed on the way.

This is the I/O layer of the writer, without torch. Without support of O_DIRECT in a file system, writes are buffered.
"""

import errno
import os
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format.file_digest import FileDigest

CHUNK_BYTES = 16 << 20
"""Large, which suits any disk; meanwhile other threads hash their chunks."""
_NOT_TAKEN = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class FilePart(NamedTuple):
    """A file, and the location of its bytes in memory; whole blocks, if it is written with O_DIRECT."""

    name: str
    start: int
    size: int


class WriterPool:
    """Threads that write the files of one save, durably: a few while the trainer trains, more while it waits."""

    def __init__(self, folder: Path, parts: Sequence[FilePart], memory: memoryview) -> None:
        self._folder = folder
        self._memory = memory
        self._left = list(reversed(parts))
        self._entries: dict[str, FileEntry] = {}
        self._errors: list[OSError] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def enlist(self, count: int) -> None:
        """Run at least this many threads, but not more than there are files left."""
        with self._lock:
            for _ in range(min(count - len(self._threads), len(self._left))):
                thread = threading.Thread(target=self._work)
                thread.start()
                self._threads.append(thread)

    def finish(self) -> dict[str, FileEntry]:
        """Wait for all files, and return their entries.

        Raises:
            OSError: the first error of a thread.
        """
        for number in count():
            with self._lock:
                if number == len(self._threads):
                    break
                thread = self._threads[number]
            thread.join()
        if self._errors:
            raise self._errors[0]
        return self._entries

    def _work(self) -> None:
        while not self._errors:
            with self._lock:
                if not self._left:
                    return
                part = self._left.pop()
            try:
                entry = write_file(self._folder / part.name, self._memory[part.start : part.start + part.size])
            except OSError as error:
                self._errors.append(error)
            else:
                self._entries[part.name] = entry


def write_file(path: Path, data: memoryview) -> FileEntry:
    """Write a file, durably."""
    try:
        return _write(path, data, os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_TAKEN:
            raise
        return _write(path, data, 0)


def _write(path: Path, data: memoryview, flags: int) -> FileEntry:
    digest = FileDigest()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | flags, 0o666)
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            digest.update(chunk)
            _write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(size=len(data), digest=digest.text())


def _write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]
