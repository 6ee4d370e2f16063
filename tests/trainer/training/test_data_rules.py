"""What a resume does not know of its data is refused when a run begins, or begun anew because the script says so."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import piton_trainer
from piton_trainer.errors import BadConfig, Ended, Stopped
from piton_trainer.state.data_position import Randomness
from piton_trainer.training.session import Session
from support import ranks, resume, tiny

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
BATCHES, SIZE = 6, 4


class Stream(IterableDataset[Tensor]):
    """A stream that does not know its place."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(float(BATCHES * SIZE)))


class Prefetcher:
    """A loader around a loader."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[Any]:
        yield from self.inside


class Filtering(DataLoader[Any]):
    """A loader that leaves out batches."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from (batch for batch in super().__iter__() if batch[0].sum() >= 0)


class Shuffling(list[Any]):
    """A list with an order of its own."""

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in torch.randperm(len(self)).tolist())


class Batches(Sequence[Any]):
    """A sequence of one's own, with the order of its places."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < BATCHES:
            raise IndexError(place)
        return torch.full((1,), float(place))


class Reordered(Batches):
    """One with another order."""

    def __iter__(self) -> Iterator[Any]:
        yield from reversed(list(super().__iter__()))


def rows(number: int = BATCHES * SIZE, **how: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(number))), **{"batch_size": SIZE, "shuffle": True, **how})


UNKNOWN: dict[str, Any] = {
    "a stream": lambda: DataLoader(Stream(), batch_size=SIZE),
    "a stream with workers": lambda: DataLoader(Stream(), batch_size=SIZE, num_workers=1),
    "a prefetcher": lambda: Prefetcher(rows()),
    "a loader that filters": lambda: Filtering(TensorDataset(torch.arange(24.0)), batch_size=SIZE),
    "accelerate's dispatcher": lambda: prepare_data_loader(
        rows(), torch.device("cpu"), put_on_device=True, dispatch_batches=True
    ),
    "accelerate's stream": lambda: prepare_data_loader(DataLoader(Stream(), batch_size=SIZE), put_on_device=False),
    "a list with an order of its own": lambda: Shuffling([torch.ones(1)] * BATCHES),
    "a sequence with an order of its own": Reordered,
    "a generator": lambda: (torch.ones(1) for _ in range(BATCHES)),
    "a loader in zip": lambda: zip(rows(), rows(), strict=True),
}
KNOWN: dict[str, Any] = {
    "a plain loader": rows,
    "a loader with state": lambda: StatefulDataLoader(Stream(), batch_size=SIZE),
    "a sequence of one's own": Batches,
    "a range": lambda: range(BATCHES),
    "a list": lambda: [torch.ones(1)] * BATCHES,
    "a tensor": lambda: torch.ones(BATCHES, 1),
    "an array": lambda: torch.ones(BATCHES, 1).numpy(),
}


def attempt(
    directory: Path, make: Any, *, stop: int = 0, attempt: int | None = None, has_loader: bool = True, **how: Any
) -> list[Any]:
    """The batches of an attempt; on Piton, if it has a number."""
    loader, seen = make(), []
    with piton_trainer.session(tiny.config(directory, tiny.every(10_000), attempt=attempt)) as session:
        session.restore(model=nn.Linear(1, 1), **({"loader": loader} if has_loader else {}))
        for batch in session.steps(loader, **{"epochs": 2, **how}):
            seen.append(batch)
            if session.step + 1 == stop:
                tiny.terminate(session)
    return seen


def stopped(directory: Path, make: Any, *, stop: int, **how: Any) -> None:
    with pytest.raises(Stopped):
        attempt(directory, make, stop=stop, **how)


@resume.refused(
    "loaders: streams, prefetchers, loaders around loaders",
    "nobody knows their place; at the start, on Piton",
)
@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_a_loader_whose_place_nobody_knows_is_refused_when_a_run_begins_on_piton(make: Any, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r'^loader: .*StatefulDataLoader.*on_resume="restart_epoch"'):
        attempt(tmp_path, make, attempt=1)


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_elsewhere_it_is_only_warned_of(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt(tmp_path, make, epochs=1)
    assert "cannot be resumed in the middle of an epoch" in caplog.text


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_a_loader_whose_place_is_known_begins_on_piton(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(attempt(tmp_path, make, attempt=1)) == 2 * BATCHES
    assert not caplog.text


@resume.approximate('loaders: streams and wrapped loaders with on_resume="restart_epoch"', "the epoch begins anew")
@pytest.mark.parametrize("name", [name for name in UNKNOWN if name not in ("a generator", "a loader in zip")])
def test_who_says_so_begins_the_epoch_anew_at_each_resume(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = partial(attempt, tmp_path, UNKNOWN[name], on_resume="restart_epoch")
    with pytest.raises(Stopped):
        run(stop=2, attempt=1)
    with pytest.raises(Stopped):
        run(stop=10, attempt=2)
    assert len(run(attempt=3)) == BATCHES, "of the second epoch all batches are left"
    told = [record.message for record in caplog.records if "begins anew, as on_resume says" in record.message]
    assert [line.split(";")[0].split(" ")[2] for line in told] == ["0", "1"]
    assert told[0].endswith("2 batches of it have been trained already")


def test_a_loader_that_reads_ahead_begins_on_piton_with_a_caveat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt(tmp_path, lambda: prepare_data_loader(rows(), put_on_device=False), attempt=1)
    assert "random augmentation of the first batch after a resume is not repeated exactly" in caplog.text


@pytest.mark.parametrize("name", ["a prefetcher", "accelerate's dispatcher", "a loader that filters"])
def test_in_the_middle_of_an_epoch_it_is_refused_wherever_the_run_is(name: str, tmp_path: Path) -> None:
    stopped(tmp_path, UNKNOWN[name], stop=2)
    with pytest.raises(BadConfig, match=r"^loader: the checkpoint is in the middle of an epoch, after batch 2"):
        attempt(tmp_path, UNKNOWN[name])


def test_an_epoch_that_is_done_is_followed_by_the_next_one_of_a_sampler_that_is_told_so(tmp_path: Path) -> None:
    def filtering() -> DataLoader[Any]:
        data = TensorDataset(torch.arange(float(BATCHES * SIZE)))
        return Filtering(data, batch_size=SIZE, sampler=DistributedSampler(data, num_replicas=1, rank=0))

    run = partial(attempt, make=filtering, on_resume="restart_epoch")
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "parts", stop=BATCHES)
    assert str(run(tmp_path / "parts")) == str(whole[BATCHES:])


def test_a_loader_whose_place_is_known_goes_on_exactly_all_the_same(tmp_path: Path) -> None:
    stopped(tmp_path, rows, stop=2, on_resume="restart_epoch")
    assert len(attempt(tmp_path, rows, on_resume="restart_epoch")) == 2 * BATCHES - 2


@pytest.mark.parametrize("name", ["a prefetcher", "accelerate's dispatcher", "a loader that filters"])
def test_a_run_that_is_under_way_between_two_epochs_is_only_warned_of_its_loader(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path, UNKNOWN[name], stop=BATCHES)  # without Piton nobody refuses it, as older trainers did not
    caplog.clear()
    assert len(attempt(tmp_path, UNKNOWN[name], attempt=2)) == BATCHES
    assert "cannot be resumed in the middle of an epoch" in caplog.text


@pytest.mark.parametrize("make", [KNOWN["a loader with state"], rows], ids=["stream", "rows"])
def test_a_loader_with_state_can_be_adopted_later(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def adopted() -> Any:
        return StatefulDataLoader(make().dataset, batch_size=SIZE)

    stopped(tmp_path, lambda: DataLoader(make().dataset, batch_size=SIZE), stop=3)
    with pytest.raises(BadConfig, match=r'^loader: the checkpoint has no state of it.*batch 3.*"restart_epoch"'):
        attempt(tmp_path, adopted)
    stopped(tmp_path, adopted, stop=4, on_resume="restart_epoch")
    assert "epoch 0 begins anew, as on_resume says; 3 batches" in caplog.text
    assert len(attempt(tmp_path, adopted)) == 2 * BATCHES - 1, "from here on it is exact"


@resume.exact("loaders: a StatefulDataLoader that is adopted between two epochs")
def test_between_two_epochs_it_can_be_adopted_exactly(tmp_path: Path) -> None:
    stopped(tmp_path, rows, stop=BATCHES)
    assert len(attempt(tmp_path, lambda: StatefulDataLoader(rows().dataset, batch_size=SIZE))) == BATCHES


def test_a_word_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"on_resume: 'restart' is not known; write \"restart_epoch\""):
        attempt(tmp_path, rows, on_resume="restart")
    with pytest.raises(ValueError, match="allow: 'size' is not compared; write 'batch_size', 'data_length' or both"):
        attempt(tmp_path, rows, allow="size")


def subset(number: int) -> DataLoader[Any]:
    return rows(shuffle=False, sampler=SubsetRandomSampler(range(number)))


CHANGES: dict[str, tuple[Any, Any, str]] = {
    "larger batches": (rows, partial(rows, batch_size=8), "batch_size"),
    "larger batches, with state": (
        lambda: StatefulDataLoader(rows().dataset, batch_size=4),
        lambda: StatefulDataLoader(rows().dataset, batch_size=8),
        "batch_size",
    ),
    "more data": (rows, partial(rows, 48), "data_length"),
    "less data": (rows, partial(rows, 20), "data_length"),
    "another subset": (partial(subset, 16), partial(subset, 24), "data_length"),
    "a longer list": (lambda: [torch.ones(1)] * 6, lambda: [torch.ones(1)] * 7, "data_length"),
}


@resume.refused(
    "loaders: another batch size or data length in the middle of an epoch",
    "rows would be trained twice or not at all; or allow=[…]",
)
@pytest.mark.parametrize(("before", "after", "name"), CHANGES.values(), ids=CHANGES)
def test_other_data_is_refused_or_taken_where_that_is_allowed(
    before: Any, after: Any, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path, before, stop=3)
    with pytest.raises(BadConfig, match=rf"^loader: {name} was \d+ at the save and is \d+.*allow=\['{name}'\]"):
        attempt(tmp_path, after)
    attempt(tmp_path, after, allow=name)
    assert f"loader: {name} was" in caplog.text


@resume.approximate("loaders: another batch size or data length between two epochs", "the next epoch has it")
@pytest.mark.parametrize(("before", "after", "name"), CHANGES.values(), ids=CHANGES)
def test_between_two_epochs_other_data_is_told_and_taken(
    before: Any, after: Any, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path, before, stop=len(before()))
    attempt(tmp_path, after)
    assert re.search(rf"loader: {name} was \d+ at the save and is \d+; the next epoch has it", caplog.text)


@pytest.mark.parametrize(("before", "after", "name"), CHANGES.values(), ids=CHANGES)
def test_a_run_that_began_without_this_rule_is_only_warned(
    before: Any,
    after: Any,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def restored_as_before(self: Session, **objects: Any) -> Any:
        restored = restore(self, **objects)
        self._opened.state.compares_data = False
        return restored

    restore = Session.restore
    with monkeypatch.context() as patch:
        patch.setattr(Session, "restore", restored_as_before)
        stopped(tmp_path, before, stop=3)
    stopped(tmp_path, after, stop=4)
    assert f"loader: {name} was" in caplog.text


@pytest.mark.parametrize("after", [partial(rows, batch_size=8), partial(rows, 48)], ids=["batches", "data"])
def test_a_checkpoint_that_does_not_say_its_data_is_only_warned_of(
    after: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(self: Randomness) -> dict[str, Any]:
        return {name: part for name, part in now(self).items() if name != "data"}

    now = Randomness.part
    with monkeypatch.context() as patch:
        patch.setattr(Randomness, "part", as_before)
        stopped(tmp_path, rows, stop=2)
    attempt(tmp_path, after)
    assert "loader: an epoch had 6 batches at the save and has" in caplog.text


class Growing(TensorDataset):
    """Data that grows while it is trained on."""

    def grow(self) -> None:
        self.tensors = (torch.cat([self.tensors[0], torch.zeros(SIZE)]),)


def test_data_that_changes_by_itself_is_not_compared(tmp_path: Path) -> None:
    def grow() -> None:
        with piton_trainer.session(tiny.config(tmp_path)) as session:
            session.restore(model=nn.Linear(1, 1))
            for _ in session.steps(DataLoader(data, batch_size=SIZE), epochs=2):
                data.grow()
                if session.step + 1 == 3:
                    tiny.terminate(session)

    data = Growing(torch.arange(24.0))
    with pytest.raises(Stopped):
        grow()
    attempt(tmp_path, rows)


class Buckets:
    """Batches whose number differs from epoch to epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 6 - self.epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[number] for number in range(len(self))])


