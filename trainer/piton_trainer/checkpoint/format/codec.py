"""State as JSON plus tensors, so that nothing has to be pickled.

`split` replaces the tensors in nested state by `{"$tensor": key}`; `join` puts them back. Values that JSON would change
(tuples, keys that are not strings, see `containers`) are marked, and so are tensors whose numbers do not lie by rows
(`strides`), so that the state is restored unchanged, in its types as well. What would come back as something else is a
flaw: `split` says which, and what to do.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from piton.contract import InputError
from piton_trainer.checkpoint.format import containers, strides

_TENSOR, _TUPLE, _ITEMS, _COUNTER, _NUMBER = "$tensor", "$tuple", "$items", "$counter", "$number"

_PLAIN = frozenset({type(None), bool, int, float, str})
LAZY_CURE = "run a batch through the module before session.restore(), which makes its parameters"
_CURES = {
    "set": "save sorted(…)",
    "frozenset": "save sorted(…)",
    "bytes": "save torch.frombuffer(bytearray(…), dtype=torch.uint8)",
    "BytesIO": "save torch.frombuffer(bytearray(….getvalue()), dtype=torch.uint8)",
    "ndarray": "save torch.from_numpy(…)",
}
"""Lines to write in the place of things that a checkpoint does not hold."""


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


def split(
    value: object, key: str, *, flaws: dict[str, str] | None = None, in_place: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """Return the JSON of a piece of state, and its tensors by keys that begin with `key`.

    Args:
        value: the state.
        key: what it is called.
        flaws: gets what would not come back as it is, and what to do, by key.
        in_place: True if the tensors are filled where they are, in a module, when they are restored.

    Raises:
        ValueError: it holds an object that only pickle could save.
    """
    parts = _Parts({} if flaws is None else flaws, in_place=in_place)
    try:
        return parts.take(value, key), parts.tensors
    except RecursionError as error:
        raise InputError(f"{key} is nested too deeply, or holds itself; save its parts") from error


def join(document: Any, tensor: Callable[[str], Tensor], *, is_exact: bool = True) -> Any:
    """Reassemble the state that `split` took apart; `tensor` returns a tensor by its key.

    Where it is not to be exact there are plain tuples, dicts and numbers only, for programs that know nothing else, and
    tensors have the strides that `tensor` gives them.
    """
    if isinstance(document, list):
        return [join(item, tensor, is_exact=is_exact) for item in document]
    if not isinstance(document, dict):
        return document
    if _TENSOR in document:
        found, own = tensor(document[_TENSOR]), strides_in(document)
        return strides.laid_out(found, own) if is_exact and own is not None else found
    kind = document if is_exact else {}
    if _NUMBER in document:
        return containers.number(document[_NUMBER], document[containers.TYPE]) if is_exact else document[_NUMBER]
    if _TUPLE in document:
        return containers.row(join(document[_TUPLE], tensor, is_exact=is_exact), kind)
    pairs = document.get(_ITEMS, document.get(_COUNTER))
    if pairs is None:
        return {name: join(item, tensor, is_exact=is_exact) for name, item in document.items()}
    items = {_hashable(join(k, tensor, is_exact=is_exact)): join(v, tensor, is_exact=is_exact) for k, v in pairs}
    return Counter(items) if _COUNTER in document else containers.mapping(items, kind)


def keys(document: Any) -> list[str]:
    """Return the keys of all tensors that a document refers to."""
    if isinstance(document, dict) and _TENSOR in document:
        return [document[_TENSOR]]
    parts = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return [key for part in parts for key in keys(part)]


def strides_in(document: Any) -> list[int] | None:
    """Return the strides of a tensor that a document refers to; None if its numbers lie by rows."""
    own: list[int] | None = document.get(strides.STRIDE) if isinstance(document, dict) else None
    return own


def without_strides(document: Any) -> Any:
    """Return the document of a tensor as it is that of one by rows; any other document as it is."""
    return {_TENSOR: document[_TENSOR]} if strides_in(document) is not None else document


def is_array(tensor: Tensor) -> bool:
    """True if a tensor is nothing but an array of numbers in memory."""
    has_rows = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    return has_rows and type(tensor) in (Tensor, torch.nn.Parameter)


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor as bytes in a row.

    Raises:
        RuntimeError: it is more than an array of numbers.
    """
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


