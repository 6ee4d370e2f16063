"""Data sets, samplers and loaders, by their words."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    _utils,
)
from torch.utils.data._utils import worker as torch_worker
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader import worker as torchdata_worker

from fuzz_loops.loop import Loop
from fuzz_loops.models import INPUTS

SIZE, REST = 4, 3
_OUTLIVES_SECONDS = 0.05
"""How long a worker outlives its rank, which it holds up when it leaves."""
for module in (_utils, torch_worker, torchdata_worker):
    vars(module)["MP_STATUS_CHECK_INTERVAL"] = _OUTLIVES_SECONDS


class Rows(Dataset[Tensor]):
    """Rows that are the same in each attempt; where they are augmented, with all three kinds of random numbers."""

    def __init__(self, count: int, *, first: int, augment: bool) -> None:
        numbers = torch.arange(first * INPUTS, (first + count) * INPUTS, dtype=torch.float32)
        self._rows = (numbers.reshape(count, INPUTS) * 0.7).sin()
        self._augment = augment

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, first: int, count: int) -> Tensor:
        """Return some rows as they are."""
        return self._rows[first : first + count]

    def __getitem__(self, index: int) -> Tensor:
        row = self._rows[index]
        if not self._augment:
            return row
        return row + 0.1 * torch.randn(INPUTS) + 0.1 * random.random() + 0.1 * float(np.random.rand())


class Lazy(Sampler[int]):
    """Indices that are drawn only when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[int]:
        return (int(torch.randint(self._count, ())) for _ in range(self._count))

    def __len__(self) -> int:
        return self._count


class Shuffled(Sampler[int]):
    """Indices in an order that Python's random numbers draw, in a generator of the sampler's own."""

    def __init__(self, count: int) -> None:
        self._count, self.random = count, random.Random(3)

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(self._count), self._count))

    def __len__(self) -> int:
        return self._count


class Stream(IterableDataset[Tensor]):
    """Rows without a number."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return (self._rows[n] for n in range(len(self._rows)))


class OwnByYield:
    """A loader with state that draws its order with its first batch."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = batches
        self._place = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self._batches)).tolist()
        while self._place < len(order):
            self._place += 1
            yield self._batches[order[self._place - 1]]
        self._place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = state["place"]


class Own:
    """A loader of one's own that says where it is."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = batches
        self._order: Tensor | None = None
        self._place = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> "Own":
        if self._order is None:
            self._order, self._place = torch.randperm(len(self._batches)), 0
        return self

    def __next__(self) -> Tensor:
        assert self._order is not None
        if self._place == len(self._batches):
            self._order = None
            raise StopIteration
        self._place += 1
        return self._batches[int(self._order[self._place - 1])]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._place = state["order"], state["place"]


LISTS: dict[str, Callable[[list[Tensor]], Iterable[Any]]] = {"list": list, "own": Own, "own by yield": OwnByYield}


def loader_of(loop: Loop, rank: int) -> Iterable[Any]:
    """Return the loader of a rank."""
    per_rank = loop.batches * SIZE + (REST if loop.rest else 0)
    if loop.loader == "stream":
        return DataLoader(Stream(_rows(loop, rank, per_rank)), batch_size=SIZE)
    if loop.loader in LISTS:
        rows = _rows(loop, rank, per_rank)
        return LISTS[loop.loader]([rows.row(n, SIZE) for n in range(0, per_rank, SIZE)])
    is_shared = loop.sampler == "distributed"
    rows = Rows(per_rank * loop.shares, first=0, augment=loop.augment) if is_shared else _rows(loop, rank, per_rank)
    kind: Any = DataLoader if loop.loader == "dataloader" else StatefulDataLoader
    order = _order(loop, rank, rows)
    batches: Iterable[Any] = kind(rows, **order, num_workers=loop.workers, persistent_workers=loop.persistent)
    return batches


def _rows(loop: Loop, rank: int, count: int) -> Rows:
    return Rows(count, first=1000 * rank, augment=loop.augment)


def _order(loop: Loop, rank: int, rows: Rows) -> dict[str, Any]:
    if loop.sampler == "batch":
        return {"batch_sampler": BatchSampler(RandomSampler(rows), SIZE, drop_last=False)}
    return {"batch_size": SIZE, **_ORDERS[loop.sampler](rows, loop.ranks, rank)}


_ORDERS: dict[str, Callable[[Rows, int, int], dict[str, Any]]] = {
    "in order": lambda rows, *_: {},
    "shuffle": lambda rows, *_: {"shuffle": True},
    "generator": lambda rows, *_: {"shuffle": True, "generator": torch.Generator().manual_seed(5)},
    "weighted": lambda rows, *_: {"sampler": WeightedRandomSampler([1.0 + n % 3 for n in range(len(rows))], len(rows))},
    "subset": lambda rows, *_: {"sampler": SubsetRandomSampler(range(len(rows)))},
    "replacement": lambda rows, *_: {"sampler": RandomSampler(rows, replacement=True)},
    "python": lambda rows, *_: {"sampler": Shuffled(len(rows))},
    "lazy": lambda rows, *_: {"sampler": Lazy(len(rows))},
    "distributed": lambda rows, world_size, rank: {
        "sampler": DistributedSampler(rows, num_replicas=world_size, rank=rank, seed=3)
    },
}
