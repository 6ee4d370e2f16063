"""An epoch of a loader without state, from the middle on: by index, never by loading what is skipped.

A DataLoader over a map-style dataset runs its sampler up to the batch and takes the indices that follow. What Python
itself would go through by index (a list, a range, a tensor, a class with `__getitem__` and without `__iter__`) begins
at that item. With anything else, such as a stream or a loader around a loader, nobody can know which data a batch was.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import isgeneratorfunction
from itertools import chain, islice
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from piton_trainer.errors import BadConfig

if TYPE_CHECKING:  # it knows samplers, and they know which loaders have a state
    from piton_trainer.state.rng import RandomNumbers

RESTART_EPOCH = "restart_epoch"
"""The way out: at each resume the epoch under way is begun anew."""
_CURE = (
    "use torchdata's StatefulDataLoader, give session.steps the loader inside it, give it state_dict and "
    f'load_state_dict, or say session.steps(loader, on_resume="{RESTART_EPOCH}"), which begins the epoch under way anew'
)


def has_state(loader: object) -> bool:
    """True if a loader says its place by itself. One of accelerate's only passes on what the loader inside it says."""
    inside = without_accelerate(loader)
    return hasattr(inside, "state_dict") and hasattr(inside, "load_state_dict")


def unknown_place(loader: Iterable[Any]) -> str | None:
    """Return why a stateless loader cannot be resumed in the middle of an epoch; None if it can.

    A DataLoader whose `__iter__` is a generator may leave out batches, read ahead, or share them out among ranks.
    """
    inside = _read_ahead(loader)
    kind: Any = type(loader if inside is None else inside)
    if _has_indices(loader) and not (isinstance(loader, DataLoader) and isgeneratorfunction(kind.__iter__)):
        return None
    return f"loader: a {type(loader).__name__} like this cannot be resumed in the middle of an epoch: {_CURE}"


def caveat(loader: Iterable[Any]) -> str | None:
    """Return the limits of a resume in the middle of an epoch with a loader that has indices; None without any."""
    if isinstance(loader, DataLoader) and loader.num_workers:
        return (
            "a resume passes over the batches that are done without loading them: random augmentation in worker "
            "processes is not repeated exactly, nor what follows from counts in them, unless it is seeded by epoch and "
            "index"
        )
    if _read_ahead(loader) is not None:
        return (
            f"a {type(loader).__name__} reads a batch ahead: random augmentation of the first batch after a resume is "
            "not repeated exactly, nor what follows from counts in it, unless it is seeded by epoch and index"
        )
    return None


def iterate_from(loader: Iterable[Any], batch: int, numbers: "RandomNumbers", *, epoch: int) -> Iterator[Any]:
    """The batches of an epoch after so many.

    Args:
        loader: a DataLoader, or a sequence of batches.
        batch: how many are skipped.
        numbers: as they were when the epoch began.
        epoch: counted from 0.

    Raises:
        BadConfig: only loading could tell which batches are left.
    """
    if unknown_place(loader) is not None:
        raise _refusal(loader, batch)
    if isinstance(loader, DataLoader):
        return _iterate_loader(loader, batch, numbers, epoch)
    rows: Any = loader
    return (rows[number] for number in range(batch, len(rows)))


def begin(loader: Iterable[Any], numbers: "RandomNumbers", *, epoch: int) -> tuple[Iterator[Any], bool]:
    """Go on in the middle of an epoch with a loader that has state, as `iterate_from` without any.

    Returns the batches, and True if a sampler of the user's has drawn its order by now: torchdata has one without state
    draw only when the first batch is asked for.
    """
    inside: Any = without_accelerate(loader)
    if not isinstance(inside, DataLoader) or isinstance(inside.dataset, IterableDataset):
        return iter(loader), False
    sampler: Any = vars(inside)[_sampler_name(inside)]
    if sampler is None or hasattr(sampler, "load_state_dict"):
        return iter(loader), False
    start = numbers.capture() if _has_workers_already(inside, epoch) else None
    asks = 1 if start is not None or not inside.num_workers else 2
    order = _Order(sampler, numbers, asks=asks, start=start)
    with _indices_as_before(sampler, numbers, asks=asks, start=start), _sampler_of(inside, order):
        iterator = iter(loader)
    has_order = order.draw()
    order.end()
    return iterator, has_order


