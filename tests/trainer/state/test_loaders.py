"""Where the data goes on: by index, never by loading what is skipped; exactly, or not at all."""

import enum
import gc
import multiprocessing
import random
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    _utils,
)
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

import piton_trainer
from piton_trainer.errors import BadConfig, Ended, Stopped
from support import ranks, resume, tiny
from support.samplers import Placed

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 calls it in torch 2.13
    # A worker that is terminated in the middle of an epoch leaves the thread that feeds its queue with a closed one.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

ITEMS, SIZE = 24, 4
BATCHES = ITEMS // SIZE


class Counted(Dataset[Tensor]):
    """Numbers; how many were loaded is known to all processes."""

    def __init__(self, items: int = ITEMS) -> None:
        self.items = items
        self.loaded: Synchronized[int] = multiprocessing.Value("i", 0)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> Tensor:
        with self.loaded.get_lock():
            self.loaded.value += 1
        return torch.tensor(float(index))


@pytest.fixture(autouse=True)
def no_wait_for_workers() -> Iterator[None]:
    """torchdata's workers do not hear that an epoch was broken off; each is waited for so long, and then terminated.

    That is when the loader is garbage, which is here and not in another test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.02)
        yield
        gc.collect()


def attempt(directory: Path, make: Any, *, at: int = 0, seed: int = 0, **how: Any) -> list[list[float]]:
    """The batches that one attempt sees, each with a random number of its step."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    loader, model, seen = make(), nn.Linear(1, 1), []
    with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
        session.restore(model=model, loader=loader)
        for batch in session.steps(loader, **{"epochs": 3, **how}):
            x = batch[0] if isinstance(batch, list | tuple) else batch
            seen.append([*x.flatten().tolist(), float(torch.rand(()))])
            if session.step + 1 == at:
                tiny.terminate(session)
    return seen


def stopped(directory: Path, make: Any, *, at: int, **how: Any) -> None:
    with pytest.raises(Stopped):
        attempt(directory, make, at=at, **how)


def collate(items: list[Tensor]) -> Tensor:
    return torch.stack(items) + 100


class WithoutLength:
    """A batch sampler that does not know how many batches it has."""

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(ITEMS).tolist()
        return iter([order[first : first + SIZE] for first in range(0, ITEMS, SIZE)])


class AtLast(WithoutLength):
    """One that draws its order with the first batch that it is asked for."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from super().__iter__()


class Eager(Sampler[int]):
    """A sampler that draws the order of an epoch when it is asked for it."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(ITEMS).tolist())

    def __len__(self) -> int:
        return ITEMS


class EagerByItself(Eager):
    """One with random numbers of its own."""

    def __init__(self) -> None:
        self.random = random.Random(3)

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(ITEMS), ITEMS))


class Counting(Eager):
    """One that counts the epochs, and has no random numbers but those of the count."""

    def __init__(self) -> None:
        self.epoch = 0

    def order(self) -> list[int]:
        self.epoch += 1
        return torch.randperm(ITEMS, generator=torch.Generator().manual_seed(self.epoch)).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())


class CountingLate(Counting):
    """One that does so with the first index."""

    def __iter__(self) -> Iterator[int]:
        yield from self.order()


class InPlace(Eager):
    """One that shuffles the rows that it has."""

    def __init__(self) -> None:
        self.rows = list(range(ITEMS))

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.rows)
        return iter(self.rows)


class InPlaceOfMany(InPlace):
    """One with more rows than it gives."""

    def __init__(self) -> None:
        self.rows = list(range(20 * ITEMS))

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.rows)
        return iter([row % ITEMS for row in self.rows[:ITEMS]])


class InPlaceArray(Eager):
    """One that does so with an array, which it makes in the first epoch."""

    def __iter__(self) -> Iterator[int]:
        self.rows = getattr(self, "rows", np.arange(ITEMS))
        np.random.shuffle(self.rows)
        return iter(self.rows.tolist())


