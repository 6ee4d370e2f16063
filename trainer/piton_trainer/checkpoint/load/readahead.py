"""Read-ahead of the newest checkpoint into the page cache while the process imports modules and builds the model.

This module makes no decision and verifies nothing: `loader` determines later which checkpoint is good and which part
of it this rank needs, and benefits from the pages that are cached. No torch: this starts before torch is imported.

Each rank reads the files that the same rank has written: it needs these, or, if all ranks need everything, they are its
share of the work of a node.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

from piton_trainer.checkpoint.format import layout
from piton_trainer.runtime.resources import free_bytes

_CHUNK_BYTES = 16 << 20
"""Large, because each chunk has to wait for the GIL, which the imports hold."""
_SHARE_MAX = 0.5
"""Maximum share of the free memory."""


class Readahead:
    """A thread that reads the files."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="piton-readahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the loader reports errors
            files = files_of(self._directory, self._rank)
            if sum(path.stat().st_size for path in files) <= _SHARE_MAX * free_bytes():
                buffer = memoryview(bytearray(_CHUNK_BYTES))
                for path in files:
                    self._read(path, buffer)

    def _read(self, path: Path, buffer: memoryview) -> None:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while not self._is_over.is_set() and file.readinto(buffer):
                pass


def files_of(directory: Path, rank: int) -> list[Path]:
    """Return the files of the newest checkpoint that this rank has written, largest first as in the loader."""
    for checkpoint in layout.committed(directory):
        own = layout.shards_of(checkpoint, rank)
        return [checkpoint.folder / name for name in sorted(own, key=lambda name: (-own[name].size, name))]
    return []


_current: Readahead | None = None


def begin(directory: Path) -> None:
    """Start the read-ahead, once per process: the first caller that knows the directory starts it."""
    global _current  # noqa: PLW0603
    if _current is None:
        rank = os.environ.get("RANK", "0")
        _current = Readahead(directory, int(rank) if rank.isdigit() else 0)


def stop() -> None:
    """Stop the read-ahead: the checkpoint is loaded, or will not be."""
    global _current  # noqa: PLW0603
    if _current is not None:
        _current.stop()
        _current = None
