"""Makers of rows and batches in this process: the data set of a loader, its collate_fn, and what these wrap.

They may count their calls, as a curriculum does. Of a worker process nothing is seen from here.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from inspect import ismethod
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset

from piton_trainer.state.built_parts import says_state
from piton_trainer.state.own_generators import parts_in
from piton_trainer.state.plain_values import is_array

_INSIDE = ("dataset", "datasets", "transform", "transforms", "target_transform")
_LOADED_AGAIN = (IterableDataset, nn.Module, type)
"""A stream begins at what it remembers, so it is left alone, and a module and a class have more to them."""
_DEEP = 4
_WIDE = 16


def row_makers(loaders: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Yield them once each, by names that are the same in each attempt; those with a state come back by that."""
    known: list[object] = []
    for _, name, part in parts_in(loaders):
        if name.rpartition(".")[2] not in ("dataset", "collate_fn"):
            continue
        for path, owner in _owners(name, part, _DEEP):
            is_known = any(owner is other for other in known)
            if not is_known and hasattr(owner, "__dict__") and not isinstance(owner, _LOADED_AGAIN):
                known.append(owner)
                if not says_state(owner):
                    yield path, owner


def is_data(key: str, value: object) -> bool:
    """True for what a data set may fill as it is read, such as a cache."""
    kind = type(value)
    return "cache" in key or kind in (list, tuple, dict) or isinstance(value, Tensor) or is_array(value)


def _owners(name: str, part: Any, deep: int) -> Iterator[tuple[str, Any]]:
    """Yield an object and those in it that make a row with it."""
    if isinstance(part, list | tuple):
        inside = {f"{name}.{number}": item for number, item in enumerate(islice(part, _WIDE))}
    elif isinstance(part, partial):
        inside = {f"{name}.{number}": item for number, item in enumerate((part.func, *part.args[:_WIDE]))}
        inside |= {f"{name}.{key}": item for key, item in part.keywords.items()}
    elif ismethod(part):
        inside = {name: part.__self__}
    else:
        yield name, part
        own = getattr(part, "__dict__", {})
        inside = {f"{name}.{key}": own[key] for key in _INSIDE if key in own}
    for path, item in inside.items() if deep else ():
        yield from _owners(path, item, deep - 1)
