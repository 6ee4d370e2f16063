"""The shape of a rank's data, as far as its loader says: whether a resumed script still has the data of the save."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch.utils.data import DataLoader

from piton.contract import InputError
from piton_trainer.state.rng import unmoved

BATCH_SIZE, DATA_LENGTH = "batch_size", "data_length"


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Numbers that decide which data a batch of an epoch is made of; None: unknown, or not the same all the time."""

    batch_size: int | None = None
    data_length: int | None = None
    """Rows of an epoch on this rank, or batches where nobody knows rows."""

    @classmethod
    def of(cls, loaders: Iterable[object]) -> list[Self]:
        """Return the shapes of loaders. A loader that counts the data of all ranks together looks after itself."""
        return [
            cls()
            if getattr(loader, "position_is_global", False)
            else cls(batch_size=_size(loader), data_length=_rows(loader))
            for loader in loaders
        ]

    def to_document(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Parse what `to_document` made."""
        return cls(batch_size=document.get("batch_size"), data_length=document.get("data_length"))

    def steady_since(self, before: Self) -> Self:
        """Return this shape without what has changed since: data that changes while it is trained on tells nothing."""
        ours, theirs = asdict(self), asdict(before)
        return type(self)(**{name: value for name, value in ours.items() if value == theirs[name]})


def differences(now: DataShape, saved: DataShape) -> dict[str, tuple[int, int]]:
    """Return what both know and is not the same: its name, its value at the save and this one."""
    ours, theirs = asdict(now), asdict(saved)
    both = {name: (theirs[name], ours[name]) for name in ours if None not in (theirs[name], ours[name])}
    return {name: (then, this) for name, (then, this) in both.items() if then != this}


def allowed(allow: str | Collection[str]) -> frozenset[str]:
    """Return what is allowed to differ.

    Raises:
        ValueError: it is nothing that is compared.
    """
    names = frozenset([allow] if isinstance(allow, str) else allow)
    if unknown := sorted(names - {BATCH_SIZE, DATA_LENGTH}):
        raise InputError(f"allow: {unknown[0]!r} is not compared; write {BATCH_SIZE!r}, {DATA_LENGTH!r} or both")
    return names


def _size(loader: object) -> int | None:
    for owner in (loader, getattr(loader, "batch_sampler", None)) if isinstance(loader, DataLoader) else ():
        if isinstance(size := getattr(owner, "batch_size", None), int):
            return size
    return None


def _rows(loader: object) -> int | None:
    """Return the length of the sampler that an epoch of a DataLoader goes by, or of another loader."""
    if not isinstance(loader, DataLoader):
        return _length(loader)
    own = getattr(loader.batch_sampler, "sampler", None) if loader.batch_size is None else loader.sampler
    lengths = [_length(owner) for owner in (own, loader.dataset) if owner is not None]
    return next((length for length in lengths if length is not None), None)


def _length(owner: Any) -> int | None:
    try:
        with unmoved():
            return len(owner)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