def test_an_epoch_with_another_number_of_batches_is_not_rescaled(tmp_path: Path) -> None:
    numbers: Any = torch.arange(6.0)
    make = partial(DataLoader, numbers, batch_sampler=Buckets())
    stopped(tmp_path, make, stop=9, total=13)  # three batches of the second epoch, which has five
    fresh = partial(DataLoader, numbers, batch_sampler=Buckets())
    assert [int(batch) for batch in attempt(tmp_path, fresh, total=13)] == [3, 4, 0, 1]


class Lines(IterableDataset[Tensor]):
    """A stream of a rank's own length, which knows its place."""

    def __init__(self, number: int) -> None:
        self.number, self.place = number, 0

    def __iter__(self) -> Iterator[Tensor]:
        for place in range(self.place, self.number):
            self.place = place + 1
            yield torch.tensor([float(place)])
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def uneven(rank: int) -> Any:
    return StatefulDataLoader(Lines([7, 5, 9][rank]), batch_size=1)


def own(rank: int) -> Any:
    return Lines([7, 5, 9][rank])


def endless(rank: int) -> Any:
    return Lines(5 if rank else 10**9)


def in_ranks(directory: Path, make: Any, stop: int, **how: Any) -> tuple[list[float], list[str]] | str:
    """What a rank sees, and what it says."""
    seen: list[float] = []
    told: list[str] = []
    try:
        with piton_trainer.session(tiny.config(directory)) as session:
            session._opened._data.tell = told.append  # type: ignore[assignment,method-assign]
            loader = make(session.rank)
            session.restore(model=nn.Linear(1, 1), loader=loader)
            for batch in session.steps(loader, **how):
                seen.append(float(batch.flatten()[0]))
                if session.step + 1 == stop:
                    tiny.terminate(session)
    except Stopped:
        return seen, told
    except Ended as end:
        return f"{type(end).__name__}: {end}"
    return seen, told


