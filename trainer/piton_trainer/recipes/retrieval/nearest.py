"""The nearest passages of many queries, exactly, over all ranks; ties as trec_eval breaks them.

Score and number of a passage become one whole number, so that `topk` has no ties: of equal scores the passage with the
higher number, that is the later name, comes first. Scores are fp32, as trec_eval's are.
"""

import torch
from torch import Tensor

from piton_trainer.recipes.retrieval.contrast import distances
from piton_trainer.runtime.collectives import gathered, world_size

_NOBODY = torch.iinfo(torch.int64).min
_NUMBER = (1 << 32) - 1


class Nearest:
    """Takes passages, on every rank its own, and keeps the best of each query."""

    def __init__(self, queries: Tensor, count: int, own: Tensor) -> None:
        """So many for each query; `own` is the number of the passage that does not count for it, or -1."""
        self._queries = queries
        self._own = own.unsqueeze(1)
        self._best = torch.full((len(queries), count), _NOBODY, dtype=torch.int64, device=queries.device)

    def add(self, passages: Tensor, numbers: Tensor) -> None:
        """Take passages with these numbers."""
        keys = _keys(-distances(self._queries, passages), numbers)
        keys.masked_fill_(numbers == self._own, _NOBODY)
        self._keep(torch.cat([self._best, keys], dim=1))

    def numbers(self) -> Tensor:
        """(queries, count), the nearest first; -1 where there are not so many. All ranks call it together."""
        ranks = gathered(self._best).view(world_size(), *self._best.shape)
        self._keep(torch.cat(list(ranks), dim=1))
        return torch.where(self._best == _NOBODY, -1, self._best & _NUMBER)

    def _keep(self, keys: Tensor) -> None:
        self._best = keys.topk(self._best.shape[1], dim=1).values


def _keys(scores: Tensor, numbers: Tensor) -> Tensor:
    """Whole numbers in the order of the scores, and among equals of the numbers."""
    bits = (scores.float() + 0.0).view(torch.int32)  # 0.0 makes of minus zero zero
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats grow the other way
    return (ascending.long() << 32) | numbers
