"""Reads the newest checkpoint into the page cache while its process is busy with imports and with building a model.

Nothing is decided here, and nothing is believed: `loader` finds out later which checkpoint is good and what of it this
rank needs, and takes from the cache what happens to be there. No torch: this begins before torch is imported.

Each rank reads what the rank of its number has written: that is what it needs, or, where all ranks need everything, its
share of the work of a node.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

from piton_trainer.checkpoint.format import layout
from piton_trainer.runtime.resources import free_bytes

_CHUNK_BYTES = 16 << 20
"""Large: each further one has to wait for the interpreter, which the imports hold."""
_SHARE_MAX = 0.5
"""Of the memory that is free."""


class Readahead:
    """A thread that reads."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="piton-readahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no further."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # whoever loads will say what is wrong
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
    """What the rank of this number has written of the newest checkpoint, the largest first as they are loaded."""
    for checkpoint in layout.committed(directory):
        own = layout.shards_of(checkpoint, rank)
        return [checkpoint.folder / name for name in sorted(own, key=lambda name: (-own[name].size, name))]
    return []


_current: Readahead | None = None


def begin(directory: Path) -> None:
    """Begin, unless this process has begun: it has one start, and whoever knows the directory first tells."""
    global _current  # noqa: PLW0603
    if _current is None:
        rank = os.environ.get("RANK", "0")
        _current = Readahead(directory, int(rank) if rank.isdigit() else 0)


def stop() -> None:
    """It is loaded, or never will be."""
    global _current  # noqa: PLW0603
    if _current is not None:
        _current.stop()
        _current = None
