"""What a sampler remembers comes back into the objects that the script has made, and no further."""

import enum
import itertools
import random
import tracemalloc
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

import piton_trainer
from piton_trainer.checkpoint.format import codec
from piton_trainer.errors import Stopped
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state import plain_values
from piton_trainer.state.rng import RandomNumbers
from piton_trainer.state.samplers import Samplers
from piton_trainer.state.train_state import TrainState
from piton_trainer.training.data_rules import DataRules, Feeding
from support import resume, tiny

ITEMS, SIZE = 24, 4
BATCHES = ITEMS // SIZE


class Holding(Sampler[int]):
    """A sampler with attributes of any kind."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __iter__(self) -> Iterator[int]:
        return iter(range(ITEMS))

    def __len__(self) -> int:
        return ITEMS


def loader_with(sampler: Any) -> DataLoader[Any]:
    numbers: Any = range(ITEMS)
    return DataLoader(numbers, batch_size=SIZE, sampler=sampler)


def of(sampler: Any) -> Samplers:
    return Samplers([loader_with(sampler)])


def through_a_checkpoint(memory: Any) -> Any:
    document, tensors = codec.split(memory, "samplers")
    return codec.join(document, {key: tensor.clone() for key, tensor in tensors.items()}.__getitem__)


class Weights:
    """Weights of rows that a script goes on updating in place."""

    def __init__(self) -> None:
        self.weights = torch.ones(ITEMS, dtype=torch.double)

    def state_dict(self) -> dict[str, Tensor]:
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weights.copy_(state["weights"])


@pytest.mark.parametrize("is_named", [True, False])
def test_weights_that_a_script_updates_are_still_those_of_the_sampler(is_named: bool, tmp_path: Path) -> None:
    def run(directory: Path, at: int = 0, *, seed: int = 0) -> list[list[float]]:
        torch.manual_seed(seed)
        mine, seen = Weights(), []
        named: dict[str, Any] = {"mine": mine} if is_named else {}
        sampler = WeightedRandomSampler(mine.weights, ITEMS)  # type: ignore[arg-type]
        loader = loader_with(sampler)
        with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
            session.restore(model=nn.Linear(1, 1), **named)
            for batch in session.steps(loader, epochs=4):
                mine.weights[batch.long()] *= 0.5
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    whole = run(tmp_path / "whole")
    for stop in (2 * BATCHES, 2 * BATCHES + 1):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), at=stop)
        assert run(tmp_path / str(stop), seed=77) == whole[stop:]


ROWS: dict[str, Any] = {
    "a list": lambda: list(range(8)),
    "a dict": lambda: dict(enumerate(range(8))),
    "an array": lambda: np.arange(8),
    "a tensor": lambda: torch.arange(8),
}


def numbers(row: Any) -> list[int]:
    return [int(row[place]) for place in range(len(row))]


def resumed(before: Any, after: Any, change: Any) -> None:
    """Make a sampler what another one was after a change."""
    watched = of(before)
    change(before)
    of(after).restore(through_a_checkpoint(watched.capture()))


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_rows_that_changed_in_place_are_still_those_of_whoever_holds_them(make: Any) -> None:
    def change(sampler: Any) -> None:
        sampler.rows[0] = 77

    rows = make()
    after: Any = Holding(rows=rows, other=rows, view=rows if isinstance(rows, list | dict) else rows[:4])
    rows_before = make()
    view = rows_before if isinstance(rows_before, list | dict) else rows_before[:4]
    resumed(Holding(rows=rows_before, other=rows_before, view=view), after, change)
    assert after.rows is rows
    assert after.other is rows
    assert numbers(rows) == [77, *range(1, 8)]
    rows[0] = 78
    assert int(after.view[0]) == 78


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_rows_that_a_sampler_replaced_are_not_put_into_those_of_others(make: Any) -> None:
    def change(sampler: Any) -> None:
        sampler.rows = make()
        sampler.rows[0] = 77
        sampler.order = sampler.rows

    of_the_script = make()
    after: Any = Holding(rows=of_the_script)
    resumed(Holding(rows=make()), after, change)
    assert numbers(of_the_script) == list(range(8))
    assert numbers(after.rows) == [77, *range(1, 8)]
    assert after.order is after.rows


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_a_sampler_has_the_object_again_that_it_had_at_a_capture(make: Any) -> None:
    rows = make()
    sampler: Any = Holding(rows=rows)
    watched = of(sampler)
    sampler.rows[0] = 77
    memory = watched.capture()
    sampler.rows = make()
    watched.restore(memory)
    assert sampler.rows is rows
    assert numbers(rows) == [77, *range(1, 8)]


def test_rows_that_cannot_be_filled_are_replaced() -> None:
    fixed, one = np.arange(8), torch.zeros(1, dtype=torch.int64).expand(8)
    fixed.flags.writeable = False
    after: Any = Holding(fixed=fixed, one=one, longer=torch.arange(3))
    before: Any = Holding(fixed=np.arange(8), one=torch.zeros(8, dtype=torch.int64), longer=torch.arange(3))
    watched = of(before)
    before.fixed += 1
    before.one += torch.arange(8)
    before.longer.resize_(2)
    of(after).restore(through_a_checkpoint(watched.capture()))
    assert numbers(after.fixed) == list(range(1, 9))
    assert numbers(after.one) == list(range(8))
    assert numbers(after.longer) == [0, 1]
    assert numbers(fixed) == list(range(8))


VALUES: dict[str, Any] = {
    "whole numbers": lambda: list(range(-50, 50)),
    "fractions": lambda: [*map(float, range(100)), float("inf"), -0.0],
    "truths": lambda: [True, False] * 50,
    "of several types": lambda: [True, 1, 1.0] * 50,
    "the largest": lambda: [2**63 - 1, -(2**63)] * 50,
    "too large": lambda: [2**63] * 100,
    "few": lambda: [1, 2, 3],
    "a tuple": lambda: tuple(range(100)),
    "a short tuple": lambda: (1.0, True),
    "none": list,
    "texts": lambda: ["a", None, "b"],
    "a number of numpy": lambda: np.int64(7),
    "a truth of numpy": lambda: np.bool_(True),
    "a narrow number of numpy": lambda: np.float32(0.1),
    "numbers of numpy": lambda: list(np.random.permutation(100)),
    "few numbers of numpy": lambda: tuple(np.arange(3)),
    "truths of numpy": lambda: list(np.arange(100) > 50),
    "numbers of numpy among others": lambda: [*np.arange(100), 5, 0.5, True],
    "rows": lambda: [list(range(first, first + 4)) for first in range(0, 100, 4)],
    "uneven rows": lambda: [[], [1], [2, 3.0], [], [True, 2**70]],
    "rows of numbers of numpy": lambda: [list(row) for row in np.arange(100).reshape(-1, 4)],
    "rows in tuples": lambda: tuple(tuple(range(first)) for first in range(20)),
    "rows in rows": lambda: [[[1, 2], [3]], [[4]], []],
    "rows of numbers and texts": lambda: [("a", 1), ("b", 2)],
    "arrays in a list": lambda: [np.arange(4), np.arange(3.0)],
    "tensors in a list": lambda: [torch.arange(4), torch.ones(2, 2)],
    "a table": lambda: np.arange(12).reshape(3, 4),
    "a table in columns": lambda: np.arange(12).reshape(3, 4).T,
    "an array of one number": lambda: np.array(5.0),
    "a tensor of one number": lambda: torch.tensor(5),
    "a tensor in three dimensions": lambda: torch.arange(24).reshape(2, 3, 4),
    "names": lambda: {"epoch": 1, "place": {"pos": 2, "rows": [1, 2]}, 3: np.arange(3), "text": None},
    "names of nothing": dict,
    "names as in a checkpoint": lambda: {"list": 1, "array": [2], "dict": {}, "$tensor": "x"},
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_value_comes_back_in_its_types(make: Any) -> None:
    np.random.seed(0)
    value, after = make(), Holding(value=0.5)
    resumed(Holding(value=0.5), after, lambda sampler: setattr(sampler, "value", value))
    assert repr(vars(after)["value"]) == repr(value)
    assert plain_values.is_same(vars(after)["value"], value)
    assert plain_values.digest(vars(after)["value"]) == plain_values.digest(value)


FOREIGN: dict[str, Any] = {
    "other types": lambda: [{1, 2}, b"x", np.arange(3).astype(">i8"), np.longdouble(1), np.str_("x"), 1j],
    "other types in lists": lambda: [[object()], [[1], {2}], {(1, 2): 3}, [np.float64(1), Fraction(1)]],
    "too many": lambda: [[0] * (2**24 + 1), [["a", 1]] * (2**16 + 1), dict.fromkeys(range(2**16 + 1), 0)],
    "too deep": lambda: [[[[[["a"]]]]]],
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_would_not_come_back_is_not_looked_at(make: Any) -> None:
    assert [value for value in make() if plain_values.is_plain(value)] == []


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_value_that_is_another_one_is_seen(make: Any) -> None:
    value = make()
    assert not plain_values.is_same(value, [*value, 1] if isinstance(value, list) else object())
    rows = plain_values.copy_of([value, 1])
    assert plain_values.is_same(rows, [value, 1])
    assert not plain_values.is_same(rows, [value, 2])
    assert plain_values.digest(rows) != plain_values.digest([value, 2])


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("number", [int, float])
def test_a_long_row_is_a_tensor_in_a_checkpoint(kind: Any, number: Any) -> None:
    (found,) = plain_values.packed(kind(map(number, range(100)))).values()
    assert isinstance(found, Tensor)


class LargeTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch does with as many numbers as a long row has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += isinstance(made, Tensor) and made.numel() >= 50_000
        return made


def test_the_place_of_a_sampler_is_looked_at_without_a_copy_for_a_checkpoint() -> None:
    sampler: Any = Holding(rows=list(range(50_000)))
    numbers = RandomNumbers(samplers=of(sampler))
    sampler.rows.reverse()
    with LargeTensors() as large:
        before = numbers.place()
        assert numbers.place() == before
    assert large.count == 0
    sampler.rows.reverse()
    assert numbers.place() != before


class Replay(Holding):
    """Something large that says its state, and can be gone through."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing with it."""


