"""nDCG@10 of queries that were not trained on, for a model and for the means that it has to beat."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from piton_trainer.data.ranking.judgments import Judgments
from piton_trainer.recipes.common.ndcg import ndcg
from piton_trainer.recipes.common.text_encoder import Embedded
from piton_trainer.recipes.twotower.folds import Fold
from piton_trainer.recipes.twotower.table import Table, priors

RANKS = 10
"""nDCG@10."""
_QUERIES = 256
"""Of each fold, scored at once."""


class BaselineEvaluator:
    """Measures judged pairs; guesses neither count nor compete as if they were judged."""

    def __init__(
        self, judgments: Judgments, table: Table, embedded: Embedded, candidates: Literal["judged", "all"]
    ) -> None:
        self._judgments = judgments
        self._table = table
        self._embedded = embedded
        self._candidates = candidates

    @torch.no_grad()
    def by_fold(self, model: nn.Module, queries: Sequence[Tensor]) -> list[float]:
        """The mean over the queries of each fold; every id is scored."""
        sums = [0.0] * len(queries)
        for first in range(0, max(len(numbers) for numbers in queries), _QUERIES):
            parts = [numbers[first : first + _QUERIES] for numbers in queries]
            batch = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
            found = self.of(model(self._embedded.of(batch))[0], batch)
            sums = [total + float(row[: len(part)].sum()) for total, row, part in zip(sums, found, parts, strict=True)]
        return [total / len(numbers) for total, numbers in zip(sums, queries, strict=True)]

    def of(self, scores: Tensor, queries: Tensor) -> Tensor:
        """Of each query, for the scores of all ids (…, ids)."""
        cells = self._table.cells(queries)
        if self._candidates == "judged":
            scores = scores + outside(cells.originals)
        return ndcg(scores, cells.gains * cells.originals, k=RANKS)

    def baselines(self, folds: Sequence[Fold]) -> list[float]:
        """Of ranking by the mean gain of each id among all queries that are not held out, for each fold."""
        found = []
        for fold in folds:
            means = priors(self._judgments, torch.cat([fold.train, fold.inner])).means
            scores = torch.from_numpy(means).to(self._embedded.vectors.device).expand(len(fold.held_out), -1)
            found.append(float(self.of(scores, fold.held_out).mean()))
        return found


def outside(inside: Tensor) -> Tensor:
    """Return the mask to add to scores so that other ids do not compete."""
    return torch.zeros(inside.shape, device=inside.device).masked_fill(~inside, -math.inf)
