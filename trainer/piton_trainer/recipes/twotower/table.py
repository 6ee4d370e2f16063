"""Judgments on the device that trains: dense rows of a few queries, and what is known of each id beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piton_trainer.data.ranking.judgments import Judgments

_POPULARITY_POWER = 0.75
"""Between drawing all ids alike and drawing them as often as they are relevant; word2vec's choice."""


class Ids:
    """The meaning of the columns of the scores; a checkpoint carries it for users of the model."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"names": self.names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the loader has seen to it that the judgments, and with them the ids, are the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Pairs of queries and all ids: three tensors (…, queries, ids)."""

    gains: Tensor
    weights: Tensor
    """0 for a pair that nobody judged or guessed."""
    originals: Tensor


class Table:
    """All judgments; only the rows that are asked for become dense."""

    def __init__(self, judgments: Judgments, device: torch.device) -> None:
        self.ids = len(judgments.names)
        self._starts = torch.from_numpy(judgments.starts).to(device)
        self._columns = torch.from_numpy(judgments.ids).to(device)
        self._gains = torch.from_numpy(judgments.gains).to(device)
        self._weights = torch.from_numpy(judgments.weights).to(device)
        self._originals = torch.from_numpy(judgments.originals).to(device)

    def cells(self, queries: Tensor) -> Cells:
        """The pairs of these queries, in whatever shape their numbers come."""
        flat = queries.reshape(-1).to(self._starts.device)
        first, lengths = self._starts[flat], self._starts[flat + 1] - self._starts[flat]
        where = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), lengths)
        before = lengths.cumsum(0) - lengths
        rows = torch.arange(len(where), device=flat.device) - before[where] + first[where]
        cells = where * self.ids + self._columns[rows]
        shape = (*queries.shape, self.ids)

        def dense(values: Tensor) -> Tensor:
            whole = torch.zeros(len(flat) * self.ids, dtype=values.dtype, device=flat.device)
            whole[cells] = values[rows]  # a pair stands once, so no two values meet
            return whole.view(shape)

        return Cells(gains=dense(self._gains), weights=dense(self._weights), originals=dense(self._originals))


@dataclass(frozen=True, kw_only=True, eq=False)
class Priors:
    """Statistics of the judged rows of some queries, by id; guesses do not count."""

    means: NDArray[np.float64]
    """Mean gain; of an id that was never judged, that of all."""
    smoothed: NDArray[np.float64]
    """The same, as if each id had been judged once more, with the mean of all: never quite 0 or 1."""
    popularity: NDArray[np.float64]
    """Probability of being drawn as a negative."""


def priors(judgments: Judgments, queries: Tensor) -> Priors:
    """Of these queries only: nothing of any other leaks in."""
    chosen = np.zeros(len(judgments.queries), dtype=np.bool_)
    chosen[queries.numpy()] = True
    rows = np.repeat(chosen, np.diff(judgments.starts)) & judgments.originals
    ids, gains = judgments.ids[rows], judgments.gains[rows].astype(np.float64)
    width = len(judgments.names)
    counts, sums = np.bincount(ids, minlength=width), np.bincount(ids, weights=gains, minlength=width)
    mean = gains.mean() if len(gains) else 0.0
    popularity = (np.bincount(ids[gains > 0], minlength=width) + 1.0) ** _POPULARITY_POWER
    return Priors(
        means=np.where(counts > 0, sums / np.maximum(counts, 1), mean),
        smoothed=(sums + mean) / (counts + 1),
        popularity=popularity / popularity.sum(),
    )
