"""Random number generators of the user's objects come back: those that can be seen, and those that are named."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

import piton_trainer
from piton_trainer.errors import Stopped
from support import resume, tiny

ITEMS, SIZE, STEPS = 12, 3, 11
KINDS: dict[str, Any] = {
    "random.Random": lambda: random.Random(4),
    "numpy.Generator": lambda: np.random.default_rng(4),
    "numpy.Philox": lambda: np.random.Generator(np.random.Philox(4)),
    "numpy.MT19937": lambda: np.random.Generator(np.random.MT19937(4)),
    "numpy.RandomState": lambda: np.random.RandomState(4),
    "torch.Generator": lambda: torch.Generator().manual_seed(4),
}


def drawn(generator: Any) -> float:
    """Draw a number from any kind."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return float(generator.random())


class Shuffled(Sampler[int]):
    """A sampler that shuffles with a generator of its own; `late` draws each place when it is asked for."""

    def __init__(self, generator: Any, *, late: bool = False) -> None:
        self.draws = generator
        self.late = late

    def __len__(self) -> int:
        return ITEMS

    def __iter__(self) -> Iterator[int]:
        if self.late:
            return (int(drawn(self.draws) * ITEMS) for _ in range(ITEMS))
        return iter(sorted(range(ITEMS), key=lambda _: drawn(self.draws)))


class Numbers(Dataset[Tensor]):
    """Numbers, augmented if there is a generator."""

    def __init__(self, generator: Any = None) -> None:
        self.noise = generator

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index + (drawn(self.noise) if self.noise is not None else 0.0))

    def __len__(self) -> int:
        return ITEMS


class Deep(Numbers):
    """Numbers with a generator that lies too deep to be seen."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.inside = Numbers(generator)

    def __getitem__(self, index: int) -> Tensor:
        return self.inside[index]


class Dropping(nn.Module):
    """A module with random numbers of its own, inside of a model; without a generator it does nothing."""

    def __init__(self, generator: Any = None) -> None:
        super().__init__()
        self.own = generator
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.own is None else x + drawn(self.own)


def attempt(directory: Path, place: str, kind: str, *, stop: int | None = None) -> list[list[float]]:
    """The batches of an attempt, as its model sees them."""
    generator = KINDS[kind]()
    late = place == "sampler, late"
    sampler = Shuffled(generator, late=late) if place.startswith("sampler") else None
    numbers = Deep(generator) if place == "named" else Numbers(generator if place == "dataset" else None)
    model = nn.Sequential(nn.Identity(), Dropping(generator if place == "module" else None))
    loader: DataLoader[Tensor] = DataLoader(numbers, batch_size=SIZE, sampler=sampler, shuffle=sampler is None)
    named: dict[str, Any] = {"rng": [generator]} if place == "named" else {}
    seen = []
    torch.manual_seed(0 if stop else 99)
    with piton_trainer.session(tiny.config(directory, tiny.every(100))) as session:
        session.restore(model=model, **named)
        for batch in session.steps(loader, total=STEPS):
            seen.append(model(batch).tolist())
            if session.step + 1 == stop:
                tiny.terminate(session)
    return seen


PLACES = ["sampler", "sampler, late", "dataset", "module", "named"]


@resume.exact(
    "generators: attributes of sampler, data set, loader, collate_fn or module; restore(rng=…)",
    "nothing deeper is seen",
)
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((place, "numpy.Generator") for place in PLACES),
        *(("sampler", kind) for kind in KINDS),
        ("named", "random.Random"),
    ],
)
def test_a_generator_of_the_users_goes_on_from_where_it_was(place: str, kind: str, tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", place, kind, stop=STEPS + 1)
    for stop in (5, 8):
        parts = tmp_path / str(stop)
        with pytest.raises(Stopped):
            attempt(parts, place, kind, stop=stop)
        assert attempt(parts, place, kind) == whole[stop:], stop


class Replaced(Shuffled):
    """A sampler that makes its generator anew for each epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.draws = random.Random(epoch)


def test_a_generator_that_is_replaced_keeps_its_name(tmp_path: Path) -> None:
    def run(directory: Path, stop: int) -> list[list[float]]:
        seen = []
        loader: DataLoader[Tensor] = DataLoader(Numbers(), batch_size=SIZE, sampler=Replaced(None, late=True))
        with piton_trainer.session(tiny.config(directory, tiny.every(100))) as session:
            session.restore(model=Dropping())
            for batch in session.steps(loader, total=STEPS):
                seen.append(batch.tolist())
                if session.step + 1 == stop:
                    tiny.terminate(session)
        return seen

    whole = run(tmp_path / "whole", 0)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", 6)
    assert run(tmp_path / "parts", 0) == whole[6:]


def test_what_is_no_generator_is_not_taken_for_one(tmp_path: Path) -> None:
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        with pytest.raises(ValueError, match=r"rng\.1: a list is no random number generator.*torch\.Generator"):
            session.restore(model=Dropping(), rng=[random.Random(), []])
        session.restore(model=Dropping(), rng={"mine": random.Random()})
        for _ in session.steps([1]):
            pass


class Strange(random.Random):
    """A generator without a state."""

    def getstate(self) -> tuple[Any, ...]:
        raise NotImplementedError


@pytest.mark.parametrize("generator", [random.SystemRandom(), Strange(), np.random, random])
def test_what_has_no_state_that_can_be_saved_ends_no_training(generator: Any, tmp_path: Path) -> None:
    loader: DataLoader[Tensor] = DataLoader(Numbers(generator))
    with piton_trainer.session(tiny.config(tmp_path, tiny.every(1))) as session:
        session.restore(model=Dropping())
        assert len(list(session.steps(loader))) == ITEMS
