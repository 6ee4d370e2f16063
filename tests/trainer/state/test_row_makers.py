"""Data sets and functions that collate their rows may count: their counts come back, as far as they are small."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

import piton_trainer
from piton_trainer.errors import Stopped
from piton_trainer.state.row_makers import row_makers
from support import resume, tiny

ITEMS, SIZE = 24, 4
BATCHES = ITEMS // SIZE


class Count:
    """A curriculum by calls: what it is given is scaled by them."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Any) -> Tensor:
        self.calls += 1
        scaled: Tensor = torch.as_tensor(value, dtype=torch.float) * self.calls
        return scaled

    def collate(self, rows: list[Any]) -> Tensor:
        return self(torch.stack([torch.as_tensor(float(row)) for row in rows]))


class Rows(Dataset[Tensor]):
    """Rows that count how often they are read, or have a transform that does."""

    def __init__(self, transform: Count | None = None) -> None:
        self.transform = transform
        self.reads = 0

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> Tensor:
        self.reads += self.transform is None
        return self.transform(index) if self.transform else torch.tensor(float(index + self.reads))


class Opened(Rows):
    """Rows that are opened when the first one is read, which a flag remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self.table: Any = None

    def __getitem__(self, index: int) -> Tensor:
        if not self.is_open:
            self.table, self.is_open = Counter({row: row for row in range(ITEMS)}), True
        self.reads += 1
        return torch.tensor(float(self.table[index] + self.reads))


def counting(rows: list[Any], step: int = 1, *, count: Count | None = None) -> Tensor:
    """Count the calls as an attribute of the function, or in an object that it is given."""
    if count is not None:
        return count.collate(rows)
    own: Any = counting
    own.calls = getattr(own, "calls", 0) + step
    return torch.tensor([float(row) * own.calls for row in rows])


def with_function() -> dict[str, Any]:
    vars(counting).clear()
    return {"collate_fn": counting}


COUNTING: dict[str, Callable[[], dict[str, Any]]] = {
    "a data set": lambda: {"dataset": Rows()},
    "a subset": lambda: {"dataset": Subset(Rows(), list(range(ITEMS))[::-1])},
    "data sets in one": lambda: {"dataset": ConcatDataset([Subset(Rows(), range(12)), Subset(Rows(), range(12))])},
    "a transform": lambda: {"dataset": Rows(Count())},
    "rows that are opened": lambda: {"dataset": Opened()},
    "a collate_fn": lambda: {"collate_fn": Count().collate},
    "a function": with_function,
    "a function with an object": lambda: {"collate_fn": partial(counting, count=Count())},
}


def attempt(directory: Path, make: Any, at: int = 0, *, seed: int = 0) -> list[list[float]]:
    torch.manual_seed(seed)
    seen = []
    loader: Any = DataLoader(**{"dataset": range(ITEMS), "batch_size": SIZE, "shuffle": True, **make()})
    with piton_trainer.session(tiny.config(directory, tiny.every(1))) as session:
        session.restore(model=nn.Linear(1, 1))
        for batch in session.steps(loader, epochs=3):
            seen.append(batch.tolist())
            if session.step + 1 == at:
                tiny.terminate(session)
    return seen


@resume.exact("loaders: data sets and collate_fn that count in the main process", "small values; nothing in closures")
@pytest.mark.parametrize("make", COUNTING.values(), ids=COUNTING)
def test_the_rows_follow_from_what_was_counted(make: Any, tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", make)
    for stop in (3, BATCHES, BATCHES + 2):
        with pytest.raises(Stopped):
            attempt(tmp_path / str(stop), make, stop)
        assert attempt(tmp_path / str(stop), make, seed=77) == whole[stop:]


def test_a_loader_that_reads_ahead_tells_what_its_first_batch_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(at: int = 0) -> list[list[float]]:
        seen = []
        loader = prepare_data_loader(DataLoader(Rows(), batch_size=SIZE), num_processes=1, process_index=0)
        with piton_trainer.session(tiny.config(tmp_path, tiny.every(1))) as session:
            session.restore(model=nn.Linear(1, 1))
            for batch in session.steps(loader, epochs=2):
                seen.append(batch.tolist())
                if session.step + 1 == at:
                    tiny.terminate(session)
        return seen

    with pytest.raises(Stopped):
        run(2)
    first, second, *_ = run()
    assert "for the first batch after this resume dataset.reads is what it was when the epoch began" in caplog.text
    assert first == [9.0, 11.0, 13.0, 15.0]
    assert second[0] == 12.0 + 3 * SIZE + 1


class Proxy:
    """An object that fails for whatever it does not know."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __getattr__(self, name: str) -> int:
        return vars(self)["known"][name]  # type: ignore[no-any-return]


def test_a_seed_that_is_as_it_was_and_an_object_that_fails_are_no_reason_to_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.file: Any = None
            self.seed, self.proxy = 5, Proxy()

        def __getitem__(self, index: int) -> Tensor:
            self.file = self.file or Proxy()
            self.proxy.known[str(index)] = index
            return torch.tensor(float(index))

    whole = attempt(tmp_path / "whole", lambda: {"dataset": Odd()})
    with pytest.raises(Stopped):
        attempt(tmp_path / "parts", lambda: {"dataset": Odd()}, BATCHES + 2)
    assert attempt(tmp_path / "parts", lambda: {"dataset": Odd()}, seed=77) == whole[BATCHES + 2 :]
    assert "was made while it ran" not in caplog.text


class Stream(IterableDataset[Tensor]):
    """A stream begins at what it remembers."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(1)])


class Stateful(Rows):
    """Rows with a state of their own."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing with it."""


def test_streams_and_what_has_a_state_are_left_alone() -> None:
    numbers: Any = range(ITEMS)
    loaders: list[Any] = [DataLoader(Stream()), DataLoader(Stateful()), DataLoader(numbers), DataLoader(Rows())]
    assert [name for name, _ in row_makers(loaders) if "dataset" in name] == ["3.dataset"]


def test_what_changes_and_is_in_no_checkpoint_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Drawn(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Counter[int] = Counter()
            self.cache: dict[int, Tensor] = {}

        def __getitem__(self, index: int) -> Tensor:
            self.seen[index] += 1
            self.cache[index] = torch.tensor(float(index) / self.seen[index])
            return self.cache[index]

    attempt(tmp_path, lambda: {"dataset": Drawn()})
    (told,) = [line for line in caplog.messages if "changes from epoch to epoch" in line]
    assert told.startswith("loader: its dataset.seen changes from epoch to epoch and is not in the checkpoint")
