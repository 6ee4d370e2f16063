"""The queries of each step, for all folds at once.

The position counts the queries that each fold has seen, over all ranks; it is the whole state. Each fold goes through
its own queries in its own order, so a fold that trains alone sees what it sees beside the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from piton_trainer.data.permutations import Permutations
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.protocol import RecipeContext
from piton_trainer.recipes.twotower.folds import Fold


class FoldedQueries:
    """Endless training data: each item is one step of this rank, a list of micro-batches (folds, queries)."""

    position_is_global: ClassVar[bool] = True

    def __init__(
        self, folds: Sequence[Fold], *, batch: int, accumulation: int, seed: int, place: RecipeContext, digest: str
    ) -> None:
        """Cut `batch` queries per step and fold into `accumulation` micro-batches per rank."""
        self._folds = folds
        self._batch = batch
        self._accumulation = accumulation
        self._place = place
        self._seed = seed
        self._digest = digest
        self._orders = [Permutations(len(fold.train), seed, fold.number) for fold in folds]
        self.position = 0
        """Queries of each fold that all ranks together have seen."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        while True:
            step = torch.stack(
                [
                    fold.train[order.numbers(self.position, self._batch)]
                    for fold, order in zip(self._folds, self._orders, strict=True)
                ]
            )
            self.position += self._batch
            passes = step.view(len(self._folds), self._accumulation, self._place.world_size, -1)
            yield list(passes[:, :, self._place.rank].unbind(1))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the same on every rank."""
        return {"position": self.position, "seed": self._seed, "digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was.

        Raises:
            BadConfig: the data, its folds or the seed are not the checkpoint's.
        """
        if state["digest"] != self._digest:
            raise BadConfig(
                "trainer.config.data: the judgments, their gains or folds, or the encoder are not those of the "
                "checkpoint; bring them back or start a new run"
            )
        if state["seed"] != self._seed:
            raise BadConfig(
                f"trainer.config.seed: {self._seed} is not the checkpoint's {state['seed']}; "
                "bring it back or start a new run"
            )
        self.position = int(state["position"])
