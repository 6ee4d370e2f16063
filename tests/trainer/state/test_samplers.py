"""What a sampler remembers comes back into the objects that the script has made, and no further."""

import tracemalloc
from collections.abc import Iterator
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
from support import tiny

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
    "an array": lambda: np.arange(8),
    "a tensor": lambda: torch.arange(8),
}


def numbers(row: Any) -> list[int]:
    return [int(number) for number in row]


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
    after: Any = Holding(rows=rows, other=rows, view=rows[:4] if not isinstance(rows, list) else rows)
    rows_before = make()
    view = rows_before[:4] if not isinstance(rows_before, list) else rows_before
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
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_value_comes_back_in_its_types(make: Any) -> None:
    after: Any = Holding(value=None)
    resumed(Holding(value=None), after, lambda sampler: setattr(sampler, "value", make()))
    assert repr(after.value) == repr(make())


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
