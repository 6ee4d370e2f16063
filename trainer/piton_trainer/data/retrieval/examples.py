"""Training examples as numbers of texts, each text once.

queries    3    7    3            positives    0    5    9         a query may have several rows
starts     0    2    2    3       negatives    4    8   …          those of row r are starts[r] .. starts[r + 1] - 1
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piton_trainer.data.ranking.pairs import Pairs
from piton_trainer.data.retrieval.example_rows import Example
from piton_trainer.data.text import mapped as texts
from piton_trainer.data.text.mapped import Texts
from piton_trainer.errors import BadConfig

_ARRAYS = ("queries", "positives", "starts", "negatives")


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """All rows."""

    texts: Texts
    queries: NDArray[np.int64]
    positives: NDArray[np.int64]
    starts: NDArray[np.int64]
    negatives: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def answers(self) -> Pairs:
        """(query, text) is 1 where the text is a positive of the query in any row."""
        ones = np.ones(len(self), dtype=np.float32)
        return Pairs.of(self.queries, self.positives, ones, width=len(self.texts))

    @cached_property
    def most_negatives(self) -> int:
        """Of one row."""
        return int(np.diff(self.starts).max())

    def some_negatives(self, rows: NDArray[np.int64], count: int, turn: int) -> NDArray[np.int64]:
        """(rows, count): negatives of each row, the next ones at each turn; what a row lacks is its positive."""
        first, have = self.starts[rows][:, None], np.diff(self.starts)[rows][:, None]
        places = first + (turn * count + np.arange(count)) % np.maximum(have, 1)
        if not len(self.negatives):
            return np.repeat(self.positives[rows][:, None], count, axis=1)
        found = self.negatives[places.clip(max=len(self.negatives) - 1)]
        return np.where(np.arange(count) < have, found, self.positives[rows][:, None])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map the examples that `save` wrote."""
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS}
        return cls(texts=Texts(folder), **arrays)


def save(rows: Iterable[Example], source: str, limit: int | None, folder: Path) -> None:
    """Write examples into a folder that is there; of more than `limit` those with the smallest digests.

    Raises:
        BadConfig: there are none.
    """
    chosen = list(rows) if limit is None else sorted(rows, key=_digest)[:limit]
    if not chosen:
        raise BadConfig(f"trainer.config.data: there is not one example in {source}")
    numbers: dict[str, int] = {}
    queries, positives, negatives, starts = array("q"), array("q"), array("q"), array("q", [0])
    for row in chosen:
        queries.append(numbers.setdefault(row.query, len(numbers)))
        positives.append(numbers.setdefault(row.positive, len(numbers)))
        negatives.extend(numbers.setdefault(text, len(numbers)) for text in row.negatives if text != row.positive)
        starts.append(len(negatives))
    for name, values in zip(_ARRAYS, (queries, positives, starts, negatives), strict=True):
        np.save(folder / f"{name}.npy", np.array(values, dtype=np.int64))
    texts.save(list(numbers), folder)


def _digest(row: Example) -> bytes:
    return hashlib.sha256(f"{row.query}\t{row.positive}".encode()).digest()
