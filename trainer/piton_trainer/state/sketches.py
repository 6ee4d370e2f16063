"""Sketches of values that no checkpoint holds: two of one value differ if it has changed in between.

A sketch has the first numbers and items of a value, and little of what is deep inside, so that it costs little: what is
longer or deeper may change unseen.
"""

import itertools
import sys
from argparse import Namespace
from collections import deque
from enum import Enum
from itertools import islice
from numbers import Number
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from piton_trainer.state.own_generators import is_generator
from piton_trainer.state.plain_values import is_array

_LOOKED_AT = 1000
_NUMBERS_MAX = 2**14
"""Numbers in one sketch."""
_DEEP = 3
_NO_VALUES = ("__dict__", "__weakref__")
_OF_USERS = (SimpleNamespace, Namespace)
"""Classes of the standard library that a script keeps values in."""


def sketch(value: Any, deep: int = _DEEP) -> Any:
    """Return some of what a value is made of, for a comparison; None for what is not to be compared."""
    try:
        return _sketch(value, deep, [_NUMBERS_MAX])
    except Exception:  # noqa: BLE001 - a class of the user's may refuse to be looked at, or a thread is in the way
        return None


def _sketch(value: Any, deep: int, left: list[int]) -> Any:
    """Return a sketch of a part; `left` is how many numbers there may be."""
    kind = type(value)
    left[0] -= 1
    if left[0] < 0:
        return kind
    if kind in (bool, int, float, str, bytes, type(None)):
        return kind, value
    if isinstance(value, Number | Enum) or kind is itertools.count:
        return kind, repr(value)
    if kind is Tensor or is_array(value):
        return _sketch_of_numbers(value, left)
    if kind in (set, frozenset):
        return kind, len(value), value.copy() if len(value) <= _LOOKED_AT else None
    return _sketch_of_parts(value, deep - 1, left) if deep else kind


def _sketch_of_numbers(value: Any, left: list[int]) -> Any:
    if is_array(value):
        row = value.flat[:_LOOKED_AT].tolist() if value.dtype.kind != "O" else None
    else:
        has_row = value.layout is torch.strided and value.is_contiguous() and not value.is_meta
        row = value.detach().view(-1)[:_LOOKED_AT].tolist() if has_row else None
    left[0] -= len(row or ())
    return value.dtype, value.shape, row and repr(row)  # a NaN is like any other


def _sketch_of_parts(value: Any, deep: int, left: list[int]) -> Any:
    kind: Any = type(value)
    # A class of the user's may be a list or a dict that gives its items otherwise.
    if isinstance(value, dict):
        items = islice(dict.items(value), _LOOKED_AT)
        return kind, dict.__len__(value), [(_sketch(key, 0, left), _sketch(item, deep, left)) for key, item in items]
    if (base := next((base for base in (list, tuple, deque) if isinstance(value, base)), None)) is not None:
        items = islice(base.__iter__(value), _LOOKED_AT)
        return kind, base.__len__(value), [_sketch(item, deep, left) for item in items]
    if not _has_values(value):
        return None
    own = [getattr(base, "__slots__", ()) for base in kind.__mro__]
    slots = itertools.chain.from_iterable([names] if isinstance(names, str) else names for names in own)
    values = {name: getattr(value, name) for name in slots if name not in _NO_VALUES and hasattr(value, name)}
    return kind, _sketch(values | getattr(value, "__dict__", {}), deep, left)


def _has_values(value: Any) -> bool:
    """True for an object that keeps values in attributes; not for data, code, and what a system has opened."""
    kind = type(value)
    if isinstance(value, nn.Module | type) or callable(value) or is_generator(value):
        return False
    if hasattr(kind, "__getitem__") or hasattr(kind, "__next__"):
        return False
    if kind.__module__.partition(".")[0] in sys.stdlib_module_names and not isinstance(value, _OF_USERS):
        return False  # a logger, a thread, a file
    return hasattr(value, "__dict__") or any("__slots__" in vars(base) for base in kind.__mro__)
