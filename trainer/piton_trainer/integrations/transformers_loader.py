"""The epoch that transformers resumes in the middle, at the moment at which the save was.

At a save a loader of accelerate's has read one batch more than it has given. On a resume transformers asks it for all
batches of a step before any callback hears of that, so the random numbers of the save, and what samplers remembered
then, have to be put back while the loader reads. It must not know sessions.
"""

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


@contextmanager
def begins_in_epoch(trainer: Any, saved: Mapping[str, Any]) -> Iterator[None]:
    """Have transformers begin in the epoch of a stream that the save was in, not in the first one."""
    original = getattr(trainer, "_init_training_state", None)
    if original is None:
        yield
        return

    def begin(max_steps: int, steps_per_epoch: int, *args: Any, **kwargs: Any) -> Any:
        place = original(max_steps, steps_per_epoch, *args, **kwargs)
        has_length = steps_per_epoch != max_steps
        if has_length or trainer.args.ignore_data_skip:
            return place
        return _place_in_stream(saved, trainer.args.gradient_accumulation_steps) or place

    trainer._init_training_state = begin  # noqa: SLF001
    try:
        yield
    finally:
        del trainer._init_training_state  # noqa: SLF001


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
        rest, numbers = original(loader, num_batches), randomness()
        if numbers is None or loader is not trainer.callback_handler.train_dataloader:
            return rest
        return ResumedEpoch(loader, rest, num_batches, numbers, int(trainer.state.epoch))

    module.skip_first_batches = skip
    try:
        yield
    finally:
        module.skip_first_batches = original


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
