"""Negatives that are hard for the base model: its nearest passages that do not answer. Found once per volume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from piton_trainer.data.retrieval.examples import Examples
from piton_trainer.recipes.common.text_encoder import Embedded
from piton_trainer.recipes.protocol import DataContext
from piton_trainer.recipes.retrieval.nearest import Nearest

_QUERIES, _PASSAGES = 1024, 4096
"""Compared at once."""
_FILE = "mined.npy"


def with_mined(examples: Examples, embedded: Embedded, count: int, key: str, place: DataContext) -> Examples:
    """The examples, each with so many more negatives. All ranks call it together."""
    name = f"mined-{key}-{embedded.key}-{count}"
    if not place.run_cache.has(name):
        found = _mined(examples, embedded, count, place)
        place.run_cache.folder(name, lambda into: np.save(into / _FILE, found))
    return _extended(examples, np.load(_path(place, name)))


def _path(place: DataContext, name: str) -> Path:
    return place.run_cache.directory / name / _FILE


def _mined(examples: Examples, embedded: Embedded, count: int, place: DataContext) -> NDArray[np.int64]:
    """(different queries, count), for the queries in ascending order; -1 where there are not so many."""
    queries = np.unique(examples.queries)
    passages = np.unique(np.concatenate([examples.positives, examples.negatives]))
    mine = passages[place.rank :: place.world_size]
    most_answers = int(np.bincount(examples.queries).max())
    parts = []
    for first in range(0, len(queries), _QUERIES):
        part = queries[first : first + _QUERIES]
        # A query's own text may be a passage too: one more than its answers is looked for.
        nearest = Nearest(
            _vectors(embedded, part, place), count + most_answers, torch.from_numpy(part).to(place.device)
        )
        for start in range(0, len(mine), _PASSAGES):
            numbers = mine[start : start + _PASSAGES]
            nearest.add(_vectors(embedded, numbers, place), torch.from_numpy(numbers).to(place.device))
        found = nearest.numbers().cpu().numpy()
        answers = examples.answers.look_up(part[:, None], found.clip(min=0)) > 0
        parts.append(_first(np.where(answers, -1, found), count))
    return np.concatenate(parts)


def _vectors(embedded: Embedded, numbers: NDArray[np.int64], place: DataContext) -> torch.Tensor:
    return embedded.of(torch.from_numpy(numbers)).to(place.device)


def _first(found: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first of each row that are somebody, in their order."""
    order = np.argsort(found < 0, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(found, order, axis=1)


def _extended(examples: Examples, mined: NDArray[np.int64]) -> Examples:
    rows = mined[np.unique(examples.queries, return_inverse=True)[1]]
    parts = [
        np.concatenate([examples.negatives[first:last], row[row >= 0]])
        for first, last, row in zip(examples.starts, examples.starts[1:], rows, strict=False)
    ]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return replace(examples, negatives=np.concatenate(parts), starts=starts)