@resume.approximate(
    "loaders: ranks with streams of different length",
    "the epoch ends with the first; what the others had left is told",
)
@pytest.mark.parametrize("make", [uneven, own])
def test_an_epoch_ends_on_all_ranks_with_the_first_stream_that_does(make: Any, tmp_path: Path) -> None:
    ends = ranks.run(3, partial(in_ranks, tmp_path / "whole", make, 0, epochs=2))
    assert [end.result[0] for end in ends] == [[*map(float, range(5))] * 2] * 3
    told = "loader: the epoch ends on all ranks, as rank 1 has no more data; rank 0 had 2 left, rank 2 had 4 left"
    assert [line.startswith(told) for line in ends[0].result[1]] == [True, True]
    ranks.run(3, partial(in_ranks, tmp_path / "parts", make, 7, epochs=2))
    again = ranks.run(3, partial(in_ranks, tmp_path / "parts", make, 0, epochs=2))
    assert [end.result[0] for end in again] == [[2.0, 3.0, 4.0]] * 3


def test_a_stream_without_an_end_is_not_counted_to_its_end(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(in_ranks, tmp_path, endless, 0))
    assert [end.result[0] for end in ends] == [[*map(float, range(5))]] * 2
    assert "rank 0 had at least 100 left" in ends[0].result[1][0]


def listed(rank: int) -> Any:
    return [torch.tensor([float(number)]) for number in range(3 + rank)]


def test_lists_of_different_length_end_together_where_the_steps_are_counted(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(in_ranks, tmp_path, listed, 0, total=5))
    assert [end.result[0] for end in ends] == [[0.0, 1.0, 2.0, 0.0, 1.0]] * 2


def test_other_ranks_take_other_lengths(tmp_path: Path) -> None:
    def distributed(rank: int, world_size: int) -> Any:
        data = TensorDataset(torch.arange(24.0))
        sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=world_size, rank=rank)
        return DataLoader(data, batch_size=2, sampler=sampler)

    def run(directory: Path, world_size: int, stop: int) -> Any:
        seen = 0
        try:
            with piton_trainer.session(tiny.config(directory)) as session:
                session.restore(model=nn.Linear(1, 1))
                for _ in session.steps(distributed(session.rank, world_size)):
                    seen += 1
                    if session.step + 1 == stop:
                        tiny.terminate(session)
        except Stopped:
            pass
        return seen

    ranks.run(2, partial(run, tmp_path, 2, 3))
    (end,) = ranks.run(1, partial(run, tmp_path, 1, 0))
    assert end.result == 6
