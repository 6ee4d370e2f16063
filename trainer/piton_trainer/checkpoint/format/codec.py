"""State as JSON plus tensors, so that nothing has to be pickled.

`split` replaces the tensors in nested state by `{"$tensor": key}`; `join` puts them back. Values that JSON would change
(tuples, keys that are not strings) are marked, so that the state is restored unchanged.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from piton.contract import InputError

_TENSOR, _TUPLE, _ITEMS, _COUNTER = "$tensor", "$tuple", "$items", "$counter"

_PLAIN = frozenset({type(None), bool, int, float, str})


class Fixed(dict[str, Any]):
    """A part of a document that does not change, so that it is encoded only once."""

    @cached_property
    def text(self) -> str:
        """Text of this part as JSON."""
        return json.dumps(self)


def encode(document: Any) -> str:
    """Encode a document with the same result as `json.dumps`."""
    if isinstance(document, Fixed):
        return document.text
    if isinstance(document, dict) and not _are_plain(document.values()) and all(isinstance(k, str) for k in document):
        return "{" + ", ".join(f"{json.dumps(name)}: {encode(item)}" for name, item in document.items()) + "}"
    if isinstance(document, list) and not _are_plain(document):
        return "[" + ", ".join(map(encode, document)) + "]"
    return json.dumps(document)


def split(value: object, key: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the JSON of a piece of state, and its tensors by keys that begin with `key`.

    Raises:
        ValueError: it holds an object that only pickle could save.
    """
    tensors: dict[str, Tensor] = {}
    return _split(value, key, tensors), tensors


def join(document: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Reassemble the state that `split` took apart; `tensor` returns a tensor by its key."""
    if isinstance(document, list):
        return [join(item, tensor) for item in document]
    if not isinstance(document, dict):
        return document
    if _TENSOR in document:
        return tensor(document[_TENSOR])
    if _TUPLE in document:
        return tuple(join(item, tensor) for item in document[_TUPLE])
    if _ITEMS in document:
        return {_hashable(join(k, tensor)): join(v, tensor) for k, v in document[_ITEMS]}
    if _COUNTER in document:
        return Counter({_hashable(join(k, tensor)): v for k, v in document[_COUNTER]})
    return {name: join(item, tensor) for name, item in document.items()}


def keys(document: Any) -> list[str]:
    """Return the keys of all tensors that a document refers to."""
    if isinstance(document, dict) and _TENSOR in document:
        return [document[_TENSOR]]
    parts = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return [key for part in parts for key in keys(part)]


def _split(value: object, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value.detach()
        return {_TENSOR: key}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and _are_plain(value):
        return list(value)
    if isinstance(value, list):
        return [_split(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: _split(list(value), key, tensors)}
    if isinstance(value, Mapping):
        return _split_mapping(value, key, tensors)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise InputError(f"{key} is a {kind}; a checkpoint holds tensors, numbers, strings, lists and dicts only")


def _split_mapping(value: Mapping[Any, Any], key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Counter):
        return {_COUNTER: [[_split(k, key, tensors), v] for k, v in value.items()]}
    if all(isinstance(name, str) and not name.startswith("$") for name in value):
        return {name: _split(item, f"{key}/{name}", tensors) for name, item in value.items()}
    return {_ITEMS: [[_split(k, key, tensors), _split(v, f"{key}/{k}", tensors)] for k, v in value.items()]}


def _are_plain(values: Iterable[object]) -> bool:
    """Return True if all values are plain JSON values. There may be many."""
    return _PLAIN.issuperset(map(type, values))


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