class Stateful(Eager):
    """One that says its place."""

    def __init__(self) -> None:
        self.epoch, self.done = 0, 0

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for row in order[self.done :]:
            self.done += 1
            yield row
        self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.done = state["epoch"], state["done"]


class Odd(Eager):
    """One that holds what no checkpoint can, or what looks like a number and is more."""

    def __init__(self) -> None:
        lengths = np.arange(ITEMS) % 5
        self.order = np.argsort(lengths, kind="stable")[::-1]
        self.foreign = np.arange(3).astype(">i8")
        self.long = np.arange(3).astype(np.longdouble)
        self.phase = Phase.FIRST
        self.seeds = np.arange(70)
        self.place = {"pos": 0}
        self.many = [2**70] * 70

    def __iter__(self) -> Iterator[int]:
        self.phase, self.foreign = Phase.SECOND, self.foreign + 1
        self.many = [*self.many, 1]
        for place, row in enumerate(self.order.tolist()):
            self.place["pos"] = place
            yield row


class OddStateful(Odd):
    """One that says its place, which it does not go by."""

    def state_dict(self) -> dict[str, Any]:
        return {"place": dict(self.place)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = dict(state["place"])


class Phase(enum.IntEnum):
    """A number with a name."""

    FIRST = 1
    SECOND = 2


class Seeded(Eager):
    """One that draws a seed when it is made, and the script has none."""

    def __init__(self) -> None:
        self.seed = int(torch.randint(2**30, ()))

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(ITEMS, generator=torch.Generator().manual_seed(self.seed)).tolist()


class Inside(Eager):
    """One that passes on what another one says."""

    def __init__(self) -> None:
        self.sampler = EagerByItself()

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler


class OfItems(Placed):
    """One of our items."""

    def __init__(self) -> None:
        super().__init__(ITEMS)


REMEMBERING: tuple[type[Eager], ...] = (
    Counting,
    CountingLate,
    InPlace,
    InPlaceOfMany,
    InPlaceArray,
    Stateful,
    Odd,
    OddStateful,
    Seeded,
    Inside,
)
"""Samplers of which the next epoch depends on the last."""


def plain(**how: Any) -> DataLoader[Any]:
    return DataLoader(Counted(), **{"batch_size": SIZE, "shuffle": True, **how})


def torchdatas(workers: dict[str, Any], **how: Any) -> StatefulDataLoader[Tensor]:
    """Return a loader of torchdata; samplers are given as the classes of which it gets one each time."""
    return StatefulDataLoader(Counted(), **{name: made(value) for name, value in how.items()}, **workers)


def remembering(kind: type[Eager], **workers: Any) -> DataLoader[Any]:
    return plain(shuffle=False, sampler=kind(), **workers)


WORKERS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
}
ACCELERATED: dict[str, dict[str, Any]] = {
    "shuffled": {"shuffle": True},
    "with an eager sampler": {"sampler": Eager},
    "with an eager sampler with its own numbers": {"sampler": EagerByItself},
    "with a sampler that counts": {"sampler": Counting},
    "with a sampler that counts its place": {"sampler": OfItems},
    "with a seed": {"shuffle": True, "seed": 5},
    "with workers": {"shuffle": True, "num_workers": 2},
    "with items left over": {"shuffle": True, "size": 5},
    "one of two ranks": {"shuffle": True, "size": SIZE // 2, "shares": 2},
    "one of two ranks, with items left over": {"shuffle": True, "size": 5, "shares": 2},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "batches": {"batch_sampler": WithoutLength},
    "late batches": {"batch_sampler": AtLast},
    "an eager sampler": {"sampler": Eager, "batch_size": SIZE},
    "an eager sampler with its own numbers": {"sampler": EagerByItself, "batch_size": SIZE},
    "an eager sampler of single items": {"sampler": Eager, "batch_size": None},
}


class Ordered:
    """A loader that says its place, and whose `__iter__` is a generator that draws the order of an epoch."""

    def __init__(self, draw: Callable[[int], list[int]]) -> None:
        self.draw = draw
        self.place = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches(self.draw(BATCHES))

    def batches(self, order: list[int]) -> Iterator[Tensor]:
        for place in range(self.place, BATCHES):
            self.place = place + 1
            yield torch.tensor([float(order[place])])
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % BATCHES}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Mapped(Ordered):
    """One whose generator is hidden behind a plain iterator."""

    def __iter__(self) -> Iterator[Tensor]:
        return map(torch.negative, super().__iter__())


