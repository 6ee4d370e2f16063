"""Samplers that build something while they run, which no checkpoint holds: after a resume they build it again."""

import os
import random
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

import piton_trainer
from piton_trainer.errors import Stopped
from piton_trainer.state.samplers import Samplers
from support import resume, tiny

ITEMS, SIZE = 24, 4
BATCHES = ITEMS // SIZE


class Table:
    """Rows in a class of the user's."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def build(self) -> "Table":
        self.rows = list(range(ITEMS))
        return self


class Lazy(Sampler[int]):
    """A sampler that builds what it needs at its first epoch, and counts the epochs."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.is_ready = False
        self.epoch = 0
        self.table: Any = Table() if how == "an object in place" else None
        self.buckets: defaultdict[int, list[int]] = defaultdict(list)
        self.chosen: set[int] = set()
        self.row_queue: deque[Any] = deque()
        self.random: Any = None
        self.path: Any = None

    def __len__(self) -> int:
        return ITEMS

    def build(self) -> None:
        self.table = (self.table or Table()).build()
        self.chosen = set(range(ITEMS))
        self.row_queue.extend(range(ITEMS))
        self.random = random.Random(3)
        for row in range(ITEMS):
            self.buckets[row % 3].append(row)
        self.path = tempfile.mkdtemp(dir="/dev/shm" if self.how == "shared memory" else None) + "/order.npy"
        np.save(self.path, np.arange(ITEMS))
        self.is_ready = True

    def rows(self) -> list[int]:
        if self.how == "a defaultdict":
            return [row for bucket in self.buckets.values() for row in bucket]
        if self.how == "a set":
            return sorted(self.chosen)
        if self.how == "a deque":
            return list(self.row_queue)
        if "file" in self.how or self.how == "shared memory":
            return np.load(self.path).tolist()  # type: ignore[no-any-return]
        if self.how == "a generator":
            self.random.random()
        return list(self.table.rows)

    def __iter__(self) -> Iterator[int]:
        if not (self.path if "by its path" in self.how else self.is_ready):
            self.build()
        rows = self.rows()
        self.epoch += 1
        for place in torch.randperm(len(rows)).tolist():
            yield (rows[place] + self.epoch) % ITEMS


def attempt(directory: Path, make: Any, at: int = 0, *, seed: int = 0, epochs: int = 4) -> list[list[float]]:
    torch.manual_seed(seed)
    sampler, seen = make(), []
    numbers: Any = range(ITEMS)
    with piton_trainer.session(tiny.config(directory, tiny.every(1))) as session:
        session.restore(model=nn.Linear(1, 1))
        for batch in session.steps(DataLoader(numbers, batch_size=SIZE, sampler=sampler), epochs=epochs):
            seen.append(batch.tolist())
            if session.step + 1 == at:
                tiny.terminate(session)
    return seen


def forget_file(sampler: Any) -> None:
    """Let what a sampler has on its node be gone."""
    if sampler.path:
        shutil.rmtree(Path(sampler.path).parent, ignore_errors=True)


LAZY = (
    "an object", "an object in place", "a defaultdict", "a set", "a deque", "a generator", "a file",
    "a file by its path", "shared memory",
)  # fmt: skip


