"""Graded judgments of (query, id) pairs, and guesses at them, which weigh less.

A `Collector` takes one row at a time into flat arrays, 17 bytes a row and every text once, so that tens of millions of
rows fit into memory. `Judgments` is what comes out: the rows sorted by query, one per pair.

    starts   0      3        5              the rows of query q are starts[q] .. starts[q + 1] - 1
    ids      0 2 5  1 2      …              ascending within a query
    gains    1 0 .7 0 1      …
"""

import hashlib
import json
import logging
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piton_trainer.data.ranking.rows import JudgmentRow
from piton_trainer.data.skipped import Contradiction
from piton_trainer.errors import BadConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgments:
    """All rows, one per pair of a query and an id. Arrays may be maps of files: read them, never write."""

    queries: list[str]
    texts: list[str]
    """Of each query."""
    names: list[str]
    """Of the ids, in the order of the alphabet: equal scores are ranked by it."""
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    gains: NDArray[np.float32]
    weights: NDArray[np.float32]
    """1 for what was judged, the confidence for what was guessed."""
    originals: NDArray[np.bool_]

    @cached_property
    def digest(self) -> str:
        """Says which judgments these are."""
        total = hashlib.sha256(json.dumps([self.queries, self.texts, self.names]).encode())
        for name in _ARRAYS:
            total.update(np.ascontiguousarray(getattr(self, name)).data)
        return total.hexdigest()

    @cached_property
    def judged(self) -> NDArray[np.bool_]:
        """Mask of the queries with at least one judgment that is no guess."""
        before = np.concatenate([[0], np.cumsum(self.originals, dtype=np.int64)])
        found: NDArray[np.bool_] = before[self.starts[1:]] > before[self.starts[:-1]]
        return found

    def save(self, folder: Path) -> None:
        """Write everything into a folder that is there."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        lists = {"queries": self.queries, "texts": self.texts, "names": self.names}
        (folder / "lists.json").write_text(json.dumps(lists), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map the arrays that `save` wrote; they stay on the disk until they are used."""
        lists: dict[str, Any] = json.loads((folder / "lists.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _ARRAYS}
        return cls(**lists, **arrays)


_ARRAYS = ("starts", "ids", "gains", "weights", "originals")


class Collector:
    """Takes rows in any order."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._queries: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        self._row_queries, self._row_ids = array("i"), array("i")
        self._gains, self._weights = array("f"), array("f")
        self._originals = array("b")

    def add(self, row: JudgmentRow) -> None:
        """Take a row.

        Raises:
            Contradiction: its query has had another text before.
        """
        query = self._queries.setdefault(row.query, len(self._queries))
        if query == len(self._texts):
            self._texts.append(row.text)
        elif self._texts[query] != row.text:
            raise Contradiction(f"query {row.query} had another text before: {self._texts[query]!r}")
        self._row_queries.append(query)
        self._row_ids.append(self._ids.setdefault(row.id, len(self._ids)))
        self._gains.append(row.gain)
        self._weights.append(1.0 if row.original else row.confidence)
        self._originals.append(row.original)

    def judgments(self, source: str) -> Judgments:
        """Return all rows taken so far. Of several rows for a pair a judged one counts, else the surest guess.

        Raises:
            BadConfig: there is nothing judged, or two judgments of a pair that do not agree.
        """
        if not any(self._originals):
            raise BadConfig(f"trainer.config.data: there is not one row in {source} that was judged")
        if not any(gain > 0 for gain, original in zip(self._gains, self._originals, strict=True) if original):
            raise BadConfig(
                f"trainer.config.data: not one judgment in {source} has a gain above 0, so no ranking would be worth "
                "anything; trainer.config.gains says what a grade is worth"
            )
        names, renumbered = _sorted(self._ids)
        rows = _Rows(
            queries=np.frombuffer(self._row_queries, dtype=np.int32),
            ids=renumbered[np.frombuffer(self._row_ids, dtype=np.int32)],
            gains=np.frombuffer(self._gains, dtype=np.float32),
            weights=np.frombuffer(self._weights, dtype=np.float32),
            originals=np.frombuffer(self._originals, dtype=np.bool_),
        ).sorted()
        place = rows.contradiction()
        if place is not None:
            raise BadConfig(
                f"trainer.config.data: {source} judges query {list(self._queries)[rows.queries[place]]} and id "
                f"{names[rows.ids[place]]} twice, as {rows.gains[place - 1]:g} and as {rows.gains[place]:g}"
            )
        guessed = np.unique(rows.ids[~rows.originals])
        if len(guessed) and not np.isin(guessed, rows.ids[rows.originals]).any():
            _log.warning(
                "%s: no id that a guess names is ever judged, such as %s; do both name ids alike?",
                source,
                names[guessed[0]],
            )
        rows = rows.only(~rows.again)
        return Judgments(
            queries=list(self._queries),
            texts=self._texts,
            names=names,
            starts=np.searchsorted(rows.queries, np.arange(len(self._queries) + 1)),
            ids=rows.ids,
            gains=rows.gains,
            weights=rows.weights,
            originals=rows.originals,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Columns of rows that are not yet one per pair."""

    queries: NDArray[np.int32]
    ids: NDArray[np.int32]
    gains: NDArray[np.float32]
    weights: NDArray[np.float32]
    originals: NDArray[np.bool_]

    def only(self, rows: NDArray[Any]) -> "_Rows":
        """Return some rows, or all in another order, by numbers or a mask (rows,)."""
        return _Rows(
            queries=self.queries[rows],
            ids=self.ids[rows],
            gains=self.gains[rows],
            weights=self.weights[rows],
            originals=self.originals[rows],
        )

    def sorted(self) -> "_Rows":
        """Return the rows by pair; the one that counts comes first among those of a pair."""
        return self.only(np.lexsort((-self.weights, ~self.originals, self.ids, self.queries)))

    @cached_property
    def again(self) -> NDArray[np.bool_]:
        """Mask of the rows with the same pair as the row before."""
        same = (self.queries[1:] == self.queries[:-1]) & (self.ids[1:] == self.ids[:-1])
        return np.concatenate([[False], same])

    def contradiction(self) -> int | None:
        """Return the first judged row that says something else than the judged row of the same pair before it."""
        other = np.concatenate([[False], self.gains[1:] != self.gains[:-1]])
        found = np.flatnonzero(self.again & self.originals & other)
        return int(found[0]) if len(found) else None


def _sorted(numbers: dict[str, int]) -> tuple[list[str], NDArray[np.int32]]:
    """Return the names in the order of the alphabet, and the new number of each old one (names,)."""
    names = sorted(numbers)
    renumbered = np.empty(len(names), dtype=np.int32)
    renumbered[[numbers[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return names, renumbered