class AtOnce(Ordered):
    """One that draws the order when it is asked to begin."""

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches(self.draw(BATCHES))


class OverTold:
    """A loader of one's own that says its place in a DataLoader whose sampler is told the epoch."""

    def __init__(self) -> None:
        self.sampler: DistributedSampler[Any] = DistributedSampler(Counted(), num_replicas=1, rank=0)
        self.inside = DataLoader(Counted(), batch_size=SIZE, sampler=self.sampler)
        self.place = 0

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(self.inside, 1):
            if number > self.place:
                self.place = number
                yield batch
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class InLine(Ordered):
    """One that has no order, and draws random numbers for each batch."""

    def __init__(self) -> None:
        super().__init__(lambda number: list(range(number)))

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            yield batch + torch.rand(1) + random.random()


def drawn_by_python(number: int) -> list[int]:
    return random.sample(range(number), number)


def drawn_by_numpy(number: int) -> list[int]:
    return [int(place) for place in np.random.permutation(number)]


def of_accelerate(
    *, seed: int | None = None, size: int = SIZE, shares: int = 1, has_state: bool = False, **how: Any
) -> Any:
    """Return a loader as `Accelerator.prepare` makes it; with a seed it shuffles by that alone."""
    seeds = {} if seed is None else {"use_seedable_sampler": True, "data_seed": seed}
    loader = DataLoader(Counted(), batch_size=size, **{name: made(value) for name, value in how.items()})
    share = {"num_processes": shares, "process_index": 0}
    return prepare_data_loader(loader, put_on_device=False, use_stateful_dataloader=has_state, **seeds, **share)


def made(value: Any) -> Any:
    """Return the object where a class is given: each attempt has its own."""
    return value() if isinstance(value, type) else value


