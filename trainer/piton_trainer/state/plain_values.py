"""Values that the memory of a sampler is made of, and how a checkpoint holds them.

Numbers, texts, and what is made of them: lists, tuples, dicts, arrays of numpy, tensors. Those of other types have more
to them than their numbers, so they are not touched.
"""

import math
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

_SIZE_MAX = 2**24
"""Numbers in a value that is looked at: to compare more takes too long for a save."""
_SMALL = 2**16
_PART_SIZE = 2**8
"""A part of a list or a dict that is looked at by itself counts as so many numbers."""
_DEEP = 4
"""Containers in containers that are looked at."""
_NUMBERS = frozenset({bool, int, float})
_SCALARS = _NUMBERS | {type(None), str}
_ARRAYS = frozenset({"|b1", "|u1", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8"})
"""Types of arrays that torch has too, as numpy spells them on the machines that we know."""
_ARRAY, _LIST, _TUPLE, _OF_NUMPY = "array", "list", "tuple", " of numpy"
"""Keys of the numbers of an array of numpy, and of a list and a tuple that are long."""
_ROWS, _LENGTHS, _KINDS = "rows", "lengths", "kinds"
"""Keys of all numbers of the rows in a list, how many there are in each, and the types of the list and of its rows."""
_DICT = "dict"
"""Key of a dict, which would look like one of the others."""
_SHORT = 64
_EXACT = {int: ("q", torch.int64), float: ("d", torch.float64)}
"""Types of arrays and of tensors that numbers go into and come back from unchanged."""


def is_plain(value: Any) -> bool:
    """True for numbers, texts, and what is made of them, of the plain types: those of others have more to them."""
    return _size(value, _DEEP) <= _SIZE_MAX


def is_small(value: Any) -> bool:
    """True for a plain value that is looked at in no time; data sets hold large ones, which seldom change."""
    if isinstance(value, list | tuple | dict):
        parts: Any = list(value.values()) if isinstance(value, dict) else value
        if len(value) > _SMALL or sum(len(part) for part in parts if isinstance(part, list | tuple | dict)) > _SMALL:
            return False
    return _size(value, _DEEP) <= _SMALL


def may_be_shared(value: Any) -> bool:
    """True for a plain value that changes in place, so that others may hold it too."""
    return isinstance(value, list | dict | Tensor) or is_array(value)


def is_array(value: object) -> bool:
    """True for an array of numpy, of no class of its own."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def copy_of(value: Any) -> Any:
    """Return a value of its own: a sampler may change its rows in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copy_of(item) for key, item in list(value.items())}
    if isinstance(value, list | tuple) and _has_containers(value):
        return type(value)(map(copy_of, value))
    return value.copy() if isinstance(value, list) or is_array(value) else value


def packed(value: Any) -> Any:
    """Return a copy as a checkpoint holds it: long rows as tensors."""
    if is_array(value):
        return {_ARRAY: torch.from_numpy(value.copy())}
    if isinstance(value, dict):
        return {_DICT: {key: packed(item) for key, item in list(value.items())}}
    if not isinstance(value, list | tuple):
        return copy_of(value)
    kinds = set(map(type, value))
    if len(kinds) == 1 and (found := _exact(value, *kinds)) is not None:
        return found
    if _are_rows(value, kinds):
        lengths = torch.frombuffer(array("q", map(len, value)), dtype=torch.int64)
        names = [type(value).__name__, *(kind.__name__ for kind in kinds)]
        return {_ROWS: packed(list(chain.from_iterable(value))), _LENGTHS: lengths, _KINDS: names}
    return copy_of(value) if all(map(_is_scalar, kinds)) else type(value)(map(packed, value))


def unpacked(saved: Any) -> Any:
    """Return the value that was packed."""
    if isinstance(saved, list | tuple):
        return type(saved)(map(unpacked, saved))
    if not isinstance(saved, dict):
        return saved
    if _DICT in saved:
        return {key: unpacked(item) for key, item in saved[_DICT].items()}
    if _ARRAY in saved:
        return saved[_ARRAY].numpy()
    if _ROWS in saved:
        kinds = [{_LIST: list, _TUPLE: tuple}[name] for name in saved[_KINDS]]
        numbers, ends = unpacked(saved[_ROWS]), accumulate(saved[_LENGTHS].tolist(), initial=0)
        return kinds[0](kinds[1](numbers[first:last]) for first, last in pairwise(ends))
    ((name, row),) = saved.items()
    found = list(row.numpy()) if name.endswith(_OF_NUMPY) else row.tolist()
    return tuple(found) if name.startswith(_TUPLE) else found


def is_same(value: Any, other: Any) -> bool:
    """True if both are of one type and have the same numbers."""
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    if is_array(value):
        return value.dtype == other.dtype and value.shape == other.shape and bool((value == other).all())
    if isinstance(value, dict):
        # Also the order of the keys: a sampler may go through them.
        return list(value) == list(other) and all(map(is_same, value.values(), other.values()))
    if isinstance(value, list | tuple) and (len(value) != len(other) or _has_parts(value)):
        return len(value) == len(other) and all(map(is_same, value, other))
    with suppress(RuntimeError, ValueError):  # the other one has arrays or tensors in it
        return bool(value == other)
    return False


def digest(value: Any) -> int:
    """Return a number that is another one when the value is."""
    if isinstance(value, Tensor):
        return digest(value.numpy()) if "numpy" in sys.modules else hash((str(value.dtype), repr(value.tolist())))
    if is_array(value):
        return hash((value.dtype.str, value.shape, value.tobytes()))
    if isinstance(value, dict):
        return hash((dict, *((key, digest(item)) for key, item in list(value.items()))))
    if isinstance(value, list | tuple) and _has_containers(value):
        return hash((type(value), *map(digest, value)))
    return hash((type(value), tuple(value) if isinstance(value, list) else value))


def fill(holder: Any, value: Any) -> bool:
    """Give a list, a dict, an array or a tensor what is in another one; False if it cannot have that."""
    if type(holder) is not type(value):
        return False
    if isinstance(holder, list):
        holder[:] = copy_of(value)
        return True
    if isinstance(holder, dict):
        holder.clear()
        holder.update(copy_of(value))
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


def _size(value: Any, deep: int) -> float:
    """Return how many numbers a value has; infinite if it is not plain."""
    kind = type(value)
    if kind is Tensor:
        is_seen = value.device.type == "cpu" and value.layout is torch.strided and not value.requires_grad
        return value.numel() if is_seen else math.inf
    if is_array(value):
        return value.size if value.dtype.str in _ARRAYS else math.inf
    if kind not in (list, tuple, dict):
        return 1 if _is_scalar(kind) else math.inf
    if kind is dict:
        are_names = all(type(key) in (int, str) for key in list(value))
        return _size_of_parts(list(value.values()), deep) if are_names else math.inf
    if len(value) > _SIZE_MAX:
        return math.inf
    kinds = set(map(type, value))
    if kinds <= _NUMBERS or all(map(_is_number, kinds)):
        return len(value)
    return sum(map(len, value)) + len(value) if _are_rows(value, kinds) else _size_of_parts(value, deep)


def _size_of_parts(values: Sequence[Any], deep: int) -> float:
    if not deep or _is_long(values):
        return math.inf
    return sum(_size(item, deep - 1) + _PART_SIZE for item in values)


def _are_rows(value: Sequence[Any], kinds: set[type]) -> bool:
    """True for a list of lists of numbers, or one with tuples."""
    if len(kinds) != 1 or not kinds <= {list, tuple} or sum(map(len, value)) > _SIZE_MAX:
        return False
    return all(map(_is_number, set(map(type, chain.from_iterable(value)))))


def _exact(row: list[Any] | tuple[Any, ...], kind: type) -> dict[str, Tensor] | None:
    """Return the numbers of a long row of one type, which can be made of them again; None for any other row."""
    name = _LIST if isinstance(row, list) else _TUPLE
    if len(row) <= _SHORT:
        return None
    if kind in _EXACT:
        code, dtype = _EXACT[kind]
        with suppress(OverflowError):  # a number that is too large
            return {name: torch.frombuffer(array(code, row), dtype=dtype)}  # twice as fast as torch.tensor
    elif _is_number(kind) and kind is not bool:
        return {name + _OF_NUMPY: torch.from_numpy(sys.modules["numpy"].array(row))}
    return None


def _is_number(kind: type) -> bool:
    """True for the types of numbers of Python, and those of numpy that torch has too."""
    if kind in _NUMBERS:
        return True
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or kind.__module__ != "numpy" or not issubclass(kind, numpy.number | numpy.bool_):
        return False
    name = numpy.dtype(kind).str
    return name in _ARRAYS and numpy.dtype(name).type is kind  # there are two of 64 bits


def _is_scalar(kind: type) -> bool:
    return kind in _SCALARS or _is_number(kind)


def _has_containers(value: Sequence[Any]) -> bool:
    if _is_long(value):
        return type(value[0]) in (list, tuple)
    return not all(map(_is_scalar, set(map(type, value))))


def _has_parts(value: Sequence[Any]) -> bool:
    """True if `==` would not compare all that is in a list or a tuple: arrays and tensors are compared one by one."""
    if _is_long(value):
        return False
    kinds = set(map(type, value))
    return not all(map(_is_scalar, kinds)) and not _are_rows(value, kinds)


def _is_long(value: Sequence[Any]) -> bool:
    """True for a plain list or tuple that has nothing but numbers, or nothing but rows of them: it has no parts."""
    return len(value) * _PART_SIZE > _SIZE_MAX
