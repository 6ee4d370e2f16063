"""The position in the data: the batches that are left, and the random numbers of an epoch that is begun again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from piton_trainer.state import rng
from piton_trainer.state.data_position import (
    Randomness,
    ResumableLoader,
    Resume,
    generators_of,
    length_of,
    set_epoch,
)
from piton_trainer.state.train_state import Position

ITEMS: Any = range(10)


class Epochs:
    """A loader of ten random numbers, which notes the epoch that it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[float]:
        return iter(torch.rand(10).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def resumable(loader: Any, position: Position, resume: Resume | None = None, *, replay: bool = True) -> ResumableLoader:
    return ResumableLoader(loader, position, replay=replay, resume=resume)


def never() -> None:
    raise AssertionError("this rank has random numbers of its own")


def test_the_position_moves_with_the_batches_and_on_to_the_next_epoch() -> None:
    position, loader = Position(), Epochs()
    feed = resumable(loader, position)

    seen = [(position.epoch, position.batch) for _ in range(2) for _ in feed.epoch()]

    assert seen == [(epoch, batch) for epoch in range(2) for batch in range(1, 11)]
    assert (position.epoch, position.batch) == (2, 0)
    assert loader.epochs == [0, 1]


def test_the_batches_that_are_left_are_those_of_the_other_epochs_and_the_rest_of_this_one() -> None:
    position = Position(epoch=1, batch=4)
    feed = resumable(Epochs(), position)

    assert feed.steps_left(3) == 2 * 10 - 4
    assert feed.steps_left(1) == 0
    assert resumable(iter(()), Position()).steps_left(3) is None


def test_a_loader_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="the loader has no batches"):
        list(resumable([], Position()).epoch())


def test_an_epoch_is_begun_again_with_its_random_numbers_and_goes_on_with_those_of_the_save() -> None:
    def shuffled() -> DataLoader[int]:
        return DataLoader(ITEMS, shuffle=True, batch_size=None)

    torch.manual_seed(7)
    feed = resumable(shuffled(), Position())
    batches: list[int] = []
    noise: list[float] = []
    for batch in feed.epoch():
        batches.append(batch)
        noise.append(torch.rand(1).item())
        if len(batches) == 4:
            save = Resume(epoch_rng=feed.epoch_rng, rng=feed.rng(), derive=never)
    torch.manual_seed(99)

    again = resumable(shuffled(), Position(batch=4), save)
    resumed = [(batch, torch.rand(1).item()) for batch in again.epoch()]

    assert resumed == list(zip(batches, noise, strict=True))[4:]


def test_a_save_between_two_epochs_begins_the_next_one_with_the_random_numbers_of_the_save() -> None:
    torch.manual_seed(7)
    save = Resume(epoch_rng=None, rng=rng.RandomNumbers().capture(), derive=never)
    expected = torch.rand(10).tolist()
    torch.manual_seed(99)

    assert list(resumable(Epochs(), Position(epoch=1), save).epoch()) == expected


def test_a_rank_that_did_not_exist_derives_its_random_numbers() -> None:
    derived: list[str] = []
    resume = Resume(epoch_rng=None, rng=None, derive=lambda: derived.append("seeded"))

    randomness = Randomness([], resume)
    randomness.replay_epoch()
    randomness.catch_up()
    randomness.catch_up()

    assert derived == ["seeded", "seeded"], "once for the epoch and once for the save, and then never again"


def test_the_length_is_none_where_the_loader_does_not_know_it() -> None:
    assert length_of([1, 2]) == 2
    assert length_of(number for number in range(3)) is None


def test_the_generators_of_a_loader_and_its_samplers_are_found_once_each() -> None:
    shared, own = torch.Generator(), torch.Generator()
    sampler = RandomSampler(ITEMS, generator=shared)
    loader = DataLoader(ITEMS, batch_sampler=BatchSampler(sampler, 2, drop_last=False), generator=own)

    assert set(map(id, generators_of(loader))) == {id(shared), id(own)}
    assert generators_of([1, 2]) == []


def test_a_sampler_inside_a_batch_sampler_is_told_the_epoch() -> None:
    class Sampler(RandomSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    sampler = Sampler(ITEMS)
    loader = DataLoader(ITEMS, batch_sampler=BatchSampler(sampler, 2, drop_last=False))

    set_epoch(loader, 5)

    assert sampler.epoch == 5
