"""A lookup of values by pairs of numbers, for many pairs at once."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Values of some pairs (row, column); all others are worth 0."""

    codes: NDArray[np.int64]
    """Row times width plus column, ascending."""
    values: NDArray[np.float32]
    width: int
    """Columns."""

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32], *, width: int
    ) -> Self:
        """From lists; of a pair that stands there twice the first value counts."""
        codes, first = np.unique(rows * width + columns, return_index=True)
        return cls(codes=codes, values=values[first], width=width)

    def look_up(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Their values; the two are broadcast against each other."""
        wanted = rows * self.width + columns
        if not len(self.codes):
            return np.zeros(wanted.shape, dtype=np.float32)
        places = np.searchsorted(self.codes, wanted).clip(max=len(self.codes) - 1)
        found: NDArray[np.float32] = np.where(self.codes[places] == wanted, self.values[places], np.float32(0))
        return found