class _Parts:
    """The parts of a piece of state that is being split."""

    def __init__(self, flaws: dict[str, str], *, in_place: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._flaws = flaws
        self._in_place = in_place

    def take(self, value: object, key: str) -> Any:
        """Return the JSON of a value, and keep its tensors."""
        kind = type(value)
        if isinstance(value, Tensor):
            return self._take_tensor(value, key)
        if kind in _PLAIN:
            return value
        if isinstance(value, list):
            if kind is not list:
                self._note_loss(value, key, "list")
            return list(value) if _are_plain(value) else [self.take(item, f"{key}/{i}") for i, item in enumerate(value)]
        if isinstance(value, tuple | deque):
            return {_TUPLE: self.take(list(value), key), **self._named(value, key, "tuple")}
        if isinstance(value, Mapping):
            return self._take_mapping(value, key)
        if (name := containers.number_type(value)) is not None:
            return {_NUMBER: value.item(), containers.TYPE: name}  # type: ignore[attr-defined]
        for base in (int, float, str):
            if isinstance(value, base):
                self._note_loss(value, key, base.__name__)
                return value
        raise InputError(
            f"{key} is a {_name(kind)}, which only its own code could make again; "
            f"{_CURES.get(kind.__name__, 'save what it is made of: tensors, numbers, strings, lists and dicts')}"
        )

    def _take_mapping(self, value: Mapping[Any, Any], key: str) -> Any:
        if isinstance(value, Counter):
            if type(value) is not Counter:
                self._note_loss(value, key, "Counter")
            return {_COUNTER: self._take_items(value, key)}
        named = self._named(value, key, "dict")
        if not named and all(type(name) is str and not name.startswith("$") for name in value):
            return {name: self.take(item, f"{key}/{name}") for name, item in value.items()}
        return {_ITEMS: self._take_items(value, key), **named}

    def _take_items(self, value: Mapping[Any, Any], key: str) -> list[Any]:
        return [[self.take(name, f"{key}/{name}"), self.take(item, f"{key}/{name}")] for name, item in value.items()]

    def _take_tensor(self, value: Tensor, key: str) -> Any:
        if is_lazy(value):
            raise InputError(f"{key} has no shape yet; {LAZY_CURE}")
        while key in self.tensors:  # `{"a": {"b": …}, "a/b": …}`
            key += "'"
        if (flaw := _flaw_of(value, in_place=self._in_place)) is not None:
            self._flaws[key] = f"{key} {flaw}"
        self.tensors[key] = plain = _plain(value.detach())
        own = strides.of(plain)
        return {_TENSOR: key} if own is None else {_TENSOR: key, strides.STRIDE: own}

    def _named(self, value: object, key: str, base: str) -> dict[str, Any]:
        named = containers.named(value)
        if named is None:
            self._note_loss(value, key, base)
        return named or {}

    def _note_loss(self, value: object, key: str, base: str) -> None:
        """Note that a value would lose its class, and come back as one of the class `base`."""
        self._flaws[key] = f"{key} is a {_name(type(value))} and would come back as a {base}; save {base}(…)"


def _plain(tensor: Tensor) -> Tensor:
    """Return the same numbers without a class of their own, which only its own code could make again."""
    is_wrapper = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return tensor if type(tensor) is Tensor or is_wrapper else tensor.as_subclass(Tensor)


def _flaw_of(tensor: Tensor, *, in_place: bool) -> str | None:
    """Return what a tensor is that would not come back, and what to do; None if it is an array of numbers."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    kind = type(local)
    if isinstance(local, ShardedTensor):  # FSDP of the first version
        return None
    plain = "or say persistent=False if the script makes it again" if in_place else "or leave it out"
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and not local.is_nested:
        cure = "name the part that is trained in session.restore()" if in_place else "take torch.optim.AdamW(…), say"
        return (
            f"is a {_name(kind)}, which holds its numbers in other tensors and would come back as a plain one; {cure}"
        )
    if local.is_nested:
        return f"is a nested tensor; save torch.nested.to_padded_tensor(…, 0.0), {plain}"
    if local.is_quantized:
        return f"is quantized; save ….int_repr(), {plain}"
    if local.layout is not torch.strided:
        return f"is {str(local.layout).removeprefix('torch.')}; save ….to_dense(), {plain}"
    if local.is_meta:
        return f"is on the device meta and has no numbers; make it with .to_empty(device=…), {plain}"
    if in_place and any(step == 0 and size > 1 for step, size in zip(local.stride(), local.shape, strict=True)):
        return "overlaps itself, as after expand(); give register_buffer(…) its .contiguous(), or persistent=False"
    if not in_place and kind not in (Tensor, torch.nn.Parameter):
        return f"is a {_name(kind)} and would come back as a Tensor; save ….as_subclass(torch.Tensor)"
    return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _are_plain(values: Iterable[object]) -> bool:
    """Return True if all values are plain JSON values. There may be many."""
    return _PLAIN.issuperset(map(type, values))


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
