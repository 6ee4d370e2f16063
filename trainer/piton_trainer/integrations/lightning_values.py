"""Values of attributes, as a checkpoint of a Lightning training holds them: JSON, tensors, and what is made of these.

{"plain": …}                                    numbers, texts, and lists of them (`plain_values`)
{"tensor": …, "device": "cuda"}                 a tensor
{"kind": "deque", "items": […], "longest": 3}   lists, tuples, dicts, sets and deques with others in them
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from piton_trainer.integrations.own_parts import place_of
from piton_trainer.state.plain_values import is_plain, is_same, packed, unpacked

NUMBERS_MAX, _ITEMS_MAX = 2**22, 2**16
"""Numbers, and items, of an attribute that a checkpoint holds by itself: more belongs into a buffer."""
_TYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
PLAIN, _TENSOR, _DEVICE, _KIND, _ITEMS, _LONGEST = "plain", "tensor", "device", "kind", "items", "longest"
_ROWS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
_DICTS: dict[str, Any] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": defaultdict}
KINDS = {kind: name for name, kind in (_ROWS | _DICTS).items()}
_NESTS = frozenset({Tensor, *KINDS})
"""Types of items that may be, or have, views of the numbers of the model."""


class Unseen(Exception):  # noqa: N818 - it is no error
    """A value that a checkpoint does not hold by itself."""


def pack(value: Any, places: Collection[int]) -> dict[str, Any]:
    """Return a copy of a value as JSON and tensors.

    Args:
        value: an attribute.
        places: where numbers are that something else holds.

    Raises:
        Unseen: it has too many numbers or items, or other things.
    """
    return _pack(value, [NUMBERS_MAX, _ITEMS_MAX], places)


def _pack(value: Any, left: list[int], places: Collection[int]) -> dict[str, Any]:
    """Return a copy of a part of a value; `left` is how many numbers and items there may be."""
    if type(value) is Tensor:
        left[0] -= value.numel()
        if (
            place_of(value) in places
            or value.layout is not torch.strided
            or value.is_meta
            or value.is_nested
            or value.dtype not in _TYPES
            or left[0] < 0
        ):
            raise Unseen
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: copy, _DEVICE: value.device.type}
    if type(value) not in KINDS:
        if not is_plain(value):
            raise Unseen
        return {PLAIN: packed(value)}
    left[1] -= len(value)
    is_row = type(value) in (list, tuple) and len(value) <= NUMBERS_MAX
    if is_row and is_plain(value) and not any(type(item) in _NESTS for item in value):
        return {PLAIN: packed(value)}
    if left[1] < 0:
        raise Unseen
    name = KINDS[type(value)]
    if name in _DICTS:
        if not all(type(key) in (str, int, bool, float, type(None)) for key in value):
            raise Unseen
        items: list[Any] = [[key, _pack(item, left, places)] for key, item in list(value.items())]
    else:
        items = [_pack(item, left, places) for item in list(value)]
    longest = {_LONGEST: value.maxlen} if name == "deque" else {}
    return {_KIND: name, _ITEMS: items, **longest}


def unpack(saved: Mapping[str, Any], device: Any) -> Any:
    """Return the value that was packed; its tensors on the CPU or on the device, as they were."""
    if PLAIN in saved:
        return unpacked(saved[PLAIN])
    if _TENSOR in saved:
        return saved[_TENSOR].clone().to("cpu" if saved[_DEVICE] == "cpu" else device)
    if saved[_KIND] in _DICTS:
        kind = dict if saved[_KIND] == "defaultdict" else _DICTS[saved[_KIND]]
        return kind({key: unpack(item, device) for key, item in saved[_ITEMS]})
    items = (unpack(item, device) for item in saved[_ITEMS])
    return deque(items, saved[_LONGEST]) if saved[_KIND] == "deque" else _ROWS[saved[_KIND]](items)


def filled(holder: Any, value: Any) -> Any:
    """Return the holder with a value in it, and the tensors in it filled in turn; the value if it cannot have that."""
    if isinstance(holder, defaultdict) and isinstance(value, dict):
        value = defaultdict(holder.default_factory, value)
    if type(holder) is not type(value) or (isinstance(holder, deque) and holder.maxlen != value.maxlen):
        return value
    if isinstance(holder, Tensor):
        if holder.requires_grad or (holder.dtype, holder.shape, holder.device) != (
            value.dtype,
            value.shape,
            value.device,
        ):
            return value
        with suppress(RuntimeError):  # one number of it is several
            holder.copy_(value)
            return holder
        return value
    if isinstance(holder, dict):
        items = {key: filled(holder.get(key), item) for key, item in value.items()}
        holder.clear()
        holder.update(items)
    elif isinstance(holder, list | deque):
        parts = [filled(*pair) for pair in zip_longest(list(holder)[: len(value)], value)]
        holder.clear()
        holder.extend(parts)
    elif isinstance(holder, set):
        holder.clear()
        holder.update(value)
    else:
        return value
    return holder


def plain(saved: Any) -> Any:
    """Return a value that is plain, as the script has it; another one as a checkpoint holds it."""
    return unpacked(saved[PLAIN]) if PLAIN in saved else saved


def is_equal(value: Any, other: Any) -> bool:
    """True if two packed values are of one type and have the same numbers."""
    try:
        return is_same(value, other)
    except RuntimeError:  # tensors on two devices
        return False
