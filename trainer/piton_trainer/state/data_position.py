"""Batches from a loader, from wherever the run was.

A loader that carries state continues by itself. A plain DataLoader does not, so its epoch is begun again: with the
random numbers of the epoch's start it makes the same order, the indices of the batches that are done are skipped
(`batch_skipping`), and then the random numbers of the save are put back. Those of worker processes cannot be seen from
here; random augmentation in them is not repeated exactly.

A loader with state whose `__iter__` is a generator draws its order only when it is asked for its first batch. Whether
one does is seen in each epoch that is not resumed, and is in the checkpoint.
"""

import copy
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import torch
from torch.utils.data import DataLoader

from piton.contract import InputError
from piton_trainer.state import rng
from piton_trainer.state.batch_skipping import before_ahead, begin, forget_early_order, iterate_from, reads_ahead
from piton_trainer.state.data_shape import DataShape, differences
from piton_trainer.state.own_generators import TOLD, OwnGenerators, parts_of
from piton_trainer.state.samplers import Samplers
from piton_trainer.state.train_state import Position

logger = logging.getLogger(__name__)

_END = object()
_LOOKED_AT = 2
"""Batches of an epoch around which random numbers are looked at."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """The random numbers, the data and the frozen parameters of a rank at a save."""

    epoch_rng: dict[str, Any] | None
    """At the start of the epoch; None for a rank that did not exist."""
    rng: dict[str, Any] | None
    """At the save; None for a rank that did not exist."""
    derive: Callable[[], None]
    """Seeds a rank that did not exist."""
    shapes: Sequence[DataShape] | None = None
    """Of the loaders; None if they are not to be compared: it was another number of ranks, or an older trainer."""
    draws_late: bool | None = None
    """True if all that the loader draws for the first batch of an epoch belongs to the epoch; None: nobody has seen."""
    is_of_other_ranks: bool = False
    """True if it was another number of ranks, so that an epoch has another number of batches."""
    has_loader: bool = True
    """True if the state of a loader was saved."""
    frozen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Parameters that were not trained at the save, by module."""