LOADERS = {
    "shuffled": plain,
    "in order": partial(plain, shuffle=False),
    "with a generator of its own": lambda: plain(generator=torch.Generator().manual_seed(5)),
    "with workers": partial(plain, num_workers=2),
    "with workers and a generator": lambda: plain(num_workers=2, generator=torch.Generator().manual_seed(5)),
    "with persistent workers": partial(plain, num_workers=2, persistent_workers=True, prefetch_factor=3),
    "with one item at a time": partial(plain, batch_size=None),
    "with items left over": partial(plain, batch_size=5),
    "with items dropped": partial(plain, batch_size=5, drop_last=True),
    "collated by the user": partial(plain, collate_fn=collate, num_workers=2),
    "with replacement": lambda: plain(shuffle=False, sampler=RandomSampler(range(ITEMS), replacement=True)),
    "of a subset": lambda: plain(shuffle=False, sampler=SubsetRandomSampler(range(0, ITEMS, 2))),
    "with an eager sampler": lambda: plain(shuffle=False, sampler=EagerByItself()),
    "with a batch sampler": lambda: DataLoader(Counted(), batch_sampler=WithoutLength()),
    "of torchdata": lambda: StatefulDataLoader(Counted(), batch_size=SIZE, shuffle=True),
    "of torchdata, with workers": lambda: StatefulDataLoader(Counted(), batch_size=SIZE, shuffle=True, num_workers=2),
    "of torchdata, of a subset": lambda: StatefulDataLoader(
        Counted(), batch_size=SIZE, sampler=SubsetRandomSampler(range(ITEMS))
    ),
    **{
        f"of torchdata, with {sampler} and {workers}": partial(torchdatas, WORKERS[workers], **SAMPLERS[sampler])
        for sampler in SAMPLERS
        for workers in WORKERS
    },
    "of torchdata, over a stream": lambda: StatefulDataLoader(Numbered(), batch_size=SIZE, num_workers=2),
    **{
        f"with the sampler {kind.__name__} and {workers}": partial(remembering, kind, **WORKERS[workers])
        for kind in REMEMBERING
        for workers in ("no workers", "workers")
    },
    **{
        f"of torchdata, with the sampler {kind.__name__} and {workers}": partial(
            torchdatas, WORKERS[workers], sampler=kind, batch_size=SIZE
        )
        for kind in REMEMBERING
        if kind is not OddStateful
        for workers in ("no workers", "persistent workers")
    },
    "with state and a generator": lambda: Ordered(lambda number: torch.randperm(number).tolist()),
    "with state and a generator, by Python's numbers": lambda: Ordered(drawn_by_python),
    "with state and a generator, by numpy's": lambda: Ordered(drawn_by_numpy),
    "with state, drawing at once": lambda: AtOnce(drawn_by_python),
    "with state, over a sampler that is told the epoch": OverTold,
    "with state and a generator inside": lambda: Mapped(drawn_by_python),
    **{f"of accelerate, {name}": partial(of_accelerate, **how) for name, how in ACCELERATED.items()},
    **{
        f"of accelerate, with state, {name}": partial(of_accelerate, has_state=True, **how)
        for name, how in ACCELERATED.items()
    },
    "a tensor": lambda: torch.arange(float(BATCHES)).unsqueeze(1),
    "a list": lambda: [torch.tensor([float(number)]) for number in range(BATCHES)],
}


@resume.exact(
    "loaders: map-style, with samplers, workers, torchdata's, accelerate's, with a generator as __iter__, lists",
)
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_batches_are_those_of_a_run_that_nobody_stopped(make: Any, tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", make, total=16)
    for stops in ((1,), (5,), (6,), (4, 9, 15)):
        parts = tmp_path / str(stops)
        for number, at in enumerate(stops):
            stopped(parts, make, at=at, seed=number, total=16)
        assert attempt(parts, make, seed=77, total=16) == whole[stops[-1] :], stops


@pytest.mark.parametrize("kind", [Stateful, partial(StatefulDistributedSampler, range(ITEMS), 1, 0)])
def test_a_sampler_with_a_state_that_is_named_skips_nothing_twice(kind: Any, tmp_path: Path) -> None:
    def run(directory: Path, at: int = 0) -> list[list[float]]:
        sampler, seen = kind(), []
        loader = plain(shuffle=False, sampler=sampler)
        with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
            session.restore(model=nn.Linear(1, 1), sampler=sampler)
            for batch in session.steps(loader, epochs=3):
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    whole = run(tmp_path / "whole")
    for stop in (2, BATCHES, BATCHES + 2):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), at=stop)
        assert run(tmp_path / str(stop)) == whole[stop:]


