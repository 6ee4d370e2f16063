"""An epoch of a loader without state, from the middle on: by index, never by loading what is skipped.

A DataLoader over a map-style dataset runs its sampler up to the batch and takes the indices that follow. What Python
itself would go through by index (a list, a range, a tensor, a class with `__getitem__` and without `__iter__`) begins
at that item. With anything else, such as a stream or a loader around a loader, nobody can know which data a batch was.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import isgeneratorfunction
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from piton_trainer.errors import BadConfig

RESTART_EPOCH = "restart_epoch"
"""The way out: at each resume the epoch under way is begun anew."""
_CURE = (
    "use torchdata's StatefulDataLoader, give session.steps the loader inside it, give it state_dict and "
    f'load_state_dict, or say session.steps(loader, on_resume="{RESTART_EPOCH}"), which begins the epoch under way anew'
)


def has_state(loader: object) -> bool:
    """True if a loader says its place by itself. One of accelerate's only passes on what the loader inside it says."""
    inside = getattr(loader, "base_dataloader", loader)
    return hasattr(inside, "state_dict") and hasattr(inside, "load_state_dict")


def unknown_place(loader: Iterable[Any]) -> str | None:
    """Return why a stateless loader cannot be resumed in the middle of an epoch; None if it can.

    A DataLoader whose `__iter__` is a generator may leave out batches, read ahead, or share them out among ranks.
    """
    if _has_indices(loader) and not (isinstance(loader, DataLoader) and isgeneratorfunction(type(loader).__iter__)):
        return None
    return f"loader: a {type(loader).__name__} like this cannot be resumed in the middle of an epoch: {_CURE}"


def caveat(loader: Iterable[Any]) -> str | None:
    """Return the limits of a resume in the middle of an epoch with a loader that has indices; None without any."""
    if isinstance(loader, DataLoader) and loader.num_workers:
        return (
            "a resume passes over the batches that are done without loading them: random augmentation in worker "
            "processes is not repeated exactly, unless it is seeded by epoch and index"
        )
    return None


def iterate_from(loader: Iterable[Any], batch: int, *, before: Callable[[], None] | None = None) -> Iterator[Any]:
    """The batches of an epoch after so many.

    Args:
        loader: a DataLoader, or a sequence of batches.
        batch: how many are skipped.
        before: called whenever the loader is about to begin with its sampler.

    Raises:
        BadConfig: only loading could tell which batches are left.
    """
    if isinstance(loader, DataLoader) and _has_indices(loader):
        return _iterate_loader(loader, batch, before)
    if _has_indices(loader):
        rows: Any = loader
        return (rows[number] for number in range(batch, len(rows)))
    raise _refusal(loader, batch)


def begin(loader: Iterable[Any]) -> tuple[Iterator[Any], bool]:
    """Begin an epoch of a loader with state; return its batches, and True if its sampler draws the order now.

    torchdata has a sampler without state draw only when the first batch is asked for.
    """
    sampler = vars(loader).get(_sampler_name(loader)) if isinstance(loader, DataLoader) else None
    if sampler is None or hasattr(sampler, "load_state_dict"):
        return iter(loader), False
    order = _Order(sampler)
    iterator = _iterate_with(loader, order)
    return iterator, order.draw()


def _iterate_loader(loader: DataLoader[Any], batch: int, before: Callable[[], None] | None) -> Iterator[Any]:
    indices = _Indices(vars(loader)[_sampler_name(loader)], skip=batch, before=before)
    iterator = _iterate_with(loader, indices)
    if not indices.is_begun:
        raise _refusal(loader, batch)
    indices.skip()
    return iterator


def _iterate_with(loader: Iterable[Any], sampler: object) -> Iterator[Any]:
    """Begin with the loader's own workers, seeds and settings; only its sampler is another one meanwhile."""
    name, own = _sampler_name(loader), vars(loader)  # a DataLoader refuses to have its sampler set
    before, own[name] = own[name], sampler
    try:
        return iter(loader)
    finally:
        own[name] = before


def _sampler_name(loader: Any) -> str:
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


class _Order:
    """A sampler without state, for a loader of torchdata that skips what is done of it.

    torchdata asks once more for the order than in an epoch that it begins, and skips in that one. So the order is the
    one before; and it is drawn when it is told so, not when the first index is asked for.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._sampler = sampler
        self._orders: list[Iterator[Any]] = []
        self._first: list[Any] = []
        self._has_begun = False

    def __iter__(self) -> Iterator[Any]:
        order = iter(self._sampler)
        if hasattr(order, "load_state_dict"):
            return order
        self._orders.append(order)
        return self._indices()

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]

    def draw(self) -> bool:
        """Draw the order: most samplers do so with their first index. True if there is one to draw."""
        if self._orders and not self._has_begun:
            self._first = list(islice(self._orders[-2:][0], 1))
        return bool(self._orders)

    def _indices(self) -> Iterator[Any]:
        self._has_begun = True
        yield from self._first
        yield from self._orders[-2:][0]


class _Indices:
    """A sampler that skips its first indices, once."""

    def __init__(self, sampler: Iterable[Any], *, skip: int, before: Callable[[], None] | None) -> None:
        self._sampler = sampler
        self._left = skip
        self._before = before
        self._newest: Iterator[Any] | None = None

    @property
    def is_begun(self) -> bool:
        """True if anybody has asked for an index."""
        return self._newest is not None

    def __iter__(self) -> Iterator[Any]:
        # With workers, torch does this twice, and uses the second one. With persistent workers it does it every epoch.
        if self._before is not None:
            self._before()
        self._newest = iter(self._sampler)
        return self._rest(self._newest)

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]

    def skip(self) -> None:
        """Skip what is left to skip. Samplers draw random numbers with their first index: now is the time for that."""
        left, self._left, self._before = self._left, 0, None
        if self._newest is not None:
            deque(islice(self._newest, left), maxlen=0)

    def _rest(self, indices: Iterator[Any]) -> Iterator[Any]:
        self.skip()
        yield from indices


def _has_indices(loader: Iterable[Any]) -> bool:
    if isinstance(loader, DataLoader):
        return not isinstance(loader.dataset, IterableDataset)
    if isinstance(loader, Sequence) or hasattr(loader, "__array__"):
        return True
    return all(hasattr(loader, name) for name in ("__getitem__", "__len__")) and not hasattr(loader, "__iter__")


def _refusal(loader: Iterable[Any], batch: int) -> BadConfig:
    return BadConfig(
        f"loader: the checkpoint is in the middle of an epoch, after batch {batch}, and a {type(loader).__name__} like "
        f"this cannot go on from there without loading everything before it: {_CURE}"
    )
