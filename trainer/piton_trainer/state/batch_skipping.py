"""An epoch of a loader without state, from the middle on: by index, never by loading what is skipped.

A DataLoader over a map-style dataset runs its sampler up to the batch and takes the indices that follow. A sequence (a
list, a range) begins at that item. With anything else, only going through the data would tell where it goes on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from piton_trainer.errors import BadConfig

_CURE = "use torchdata's StatefulDataLoader, or give the loader state_dict and load_state_dict"


def caveat(loader: Iterable[Any]) -> str | None:
    """Return the limits of a resume in the middle of an epoch with a stateless loader; None without any."""
    if not _has_indices(loader):
        return f"a {type(loader).__name__} like this cannot be resumed in the middle of an epoch: {_CURE}"
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
    if isinstance(loader, Sequence):
        return (loader[number] for number in range(batch, len(loader)))
    raise _refusal(loader, batch)


def begin(loader: Iterable[Any]) -> Iterator[Any]:
    """Begin an epoch of a loader with state, whose sampler draws the order now; return its batches.

    torchdata has a sampler without state draw only when the first batch is asked for.
    """
    sampler = vars(loader).get(_sampler_name(loader)) if isinstance(loader, DataLoader) else None
    if sampler is None or hasattr(sampler, "load_state_dict"):
        return iter(loader)
    order = _Order(sampler)
    iterator = _iterate_with(loader, order)
    order.draw()
    return iterator


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

    def draw(self) -> None:
        """Draw the order: most samplers do so with their first index."""
        if self._orders and not self._has_begun:
            self._first = list(islice(self._orders[-2:][0], 1))

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
    return isinstance(loader, Sequence)


def _refusal(loader: Iterable[Any], batch: int) -> BadConfig:
    return BadConfig(
        f"the checkpoint is in the middle of an epoch, after batch {batch}, and a {type(loader).__name__} like this "
        f"cannot go on from there without loading everything before it: {_CURE}"
    )
