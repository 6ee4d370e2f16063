"""Epochs of different lengths: all of them are trained, in one attempt and in several."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

import piton_trainer
from piton_trainer.errors import Stopped
from support import resume, tiny

ROWS, SIZE, EPOCHS = 40, 4, 4


class Curriculum(Sampler[int]):
    """A sampler that gives other numbers of rows from epoch to epoch, which it counts or is told."""

    def __init__(self, sizes: tuple[int, ...], *, counts: bool) -> None:
        self.sizes = sizes
        self.counts = counts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        if not self.counts:
            self.epoch = epoch

    def __len__(self) -> int:
        return self.sizes[min(self.epoch, len(self.sizes) - 1)] * SIZE

    def __iter__(self) -> Iterator[int]:
        rows = torch.randperm(ROWS)[: len(self)].tolist()
        yield from rows
        self.epoch += self.counts


def attempt(directory: Path, sampler: Any, at: int = 0, *, seed: int = 0) -> list[list[float]]:
    torch.manual_seed(seed)
    numbers: Any = range(ROWS)
    seen = []
    with piton_trainer.session(tiny.config(directory, tiny.every(10_000))) as session:
        session.restore(model=nn.Linear(1, 1))
        for batch in session.steps(DataLoader(numbers, batch_size=SIZE, sampler=sampler), epochs=EPOCHS):
            seen.append(batch.tolist())
            if session.step + 1 == at:
                tiny.terminate(session)
    return seen


@resume.exact("loaders: samplers whose length changes from epoch to epoch")
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 5), (5, 4, 3, 2), (1, 6, 2, 3)])
def test_each_epoch_has_its_length(sizes: tuple[int, ...], counts: bool, tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", Curriculum(sizes, counts=counts))
    assert len(whole) == sum(sizes)
    for stop in {1, sizes[0], sizes[0] + 1, sum(sizes) - 1}:
        with pytest.raises(Stopped):
            attempt(tmp_path / str(stop), Curriculum(sizes, counts=counts), stop)
        assert attempt(tmp_path / str(stop), Curriculum(sizes, counts=counts), seed=77) == whole[stop:]


class Longer(Curriculum):
    """A sampler that never comes to the end of an epoch."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(ROWS)


def test_an_epoch_without_an_end_ends_with_the_steps_that_its_length_says(tmp_path: Path) -> None:
    assert len(attempt(tmp_path, Longer((3,), counts=False))) == 3 * EPOCHS


class Drawing(Sampler[int]):
    """A sampler that draws an epoch to count it."""

    def _rows(self) -> list[int]:
        return torch.randperm(ROWS)[: torch.randint(ROWS // 2, ROWS, ())].tolist()

    def __len__(self) -> int:
        return len(self._rows()) and ROWS // 2

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows()[: len(self)])


@resume.exact("loaders: samplers that draw random numbers to say their length")
def test_to_ask_for_a_length_draws_nothing(tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", Drawing())
    for stop in (2, 8):
        with pytest.raises(Stopped):
            attempt(tmp_path / str(stop), Drawing(), at=stop)
        assert attempt(tmp_path / str(stop), Drawing(), seed=77) == whole[stop:]