def forget_early_order(loader: object) -> None:
    """Have a loader of torchdata draw the order of the epoch when that begins, as in every other epoch.

    One that was asked for its state before its first epoch, as accelerate does, has begun that epoch by then. Where the
    script has loaded a place, that order belongs to it.
    """
    inside: Any = without_accelerate(loader)
    if getattr(inside, "_initial_iter_for_state_dict", False) and not inside._iterator._num_yielded:  # noqa: SLF001
        inside._initial_iter_for_state_dict, inside._iterator = False, None  # noqa: SLF001


@contextmanager
def before_ahead(loader: object, call: Callable[[], None]) -> Iterator[None]:
    """Call this before a loader of accelerate's reads its second batch, which it reads ahead of the first one.

    It draws what that batch needs, and the end of the sampler, from the random numbers of the save.
    """
    inside = _read_ahead(loader)
    with nullcontext() if inside is None else after_batches(inside, 1, call):
        yield


@contextmanager
def after_batches(inside: Any, number: int, call: Callable[[], None]) -> Iterator[None]:
    """Call this before a loader inside one of accelerate's is asked for a batch after so many."""

    def read() -> Iterator[Any]:
        batches = type(inside).__iter__(inside)
        yield from islice(batches, number)
        call()
        yield from batches

    vars(inside)["__iter__"] = read  # accelerate calls this method by its name
    try:
        yield
    finally:
        del vars(inside)["__iter__"]


def reads_ahead(loader: object) -> bool:
    """True for a loader of accelerate's that has read a batch more than it has given."""
    return _read_ahead(loader) is not None


def without_accelerate(loader: object) -> object:
    """Return the loader that one of accelerate's passes on; any other as it is."""
    return getattr(loader, "base_dataloader", loader)


def _read_ahead(loader: object) -> object | None:
    """Return the loader inside one of accelerate's that reads one batch ahead; None for any other loader.

    A dispatcher of accelerate's reads several batches for the ranks, and one with batches to skip has skipped them by
    its first batch.
    """
    inside = without_accelerate(loader)
    is_other = inside is loader or hasattr(loader, "split_batches") or getattr(loader, "skip_batches", False)
    return None if is_other else inside


def _has_workers_already(loader: DataLoader[Any], epoch: int) -> bool:
    """True if the epoch was begun with the workers of the one before.

    Workers are started with a random number, which such an epoch does not draw, and a resume does.
    """
    return epoch > 0 and loader.num_workers > 0 and loader.persistent_workers


def _iterate_loader(loader: DataLoader[Any], batch: int, numbers: "RandomNumbers", epoch: int) -> Iterator[Any]:
    start = numbers.capture() if _has_workers_already(loader, epoch) else None
    again = None if start is None else partial(numbers.restore, start)
    inside: Any = without_accelerate(loader)
    indices = _Indices(vars(inside)[_sampler_name(inside)], skip=batch, before=again)
    with _sampler_of(inside, indices):
        iterator = iter(loader)
        first = [] if inside is loader else list(islice(iterator, 1))  # one of accelerate's begins with its first batch
    if not indices.is_begun:
        raise _refusal(loader, batch)
    indices.skip()
    return chain(first, iterator)


