"""Moments at which a script of Lightning draws which data an epoch has, besides the start of the epoch.

    Makings    `train_dataloader` is called: it may choose rows at random, or by the number of the epoch
    Wraps      a CombinedLoader begins its shorter loader anew, in the middle of an epoch

A resume makes the loaders again, and passes over the batches that are done, without the random numbers that the
training drew in between. So each moment is remembered with its random numbers. They are of one rank.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.combined_loader import _MaxSizeCycle

from piton_trainer.integrations.lightning_memory import OwnAttributes
from piton_trainer.integrations.own_parts import numbered
from piton_trainer.state.data_position import Randomness
from piton_trainer.state.own_generators import OwnGenerators, is_generator
from piton_trainer.state.rng import RandomNumbers

_EPOCH, _NUMBERS, _MEMORY, _OWN = "epoch", "numbers", "memory", "own"
_BATCH = "batch"


class Makings:
    """The newest making of the loaders of a Trainer: its epoch, its random numbers, and what the script remembered."""

    def __init__(self, trainer: Any, memory: OwnAttributes) -> None:
        self._trainer = trainer
        self._memory = memory
        self._newest: dict[str, Any] | None = None
        self._saved: Mapping[str, Any] = {}
        self._is_repeated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the newest making, and the generators of data module and callbacks at this moment."""
        if self._newest is None:
            return {}
        memory = _of_data(self._memory.complete(self._newest[_MEMORY]))
        return {**self._newest, _MEMORY: memory, _OWN: self._own().capture()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember the making that is to be repeated."""
        self._saved, self._is_repeated = state, False

    def make(self, make: Callable[[], bool]) -> None:
        """Let Lightning make its loaders, and remember how; the first time after a resume, as they were made before.

        Args:
            make: returns True if loaders were made.
        """
        numbers = RandomNumbers(own=self._own())
        if self._saved and not self._is_repeated:
            self._repeat(make, numbers)
            return
        self._memory.begin()
        newest = {
            _EPOCH: int(self._trainer.current_epoch),
            _NUMBERS: numbers.capture(),
            _MEMORY: _of_data(self._memory.capture()),
        }
        if make():
            self._newest = newest

    def put_back(self) -> None:
        """Put the generators of data module and callbacks back to where the save was."""
        self._own().restore(self._saved.get(_OWN, {}))

    def _repeat(self, make: Callable[[], bool], numbers: RandomNumbers) -> None:
        progress = self._trainer.fit_loop.epoch_progress.current
        before, completed = numbers.capture(), progress.completed
        self._memory.begin()
        self._memory.put_back(self._saved[_MEMORY])
        numbers.restore(self._saved[_NUMBERS])
        progress.completed = self._saved[_EPOCH]  # the number of the epoch that a script sees
        try:
            self._is_repeated = make()
        finally:
            progress.completed = completed
        if not _is_same(before, self._saved[_NUMBERS]):
            numbers.restore(before)  # what the script draws next is not to depend on the moment of the save
        self._newest = {key: self._saved[key] for key in (_EPOCH, _NUMBERS, _MEMORY)}

    def _own(self) -> OwnGenerators:
        """Return those of the module, its data and callbacks; those of the module come back with the session, too."""
        owners = {"module": self._trainer.lightning_module, "datamodule": self._trainer.datamodule}
        owners |= {f"callback.{name}": item for name, item in numbered(self._trainer.callbacks)}
        named = {
            f"{name}.{key}": value
            for name, owner in owners.items()
            for key, value in getattr(owner, "__dict__", {}).items()
            if is_generator(value)
        }
        return OwnGenerators(named=named)


class Wraps:
    """The newest moment in the epoch under way at which each shorter loader was begun anew."""

    def __init__(self) -> None:
        self._newest: dict[str, dict[str, Any]] = {}
        self._saved: Mapping[str, Mapping[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the batch and the random numbers of each, by the number of the loader."""
        return dict(self._newest)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember them for the epoch that is played again."""
        self._saved = state

    def follow(self, combined: Any, randomness: Randomness, *, is_replayed: bool = False) -> None:
        """Look at the loaders of an epoch, once it is open. In one that is played again, wrap as before."""
        batches = combined._iterator  # noqa: SLF001
        if not isinstance(batches, _MaxSizeCycle) or len(batches.iterables) == 1:
            return  # the only loader never wraps
        if any(isinstance(item, _Followed) for item in batches.iterables):
            return
        saved = self._saved if is_replayed else {}
        self._newest = {}

        def begin_anew(number: int) -> None:
            key, batch = str(number), batches._idx  # noqa: SLF001
            if key in saved and saved[key][_BATCH] == batch:
                randomness.restore(saved[key][_NUMBERS])
            self._newest[key] = {_BATCH: batch, _NUMBERS: randomness.rng()}

        loaders = enumerate(batches.iterables)
        batches.iterables = [_Followed(loader, begin_anew, number) for number, loader in loaders]


class _Followed:
    """A loader that says when it is begun."""

    def __init__(self, loader: Iterable[Any], begin: Callable[[int], None], number: int) -> None:
        self._loader = loader
        self._begin = begin
        self._number = number

    def __iter__(self) -> Iterator[Any]:
        self._begin(self._number)
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]


def _of_data(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a script may make its loaders by."""
    return {name: values for name, values in memory.items() if name in ("module", "datamodule")}


def _is_same(numbers: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return torch.equal(numbers["torch"], other["torch"]) and tuple(numbers["python"]) == tuple(other["python"])
