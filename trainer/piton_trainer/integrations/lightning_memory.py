"""Attributes in which modules of Lightning, callbacks and data modules remember something, as a checkpoint holds them.

    self.outputs.append(loss)    a list that is averaged when the epoch ends, as Lightning's guide has it
    self.best = min(...)         a number, also of a callback, or of a metric that wraps another one

Seen are numbers, texts, tensors, buffers that are not persistent, and lists, tuples, dicts, sets and deques of these,
as far as they are not as the script has made them when the training begins. Callbacks with a `state_dict` and those of
Lightning say their own state. Attributes that are other objects are told of where they hold tensors that change.

A flag may stand for an opened file, so what changes once does not come back (`marks`). A tensor that is a view of a
parameter or a buffer is that one's.
"""

import logging
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from piton_trainer.integrations.own_parts import SAMPLE, numbered, place_of, sample_of
from piton_trainer.state.built_parts import outline
from piton_trainer.state.marks import Evidence
from piton_trainer.state.plain_values import is_plain, is_same, packed, unpacked

logger = logging.getLogger(__name__)

_NUMBERS_MAX, _ITEMS_MAX = 2**22, 2**16
"""Numbers, and items, of an attribute that a checkpoint holds by itself: more belongs into a buffer."""
_OF_A_STEP = 2**10
"""Numbers of a tensor with a graph, as an attribute: a larger one is what a layer has computed, not what it keeps."""
_TYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
_PLAIN, _TENSOR, _DEVICE, _KIND, _ITEMS, _LONGEST = "plain", "tensor", "device", "kind", "items", "longest"
_ROWS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
_DICTS: dict[str, Any] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": defaultdict}
_KINDS = {kind: name for name, kind in (_ROWS | _DICTS).items()}
_NESTS = frozenset({Tensor, *_KINDS})
"""Types of items that may be, or have, views of the numbers of the model."""
_OF_LIGHTNING = ("lightning.", "pytorch_lightning.", "piton_trainer.")


_MARKS, _STEADY = "<marks>", "<steady>"
"""Keys beside those of attributes: marks, and what goes on changing beside them (see `marks`)."""


