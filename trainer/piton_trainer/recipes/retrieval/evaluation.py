"""nDCG@10 by BEIR's protocol, and what the documents' vectors look like.

Every document is scored for every query, in fp32; a document with the query's own name does not count, unless it is
judged an answer and has another text; the mean is over all queries with judgments. The ranks share the documents, and
each encodes all queries.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piton_trainer.data.retrieval.collection import BEST, Collection
from piton_trainer.recipes.common.ndcg import ideal_dcg, ndcg
from piton_trainer.recipes.protocol import RecipeContext
from piton_trainer.recipes.retrieval.isotropy_stats import IsotropyStats
from piton_trainer.recipes.retrieval.nearest import Nearest

Encode = Callable[[NDArray[np.int64]], Tensor]
"""The vectors of a collection's texts with these numbers."""


class ZeroShot:
    """The figures of the base model as it came; a checkpoint carries them, as they are made once."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"figures": self.figures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.figures = dict(state["figures"])


def name_of(source: str) -> str:
    """A collection's name among the metrics: the last part of where it lies."""
    last = PurePosixPath(source.rstrip("/").removesuffix(":")).name
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")


def measure(
    collections: Mapping[str, Collection], encode: Mapping[str, Encode], *, dim: int, batch: int, place: RecipeContext
) -> dict[str, float]:
    """ndcg_10 over all collections, of each one where there are several, and the figures of their documents."""
    stats = IsotropyStats(dim, place.device)
    found = {
        f"ndcg_10_{name}": _ndcg(collection, encode[name], stats, batch, place)
        for name, collection in collections.items()
    }
    each = found if len(found) > 1 else {}
    return {"ndcg_10": sum(found.values()) / len(found), **each, **stats.figures()}


@torch.no_grad()
def _ndcg(collection: Collection, encode: Encode, stats: IsotropyStats, batch: int, place: RecipeContext) -> float:
    first, last = collection.documents, collection.documents + collection.queries
    queries = torch.cat([encode(numbers).float() for numbers in _cut(np.arange(first, last), batch)])
    with torch.autocast(place.device.type, enabled=False):
        nearest = Nearest(queries, BEST, torch.from_numpy(collection.own).to(place.device))
    by_length = np.argsort(collection.texts.lengths[: collection.documents], kind="stable")
    for numbers in _cut(by_length[place.rank :: place.world_size], batch):
        documents = encode(numbers).float()
        with torch.autocast(place.device.type, enabled=False):
            stats.add(documents)
            nearest.add(documents, torch.from_numpy(numbers).to(place.device))
    return _mean_ndcg(collection, nearest.numbers().cpu())


def _mean_ndcg(collection: Collection, found: Tensor) -> float:
    """Of the numbers of the nearest documents of each query, in order."""
    rows, columns = np.arange(collection.queries)[:, None], found.clamp(min=0).numpy()
    gains = torch.from_numpy(collection.grades.look_up(rows, columns)).masked_fill(found < 0, 0.0)
    in_order = -torch.arange(BEST, dtype=torch.float32).expand_as(gains)
    ideal = ideal_dcg(torch.from_numpy(collection.ideal), BEST)
    return float(ndcg(in_order, gains, k=BEST, ideal=ideal).mean())


def _cut(numbers: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]
