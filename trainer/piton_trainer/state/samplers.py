"""Memory of samplers from epoch to epoch: a count of them, a place, an order that is shuffled in place.

An epoch that is resumed is begun again, so a sampler has to be as it was when the epoch began, and once the batches
that are done are passed over, as it was at the save. Seen are attributes that are numbers, texts, or rows of numbers
(lists, arrays, tensors), as far as they are not as the script has made them, and those with a seed in their name, since
a script may draw one. Whatever else there is, of other types or deeper, is left alone.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from piton_trainer.state.batch_skipping import has_state
from piton_trainer.state.own_generators import parts_of

logger = logging.getLogger(__name__)

_ROW_MAX = 2**24
"""Numbers in a row that is looked at: to compare a longer one takes too long for a save."""
_SCALARS = frozenset({type(None), bool, int, float, str})
_ARRAYS = frozenset({"|b1", "|u1", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8"})
"""Types of arrays that torch has too, as numpy spells them on the machines that we know."""
_ARRAY, _LIST = "array", "list"
"""Keys of the numbers of an array of numpy, and of a list that is long."""
_SHORT = 64
_EXACT = {int: torch.int64, float: torch.float64}

Attributes = Mapping[str, Any]


class Samplers:
    """The samplers of loaders, by names that are the same in each attempt."""

    def __init__(self, loaders: Iterable[object] = (), made: Mapping[int, Attributes] | None = None) -> None:
        """`made` has attributes of samplers, by `id`, from before they were given a saved state."""
        self._samplers = dict(_samplers_of(loaders))
        self._made = {name: (made or {}).get(id(part)) or attributes(part) for name, part in self._samplers.items()}
        """As the script has made them."""
        self._told: set[str] = set()

    def capture(self) -> dict[str, dict[str, Any]]:
        """Return what is not as the script has made it, as JSON and tensors, by the names of the samplers."""
        found = {name: self._changed(name, part) for name, part in self._samplers.items()}
        return {name: changed for name, changed in found.items() if changed}

    def restore(self, memory: Mapping[str, Attributes]) -> None:
        """Make the samplers what they were at a capture."""
        for name, part in self._samplers.items():
            saved, made = {key: _unpacked(value) for key, value in memory.get(name, {}).items()}, self._made[name]
            for key in attributes(part).keys() - saved.keys():  # those that hold something else by now stay
                if key in made:
                    _put(part, key, made[key])
                else:
                    del vars(part)[key]
            for key, value in saved.items():
                if _is_seed(key) and not _is_same(made.get(key, value), value):
                    self._tell(f"{name}.{key}", value, made[key])
                _put(part, key, value)

    def _tell(self, name: str, saved: Any, made: Any) -> None:
        if name not in self._told:
            logger.warning(
                "loader: its %s is %s in the checkpoint and %s in the script; training goes on with the checkpoint's",
                name,
                saved,
                made,
            )
        self._told.add(name)

    def _changed(self, name: str, part: Any) -> dict[str, Any]:
        made = self._made[name]
        own = {key: value for key, value in vars(part).items() if _is_plain(value)}
        is_as_made = {key for key, value in own.items() if key in made and _is_same(value, made[key])}
        return {key: _packed(value) for key, value in own.items() if key not in is_as_made or _is_seed(key)}


def attributes(part: Any) -> dict[str, Any]:
    """Return copies of the attributes of a sampler that are seen."""
    return {key: _copy(value) for key, value in vars(part).items() if _is_plain(value)}


def may_be_sampler(value: object) -> bool:
    """True if an object that is restored by itself may also be a sampler."""
    return has_state(value) and hasattr(value, "__dict__") and hasattr(type(value), "__iter__")


def _samplers_of(loaders: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Yield each sampler once; not one with a state in a loader that has one too, of which it is a part."""
    known: list[object] = []
    for number, loader in enumerate(loaders):
        for name, part in parts_of(loader).items():
            if "sampler" not in name or not hasattr(part, "__dict__") or any(part is other for other in known):
                continue
            known.append(part)
            if not (has_state(part) and has_state(loader)):
                yield f"{number}.{name}" if number else name, part


def _is_seed(key: str) -> bool:
    return "seed" in key


def _is_plain(value: Any) -> bool:
    """True for a number, a text, or a row of numbers, of the plain types: those of others have more to them."""
    if type(value) in _SCALARS:
        return True
    if type(value) in (list, tuple):
        return len(value) <= _ROW_MAX and set(map(type, value)) <= {bool, int, float}
    if type(value) is Tensor:
        is_row = value.device.type == "cpu" and value.ndim == 1 and value.layout is torch.strided
        return is_row and not value.requires_grad and len(value) <= _ROW_MAX
    return _is_array(value) and value.ndim == 1 and value.dtype.str in _ARRAYS and len(value) <= _ROW_MAX


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def _copy(value: Any) -> Any:
    """Return a value of its own: a sampler may change its rows in place."""
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if _is_array(value) else list(value) if isinstance(value, list) else value


def _packed(value: Any) -> Any:
    """Return a copy as a checkpoint holds it: long rows as tensors."""
    if _is_array(value):
        return {_ARRAY: torch.from_numpy(value.copy())}
    kinds = set(map(type, value)) if isinstance(value, list) and len(value) > _SHORT else set()
    for kind, dtype in _EXACT.items():
        if kinds == {kind}:
            with suppress(OverflowError, RuntimeError, ValueError):  # a number that is too large
                return {_LIST: torch.tensor(value, dtype=dtype, device="cpu")}
    return _copy(value)


def _unpacked(saved: Any) -> Any:
    if isinstance(saved, dict):
        return saved[_LIST].tolist() if _LIST in saved else saved[_ARRAY].numpy()
    return saved


def _is_same(value: Any, other: Any) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    if _is_array(value):
        return value.dtype == other.dtype and value.shape == other.shape and bool((value == other).all())
    return bool(value == other)


def _put(part: Any, key: str, value: Any) -> None:
    """Set an attribute; a list in place, which others may hold too."""
    own = vars(part)
    if key in own and _is_same(own[key], value):
        return
    if isinstance(value, list) and type(own.get(key)) is list:
        own[key][:] = value
    else:
        own[key] = _copy(value)