class OwnAttributes:
    """Attributes of the parts of a training on this rank, by the names of the parts."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._made: dict[str, dict[str, Any]] = {}
        """As the script has made them."""
        self._kept: dict[str, dict[str, None]] = {}
        """Those that were ever otherwise, in this attempt or before."""
        self._large: dict[str, dict[str, Any]] = {}
        """Tensors that no checkpoint holds, as the script has made them."""
        self._evidence: dict[str, Evidence] = {}
        self._saved: Mapping[str, Mapping[str, Any]] = {}
        self._inside: dict[str, Any] = {}
        self._told: set[str] = set()

    def begin(self) -> None:
        """Take parts that are new as the script has made them."""
        places = self._places()
        for name, part in self._parts():
            if name not in self._made:
                self._take(name, part, places)

    def begin_training(self) -> None:
        """Take all as the script has made it, but for the data: hooks may have set numbers for this attempt."""
        places = self._places()
        for name, part in self._parts():
            if not isinstance(part, LightningDataModule):
                self._take(name, part, places)
        self._inside = dict(self._objects())

    def look(self) -> None:
        """See what changes, in a moment that is no save."""
        self.capture()

    def state_dict(self) -> dict[str, Any]:
        """Return them for a save, and tell of what is in no checkpoint."""
        self._tell()
        return self.capture()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember them until the training begins: its hooks may make some anew."""
        self._saved = state
        for name, values in state.items():
            self._kept.setdefault(name, {}).update(dict.fromkeys(_keys_of(values)))

    def capture(self) -> dict[str, dict[str, Any]]:
        """Return what is or was not as the script has made it."""
        found: dict[str, dict[str, Any]] = {}
        places = self._places()
        for name, part in self._parts():
            made, kept, now = self._made.get(name, {}), self._kept.setdefault(name, {}), _attributes(part, places)
            kept |= {key: None for key, value in now.items() if key not in made or not _is_same(value, made[key])}
            own = {key: now[key] for key in kept if key in now}
            evidence, built = self._evidence_of(name), self._built(name, part, now, places)
            marks = [*built, *evidence.see({key: _plain(value) for key, value in own.items()}, built)]
            if own:
                found[name] = own | ({_MARKS: _listed(marks), _STEADY: _listed(evidence.steady)} if marks else {})
        return found

    def complete(self, memory: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return an earlier capture with what has changed since, as it was then."""
        found = {name: dict(values) for name, values in memory.items()}
        for name, keys in self._kept.items():
            made = self._made.get(name, {})
            if left := {key: made[key] for key in keys if key in made and key not in memory.get(name, {})}:
                found[name] = left | found.get(name, {})
            if _MARKS in found.get(name, {}):
                found[name][_STEADY] = _listed(self._evidence_of(name).steady)
        return found

    def put_back(self, memory: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Make the parts what they were at a capture; at the save, unless one is given."""
        memory, device = self._saved if memory is None else memory, self._trainer.strategy.root_device
        places = self._places()
        for name, part in self._parts():
            saved = memory.get(name, {})
            self._evidence_of(name).steady |= dict.fromkeys(_list_in(saved, _STEADY))
            now = _attributes(part, places)
            for key in self._coming_back(name, saved, now, self._built(name, part, now, places)):
                if key in getattr(part, "_non_persistent_buffers_set", ()):
                    _put(part._buffers, key, saved[key], device)  # noqa: SLF001
                elif key not in _registered(part):
                    _put(vars(part), key, saved[key], device)

    def _coming_back(
        self, name: str, saved: Mapping[str, Any], now: Mapping[str, Any], built: Collection[str]
    ) -> list[str]:
        """Return the attributes that are put back: with a mark that is not as it was, only what goes on changing."""
        steady = self._evidence_of(name).steady
        marks = [key for key in _list_in(saved, _MARKS) if key not in steady and key not in built]
        marks = [key for key in marks if key not in saved or not (key in now and _is_same(now[key], saved[key]))]
        if not marks:
            return _keys_of(saved)
        left = [key for key in _keys_of(saved) if key not in steady and not _is_same(now.get(key), saved[key])]
        if left and (word := f"{name} without {left}") not in self._told:
            self._told.add(word)
            logger.warning(
                "%s: %s changed once in the training, as what stands for a table or an opened file does, so %s as the "
                "script makes it; if it is to come back, save it in state_dict and load_state_dict of a callback or of "
                "the data, or in on_save_checkpoint and on_load_checkpoint of a module",
                name,
                ", ".join(marks),
                f"{', '.join(left)} begins" if left and left != marks else "it begins",
            )
        return [key for key in _keys_of(saved) if key in steady]

    def _built(self, name: str, part: Any, seen: Collection[str], places: Collection[int]) -> dict[str, Any]:
        """Return outlines of large tensors, as far as they are not as the script has made them."""
        made = self._large.get(name, {})
        now = _large(part, seen, places)
        return {key: found for key, found in now.items() if found != made.get(key)}

    def _take(self, name: str, part: Any, places: Collection[int]) -> None:
        self._made[name] = _attributes(part, places)
        self._large[name] = _large(part, self._made[name], places)
        self._evidence.pop(name, None)

    def _evidence_of(self, name: str) -> Evidence:
        if name not in self._evidence:
            made = {key: _plain(value) for key, value in self._made.get(name, {}).items()}
            self._evidence[name] = Evidence(made, lambda value: value, _is_same)
            self._evidence[name].steady |= dict.fromkeys(_list_in(self._saved.get(name, {}), _STEADY))
        return self._evidence[name]

    def _places(self) -> frozenset[int]:
        """Return where the numbers of the model are: a view of them is no memory."""
        module = self._trainer.lightning_module
        places = map(place_of, chain(module.parameters(), module.buffers()))
        return frozenset(place for place in places if place is not None)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._trainer.lightning_module.named_modules():
            yield f"module.{name}" if name else "module", module
        if self._trainer.datamodule is not None:
            yield "datamodule", self._trainer.datamodule
        for name, callback in numbered(self._trainer.callbacks):
            kind = type(callback)
            if kind.state_dict is Callback.state_dict and not kind.__module__.startswith(_OF_LIGHTNING):
                yield name, callback

    def _objects(self) -> Iterator[tuple[str, Any]]:
        """Yield a sample of each attribute with tensors that is in no checkpoint."""
        known = set(map(place_of, self._trainer.lightning_module.state_dict().values()))
        for name, part in self._parts():
            if _saves_itself(part):
                continue
            seen = _attributes(part, ())
            for key, value in _own(part):
                if key not in seen:
                    with suppress(Exception):  # a class of the user's may refuse to be looked at
                        yield from _samples(f"{name}.{key}", part, value, known)

    def _tell(self) -> None:
        for name, now in self._objects():
            if name in self._told or now == self._inside.setdefault(name, 0 if isinstance(now, int) else now):
                continue
            self._told.add(name)
            logger.warning(
                "%s: it changes in the training and is in no checkpoint, so after a resume it begins anew; save it in "
                "state_dict and load_state_dict of a callback or of the data, in on_save_checkpoint and "
                "on_load_checkpoint of a module, or keep it in a buffer",
                name,
            )


def _samples(name: str, part: Any, value: Any, known: Collection[int | None]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module) and not isinstance(part, nn.Module):
        own = [tensor for tensor in value.state_dict().values() if place_of(tensor) not in known]
        yield name, list(map(sample_of, own[:SAMPLE])) or None
    elif type(value) in _KINDS:
        yield name, len(value)
    elif type(value) is Tensor and not value.requires_grad:
        yield name, sample_of(value)


class _Unseen(Exception):  # noqa: N818 - it is no error
    """A value that a checkpoint does not hold by itself."""


def _registered(part: Any) -> set[str]:
    """Return the names of what a module has in its state: a script may have made a buffer of an attribute."""
    kinds = (part._parameters, part._buffers, part._modules) if isinstance(part, nn.Module) else ()  # noqa: SLF001
    return {name for kind in kinds for name in kind}


def _saves_itself(part: Any) -> bool:
    """True if hooks of a part save what they like."""
    own = next((base for base in (LightningModule, LightningDataModule, Callback) if isinstance(part, base)), None)
    name = "state_dict" if own is LightningDataModule else "on_save_checkpoint"
    return own is not None and getattr(type(part), name, None) is not getattr(own, name, None)


def _own(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a part has beyond those of its framework."""
    hidden = _hidden(part)
    return ((key, value) for key, value in list(vars(part).items()) if key not in hidden)


def _hidden(part: Any) -> frozenset[str]:
    if isinstance(part, Metric):
        return _names(Metric).union(part._defaults)  # noqa: SLF001 - they are saved as the metric's states
    bases = (MetricCollection, LightningModule, LightningDataModule, nn.Module)
    base = next((base for base in bases if isinstance(part, base)), None)
    return frozenset() if base is None else _names(base)


_NAMES: dict[type, frozenset[str]] = {}


def _names(kind: type) -> frozenset[str]:
    """Return the names of the attributes that any object of a kind has."""
    if kind not in _NAMES:
        special: dict[Any, Callable[[], Any]] = {Metric: _Bare, MetricCollection: lambda: MetricCollection([])}
        _NAMES[kind] = frozenset(vars(special.get(kind, kind)())) | frozenset(vars(nn.Module()))
    return _NAMES[kind]


class _Bare(Metric):
    """A metric with nothing of its own."""

    def update(self, *_: Any, **__: Any) -> None:
        """Take nothing."""

    def compute(self) -> Any:
        """Return nothing."""


def _attributes(part: Any, places: Collection[int]) -> dict[str, Any]:
    """Return copies of the attributes that are seen, as a checkpoint holds them; not of views of those places."""
    found: dict[str, Any] = {}
    for key, value in _own(part):
        if not _is_of_step(value):
            with suppress(Exception):  # it is no such value, or a thread or a class of the user's is in the way
                found[key] = _packed(value, [_NUMBERS_MAX, _ITEMS_MAX], places)
    for key, value in _passing(part):
        with suppress(_Unseen):
            found[key] = _packed(value, [_NUMBERS_MAX, _ITEMS_MAX], ())
    return found


def _large(part: Any, seen: Collection[str], places: Collection[int]) -> dict[str, Any]:
    """Return outlines of the tensors that are too much for a checkpoint by themselves."""
    tensors = ((key, value) for key, value in chain(_own(part), _passing(part)) if type(value) is Tensor)
    others = ((key, value) for key, value in tensors if key not in seen and place_of(value) not in places)
    return {key: (outline(key, value), sample_of(value)) for key, value in others if not _is_of_step(value)}


def _is_of_step(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.numel() > _OF_A_STEP


def _passing(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the buffers of a module that are in no checkpoint, such as tables that grow."""
    names = getattr(part, "_non_persistent_buffers_set", ()) if isinstance(part, nn.Module) else ()
    return ((name, part._buffers[name]) for name in list(names) if part._buffers.get(name) is not None)  # noqa: SLF001


def _packed(value: Any, left: list[int], places: Collection[int]) -> dict[str, Any]:
    """Return a copy of a value as JSON and tensors.

    Args:
        value: an attribute, or a part of one.
        left: how many numbers and items it may have.
        places: where numbers are that something else holds.

    Raises:
        _Unseen: it has more, or other things.
    """
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
            raise _Unseen
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: copy, _DEVICE: value.device.type}
    if type(value) not in _KINDS:
        if not is_plain(value):
            raise _Unseen
        return {_PLAIN: packed(value)}
    left[1] -= len(value)
    if left[1] < 0 and not (type(value) in (list, tuple) and len(value) <= _NUMBERS_MAX and is_plain(value)):
        raise _Unseen
    if type(value) in (list, tuple) and is_plain(value) and not any(type(item) in _NESTS for item in value):
        return {_PLAIN: packed(value)}
    name = _KINDS[type(value)]
    if name in _DICTS:
        if not all(type(key) in (str, int, bool, float, type(None)) for key in value):
            raise _Unseen
        items: list[Any] = [[key, _packed(item, left, places)] for key, item in list(value.items())]
    else:
        items = [_packed(item, left, places) for item in list(value)]
    longest = {_LONGEST: value.maxlen} if name == "deque" else {}
    return {_KIND: name, _ITEMS: items, **longest}


def _unpacked(saved: Mapping[str, Any], device: Any) -> Any:
    if _PLAIN in saved:
        return unpacked(saved[_PLAIN])
    if _TENSOR in saved:
        return saved[_TENSOR].clone().to("cpu" if saved[_DEVICE] == "cpu" else device)
    if saved[_KIND] in _DICTS:
        kind = dict if saved[_KIND] == "defaultdict" else _DICTS[saved[_KIND]]
        return kind({key: _unpacked(item, device) for key, item in saved[_ITEMS]})
    items = (_unpacked(item, device) for item in saved[_ITEMS])
    return deque(items, saved[_LONGEST]) if saved[_KIND] == "deque" else _ROWS[saved[_KIND]](items)


def _put(own: dict[str, Any], key: str, saved: Mapping[str, Any], device: Any) -> None:
    """Set an attribute. What others may hold too is filled in place."""
    own[key] = _filled(own.get(key), _unpacked(saved, device))


def _filled(holder: Any, value: Any) -> Any:
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
        items = {key: _filled(holder.get(key), item) for key, item in value.items()}
        holder.clear()
        holder.update(items)
    elif isinstance(holder, list | deque):
        parts = [_filled(*pair) for pair in zip_longest(list(holder)[: len(value)], value)]
        holder.clear()
        holder.extend(parts)
    elif isinstance(holder, set):
        holder.clear()
        holder.update(value)
    else:
        return value
    return holder


def _plain(saved: Any) -> Any:
    """Return a value that is plain, as the script has it; another one as a checkpoint holds it."""
    return unpacked(saved[_PLAIN]) if _PLAIN in saved else saved


def _listed(keys: Iterable[str]) -> dict[str, Any]:
    return {_PLAIN: list(keys)}


def _list_in(saved: Mapping[str, Any], word: str) -> list[str]:
    return list(unpacked(saved[word][_PLAIN])) if word in saved else []


def _keys_of(saved: Mapping[str, Any]) -> list[str]:
    return [key for key in saved if key not in (_MARKS, _STEADY)]


def _is_same(value: Any, other: Any) -> bool:
    try:
        return is_same(value, other)
    except RuntimeError:  # tensors on two devices
        return False
