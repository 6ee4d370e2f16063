"""Values that the memory of a sampler is made of, and how a checkpoint holds them.

Numbers, texts, and rows of numbers: lists, tuples, arrays of numpy, tensors. Those of other types have more to them
than their numbers, so they are not touched.
"""

import sys
from array import array
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_ROW_MAX = 2**24
"""Numbers in a row that is looked at: to compare a longer one takes too long for a save."""
_SCALARS = frozenset({type(None), bool, int, float, str})
_ARRAYS = frozenset({"|b1", "|u1", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8"})
"""Types of arrays that torch has too, as numpy spells them on the machines that we know."""
_ARRAY, _LIST, _TUPLE = "array", "list", "tuple"
"""Keys of the numbers of an array of numpy, and of a list and a tuple that are long."""
_SHORT = 64
_EXACT = {int: ("q", torch.int64), float: ("d", torch.float64)}
"""Types of arrays and of tensors that numbers go into and come back from unchanged."""


def is_plain(value: Any) -> bool:
    """True for a number, a text, or a row of numbers, of the plain types: those of others have more to them."""
    if type(value) in _SCALARS:
        return True
    if type(value) in (list, tuple):
        return len(value) <= _ROW_MAX and set(map(type, value)) <= {bool, int, float}
    if type(value) is Tensor:
        is_row = value.device.type == "cpu" and value.ndim == 1 and value.layout is torch.strided
        return is_row and not value.requires_grad and len(value) <= _ROW_MAX
    return _is_array(value) and value.ndim == 1 and value.dtype.str in _ARRAYS and len(value) <= _ROW_MAX


def may_be_shared(value: Any) -> bool:
    """True for a plain value that changes in place, so that others may hold it too."""
    return isinstance(value, list | Tensor) or _is_array(value)


def copy_of(value: Any) -> Any:
    """Return a value of its own: a sampler may change its rows in place."""
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if _is_array(value) else list(value) if isinstance(value, list) else value


def packed(value: Any) -> Any:
    """Return a copy as a checkpoint holds it: long rows as tensors."""
    if _is_array(value):
        return {_ARRAY: torch.from_numpy(value.copy())}
    if isinstance(value, list | tuple) and (numbers := _exact(value)) is not None:
        return {_LIST if isinstance(value, list) else _TUPLE: numbers}
    return copy_of(value)


def unpacked(saved: Any) -> Any:
    """Return the value that was packed."""
    if not isinstance(saved, dict):
        return saved
    ((kind, numbers),) = saved.items()
    if kind == _ARRAY:
        return numbers.numpy()
    return tuple(numbers.tolist()) if kind == _TUPLE else numbers.tolist()


def is_same(value: Any, other: Any) -> bool:
    """True if both are of one type and have the same numbers."""
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    if _is_array(value):
        return value.dtype == other.dtype and value.shape == other.shape and bool((value == other).all())
    return bool(value == other)


def digest(value: Any) -> int:
    """Return a number that is another one when the value is."""
    if isinstance(value, Tensor):
        return digest(value.numpy()) if "numpy" in sys.modules else hash((str(value.dtype), *value.tolist()))
    if _is_array(value):
        return hash((value.dtype.str, value.shape, value.tobytes()))
    return hash((type(value), tuple(value) if isinstance(value, list) else value))


def fill(holder: Any, value: Any) -> bool:
    """Give a list, an array or a tensor the numbers of another one; False if it cannot have them."""
    if type(holder) is not type(value):
        return False
    if isinstance(holder, list):
        holder[:] = copy_of(value)
        return True
    if not may_be_shared(holder) or holder.dtype != value.dtype or holder.shape != value.shape:
        return False
    with suppress(RuntimeError, ValueError):  # it is read-only, or one number of it is several
        if isinstance(holder, Tensor):
            holder.copy_(value)
        else:
            holder[...] = value
        return True
    return False


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def _exact(row: list[Any] | tuple[Any, ...]) -> Tensor | None:
    """Return the numbers of a long row, which can be made of them again; None for any other row."""
    kinds = set(map(type, row)) if len(row) > _SHORT else set()
    for code, dtype in (_EXACT[kind] for kind in kinds if len(kinds) == 1 and kind in _EXACT):
        with suppress(OverflowError):  # a number that is too large
            return torch.frombuffer(array(code, row), dtype=dtype)  # twice as fast as torch.tensor
    return None
