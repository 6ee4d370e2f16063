"""Many texts in one file that is mapped: millions of passages cost no memory until they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

_BYTES, _ENDS = "texts.bin", "ends.npy"


class Texts(Sequence[str]):
    """The texts that `save` wrote."""

    def __init__(self, folder: Path) -> None:
        self._ends = np.load(folder / _ENDS, mmap_mode="r")
        path = folder / _BYTES
        self._bytes = np.memmap(path, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """In bytes."""
        found: NDArray[np.int64] = np.diff(self._ends, prepend=0)
        return found

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        start = self._ends[place - 1] if place else 0
        return bytes(self._bytes[start : self._ends[place]]).decode()


def save(texts: Sequence[str], folder: Path) -> None:
    """Write them into a folder that is there."""
    ends = np.empty(len(texts), dtype=np.int64)
    end = 0
    with (folder / _BYTES).open("wb") as file:
        for place, text in enumerate(texts):
            end += file.write(text.encode())
            ends[place] = end
    np.save(folder / _ENDS, ends)
