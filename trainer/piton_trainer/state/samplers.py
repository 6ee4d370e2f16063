"""Memory of samplers from epoch to epoch: a count of them, a place, an order that is shuffled in place.

An epoch that is resumed is begun again, so a sampler has to be as it was when the epoch began, and once the batches
that are done are passed over, as it was at the save. Seen are attributes that are numbers, texts, or lists, dicts,
arrays and tensors of these (`plain_values`), as far as they are not as the script has made them, and those with a seed
in their name, since a script may draw one. Whatever else there is, of other types or deeper, is left alone, and told of
if it changes (`unseen_changes`).
"""

import logging
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from piton_trainer.state.batch_skipping import has_state
from piton_trainer.state.own_generators import parts_in
from piton_trainer.state.plain_values import copy_of, digest, fill, is_plain, is_same, may_be_shared, packed, unpacked
from piton_trainer.state.unseen_changes import UnseenChanges

logger = logging.getLogger(__name__)

_NEW, _ALIASES, _ABSENT = "<new>", "<aliases>", "<absent>"
"""Keys beside those of attributes: which of them are no longer the objects that the script has made, which pairs of
them are one object, and which did not exist."""

Attributes = Mapping[str, Any]


class Samplers:
    """The samplers of loaders, by names that are the same in each attempt."""

    def __init__(self, loaders: Collection[object] = (), made: Mapping[int, Attributes] | None = None) -> None:
        """`made` has attributes of samplers, by `id`, from before they were given a saved state."""
        self._samplers: dict[str, _Sampler] = {}
        self._known: list[tuple[weakref.ref[Any], _Sampler]] = []
        """All samplers so far that are still used."""
        self._told: set[str] = set()
        self.look_up(loaders, made)

    def look_up(self, loaders: Collection[object], made: Mapping[int, Attributes] | None = None) -> None:
        """Take the samplers of these loaders instead. One that is known is still as it was when it came."""
        self._known = [(part, sampler) for part, sampler in self._known if part() is not None]
        found = dict(_samplers_of(loaders))
        self._samplers = {name: self._of(part, made or {}) for name, part in found.items()}
        self._unseen = UnseenChanges(found, [part for _, _, part in parts_in(loaders)])

    def begin_epoch(self) -> None:
        """Tell of what changes from epoch to epoch and is not in a capture."""
        self._unseen.begin_epoch()

    def capture(self) -> dict[str, dict[str, Any]]:
        """Return what is or was not as the script has made it, as JSON and tensors, by the names of the samplers."""
        found = {name: sampler.capture() for name, sampler in self._samplers.items()}
        return {name: changed for name, changed in found.items() if changed}

    def complete(self, memory: Mapping[str, Attributes]) -> dict[str, dict[str, Any]]:
        """Return an earlier capture with what has changed since, as it was then.

        By a resume the script may have made that otherwise: its own state may put it where it was at the save.
        """
        found = {name: sampler.complete(memory.get(name, {})) for name, sampler in self._samplers.items()}
        return {name: changed for name, changed in found.items() if changed}

    def keep(self, memory: Mapping[str, Attributes]) -> None:
        """Have in each capture from now on what was in this one."""
        for name, sampler in self._samplers.items():
            sampler.keep(memory.get(name, {}))

    def digest(self) -> int:
        """Return a number that is another one when a sampler has changed."""
        return hash(tuple(sampler.digest() for sampler in self._samplers.values()))

    def restore(self, memory: Mapping[str, Attributes]) -> None:
        """Make the samplers what they were at a capture."""
        for name, sampler in self._samplers.items():
            for key, saved, made in sampler.restore(memory.get(name, {})):
                self._tell(f"{name}.{key}", saved, made)

    def _of(self, part: Any, made: Mapping[int, Attributes]) -> "_Sampler":
        if (known := next((sampler for other, sampler in self._known if other() is part), None)) is not None:
            return known
        sampler = _Sampler(part, made.get(id(part)))
        with suppress(TypeError):  # it has slots, and cannot be remembered
            self._known.append((weakref.ref(part), sampler))
        return sampler

    def _tell(self, name: str, saved: Any, made: Any) -> None:
        if name not in self._told:
            logger.warning(
                "loader: its %s is %s in the checkpoint and %s in the script; training goes on with the checkpoint's",
                name,
                saved,
                made,
            )
        self._told.add(name)