@contextmanager
def _indices_as_before(batch_sampler: Any, numbers: "RandomNumbers", *, asks: int, start: Any) -> Iterator[None]:
    """Have torchdata's batch sampler get the indices that it got when the epoch began. It asks its sampler itself."""
    sampler = vars(batch_sampler).get("sampler") if hasattr(batch_sampler, "__dict__") else None
    if sampler is None or hasattr(sampler, "load_state_dict"):
        yield
        return
    batch_sampler.sampler = order = _SameOrder(sampler, numbers, asks=asks, start=start)
    try:
        yield
    finally:
        batch_sampler.sampler = sampler
        order.end()


@contextmanager
def _sampler_of(loader: DataLoader[Any], sampler: object) -> Iterator[None]:
    """Let a loader have this sampler for a while: workers, seeds and settings stay its own."""
    name, own = _sampler_name(loader), vars(loader)  # a DataLoader refuses to have its sampler set
    before, own[name] = own[name], sampler
    try:
        yield
    finally:
        own[name] = before


def _sampler_name(loader: Any) -> str:
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


class _SameOrder:
    """A sampler without state, which gives the order that it gave when the epoch began, however often it is asked.

    torchdata asks for the order once when an epoch begins, and twice with workers; at a resume it asks further times,
    and takes the last answer. A sampler that draws when it is asked would have drawn another order by then.
    """

    def __init__(self, sampler: Iterable[Any], numbers: "RandomNumbers", *, asks: int, start: Any) -> None:
        """Give the order of a sampler that was asked so often when the epoch began.

        `start` has the random numbers that each order begins with; None where they are those of the moment.
        """
        self._sampler = sampler
        self._numbers = numbers
        self._asks_left = asks
        self._start = start
        self._before: Any = None
        self._is_over = False

    def end(self) -> None:
        """Be no more than the sampler: persistent workers keep asking this object in later epochs."""
        self._is_over = True

    def __iter__(self) -> Iterator[Any]:
        if self._is_over:
            return iter(self._sampler)
        if self._start is not None:
            self._numbers.restore(self._start)
            return iter(self._sampler)
        now = self._numbers.capture()
        if self._asks_left == 0 and self._before is not None:
            self._numbers.restore(self._before)
            order = iter(self._sampler)
            self._numbers.restore(now)
            return order
        place = self._numbers.place()
        order = iter(self._sampler)
        self._before = now if self._numbers.place() != place else None
        self._asks_left = max(0, self._asks_left - 1)
        return order

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]


class _Order(_SameOrder):
    """The same, of a sampler that torchdata asks itself. It draws when it is told so, not with the first index."""

    def __init__(self, sampler: Iterable[Any], numbers: "RandomNumbers", *, asks: int, start: Any) -> None:
        super().__init__(sampler, numbers, asks=asks, start=start)
        self._newest: Iterator[Any] | None = None
        self._first: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        order = super().__iter__()
        if self._is_over or hasattr(order, "load_state_dict"):
            return order
        self._newest = order
        return self._indices(order)

    def draw(self) -> bool:
        """Draw the order: most samplers do so with their first index. True if there is one to draw."""
        if self._newest is not None:
            self._first_of(self._newest)
        return self._newest is not None

    def _indices(self, order: Iterator[Any]) -> Iterator[Any]:
        yield from self._first_of(order)
        yield from order

    def _first_of(self, order: Iterator[Any]) -> list[Any]:
        if self._first is None:
            if self._start is not None:
                self._numbers.restore(self._start)
            self._first = list(islice(order, 1))
        return self._first


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
    if isinstance(loader, Sequence):
        own = type(loader).__iter__
        return own is Sequence.__iter__ or not isinstance(own, FunctionType)  # what the user has written may reorder
    if hasattr(loader, "__array__"):
        return True
    return all(hasattr(loader, name) for name in ("__getitem__", "__len__")) and not hasattr(loader, "__iter__")


def _refusal(loader: Iterable[Any], batch: int) -> BadConfig:
    return BadConfig(
        f"loader: the checkpoint is in the middle of an epoch, after batch {batch}, and a {type(loader).__name__} like "
        f"this cannot go on from there without loading everything before it: {_CURE}"
    )
