"""Parts of a sampler that no checkpoint holds: what it builds while it runs, and what names things of this process.

A sampler may build a table at its first epoch and remember that by a flag. To put the flag back without the table
would leave half a sampler, so the two go together: `samplers` leaves both to the script. Parts are compared by types
and sizes, at each save.
"""

import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import islice
from operator import length_hint
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from piton_trainer.clock import Clock
from piton_trainer.state.own_generators import is_generator
from piton_trainer.state.plain_values import is_array

_OF_PROCESS = frozenset({"fd", "fds", "fileno", "port", "ports"})
"""Words in names of attributes whose numbers mean something in this process or on this machine only."""
_PROCESSES = frozenset({"pid", "ppid"})
"""The same, if the number is that of this process or its parent: patients have these names too."""
_SEEN = frozenset({"sampler", "batch_sampler", "dataset", "datasets", "data_source", "transform", "transforms"})
"""Attributes that are looked at by themselves, or may change as they like."""
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_LOOKED_AT = 1000
_DEEP = 3
_TEXT_MAX = 4096
_SAMPLE = 2**14
"""Numbers of a large tensor or array that are compared."""


def names_process(key: str, value: Any) -> bool:
    """True for a plain value of this process only: the name of a file that it has made, or a number such as its own."""
    if type(value) is int:
        words = frozenset(re.split(r"[_\d]+", key.lower()))
        return not _OF_PROCESS.isdisjoint(words) or (value in _own_numbers() and not _PROCESSES.isdisjoint(words))
    return any(_made_at(path) >= _began_at() for path in _paths(value))


def names_files(value: Any) -> bool:
    """True for a plain value with a path that exists."""
    return any(True for _ in _paths(value))


def outline(key: str, value: Any) -> Any:
    """Return types and sizes of what a part is made of, which are others once it is built."""
    if key in _SEEN or is_generator(value) or says_state(value) or isinstance(value, Dataset):
        return type(value)
    return _outline(value, _DEEP)


def says_state(value: object) -> bool:
    """True if the class of an object has a state; to ask the object may run code of the user's that fails."""
    return hasattr(type(value), "state_dict") and hasattr(type(value), "load_state_dict")


def iterators_in(own: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the iterators in attributes, in rows of theirs, and in objects in them."""
    for key, value in list(own.items()):
        if isinstance(value, list | tuple | dict | deque):
            found = _parts(value)
        else:
            is_object = key not in _SEEN and not isinstance(value, nn.Module | type)
            found = [value, *(list(getattr(value, "__dict__", {}).values()) if is_object else ())]
        yield from ((key, part) for part in found if is_iterator(part))


def is_used_up(value: object) -> bool:
    """True for an iterator that has nothing left."""
    return is_iterator(value) and place_of(value) is None


def place_of(iterator: Any) -> Any:
    """Return where an iterator is, as far as it says that; None once it is used up."""
    if isinstance(iterator, GeneratorType):
        return None if iterator.gi_frame is None else object() if iterator.gi_suspended else "not begun"
    left = length_hint(iterator, -1) if type(iterator).__module__ == "builtins" else -1
    return None if left == 0 else object() if left < 0 else left


def is_iterator(value: object) -> bool:
    """True for an iterator whose place cannot be saved."""
    return hasattr(type(value), "__next__") and not is_generator(value) and not says_state(value)


def _outline(value: Any, deep: int) -> Any:
    kind = type(value)
    if kind in (bool, int, float, str, bytes, type(None)):
        return kind, value
    if isinstance(value, Tensor) or is_array(value):
        return kind, tuple(value.shape), _sample(value)
    if isinstance(value, _CONTAINERS):
        return kind, len(value), sum(len(part) for part in _parts(value) if isinstance(part, _CONTAINERS))
    if isinstance(value, nn.Module | type | Dataset) or not hasattr(value, "__dict__") or not deep:
        return kind
    return kind, {key: _outline(part, deep - 1) for key, part in list(vars(value).items())[:_LOOKED_AT]}


def _sample(value: Any) -> int | None:
    """Return a number that is another one once rows of a tensor or an array are filled; it goes by numbers in between.

    None for what is on a device, or has no numbers in one row.
    """
    if isinstance(value, Tensor):
        is_row = value.device.type == "cpu" and value.layout is torch.strided and value.is_contiguous()
        if not is_row or value.is_quantized or "numpy" not in sys.modules:
            return None
        value = value.detach().view(-1)
        value = value[:: max(1, value.numel() // _SAMPLE)]
        return hash(value.contiguous().view(torch.uint8).numpy().tobytes())
    if value.dtype.hasobject or not value.flags.c_contiguous:
        return None
    return hash(value.reshape(-1)[:: max(1, value.size // _SAMPLE)].tobytes())


def _parts(value: Any) -> list[Any]:
    """Return the first items of a container; a thread of the user's may be filling it.

    A class of the user's may be a list that gives its items otherwise.
    """
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(value, kind))
    return list(islice(kind.values(value) if kind is dict else kind.__iter__(value), _LOOKED_AT))


def _own_numbers() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def _paths(value: Any) -> Iterator[str]:
    """Yield the paths that exist among the texts in a plain value."""
    for text in _parts(value) if isinstance(value, _CONTAINERS) else (value,):
        if type(text) is str and 0 < len(text) < _TEXT_MAX:
            path = text if "/" in text or "." in text else f"/dev/shm/{text}"  # noqa: S108 - shared memory has a name
            if _made_at(path) >= 0:
                yield path


def _made_at(path: str) -> float:
    """Return the time at which a file was last written; -1 without one."""
    with suppress(OSError, ValueError):
        return Path(path).stat().st_mtime
    return -1.0


@cache
def _began_at() -> float:
    """Return the time at which this process began."""
    clock = Clock()
    return clock.now().timestamp() - clock.process_seconds()
