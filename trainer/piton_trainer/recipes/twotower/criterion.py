"""The training criterion of the folds: the loss, the candidate ids, and the weights of the mean."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piton_trainer.data.ranking.judgments import Judgments
from piton_trainer.recipes.twotower import losses
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.evaluation import outside
from piton_trainer.recipes.twotower.folds import Fold
from piton_trainer.recipes.twotower.table import Cells, priors

_SURE = 1e-4
"""Nothing is more certain than this before anything is learned: its logarithm would not be a number."""


class Criterion:
    """The loss of each fold, as the config has it."""

    def __init__(
        self, config: TwoTowerConfig, judgments: Judgments, folds: Sequence[Fold], device: torch.device
    ) -> None:
        self._config = config
        self._judgments = judgments
        self._device = device
        self.priors = [priors(judgments, fold.train) for fold in folds]
        self._popularity = self._on_device([known.popularity for known in self.priors])
        self._shares = self._on_device([np.float64(self._share(fold)) for fold in folds]).float()

    def biases(self) -> Tensor:
        """Return the bias of each id of each fold, so that a score of 0 means its gain before training."""
        means = np.stack([known.smoothed for known in self.priors]).clip(_SURE, 1 - _SURE)
        odds = means / (1 - means) if self._config.loss == "pointwise" else means
        return torch.from_numpy(np.log(odds)).to(self._device)

    def sample(self, cells: Cells) -> tuple[Tensor, Tensor] | None:
        """The ids that stand for all in the sampled loss, and the correction of their scores; None for all ids."""
        if self._config.loss != "sampled":
            return None
        relevant = cells.gains * cells.weights > 0
        drawn = torch.multinomial(self._popularity, self._config.negatives, replacement=True)
        ones = torch.ones_like(drawn, dtype=self._popularity.dtype)
        counts = torch.zeros_like(self._popularity).scatter_add_(1, drawn, ones)
        columns = torch.nonzero(relevant.any(0).any(0) | counts.any(0)).squeeze(1)
        correction = losses.sampling_correction(
            relevant[:, :, columns], counts[:, columns], self._popularity[:, columns]
        )
        return columns, correction.float()

    def of_folds(self, scores: Tensor, cells: Cells, sample: tuple[Tensor, Tensor] | None) -> Tensor:
        """The mean over the rows of each fold's queries, were they average ones."""
        return self._of_queries(scores, cells, sample).mean(1) / self._shares

    def _of_queries(self, scores: Tensor, cells: Cells, sample: tuple[Tensor, Tensor] | None) -> Tensor:
        if sample is not None:
            columns, correction = sample
            return losses.softmax(scores + correction, cells.gains[:, :, columns], cells.weights[:, :, columns])
        everybody = self._config.candidates == "all"
        if self._config.loss == "softmax":
            rivals = scores if everybody else scores + outside(cells.weights > 0)
            return losses.softmax(rivals, cells.gains, cells.weights)
        weights = cells.weights.masked_fill(cells.weights == 0, 1.0) if everybody else cells.weights
        return losses.pointwise(scores, cells.gains, weights)

    def _share(self, fold: Fold) -> float:
        """Return the mean weight of a training query."""
        judgments, numbers = self._judgments, fold.train.numpy()
        weights = np.asarray(judgments.weights, dtype=np.float64)
        if self._config.loss != "pointwise":
            weights = weights * judgments.gains
        before = np.concatenate([[0.0], np.cumsum(weights)])
        first, last = judgments.starts[numbers], judgments.starts[numbers + 1]
        share = float((before[last] - before[first]).mean())
        if self._config.loss == "pointwise" and self._config.candidates == "all":
            share += len(judgments.names) - float((last - first).mean())
        return share or 1.0

    def _on_device(self, parts: Sequence[NDArray[np.float64] | np.float64]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).to(self._device)
