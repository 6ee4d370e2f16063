"""Batches from a loader, from wherever the run was.

A loader that carries state continues by itself. A plain DataLoader does not, so its epoch is begun again: with the
random numbers of the epoch's start it makes the same order, the indices of the batches that are done are skipped
(`batch_skipping`), and then the random numbers of the save are put back. Those of worker processes cannot be seen from
here; random augmentation in them is not repeated exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from piton.contract import InputError
from piton_trainer.state import rng
from piton_trainer.state.batch_skipping import begin, iterate_from
from piton_trainer.state.train_state import Position


@dataclass(frozen=True, kw_only=True)
class Resume:
    """The random numbers of a save."""

    epoch_rng: dict[str, Any] | None
    """At the start of the epoch; None for a rank that did not exist."""
    rng: dict[str, Any] | None
    """At the save; None for a rank that did not exist."""
    derive: Callable[[], None]
    """Seeds a rank that did not exist."""


class Randomness:
    """This rank's random numbers, through the epochs, so that the one that a save was in can be played again."""

    def __init__(self, generators: Sequence[torch.Generator], resume: Resume | None) -> None:
        self._generators = generators
        self._resume = resume
        self.epoch_rng: dict[str, Any] | None = None

    def rng(self) -> dict[str, Any]:
        """The random numbers of this moment, a loader's own among them."""
        return rng.capture(self._generators)

    def begin_epoch(self) -> None:
        """Remember where an epoch begins."""
        self.epoch_rng = self.rng()

    def replay_epoch(self) -> None:
        """Go back to where the epoch began that the save was in."""
        if self._resume is not None:
            self._put_back(self._resume.epoch_rng, self._resume)
        self.begin_epoch()

    def catch_up(self) -> None:
        """Go to where the save was, once everything that it had behind it has been passed over."""
        resume, self._resume = self._resume, None
        if resume is not None:
            self._put_back(resume.rng, resume)

    def _put_back(self, state: dict[str, Any] | None, resume: Resume) -> None:
        if state is None:
            resume.derive()
        else:
            rng.restore(state, self._generators)


class ResumableLoader(Randomness):
    """The epochs of one loader."""

    def __init__(self, loader: Iterable[Any], position: Position, *, replay: bool, resume: Resume | None) -> None:
        super().__init__(generators_of(loader), resume)
        self._loader = loader
        self._position = position
        self._replay = replay
        position.rescale(length_of(loader))

    def epoch(self) -> Iterator[Any]:
        """The batches that are left of the current epoch; `position` moves with them, and on to the next epoch."""
        set_epoch(self._loader, self._position.epoch)
        before = self._position.batch
        for batch in self._open():
            self._position.batch += 1
            yield batch
        if self._position.batch == 0 == before:
            raise InputError("the loader has no batches")
        self._position.epoch, self._position.batch = self._position.epoch + 1, 0

    def steps_left(self, epochs: int) -> int | None:
        """Return the number of batches that are left of so many epochs; None if the loader does not know its length."""
        length = length_of(self._loader)
        if length is None:
            return None
        return max(0, (epochs - self._position.epoch) * length - self._position.batch)

    def _open(self) -> Iterator[Any]:
        if self._resume is None or self._position.batch == 0:
            self.catch_up()
            self.begin_epoch()
            return iter(self._loader)
        # Also for a loader with state: its sampler may have none, and draw the epoch's order anew.
        self.replay_epoch()
        iterator = self._skip() if self._replay else begin(self._loader)
        self.catch_up()
        return iterator

    def _skip(self) -> Iterator[Any]:
        """Persistent workers are started in the first epoch, with a random number that a later epoch does not draw."""
        is_late = self._position.epoch > 0 and getattr(self._loader, "persistent_workers", False)
        again = partial(rng.restore, self.rng(), self._generators) if is_late else None
        return iterate_from(self._loader, self._position.batch, before=again)


def length_of(loader: Iterable[Any]) -> int | None:
    """Return the number of batches of an epoch; None if the loader does not know it."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def generators_of(loader: object) -> list[torch.Generator]:
    """The random number generators of a DataLoader and of its samplers, each once."""
    found: list[torch.Generator] = []
    for owner in _samplers(loader):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is known for known in found):
            found.append(generator)
    return found


def set_epoch(loader: object, epoch: int) -> None:
    """Tell a DistributedSampler, or whoever asks for it, which epoch it is."""
    for owner in _samplers(loader):
        if callable(tell := getattr(owner, "set_epoch", None)):
            tell(epoch)


def _samplers(loader: object) -> list[object]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return [owner for owner in owners if owner is not None]
