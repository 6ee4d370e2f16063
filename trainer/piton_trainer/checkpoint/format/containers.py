"""Containers of the standard library and numbers of numpy, as a document names them.

    {"$tuple": […], "$type": "Size"}                      {"$items": [[k, v], …], "$type": "OrderedDict"}
    {"$tuple": […], "$type": "deque", "$maxlen": 3}       {"$items": […], "$type": "defaultdict", "$factory": "int"}
    {"$tuple": […], "$type": "namedtuple", "$class": "module:Point"}

The first key is what an older Piton understands: there they come back as tuples and dicts, as they did before.
"""

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch

TYPE = "$type"
_CLASS, _FACTORY, _MAXLEN = "$class", "$factory", "$maxlen"
_FACTORIES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (bool, dict, float, frozenset, int, list, set, str, tuple, Counter, OrderedDict, deque)
}
_NUMBERS = frozenset(
    {"bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
)


def named(value: object) -> dict[str, Any] | None:
    """Return what a document says of the type of a container; None if only its own code could make it again."""
    kind = type(value)
    if kind in (tuple, dict):
        return {}
    if kind in (torch.Size, OrderedDict):
        return {TYPE: kind.__name__}
    if isinstance(value, deque) and kind is deque:
        return {TYPE: "deque", _MAXLEN: value.maxlen}
    if isinstance(value, defaultdict) and kind is defaultdict:
        factory = value.default_factory
        is_known = factory is None or factory in _FACTORIES.values()
        return {TYPE: "defaultdict", _FACTORY: getattr(factory, "__name__", None)} if is_known else None
    place = f"{kind.__module__}:{kind.__qualname__}"
    return {TYPE: "namedtuple", _CLASS: place} if _class_at(place) is kind and _is_namedtuple(kind) else None


def row(items: Sequence[Any], document: Mapping[str, Any]) -> Any:
    """Return the items as the sequence that a document names."""
    kind = document.get(TYPE)
    if kind == "deque":
        return deque(items, document[_MAXLEN])
    if kind == "Size":
        return torch.Size(items)
    found = _class_at(document[_CLASS]) if kind == "namedtuple" else None
    return tuple(items) if found is None or not _is_namedtuple(found) else found._make(items)


def mapping(items: Mapping[Any, Any], document: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Return the items as the mapping that a document names."""
    kind = document.get(TYPE)
    if kind == "defaultdict":
        factory = document[_FACTORY]
        return defaultdict(None if factory is None else _FACTORIES[factory], items)
    return OrderedDict(items) if kind == "OrderedDict" else items


def number_type(value: object) -> str | None:
    """Return the name of the type of a number of numpy; None if it is none, or has no plain number of its own."""
    kind = type(value)
    name = kind.__name__.rstrip("_")  # `bool_` in numpy 1
    return name if kind.__module__ == "numpy" and name in _NUMBERS else None


def number(value: float, kind: str) -> Any:
    """Return a number of numpy of this type."""
    import numpy as np

    return np.dtype(kind).type(value)


def _is_namedtuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make")


def _class_at(place: str) -> Any:
    """Return the class of this name, of a module that the script has imported; None without any."""
    module, _, name = place.partition(":")
    return reduce(lambda found, part: getattr(found, part, None), name.split("."), sys.modules.get(module))
