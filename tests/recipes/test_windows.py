"""The order of the data: every window once per epoch, for any number of ranks, from any position."""

from itertools import chain, islice

import pytest
import torch
from torch import Tensor

from piton_trainer.data.text.windows import IGNORED, ShuffledWindows, Windows, in_order
from piton_trainer.errors import BadConfig

CPU = torch.device("cpu")
LENGTH = 5


def windows(count: int = 24) -> Windows:
    """Window n begins with the token n * LENGTH."""
    return Windows(torch.arange(count * LENGTH + 1, dtype=torch.int32), LENGTH)


def a_loader(
    *, rank: int = 0, world_size: int = 1, device_batch: int = 2, seed: int = 0, text: Windows | None = None
) -> ShuffledWindows:
    return ShuffledWindows(
        text or windows(), device_batch=device_batch, total_batch=8, seed=seed, rank=rank, world_size=world_size
    )


def seen(loader: ShuffledWindows, steps: int) -> list[list[int]]:
    """The windows of the next steps of one rank."""
    return [
        [int(start) // LENGTH for inputs, _ in batches for start in inputs[:, 0]] for batches in islice(loader, steps)
    ]


def test_targets_are_the_characters_that_follow() -> None:
    inputs, targets = windows().batch(torch.tensor([3]), CPU)
    assert inputs.tolist() == [[15, 16, 17, 18, 19]]
    assert targets.tolist() == [[16, 17, 18, 19, 20]]


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (5, 0), (6, 1), (10, 1), (11, 2)])
def test_a_window_needs_the_character_after_it(tokens: int, count: int) -> None:
    assert len(Windows(torch.zeros(tokens), LENGTH)) == count


def test_every_window_comes_once_per_epoch_and_every_epoch_differs() -> None:
    steps = seen(a_loader(), 6)
    epochs = [list(chain(*steps[:3])), list(chain(*steps[3:]))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_a_step_may_begin_in_one_epoch_and_end_in_another() -> None:
    steps = seen(a_loader(text=windows(10)), 5)
    flat = list(chain(*steps))
    assert [sorted(flat[first : first + 10]) for first in (0, 10, 20, 30)] == [list(range(10))] * 4


def test_an_epoch_smaller_than_a_step_repeats_within_it() -> None:
    (step,) = seen(a_loader(text=windows(3)), 1)
    assert [sorted(step[:3]), sorted(step[3:6])] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
def test_another_seed_is_another_order(seed: int) -> None:
    assert seen(a_loader(seed=seed), 3) != seen(a_loader(seed=0), 3)


@pytest.mark.parametrize(("world_size", "device_batch"), [(1, 8), (2, 2), (4, 1), (4, 2)])
def test_a_step_sees_the_same_windows_however_many_ranks_share_it(world_size: int, device_batch: int) -> None:
    alone = seen(a_loader(), 6)
    ranks = [
        seen(a_loader(rank=rank, world_size=world_size, device_batch=device_batch), 6) for rank in range(world_size)
    ]
    together = [list(chain(*(rank[step] for rank in ranks))) for step in range(6)]
    assert [sorted(step) for step in together] == [sorted(step) for step in alone]


@pytest.mark.parametrize("stop", range(7))
def test_it_goes_on_from_any_position_with_any_number_of_ranks(stop: int) -> None:
    whole = seen(a_loader(), 7)
    first = a_loader()
    seen(first, stop)
    second = [a_loader(rank=rank, world_size=2) for rank in range(2)]
    for rank in second:
        rank.load_state_dict(first.state_dict())
    rest = [seen(rank, 7 - stop) for rank in second]
    together = [sorted(one + other) for one, other in zip(*rest, strict=True)]
    assert together == [sorted(step) for step in whole[stop:]]


@pytest.mark.parametrize(
    "other",
    [
        a_loader(text=windows(25)),
        a_loader(text=Windows(torch.arange(24 * LENGTH + 1, dtype=torch.int32), LENGTH - 1)),
        a_loader(seed=1),
    ],
)
def test_a_position_in_another_order_is_refused(other: ShuffledWindows) -> None:
    with pytest.raises(BadConfig, match="start a new run"):
        other.load_state_dict(a_loader().state_dict())


def test_a_batch_that_does_not_divide_is_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match="8 windows do not divide into 3 x 2"):
        a_loader(world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_counts_each_of_the_first_windows_once(world_size: int) -> None:
    ranks = [
        list(in_order(windows(), limit=7, batch=2, rank=rank, world_size=world_size, device=CPU))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    counted = [start for batches in ranks for batch, _ in batches for start in _counted(batch)]
    assert sorted(counted) == [number * LENGTH for number in range(7)]
    assert sum(count for batches in ranks for _, count in batches) == 7


def _counted(batch: tuple[Tensor, Tensor]) -> list[int]:
    inputs, targets = batch
    return inputs[(targets != IGNORED).all(dim=1)][:, 0].tolist()