class _Sampler:
    """One of them: what it is now, and what the script has made."""

    def __init__(self, part: Any, made: Attributes | None) -> None:
        self._own: dict[str, Any] = vars(part)
        self._made = made or attributes(part)
        self._objects = {key: value for key, value in self._own.items() if is_plain(value) and may_be_shared(value)}
        """Rows that others may hold too: these objects are filled, not replaced."""
        self._kept: dict[str, None] = {}
        """Attributes that were ever otherwise than the script has made them, in this attempt or before."""

    def capture(self) -> dict[str, Any]:
        own = {key: value for key, value in self._own.items() if is_plain(value)}
        self._kept |= {key: None for key, value in own.items() if key not in self._kept and self._differs(key, value)}
        found = {key: packed(own[key]) for key in self._kept if key in own}
        absent = [key for key in self._kept if key not in self._own]
        further = {_NEW: self._new(found), _ALIASES: _aliases(found, own), _ABSENT: absent}
        return found | {key: value for key, value in further.items() if value}

    def complete(self, memory: Attributes) -> dict[str, Any]:
        absent = memory.get(_ABSENT, [])
        left = [key for key in self._kept if key not in memory and key not in absent]
        absent = [*absent, *(key for key in left if key not in self._made)]
        found = {**memory, **{key: packed(self._made[key]) for key in left if key in self._made}}
        return found | ({_ABSENT: absent} if absent else {})

    def keep(self, memory: Attributes) -> None:
        saved = [key for key in memory if key not in (_NEW, _ALIASES, _ABSENT)]
        self._kept |= dict.fromkeys([*saved, *memory.get(_ABSENT, ())])

    def digest(self) -> int:
        return hash(tuple((key, digest(value)) for key, value in self._own.items() if is_plain(value)))

    def restore(self, memory: Attributes) -> list[tuple[str, Any, Any]]:
        """Make it what it was. Return seeds that the script has otherwise: key, what was saved, what the script has."""
        self.keep(memory)
        saved = {key: unpacked(memory[key]) for key in self._kept if key in memory}
        others = [key for key, value in self._own.items() if is_plain(value) and key not in saved]
        for key in others:  # those that hold something else by now stay
            if key in self._made and key not in memory.get(_ABSENT, ()):
                self._put(key, self._made[key], is_new=False)
            else:
                del self._own[key]
        seeds = [(key, value, self._made[key]) for key, value in saved.items() if _is_seed(key) and key in self._made]
        for key, value in saved.items():
            self._put(key, value, is_new=key in memory.get(_NEW, ()))
        for key, other in memory.get(_ALIASES, ()):
            if other in self._own and is_same(self._own[key], self._own[other]):
                self._own[key] = self._own[other]
        return [(key, value, made) for key, value, made in seeds if not is_same(made, value)]

    def _differs(self, key: str, value: Any) -> bool:
        return _is_seed(key) or key not in self._made or not is_same(value, self._made[key])

    def _new(self, keys: Iterable[str]) -> list[str]:
        """Return those of the keys that hold other objects than the script has made."""
        return [key for key in keys if key in self._objects and self._own[key] is not self._objects[key]]

    def _put(self, key: str, value: Any, *, is_new: bool) -> None:
        """Set an attribute: a row in place, unless the sampler had replaced it by a row of its own."""
        made, own = self._objects.get(key), self._own.get(key)
        holder = own if made is None else made
        if is_new:
            if own is made or not is_same(own, value):
                self._own[key] = copy_of(value)
        elif own is not holder or not is_same(holder, value):
            self._own[key] = holder if fill(holder, value) else copy_of(value)


def attributes(part: Any) -> dict[str, Any]:
    """Return copies of the attributes of a sampler that are seen."""
    return {key: copy_of(value) for key, value in vars(part).items() if is_plain(value)}


def may_be_sampler(value: object) -> bool:
    """True if an object that is restored by itself may also be a sampler."""
    return has_state(value) and hasattr(value, "__dict__") and hasattr(type(value), "__iter__")


def _samplers_of(loaders: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Yield each sampler once; not one with a state in a loader that has one too, of which it is a part."""
    known: list[object] = []
    for loader, name, part in parts_in(loaders):
        if "sampler" not in name or not hasattr(part, "__dict__") or any(part is other for other in known):
            continue
        known.append(part)
        if not (has_state(part) and has_state(loader)):
            yield name, part


def _is_seed(key: str) -> bool:
    return "seed" in key


def _aliases(keys: Iterable[str], own: Attributes) -> list[list[str]]:
    """Return pairs of a key and an earlier one that hold the same object."""
    first = {id(value): key for key, value in reversed(list(own.items())) if may_be_shared(value)}
    others = ((key, first.get(id(own[key]), key)) for key in keys)
    return [[key, other] for key, other in others if key != other]