class OfARank(DistributedSampler[Any]):
    """One that says its place, and remembers which rows are its own."""

    def __init__(self, world_size: int, rank: int) -> None:
        super().__init__(range(ITEMS), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.mine: list[int] = []

    def __iter__(self) -> Iterator[int]:
        self.mine = self.mine or list(super().__iter__())
        return iter(self.mine)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


def test_a_place_that_the_script_has_loaded_and_looked_at_is_gone_on_from(tmp_path: Path) -> None:
    def loader() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(Counted(), batch_size=SIZE)

    before = iter(before_loader := loader())
    next(before)
    mine = loader()
    mine.load_state_dict(before_loader.state_dict())
    mine.state_dict()
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        session.restore(model=nn.Linear(1, 1), loader=mine)
        assert len(list(session.steps(mine))) == BATCHES - 1


def test_another_number_of_ranks_has_the_shares_of_its_own(tmp_path: Path) -> None:
    def body(directory: Path, at: int) -> list[list[float]]:
        seen = []
        with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
            sampler = OfARank(session.world_size, session.rank)
            session.restore(model=nn.Linear(1, 1), sampler=sampler)
            for batch in session.steps(plain(shuffle=False, sampler=sampler), total=9):
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    def stopped_at_one(directory: Path) -> None:
        with pytest.raises(Stopped):
            body(directory, 1)

    ranks.run(2, partial(stopped_at_one, tmp_path))
    seen = body(tmp_path, 0)
    assert {row for batch in seen[-BATCHES:] for row in batch} == set(map(float, range(ITEMS)))


@pytest.mark.parametrize("stop", [2, 8, 9])
def test_what_a_loader_with_state_draws_for_each_batch_is_drawn_again(stop: int, tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", InLine)
    stopped(tmp_path / "parts", InLine, at=stop)
    assert attempt(tmp_path / "parts", InLine, seed=77) == whole[stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_that_is_skipped_is_loaded(workers: int, tmp_path: Path) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)

    data = Counted(4000)
    stopped(tmp_path, make, at=900, epochs=1)
    data.loaded.value = 0
    assert len(attempt(tmp_path, make, epochs=1)) == 100
    assert data.loaded.value == 400


def test_a_loader_has_its_own_sampler_again(tmp_path: Path) -> None:
    loader = plain()
    sampler = loader.batch_sampler
    stopped(tmp_path, lambda: loader, at=3)
    attempt(tmp_path, lambda: loader)
    assert loader.batch_sampler is sampler


class Numbered(IterableDataset[Tensor]):
    """A stream, shared out among the workers, that knows its place."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Tensor]:
        info = torch.utils.data.get_worker_info()
        own, all_of_them = (0, 1) if info is None else (info.id, info.num_workers)
        first, self.next = self.next, 0
        for number in range(first, ITEMS // all_of_them):
            self.next = number + 1
            yield torch.tensor(float(number * all_of_them + own))
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Stream(IterableDataset[Tensor]):
    """A stream that does not."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(float(ITEMS)))


class Lazy(DataLoader[Any]):
    """A loader that begins with its sampler later than it is asked to."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Stream(), batch_size=SIZE),
        lambda: DataLoader(Stream(), batch_size=None, num_workers=1),
        lambda: Lazy(Counted(), batch_size=SIZE),
        lambda: (torch.ones(1) for _ in range(6)),
    ],
)
def test_a_loader_that_only_loading_would_bring_there_is_refused(make: Any, tmp_path: Path) -> None:
    stopped(tmp_path, make, at=3)
    with pytest.raises(BadConfig, match=r"in the middle of an epoch, after batch 3.*StatefulDataLoader"):
        attempt(tmp_path, make)


def test_a_run_that_is_over_asks_its_loader_for_nothing(tmp_path: Path) -> None:
    make = partial(DataLoader, Stream(), batch_size=SIZE)
    assert len(attempt(tmp_path, make, total=4)) == 4
    assert attempt(tmp_path, make, total=4) == []


@resume.approximate(
    "loaders: random augmentation in worker processes",
    "it is drawn anew, unless seeded by epoch and index",
)
@pytest.mark.parametrize(
    ("make", "warning"),
    [
        (
            lambda: DataLoader(Stream()),
            "cannot be resumed in the middle of an epoch: use torchdata's StatefulDataLoader",
        ),
        (partial(Lazy, Counted(), batch_size=SIZE), "a Lazy like this cannot be resumed in the middle of an epoch"),
        (lambda: iter([torch.ones(1)]), "cannot be resumed in the middle of an epoch"),
        (partial(plain, num_workers=1), "augmentation in worker processes is not repeated exactly"),
    ],
)
def test_what_a_resume_will_not_do_is_said_before_it_matters(
    make: Any, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt(tmp_path, make, total=1)
    assert warning in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        plain,
        lambda: StatefulDataLoader(Counted(), num_workers=1),
        partial(of_accelerate, has_state=True, sampler=OfItems),
        lambda: [torch.ones(2)] * 3,
        lambda: torch.ones(3),
    ],
)
def test_a_loader_that_can_do_all_is_not_warned_of(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt(tmp_path, make, total=3)
    assert not caplog.text


class OwnCount:
    """A rank's share of the data, and how much of that it has seen."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.numbers = list(range(rank, ITEMS, world_size))
        self.done = 0

    def __iter__(self) -> Iterator[Tensor]:
        for number in self.numbers[self.done :]:
            self.done += 1
            yield torch.tensor([float(number)])

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class SharedCount(OwnCount):
    """The same, but what is counted is the data of all ranks."""

    position_is_global = True

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.world_size = world_size

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"] // self.world_size


def distributed(rank: int, world_size: int) -> StatefulDataLoader[Any]:
    data = TensorDataset(torch.arange(float(ITEMS)).unsqueeze(1))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=world_size, rank=rank, shuffle=False)
    return StatefulDataLoader(data, batch_size=1, sampler=sampler)


def in_ranks(directory: Path, make: Any, at: int) -> list[float] | str:
    """What a rank sees, or what it is told."""
    seen: list[float] = []
    try:
        with piton_trainer.session(tiny.config(directory)) as session:
            loader = make(session.rank, session.world_size)
            session.restore(model=nn.Linear(1, 1), loader=loader)
            for batch in session.steps(loader):
                seen.append(float(batch[0]))
                if session.step + 1 == at:
                    tiny.terminate(session)
    except Stopped:
        return seen
    except Ended as end:
        return f"{type(end).__name__}: {end}"
    return seen


@resume.refused(
    "loaders: a state of each rank's own, with another number of ranks",
    "other ranks would repeat or skip data",
)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("make", [OwnCount, distributed])
def test_a_place_that_is_a_ranks_own_is_refused_by_another_number_of_ranks(
    before: int, after: int, make: Any, tmp_path: Path
) -> None:
    ranks.run(before, partial(in_ranks, tmp_path, make, 4))
    for end in ranks.run(after, partial(in_ranks, tmp_path, make, 0)):
        assert end.result.startswith("BadConfig: ")
        assert f"saved by {before} ranks, there are {after} now" in end.result
        assert "position_is_global = True" in end.result


@pytest.mark.parametrize("make", [OwnCount, distributed])
def test_a_place_that_is_a_ranks_own_is_there_again_for_as_many_ranks(make: Any, tmp_path: Path) -> None:
    first = ranks.run(2, partial(in_ranks, tmp_path, make, 4))
    second = ranks.run(2, partial(in_ranks, tmp_path, make, 0))
    seen = [number for end in [*first, *second] for number in end.result]
    assert sorted(seen) == list(range(ITEMS))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_place_that_is_global_goes_on_with_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    first = ranks.run(before, partial(in_ranks, tmp_path, SharedCount, 4))
    second = ranks.run(after, partial(in_ranks, tmp_path, SharedCount, 0))
    seen = [number for end in [*first, *second] for number in end.result]
    assert sorted(seen) == list(range(ITEMS))


def test_a_run_whose_loader_has_no_state_any_more_goes_on_by_index(tmp_path: Path) -> None:
    ranks.run(2, partial(in_ranks, tmp_path, OwnCount, 4))
    (end,) = ranks.run(1, partial(in_ranks, tmp_path, lambda *_: [torch.tensor([float(n)]) for n in range(12)], 0))
    assert end.result == list(range(4, 12))
