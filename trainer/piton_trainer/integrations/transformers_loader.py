"""The epoch that transformers resumes in the middle, at the moment at which the save was.

At a save a loader of accelerate's has read one batch more than it has given. On a resume transformers asks it for all
batches of a step before any callback hears of that, so the random numbers of the save, and what samplers remembered
then, have to be put back while the loader reads. It must not know sessions.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import transformers.trainer
from torch.utils.data import DataLoader

from piton_trainer.state.batch_skipping import after_batches, has_state, unknown_place, without_accelerate
from piton_trainer.state.data_position import Randomness

_NEAR = 1e-3
"""Distance that a fraction of an epoch may have from a number of steps."""


class EpochPlace:
    """The epoch that a training is in, and the step at which that began.

    transformers knows the number of steps only, and takes it for that of whole epochs: as if no callback had ended one
    early, and no stream before its `max_steps`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._steps_per_epoch = 0
        self._number, self._began_at = -1, 0
        self._next = 0
        self.is_over = False
        """True if nothing of the epoch is left to train."""

    def begin_epoch(self) -> None:
        """See that the next epoch begins, or what is left of it."""
        self._number, self._next, self.is_over = self._next, self._next + 1, False

    def end_epoch(self) -> None:
        """See that the epoch ends, for whatever reason."""
        self.is_over = True
        self._began_at = self._trainer.state.global_step

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the epoch that goes on, the step at which it began, and how many it should have."""
        number = self._next if self.is_over else self._number
        return {"number": number, "began_at": self._began_at, "steps": self._steps_per_epoch}

    @contextmanager
    def resumes(self, saved: Mapping[str, Any] | None, known: Mapping[str, Any] | None) -> Iterator[None]:
        """Have transformers begin where the save was.

        Args:
            saved: the account of transformers; None in a first attempt.
            known: what `state_dict` gave; None from earlier trainers.
        """
        trainer = self._trainer
        original = getattr(trainer, "_init_training_state", None)
        if original is None:
            yield
            return

        def begin(max_steps: int, steps_per_epoch: int, *args: Any, **kwargs: Any) -> Any:
            place = original(max_steps, steps_per_epoch, *args, **kwargs)
            self._steps_per_epoch = steps_per_epoch
            if saved is not None:
                place = self._place(saved, known, has_length=steps_per_epoch != max_steps) or place
            self._next = place[0]
            self._began_at = trainer.state.global_step - place[1] // trainer.args.gradient_accumulation_steps
            return place

        trainer._init_training_state = begin  # noqa: SLF001
        try:
            yield
        finally:
            del trainer._init_training_state  # noqa: SLF001

    def _place(
        self, saved: Mapping[str, Any], known: Mapping[str, Any] | None, *, has_length: bool
    ) -> tuple[int, int] | None:
        """Return the epoch and the number of its batches that are done; None where transformers is right."""
        args = self._trainer.args
        if not has_length and args.ignore_data_skip:
            return None
        if known is None:
            return None if has_length else _place_in_stream(saved, args.gradient_accumulation_steps)
        if has_length and known["steps"] != self._steps_per_epoch:
            return None  # other data, or another number of ranks
        self.is_over = known["began_at"] == saved["global_step"]
        batches = (saved["global_step"] - known["began_at"]) * args.gradient_accumulation_steps
        return known["number"], 0 if args.ignore_data_skip else batches


def _place_in_stream(saved: Mapping[str, Any], accumulate: int) -> tuple[int, int] | None:
    """Return the epoch, and how many of its batches were done; None in the first epoch, where transformers is right.

    It takes `max_steps` for the length of an epoch, and would skip all steps of the run in one. The fraction of the
    epoch that it saves is by that length, too.
    """
    epoch, share = divmod(float(saved["epoch"] or 0), 1)
    steps = share * saved["max_steps"]
    is_whole = abs(steps - round(steps)) < _NEAR
    return (int(epoch), round(steps) * accumulate) if epoch and is_whole else None


@contextmanager
def resumes_exactly(trainer: Any, *, randomness: Callable[[], Randomness | None]) -> Iterator[None]:
    """Have transformers begin where the save was when it skips batches of this trainer's loader.

    `randomness` returns the random numbers of the run. Dispatched batches are read by one rank for all.
    """
    module: Any = transformers.trainer
    original = module.skip_first_batches

    def skip(loader: Any, num_batches: int = 0) -> Any:
        numbers = randomness()
        if _goes_its_own_way(loader):
            return ReadOn(loader, num_batches, numbers)
        rest = original(loader, num_batches)
        if numbers is None or loader is not trainer.callback_handler.train_dataloader:
            return rest
        return ResumedEpoch(loader, rest, num_batches, numbers, int(trainer.state.epoch))

    module.skip_first_batches = skip
    try:
        yield
    finally:
        module.skip_first_batches = original


def _goes_its_own_way(loader: Any) -> bool:
    """True for a loader without state that accelerate would replace: it knows the dataset and the sampler only."""
    if has_state(loader):
        return False
    kind: Any = type(loader)
    return not isinstance(loader, DataLoader) or (
        not hasattr(loader, "base_dataloader") and kind.__iter__ is not DataLoader.__iter__
    )


class ReadOn:
    """The rest of an epoch of any loader: the batches that are done are read again, and left out."""

    def __init__(self, loader: Any, batches: int, randomness: Randomness | None) -> None:
        self._loader = loader
        self._batches = batches
        self._randomness = randomness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        deque(islice(batches, self._batches), maxlen=0)
        if self._randomness is not None:
            self._randomness.catch_up()
        yield from batches


class ResumedEpoch:
    """The rest of an epoch. It looks like the whole loader, since transformers tells that the epoch."""

    def __init__(self, loader: Any, rest: Any, batches: int, randomness: Randomness, epoch: int) -> None:
        """`rest` is the loader that transformers would have; so many batches are skipped."""
        self._loader = loader
        self._rest = rest
        self._batches = batches
        self._randomness = randomness
        self._epoch = epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        loader, rest = self._loader, self._rest
        kind: Any = type(without_accelerate(loader))
        if kind.__iter__ is DataLoader.__iter__ and not has_state(loader) and unknown_place(loader) is None:
            return self._randomness.skip(loader, self._batches, epoch=self._epoch)
        if not hasattr(rest, "base_dataloader"):
            return iter(rest)
        if hasattr(rest, "set_epoch"):
            rest.set_epoch(loader.iteration)  # it would tell the sampler of an earlier one
        with after_batches(rest.base_dataloader, self._read_before(), self._randomness.catch_up):
            batches = iter(rest)
            first = list(islice(batches, 1))  # by now the method that is replaced has been called
        return chain(first, batches)

    def _read_before(self) -> int:
        """Return how many batches the loader inside accelerate's has been asked for at the save."""
        rest = self._rest
        if not hasattr(rest, "gradient_state") or not hasattr(rest, "set_epoch"):
            return self._batches  # one for plain streams gives each batch as it comes
        skipped = self._batches if getattr(rest, "skip_batches", 0) else 0
        is_dispatched = hasattr(rest, "split_batches") and not rest.split_batches
        return (skipped + 1) * (rest.state.num_processes if is_dispatched else 1)
