"""The passes of each step, in a shuffled order that can start anywhere.

The position counts the examples that all ranks together have seen; it is the whole state. Which rows a pass of all
ranks has, and which of their negatives, follows from it: so every rank knows, without asking, which of the others'
passages answer its own queries and may not count against them.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piton_trainer.data.permutations import Permutations
from piton_trainer.data.retrieval.examples import Examples
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.protocol import RecipeContext
from piton_trainer.recipes.retrieval.inputs import Readable
from piton_trainer.recipes.retrieval.model import Inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """This rank's part of a pass."""

    queries: Inputs
    passages: Inputs
    """The queries' own, in their order, and then negatives."""
    hidden: Tensor
    """(queries, passages of all ranks): those that may not count against a query."""
    first: int
    """Among the passages of all ranks, the number of this rank's first one."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Digests that say which examples these are, of which content and with which settings."""

    content: str
    stamps: str
    """Of sizes and modification times of the sources in place of their content: the digest of earlier versions."""
    earlier: frozenset[str]
    """Digests that a checkpoint of an earlier version may have for these examples."""


class ShuffledExamples:
    """Endless training data: each item is one step of this rank. Its texts are read while the step before computes."""

    position_is_global: ClassVar[bool] = True

    def __init__(
        self,
        examples: Examples,
        inputs: Readable,
        *,
        batch: int,
        accumulation: int,
        negatives: int,
        seed: int,
        place: RecipeContext,
        identity: Identity,
    ) -> None:
        """Cut `batch` examples per step into `accumulation` passes of all ranks."""
        self._examples = examples
        self._inputs = inputs
        self._batch = batch
        self._accumulation = accumulation
        self.negatives = min(negatives, examples.most_negatives)
        self._place = place
        self._seed = seed
        self._identity = identity
        self._order = Permutations(len(examples), seed)
        self.position = 0
        """Examples that all ranks together have seen."""

    def __iter__(self) -> Iterator[list[Pass]]:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._step, self.position)
            while True:
                step = coming.result()
                self.position += self._batch
                coming = reader.submit(self._step, self.position)
                yield step

    def _step(self, position: int) -> list[Pass]:
        rows = self._order.numbers(position, self._batch).numpy()
        passes = rows.reshape(self._accumulation, self._place.world_size, -1)
        return [self._pass(part, position // len(self._examples)) for part in passes]

    def _pass(self, rows: NDArray[np.int64], turn: int) -> Pass:
        """Of the rows of all ranks, (ranks, examples); negatives come in turn from epoch to epoch."""
        examples = self._examples
        passages = np.stack(
            [
                np.concatenate(
                    [examples.positives[part], examples.some_negatives(part, self.negatives, turn).reshape(-1)]
                )
                for part in rows
            ]
        )
        queries = examples.queries[rows[self._place.rank]]
        first = self._place.rank * passages.shape[1]
        return Pass(
            queries=self._inputs.of(queries),
            passages=self._inputs.of(passages[self._place.rank]),
            hidden=torch.from_numpy(self._hidden(queries, passages.reshape(-1), first)).to(self._place.device),
            first=first,
        )

    def _hidden(self, queries: NDArray[np.int64], passages: NDArray[np.int64], first: int) -> NDArray[np.bool_]:
        """Answers to a query, and the query itself; but not the one place where its own passage stands."""
        rows = queries[:, None]
        hidden: NDArray[np.bool_] = (self._examples.answers.look_up(rows, passages) > 0) | (rows == passages)
        hidden[np.arange(len(queries)), first + np.arange(len(queries))] = False
        return hidden

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the same on every rank."""
        return {
            "position": self.position,
            "seed": self._seed,
            "digest": self._identity.stamps,  # an earlier version of Piton goes on from it
            "content": self._identity.content,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was.

        Raises:
            BadConfig: the examples or the seed are not the checkpoint's.
        """
        mine = self._identity
        known = state.get("content")
        if known != mine.content if known is not None else state["digest"] not in mine.earlier:
            raise BadConfig(
                "trainer.config.data: the examples, their negatives or the base model are not those of the checkpoint; "
                "bring them back or start a new run"
            )
        if state["seed"] != self._seed:
            raise BadConfig(
                f"trainer.config.seed: {self._seed} is not the checkpoint's {state['seed']}; "
                "bring it back or start a new run"
            )
        self.position = int(state["position"])
