"""Parts of a training that are a user's own, such as callbacks: their names, and what their tensors hold."""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

SAMPLE = 64
"""Tensors of a part, and numbers of a tensor, that are compared."""


def numbered(parts: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts with names that are the same in each attempt: the class, and a number from the second one on."""
    counts = Counter[str]()
    for part in parts:
        name = type(part).__name__
        counts[name] += 1
        yield name if counts[name] == 1 else f"{name}.{counts[name]}", part


@cache
def names_in_code(kind: type, packages: tuple[str, ...]) -> frozenset[str]:
    """Return the names in the code of a class's bases from these packages: such attributes are none of the user's."""
    bases = (base for base in kind.__mro__ if base.__module__.startswith(packages))
    members = (inspect.unwrap(member) for base in bases for member in vars(base).values() if callable(member))
    codes = (member.__code__ for member in members if hasattr(member, "__code__"))
    return frozenset(name for code in codes for name in code.co_names)


def place_of(value: Any) -> int | None:
    """Return the address of a tensor's numbers; None for anything else, and for a tensor that has none of its own."""
    if isinstance(value, Tensor):
        with suppress(RuntimeError, NotImplementedError, ValueError):  # it is sparse, lazy, or of a class that wraps
            return value.untyped_storage().data_ptr() or None
    return None


def sample_of(value: Any) -> str | None:
    """Return the shape and some numbers of a tensor for a comparison; None for what has no numbers by rows."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return None
    return repr((value.shape, value.detach().reshape(-1)[:SAMPLE].tolist()))  # a NaN is like any other