@resume.exact(
    "loaders: samplers that build at their first epoch what no checkpoint holds, or a file on their node",
    "it is built again; the log names it, since it may be built otherwise",
)
@pytest.mark.parametrize("how", LAZY)
def test_what_a_sampler_built_is_built_again(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: list[Lazy] = []

    def make() -> Lazy:
        made.append(Lazy(how))
        return made[-1]

    whole = attempt(tmp_path / "whole", make)
    for stop in (3, BATCHES + 2, 3 * BATCHES - 1):
        with pytest.raises(Stopped):
            attempt(tmp_path / str(stop), make, stop)
        forget_file(made[-1])
        caplog.clear()
        assert attempt(tmp_path / str(stop), make, seed=77) == whole[stop:]
        told = [line for line in caplog.messages if "was made while it ran and is not in the checkpoint" in line]
        assert len(told) == (stop > BATCHES)
        assert all("sampler.path" in line and "sampler.is_ready begins as in the script" in line for line in told)
        assert not any("sampler.epoch" in line for line in told)


class Holding(Sampler[int]):
    """A sampler with attributes of any kind."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __iter__(self) -> Iterator[int]:
        return iter(range(ITEMS))


def watched(sampler: Any) -> Samplers:
    numbers: Any = range(ITEMS)
    return Samplers([DataLoader(numbers, batch_size=SIZE, sampler=sampler)])


def watched_data(data: Any) -> Samplers:
    loader = DataLoader(data, batch_size=SIZE, sampler=range(ITEMS))
    return Samplers([loader])


def test_a_file_of_earlier_comes_back_while_it_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, file = Holding(file="", has_read=False), tmp_path / "shard.txt"
    samplers = watched(before)
    for path in (tmp_path / "other.txt", file):
        path.touch()
        os.utime(path, (1, 1))
        for has_read in (False, True):
            vars(before).update(file=str(path), has_read=has_read)
            memory = samplers.capture()
    after: Any = Holding(file="", has_read=False)
    watched(after).restore(memory)
    assert (after.file, after.has_read) == (str(file), True)
    assert caplog.messages == []
    file.unlink()
    after = Holding(file="", has_read=False)
    watched(after).restore(memory)
    assert after.file == ""
    (told,) = caplog.messages
    assert told.startswith("loader: its sampler.file was made while it ran")


@pytest.mark.parametrize(
    "of_process",
    [
        {"worker_pid": os.getpid()},
        {"fd": 7},
        {"port": 4000},
        {"files": [f"/proc/{os.getpid()}/stat"]},
        {"file": Path("x")},
    ],
)
def test_what_names_something_of_a_process_is_not_put_back(of_process: dict[str, Any]) -> None:
    before, after = Holding(is_open=False), Holding(is_open=False)
    samplers = watched(before)
    vars(before).update(of_process, is_open=True)
    watched(after).restore(samplers.capture())
    assert vars(after) == {"is_open": False}


MARKS: dict[str, tuple[Any, Any]] = {
    "a flag": (False, True),
    "a number for None": (None, 12),
    "a number for -1": (-1, 12),
    "a name for none": ("", "worker-3"),
    "True for None": (None, True),
}


@pytest.mark.parametrize("kind", MARKS)
def test_what_changes_once_stays_as_the_script_makes_it(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it stands for may be anywhere, so a resume is as one without any memory, and is told of."""
    made, now = MARKS[kind]
    before, after = Holding(mark=made, count=0), Holding(mark=made, count=0)
    samplers = watched(before)
    vars(before).update(mark=now, count=1)
    samplers.capture()
    watched(after).restore(samplers.capture())
    assert vars(after) == {"mark": made, "count": 0}
    (told,) = caplog.messages
    assert told.startswith("loader: its sampler.mark, sampler.count changed once while it ran")


@pytest.mark.parametrize("kind", MARKS)
def test_what_goes_on_changing_comes_back(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    made, now = MARKS[kind]
    before, after = Holding(mark=made, count=0), Holding(mark=made, count=0)
    samplers = watched(before)
    for mark, count in ((now, 1), (made, 2), (now, 3)):
        vars(before).update(mark=mark, count=count)
        memory = samplers.capture()
    watched(after).restore(memory)
    assert vars(after) == {"mark": now, "count": 3}
    assert caplog.messages == []


def test_a_count_beside_a_mark_comes_back_once_it_goes_on() -> None:
    before, after = Holding(mark=False, count=0), Holding(mark=False, count=0)
    samplers = watched(before)
    vars(before).update(mark=True, count=1)
    samplers.look()
    vars(before).update(count=2)
    watched(after).restore(samplers.capture())
    assert vars(after) == {"mark": False, "count": 2}


@pytest.mark.parametrize("made", [None, -1, [], {}])
def test_the_number_of_an_open_file_never_comes_back(made: Any, tmp_path: Path) -> None:
    """Also where a new file is opened for each epoch: the number would be another file's, or none."""
    before, after = Holding(handle=made), Holding(handle=made)
    samplers = watched(before)
    with ExitStack() as files:
        for name in ("one", "two", "three"):
            number = files.enter_context((tmp_path / name).open("w")).fileno()
            held: Any = {"train": number} if made == {} else [number] if made == [] else number
            vars(before).update(handle=held)
            memory = samplers.capture()
    watched(after).restore(memory)
    assert vars(after) == {"handle": made}


def test_a_count_that_is_the_number_of_an_open_file_by_chance_comes_back(tmp_path: Path) -> None:
    before, after = Holding(epoch=-1), Holding(epoch=-1)
    samplers = watched(before)
    with (tmp_path / "file").open("w") as file:
        for epoch in range(file.fileno() + 1):
            vars(before).update(epoch=epoch)
            memory = samplers.capture()
        watched(after).restore(memory)
    assert vars(after) == {"epoch": epoch}


def test_flags_of_rows_stay_with_the_rows(caplog: pytest.LogCaptureFixture) -> None:
    """A large array is filled in place, and what says which of its rows are filled is small."""
    before, after = (Holding(has=[False] * 30, rows=np.zeros((30, 4000))) for _ in range(2))
    samplers = watched_data(before)
    for row in range(3):
        before.has[row], before.rows[row] = True, row + 1.0  # type: ignore[attr-defined]
        memory = samplers.capture()
    watched_data(after).restore(memory)
    assert after.has == [False] * 30  # type: ignore[attr-defined]
    assert "dataset.has begins as in the script" in caplog.text


def test_a_list_that_gives_its_items_otherwise_ends_nothing() -> None:
    class Ring(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            return super().__getitem__(place % len(self))

        def __iter__(self) -> Any:
            raise RuntimeError("it has no end")

    before = Holding(ring=Ring([object()]), mark=False)
    samplers = watched(before)
    vars(before).update(mark=True)
    assert samplers.capture()


def test_what_changes_while_the_parts_stay_comes_back() -> None:
    before: Any = Holding(is_ready=False, epoch=0)
    samplers = watched(before)
    vars(before).update(is_ready=True, epoch=1, table=Table().build())
    memory = samplers.capture()
    before.epoch = 2
    samplers.capture()
    after: Any = Holding(is_ready=False, epoch=0)
    watched(after).restore(samplers.complete(memory))
    assert (after.is_ready, after.epoch) == (False, 1)


class Endless(Sampler[int]):
    """A sampler with one iterator for all epochs, of its own or in a part of it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.rows: Any = None
        self.turns: list[Any] = []
        self.table = Table()

    def __len__(self) -> int:
        return ITEMS - SIZE

    def _all(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(ITEMS).tolist()

    def __iter__(self) -> Iterator[int]:
        if self.rows is None:
            self.rows, self.turns = (self._all() if self.where == "itself" else 0), [self._all(), self._all()]
            self.table.it = self._all()  # type: ignore[attr-defined]
        for number in range(len(self)):
            own: dict[str, Any] = {
                "itself": self.rows, "a list": self.turns[number % 2], "an object": self.table.it,  # type: ignore[attr-defined]
            }  # fmt: skip
            yield next(own[self.where])


@resume.approximate(
    "loaders: samplers with an iterator that goes on from epoch to epoch", "rows again; the log says so"
)
@pytest.mark.parametrize(("where", "name"), [("itself", "rows"), ("a list", "turns"), ("an object", "table")])
def test_an_iterator_that_goes_on_from_epoch_to_epoch_is_told(
    where: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, lambda: Endless(where), len(Endless(where)) // SIZE + 2)
    told = [line for line in caplog.messages if "is an iterator that goes on from epoch to epoch" in line]
    assert [line.split()[2] for line in told] == [f"sampler.{name}"]
    attempt(tmp_path, lambda: Endless(where))


class Fresh(Endless):
    """One that keeps the iterator of each epoch, which is left unfinished."""

    def __iter__(self) -> Iterator[int]:
        self.rows = iter(torch.randperm(ITEMS).tolist())
        for _ in range(len(self)):
            yield next(self.rows)


def test_an_iterator_of_one_epoch_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt(tmp_path, lambda: Fresh("itself"))
    assert "iterator" not in caplog.text