class Randomness:
    """This rank's random numbers, through the epochs, so that the one that a save was in can be played again."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        resume: Resume | None,
        *,
        own: OwnGenerators | None = None,
        samplers: Samplers | None = None,
        loaders: Sequence[object] = (),
    ) -> None:
        """`generators` are besides those of the loaders."""
        self._generators = generators
        self._numbers = rng.RandomNumbers([*generators, *_generators_in(loaders)], own, samplers)
        self._resume = resume
        self._loaders = loaders
        self._shapes = DataShape.of(loaders)
        self._draws_late = None if resume is None else resume.draws_late
        self.epoch_rng: dict[str, Any] | None = None

    def rng(self) -> dict[str, Any]:
        """The random numbers of this moment, those of a loader and of other objects among them."""
        return self._numbers.capture()

    def restore(self, numbers: dict[str, Any]) -> None:
        """Put back the random numbers that `rng` returned."""
        self._numbers.restore(numbers)

    def part(self) -> dict[str, Any]:
        """The random numbers and the data of this rank, as JSON and tensors for a save."""
        shapes = [
            shape.steady_since(before).to_document()
            for shape, before in zip(DataShape.of(self._loaders), self._shapes, strict=True)
        ]
        data = {"shapes": shapes, "draws_late": self._draws_late}
        now = self.rng()
        begun = None if self.epoch_rng is None else self._numbers.complete(self.epoch_rng)
        return {"rng": now, "epoch_rng": begun, "data": data}

    def look_up(self, loaders: Sequence[object]) -> None:
        """Take the loaders of an epoch that begins: a framework may have made them anew."""
        if len(loaders) == len(self._loaders) and all(map(operator.is_, loaders, self._loaders)):
            return
        self._loaders, self._shapes = loaders, DataShape.of(loaders)
        self._numbers.look_up(loaders, [*self._generators, *_generators_in(loaders)])

    def begin_epoch(self) -> None:
        """Remember where an epoch begins."""
        self.epoch_rng = self.rng()
        self._numbers.begin_epoch()

    def replay_epoch(self) -> None:
        """Go back to where the epoch began that the save was in."""
        if self._resume is not None:
            self._put_back(self._resume.epoch_rng, self._resume)
        self.begin_epoch()

    def catch_up(self, *, has_read_on: bool = False) -> None:
        """Go to where the save was, once everything that it had behind it has been passed over.

        `has_read_on`: a sampler may have given more since, and is where it belongs.
        """
        resume, self._resume = self._resume, None
        if resume is not None:
            self._put_back(resume.rng, resume, has_samplers=not has_read_on)

    def skip(self, loader: Iterable[Any], batches: int, *, epoch: int) -> Iterator[Any]:
        """Return what is left of the epoch that is played again, of a loader without state."""
        if reads_ahead(loader) and self._resume is not None:
            self._numbers.tell_of_counts(self._resume.rng or {})
        with before_ahead(loader, self.catch_up):
            iterator = iterate_from(loader, batches, self._numbers, epoch=epoch)
        self.catch_up()
        return iterator

    def _put_back(self, state: dict[str, Any] | None, resume: Resume, *, has_samplers: bool = True) -> None:
        if state is None:
            resume.derive()
        else:
            self._numbers.restore(state, has_samplers=has_samplers and not resume.is_of_other_ranks)


class ResumableLoader(Randomness):
    """The epochs of one loader."""

    def __init__(
        self,
        loader: Iterable[Any],
        position: Position,
        *,
        replay: bool,
        resume: Resume | None,
        own: OwnGenerators | None = None,
        samplers: Samplers | None = None,
        together: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    ) -> None:
        """`replay`: the loader has no state. `together` ends an epoch when another rank has no more data."""
        super().__init__((), resume, own=own, samplers=samplers, loaders=[loader])
        self._loader = loader
        self._position = position
        self._replay = replay
        self._together = together
        self._length = length_of(loader)
        """Batches of the epoch under way, which may have more than the one before."""
        if self._is_other_share():
            position.rescale(self._length)
        elif self._length is not None and resume is not None:
            self._length = max(self._length, position.batches or 0)
        position.batches = length_of(loader)

    def epoch(self) -> Iterator[Any]:
        """The batches that are left of the current epoch; `position` moves with them, and on to the next epoch."""
        set_epoch(self._loader, self._position.epoch)
        was_begun = self._position.batch > 0
        length = length_of(self._loader)
        for batch in self._together(self._open()):
            if length is not None:
                # A sampler that counts the epochs itself has this one's length by now; one that counts down, less.
                self._length = self._position.batches = max(length, length_of(self._loader) or 0)
                length = None
            self._position.batch += 1
            if self._position.batch.bit_count() == 1:  # the first batches, and a few of the others
                self._numbers.look_at_samplers()
            yield batch
        if self._position.batch == 0 and not was_begun:
            raise InputError("the loader has no batches")
        self._position.epoch, self._position.batch = self._position.epoch + 1, 0

    def steps_left(self, epochs: int) -> int | None:
        """Return the number of batches that are left of so many epochs; None if the loader does not know its length.

        It goes by the epoch under way. Later ones may have more, or fewer.
        """
        if self._length is None:
            return None
        return max(0, (epochs - self._position.epoch) * self._length - self._position.batch)

    def _is_other_share(self) -> bool:
        """True unless the data is what it was: then a length that differs is that of another epoch's batches."""
        saved = None if self._resume is None else self._resume.shapes
        if not saved or DataShape() in saved:
            return True
        return any(differences(shape, before) for shape, before in zip(self._shapes, saved, strict=True))

    def _open(self) -> Iterator[Any]:
        if self._resume is None or self._position.batch == 0:
            if self._resume is not None:
                self.catch_up()
                set_epoch(self._loader, self._position.epoch)  # a sampler has just got that of the save, one earlier
            forget_early_order(self._loader)
            self.begin_epoch()
            return iter(self._loader) if self._replay else self._watched()
        # Also for a loader with state: its sampler may have none, and draw the epoch's order anew.
        self.replay_epoch()
        if self._replay:
            place = self._position
            return self.skip(self._loader, place.batch, epoch=place.epoch)
        return self._go_on()

    def _go_on(self) -> Iterator[Any]:
        """Open a loader with state in the middle of an epoch, with the order that the epoch had."""
        # isinstance would take accelerate's for a DataLoader; they begin the next epoch, where torchdata's say the end.
        if self._position.batch == length_of(self._loader) and not issubclass(type(self._loader), DataLoader):
            return self._after_the_last()
        iterator, has_order = begin(self._loader, self._numbers, epoch=self._position.epoch)
        with before_ahead(self._loader, self.catch_up):
            first = [next(iterator, _END)] if self._draws_late and not has_order else []
        self.catch_up()
        return chain((batch for batch in first if batch is not _END), iterator)

    def _after_the_last(self) -> Iterator[Any]:
        """Open a loader with state whose epoch is done: it says so, or its state is the beginning of the next epoch."""
        loader: Any = self._loader
        state = copy.deepcopy(loader.state_dict())
        if next(iter(loader), _END) is _END:
            self.catch_up()
            return iter(())
        loader.load_state_dict(state)
        self._position.epoch, self._position.batch = self._position.epoch + 1, 0
        set_epoch(loader, self._position.epoch)
        return self._open()

    def _watched(self) -> Iterator[Any]:
        """The batches of a whole epoch of a loader with state; see when it draws its order."""
        drawn = [self._mark()]
        iterator = iter(self._loader)
        drawn.append(self._mark())
        for number in count():
            before = self._mark() if number < _LOOKED_AT else None
            batch = next(iterator, _END)
            if before is not None:
                drawn += [before, self._mark()]
                self._draws_late = _draws_late(drawn)
            if batch is _END:
                return
            yield batch

    def _mark(self) -> rng.Mark:
        return self._numbers.mark()