def test_what_is_no_sampler_of_the_loader_is_not_held_twice(tmp_path: Path) -> None:
    buffer = Replay(rows=np.zeros(2**20), more=np.zeros(2**20))
    rules = DataRules(tiny.config(tmp_path), Ranks())
    tracemalloc.start()
    try:
        rules.take({"buffer": buffer})
        feed = rules.feed(loader_with(None), Feeding(), is_given=False, state=TrainState(), resume=None)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert feed is not None
    assert held < 2**20


class Counting(Sampler[int]):
    """A sampler that counts the epochs, each of which follows from the count."""

    def __init__(self, *, is_lazy: bool) -> None:
        if not is_lazy:
            self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch = getattr(self, "epoch", 0) + 1
        return iter(torch.randperm(ITEMS, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return ITEMS


class Data:
    """What a script has of its own, which puts the count of its sampler back."""

    def __init__(self, *, is_lazy: bool) -> None:
        self.sampler = Counting(is_lazy=is_lazy)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": getattr(self.sampler, "epoch", 0)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.epoch = state["epoch"]


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("stops", [(3,), (3, 8, 14), (8, 14, 20), (6, 12, 14)])
def test_a_sampler_that_is_put_back_by_other_objects_too_is_where_it_was(
    stops: tuple[int, ...], is_lazy: bool, tmp_path: Path
) -> None:
    def run(directory: Path, at: int = 0) -> list[list[float]]:
        data, seen = Data(is_lazy=is_lazy), []
        with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
            session.restore(model=nn.Linear(1, 1), data=data)
            for batch in session.steps(loader_with(data.sampler), epochs=5):
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    whole = run(tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Stopped):
            run(tmp_path / "parts", stop)
    assert run(tmp_path / "parts") == whole[stops[-1] :]


def test_what_has_once_changed_is_in_each_capture() -> None:
    sampler: Any = Holding(epoch=0, place=0)
    watched = of(sampler)
    before = watched.capture()
    sampler.epoch, sampler.more = 1, 5
    watched.capture()
    sampler.epoch = 0
    del sampler.more
    assert watched.capture()["sampler"]["epoch"] == 0
    after: Any = Holding(epoch=7, place=0, more=7)
    resumed_watch = of(after)
    resumed_watch.restore(through_a_checkpoint(watched.complete(before)))
    assert (after.epoch, hasattr(after, "more")) == (0, False)
    assert resumed_watch.capture()["sampler"]["epoch"] == 0


def test_other_ranks_have_what_has_once_changed_in_their_checkpoints() -> None:
    before: Any = Holding(epoch=0)
    watched = of(before)
    before.epoch = 1
    state = RandomNumbers(samplers=watched).capture()
    numbers = RandomNumbers(samplers=of(Holding(epoch=3)))
    numbers.restore(state, has_samplers=False)
    assert numbers.capture()["samplers"]["sampler"]["epoch"] == 3


class Stage(enum.IntEnum):
    """A number with a name."""

    FIRST = 1
    SECOND = 2


CHANGES: dict[str, tuple[Any, Any]] = {
    "a set": (lambda: {1, 2}, lambda value: {*value, 3}),
    "a deque": (lambda: deque([1, 2]), lambda value: deque(reversed(value))),
    "a named number": (lambda: Stage.FIRST, lambda _: Stage.SECOND),
    "an array of another type": (lambda: np.arange(3).astype(">i8"), lambda value: value[::-1].copy()),
    "an object": (lambda: Holding(epoch=0), lambda _: Holding(epoch=1)),
    "an object in a list": (lambda: [Holding(epoch=0)], lambda _: [Holding(epoch=1)]),
    "a tensor that is trained": (lambda: torch.zeros(3, requires_grad=True), lambda value: value + 1),
    "a count": (itertools.count, lambda value: [next(value), value][1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_and_is_in_no_checkpoint_is_told_once(change: Any, caplog: pytest.LogCaptureFixture) -> None:
    make, step = change
    sampler: Any = Holding(value=make())
    watched = of(sampler)
    watched.begin_epoch()
    watched.begin_epoch()
    assert caplog.messages == []
    for _ in range(2):
        sampler.value = step(sampler.value)
        watched.begin_epoch()
    (told,) = caplog.messages
    assert told.startswith("loader: its sampler.value changes from epoch to epoch and is not in the checkpoint")


@pytest.mark.parametrize(
    "make",
    [
        lambda: {1, 2},
        lambda: iter([1, 2]),
        lambda: random.Random(random.random()),
        lambda: Holding(rows=iter([])),
        random.random,
        lambda: {"epoch": random.random()},
    ],
)
def test_what_stays_or_comes_back_or_needs_not_is_not_told(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    sampler: Any = Holding(value=make(), seen=Counting(is_lazy=False))
    loader = loader_with(sampler)
    vars(sampler)["sampler"] = sampler.seen
    watched = Samplers([loader])
    for _ in range(3):
        watched.begin_epoch()
        sampler.value = make()
        iter(sampler.seen)
    assert caplog.messages == []


class Remembering(Sampler[int]):
    """A sampler whose next epoch follows from what it keeps in one of several ways."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.batches = [list(range(first, first + SIZE)) for first in range(0, ITEMS, SIZE)]
        self.rows = list(np.arange(ITEMS))
        self.offset = np.int64(0)
        self.state = {"epoch": 0}
        self.pairs = np.arange(ITEMS).reshape(-1, 2)

    def __iter__(self) -> Iterator[int]:
        if self.how == "rows":
            random.shuffle(self.batches)
            return iter([row for batch in self.batches for row in batch])
        if self.how == "numbers of numpy":
            random.shuffle(self.rows)
            return iter([int(row) for row in self.rows])
        if self.how == "a number of numpy":
            self.offset = (self.offset + 7) % ITEMS
            return iter([int((self.offset + row) % ITEMS) for row in range(ITEMS)])
        if self.how == "a dict":
            self.state["epoch"] += 1
            return iter(random.Random(self.state["epoch"]).sample(range(ITEMS), ITEMS))
        np.random.shuffle(self.pairs)
        return iter(self.pairs.flatten().tolist())

    def __len__(self) -> int:
        return ITEMS


@resume.exact("loaders: samplers that remember: numbers, texts; lists, dicts, arrays and tensors of them")
@pytest.mark.parametrize("how", ["rows", "numbers of numpy", "a number of numpy", "a dict", "a table"])
def test_the_next_epoch_follows_from_what_a_sampler_has_kept(how: str, tmp_path: Path) -> None:
    def run(directory: Path, at: int = 0, *, seed: int = 0) -> list[list[float]]:
        random.seed(seed)
        np.random.seed(seed)
        seen = []
        with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
            session.restore(model=nn.Linear(1, 1))
            for batch in session.steps(loader_with(Remembering(how)), epochs=3):
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    whole = run(tmp_path / "whole")
    for stop in (3, BATCHES, BATCHES + 2):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), stop)
        assert run(tmp_path / str(stop), seed=77) == whole[stop:]
