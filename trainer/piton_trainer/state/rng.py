"""One rank's random number generators: Python's, numpy's, torch's on the CPU and on its GPU, and its objects' own.

With them goes what samplers remember: both decide what an epoch that is begun again is.
"""

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from piton_trainer.state.own_generators import OwnGenerators
from piton_trainer.state.samplers import Samplers

SAMPLERS = "samplers"
"""Key of what samplers remember, in the random numbers of a rank."""
_CYCLE = 624
"""Numbers that a Mersenne Twister makes at a time."""


class RandomNumbers:
    """All generators of one rank, and its samplers. Those of a loader and of the user's objects are given."""

    def __init__(
        self,
        generators: Sequence[torch.Generator] = (),
        own: OwnGenerators | None = None,
        samplers: Samplers | None = None,
    ) -> None:
        self._generators = generators
        self._own = own
        self._samplers = samplers

    def look_up(self, loaders: Sequence[object], generators: Sequence[torch.Generator]) -> None:
        """Take the generators and samplers of these loaders instead; `generators` are those of torch's among them."""
        self._generators = generators
        if self._own is not None:
            self._own.look_up(loaders)
        if self._samplers is not None:
            self._samplers.look_up(loaders)

    def begin_epoch(self) -> None:
        """Tell of what samplers change from epoch to epoch and a capture has not."""
        if self._samplers is not None:
            self._samplers.begin_epoch()

    def look_at_samplers(self) -> None:
        """See what samplers change, in a moment that is neither the start of an epoch nor a save."""
        if self._samplers is not None:
            self._samplers.look()

    def tell_of_counts(self, state: Mapping[str, Any]) -> None:
        """Tell of what data sets have counted in a capture, one batch ahead of the batches that were trained."""
        if self._samplers is not None:
            self._samplers.tell_of_counts(state.get(SAMPLERS, {}))

    def capture(self) -> dict[str, Any]:
        """The state of every generator, as JSON and tensors (see `codec`)."""
        state = self._states()
        if self._samplers is not None:
            state[SAMPLERS] = self._samplers.capture()
        return state

    def mark(self) -> "Mark":
        """Return the place of all generators; what samplers remember is none of it."""
        return _mark(self._states())

    def place(self) -> tuple["Mark", int]:
        """Return the place of all generators, and a digest of what samplers remember."""
        return self.mark(), 0 if self._samplers is None else self._samplers.digest()

    def _states(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "python": random.getstate(),
            "torch": torch.get_rng_state(),
            "generators": [generator.get_state() for generator in self._generators],
        }
        # numpy is not ours to import: who has not imported it has drawn nothing from it.
        if "numpy" in sys.modules:
            name, keys, *rest = sys.modules["numpy"].random.get_state()
            state["numpy"] = (name, keys.tolist(), *rest)
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if self._own is not None:
            state["own"] = self._own.capture()
        return state

    def complete(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return an earlier capture with what samplers have changed since, as it was then."""
        if self._samplers is None:
            return state
        return {**state, SAMPLERS: self._samplers.complete(state.get(SAMPLERS, {}))}

    def restore(self, state: dict[str, Any], *, has_samplers: bool = True) -> None:
        """Put every generator back to where `capture` found it, and make samplers what they were, if that was saved.

        Without `has_samplers` these stay as they are.
        """
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
        for generator, saved in zip(self._generators, state["generators"], strict=False):
            generator.set_state(saved)
        if "numpy" in state:
            import numpy as np

            np.random.set_state(state["numpy"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if self._own is not None:
            self._own.restore(state.get("own", {}))
        if self._samplers is not None and SAMPLERS in state:
            (self._samplers.restore if has_samplers else self._samplers.keep)(state[SAMPLERS])


@contextmanager
def unmoved() -> Iterator[None]:
    """Put the generators that belong to nobody back afterwards: what is asked in between is no part of the training."""
    numpy = sys.modules.get("numpy")
    python, torchs, numpys = random.getstate(), torch.get_rng_state(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(torchs)
        if numpy is not None:
            numpy.random.set_state(numpys)


def derive(*, seed: int, step: int, rank: int) -> None:
    """Seed the generators of a rank that did not exist when the state was saved; always the same way."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    random.seed(digest)
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(digest[8:12], "little"))


@dataclass(frozen=True)
class Mark:
    """The place of the generators in what they draw, for telling what happens between two of them."""

    states: tuple[bytes | int, ...]
    places: tuple[int, ...]

    def drawn_since(self, before: "Mark") -> tuple[tuple[bool, int], ...]:
        """Return of each generator whether anything was drawn from it, and how many numbers, as a remainder."""
        both = zip(self.states, before.states, self.places, before.places, strict=False)
        return tuple((now != then, (place - other) % _CYCLE) for now, then, place, other in both)


def _mark(state: dict[str, Any]) -> Mark:
    torch_state = state["torch"].numpy().tobytes() if "numpy" in sys.modules else bytes(state["torch"].tolist())
    python_state = state["python"][1]
    states, places = [torch_state, hash(python_state)], [-_left(torch_state), python_state[-1]]
    if "numpy" in state:
        _, keys, place, *_ = state["numpy"]
        states, places = [*states, hash((*keys, place))], [*places, place]
    others = [*map(_content, state["generators"]), *map(_content, state.get("own", {}).values())]
    return Mark((*states, *others), (*places, *[0] * len(others)))


def _left(torch_state: bytes) -> int:
    """Return how many numbers torch's generator has left of those that it has made: after the seed, in 4 bytes."""
    return int.from_bytes(torch_state[8:12], sys.byteorder)


def _content(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return hash(state.numpy().tobytes() if "numpy" in sys.modules else tuple(state.tolist()))
    return hash(repr(state))