def _draws_late(marks: Sequence[rng.Mark]) -> bool:
    """Judge by pairs of marks: around the opening of an epoch, around its first batch, and around its second.

    With a second batch that draws nothing, all that is drawn for the first one belongs to the epoch. A loader that
    draws for each batch, and for the first no more than for the second, has no order.
    """
    opened, first, *more = (after.drawn_since(before) for before, after in zip(marks[::2], marks[1::2], strict=True))
    is_open, is_drawn = _any(opened), _any(first)
    if not any(map(_any, more)):
        return bool(more) or not is_open
    is_late = is_drawn and not is_open and first not in more
    if is_late:
        logger.warning(
            "loader: it draws the order of an epoch and random numbers for each batch in one generator function, so "
            "after a resume in the middle of an epoch the first batch has others; seed them by epoch and index"
        )
    return is_late


def _any(drawn: Iterable[tuple[bool, int]]) -> bool:
    return any(moved for moved, _ in drawn)


def length_of(loader: Iterable[Any]) -> int | None:
    """Return the number of batches of an epoch; None if the loader does not know it.

    A sampler may draw the order of an epoch to count it, and draws it again in the epoch.
    """
    try:
        with rng.unmoved():
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


def _generators_in(loaders: Iterable[object]) -> list[torch.Generator]:
    return [generator for loader in loaders for generator in generators_of(loader)]


def set_epoch(loader: object, epoch: int) -> None:
    """Tell a DistributedSampler, or whoever asks for it, which epoch it is."""
    for owner in _samplers(loader):
        if callable(tell := getattr(owner, "set_epoch", None)):
            tell(epoch)


def _samplers(loader: object) -> list[object]:
    """Return the loader and those samplers that torch's own epochs know: others may have epochs of their own."""
    return [part for name, part in parts_of(loader).items() if name in TOLD]
