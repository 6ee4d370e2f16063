"""Attributes in which modules of Lightning, callbacks and data modules remember something, as a checkpoint holds them.

    self.outputs.append(loss)    a list that is averaged when the epoch ends, as Lightning's guide has it
    self.best = min(...)         a number, also of a callback, or of a metric that wraps another one

Seen are numbers, texts, tensors, buffers that are not persistent, and lists, tuples, dicts, sets and deques of these,
as far as they are not as the script has made them when the training begins. Callbacks with a `state_dict` and those of
Lightning say their own state. Attributes that are other objects, such as a meter of a class of the user's, are told of
if they change (`sketches`). Random number generators are saved by `lightning_data`.

A flag may stand for an opened file, so what changes once does not come back (`marks`). A tensor that is a view of a
parameter or a buffer is that one's.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from piton_trainer.integrations.lightning_attributes import (
    OF_LIGHTNING,
    attributes,
    large_tensors,
    own_attributes,
    registered,
    saves_itself,
)
from piton_trainer.integrations.lightning_values import KINDS, PLAIN, filled, is_equal, plain, unpack
from piton_trainer.integrations.own_parts import SAMPLE, numbered, place_of, sample_of
from piton_trainer.state.built_parts import is_iterator
from piton_trainer.state.built_parts import place_of as place_of_iterator
from piton_trainer.state.marks import ChangeWatch
from piton_trainer.state.plain_values import unpacked
from piton_trainer.state.sketches import sketch

logger = logging.getLogger(__name__)

_OF_OTHERS = (*OF_LIGHTNING, "torch.utils.data.")
"""Packages with objects that change as they like, such as loaders."""
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
        self._watch: dict[str, ChangeWatch] = {}
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
            made, kept, now = self._made.get(name, {}), self._kept.setdefault(name, {}), attributes(part, places)
            kept |= {key: None for key, value in now.items() if key not in made or not is_equal(value, made[key])}
            own = {key: now[key] for key in kept if key in now}
            watch, built = self._watch_of(name), self._built(name, part, now, places)
            marks = [*built, *watch.see({key: plain(value) for key, value in own.items()}, built)]
            if own:
                found[name] = own | ({_MARKS: _listed(marks), _STEADY: _listed(watch.steady)} if marks else {})
        return found

    def complete(self, memory: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return an earlier capture with what has changed since, as it was then."""
        found = {name: dict(values) for name, values in memory.items()}
        for name, keys in self._kept.items():
            made = self._made.get(name, {})
            if left := {key: made[key] for key in keys if key in made and key not in memory.get(name, {})}:
                found[name] = left | found.get(name, {})
            if _MARKS in found.get(name, {}):
                found[name][_STEADY] = _listed(self._watch_of(name).steady)
        return found

    def put_back(self, memory: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Make the parts what they were at a capture; at the save, unless one is given."""
        memory, device = self._saved if memory is None else memory, self._trainer.strategy.root_device
        places = self._places()
        for name, part in self._parts():
            saved = memory.get(name, {})
            self._watch_of(name).steady |= dict.fromkeys(_list_in(saved, _STEADY))
            now = attributes(part, places)
            for key in self._coming_back(name, saved, now, self._built(name, part, now, places)):
                if key in getattr(part, "_non_persistent_buffers_set", ()):
                    _put(part._buffers, key, saved[key], device)  # noqa: SLF001
                elif key not in registered(part):
                    _put(vars(part), key, saved[key], device)

    def _coming_back(
        self, name: str, saved: Mapping[str, Any], now: Mapping[str, Any], built: Collection[str]
    ) -> list[str]:
        """Return the attributes that are put back: with a mark that is not as it was, only what goes on changing."""
        steady = self._watch_of(name).steady
        marks = [key for key in _list_in(saved, _MARKS) if key not in steady and key not in built]
        marks = [key for key in marks if key not in saved or not (key in now and is_equal(now[key], saved[key]))]
        if not marks:
            return _keys_of(saved)
        left = [key for key in _keys_of(saved) if key not in steady and not is_equal(now.get(key), saved[key])]
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
        now = large_tensors(part, seen, places)
        return {key: found for key, found in now.items() if found != made.get(key)}

    def _take(self, name: str, part: Any, places: Collection[int]) -> None:
        self._made[name] = attributes(part, places)
        self._large[name] = large_tensors(part, self._made[name], places)
        self._watch.pop(name, None)

    def _watch_of(self, name: str) -> ChangeWatch:
        if name not in self._watch:
            made = {key: plain(value) for key, value in self._made.get(name, {}).items()}
            self._watch[name] = ChangeWatch(made, lambda value: value, is_equal)
            self._watch[name].steady |= dict.fromkeys(_list_in(self._saved.get(name, {}), _STEADY))
        return self._watch[name]

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
            is_of_user = not kind.__module__.startswith(OF_LIGHTNING)
            if is_of_user and kind.state_dict.__module__.startswith(OF_LIGHTNING):
                yield name, callback

    def _objects(self) -> Iterator[tuple[str, Any]]:
        """Yield a sample of each attribute that is in no checkpoint."""
        trainer = self._trainer
        known = set(map(place_of, trainer.lightning_module.state_dict().values()))
        saved = [*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        for name, part in self._parts():
            if saves_itself(part):
                continue
            seen = attributes(part, ())
            for key, value in own_attributes(part):
                if key not in seen and not any(value is other for other in saved):
                    with suppress(Exception):  # a class of the user's may refuse to be looked at
                        yield from _samples(f"{name}.{key}", part, value, known)

    def _tell(self) -> None:
        for name, now in self._objects():
            if name in self._told or now == self._inside.get(name):
                continue
            self._told.add(name)
            logger.warning(
                "%s: it changes in the training and is in no checkpoint, so after a resume it begins anew; save it in "
                "state_dict and load_state_dict of a callback or of the data, in on_save_checkpoint and "
                "on_load_checkpoint of a module, or keep it in a buffer",
                name,
            )


def _samples(name: str, part: Any, value: Any, known: Collection[int | None]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        if not isinstance(part, nn.Module):
            own = [tensor for tensor in value.state_dict().values() if place_of(tensor) not in known]
            yield name, list(map(sample_of, own[:SAMPLE])) or None
    elif isinstance(value, Tensor):
        if type(value) is Tensor and not value.requires_grad:
            yield name, sample_of(value)
    elif type(value) in KINDS:
        yield name, (len(value), sketch(value))
    elif is_iterator(value):
        yield name, place_of_iterator(value)
    elif isinstance(value, dict) or not type(value).__module__.startswith(_OF_OTHERS):
        yield name, sketch(value)


def _put(own: dict[str, Any], key: str, saved: Mapping[str, Any], device: Any) -> None:
    """Set an attribute. What others may hold too is filled in place."""
    own[key] = filled(own.get(key), unpack(saved, device))


def _listed(keys: Iterable[str]) -> dict[str, Any]:
    return {PLAIN: list(keys)}


def _list_in(saved: Mapping[str, Any], word: str) -> list[str]:
    return list(unpacked(saved[word][PLAIN])) if word in saved else []


def _keys_of(saved: Mapping[str, Any]) -> list[str]:
    return [key for key in saved if key not in (_MARKS, _STEADY)]
