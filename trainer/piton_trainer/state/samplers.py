"""Memory of samplers from epoch to epoch: a count of them, a place, an order that is shuffled in place.

An epoch that is resumed is begun again, so a sampler has to be as it was when the epoch began, and once the batches
that are done are passed over, as it was at the save. Seen are attributes that are numbers, texts, or lists, dicts,
arrays and tensors of these (`plain_values`), as far as they are not as the script has made them, and those with a seed
in their name, since a script may draw one. Whatever else there is, of other types or deeper, is left alone, and told of
if it changes (`unseen_changes`).

A sampler that builds such a part while it runs (`built_parts`) builds it again after a resume. Until it has, what may
say that it is built stays as the script makes it, a flag or the number of a file among it (`marks`). What has been seen
to change while all such parts stayed is put back.

Data sets and what collates their rows in this process (`row_makers`) have a memory too, as far as it is small.
"""

import logging
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from piton_trainer.state.batch_skipping import has_state
from piton_trainer.state.built_parts import is_used_up, names_files, names_process, outline
from piton_trainer.state.marks import ChangeWatch
from piton_trainer.state.own_generators import is_generator, parts_in
from piton_trainer.state.plain_values import (
    copy_of,
    digest,
    fill,
    is_plain,
    is_same,
    is_small,
    may_be_shared,
    packed,
    unpacked,
)
from piton_trainer.state.row_makers import row_makers
from piton_trainer.state.unseen_changes import UnseenChanges

logger = logging.getLogger(__name__)

_NEW, _ALIASES, _ABSENT = "<new>", "<aliases>", "<absent>"
"""Keys beside those of attributes: which of them are no longer the objects that the script has made, which pairs of
them are one object, and which did not exist."""
_BUILT, _FILES, _ALONE = "<built>", "<files>", "<alone>"
"""Further ones: parts that were built by then and are not in the capture, attributes with names of files, and those
that change while such parts stay."""
_WORDS = frozenset({_NEW, _ALIASES, _ABSENT, _BUILT, _FILES, _ALONE})

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
        found, makers = dict(_samplers_of(loaders)), dict(row_makers(loaders))
        self._samplers = {name: self._of(part, made or {}) for name, part in found.items()}
        self._samplers |= {name: self._of(part, {}, are_seen=is_small) for name, part in makers.items()}
        self._makers = frozenset(makers)
        self._unseen = UnseenChanges(found, [part for _, _, part in parts_in(loaders)], makers)

    def look(self) -> None:
        """See what changes, in a moment that is neither the start of an epoch nor a save."""
        for sampler in self._samplers.values():
            sampler.look()

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
        self._unseen.see_save()
        found = {name: sampler.complete(memory.get(name, {})) for name, sampler in self._samplers.items()}
        return {name: changed for name, changed in found.items() if changed}

    def keep(self, memory: Mapping[str, Attributes]) -> None:
        """Have in each capture from now on what was in this one."""
        for name, sampler in self._samplers.items():
            sampler.keep(memory.get(name, {}))

    def tell_of_counts(self, memory: Mapping[str, Attributes]) -> None:
        """Tell of what data sets remember in a capture, one batch ahead of the batches that were trained."""
        keys = [f"{name}.{key}" for name in self._makers for key in memory.get(name, {}) if key not in _WORDS]
        if counted := ", ".join(sorted(key for key in keys if not _is_seed(key))):
            logger.warning(
                "loader: it reads a batch ahead, so for the first batch after this resume %s is what it was when the "
                "epoch began, and rows that follow from it are others; let them follow from epoch and index",
                counted,
            )

    def digest(self) -> int:
        """Return a number that is another one when a sampler has changed."""
        return hash(tuple(sampler.digest() for sampler in self._samplers.values()))

    def restore(self, memory: Mapping[str, Attributes]) -> None:
        """Make the samplers what they were at a capture."""
        for name, sampler in self._samplers.items():
            saved = memory.get(name, {})
            lost, left_out = sampler.lost(saved), sampler.left_out(saved)
            if left_out or (lost and name not in self._makers):  # a data set may open its files, and keep a cache
                marks = [key for key in lost if key in saved and key in saved.get(_BUILT, ())]
                self._tell_of_built(name, [key for key in lost if key not in marks], [*marks, *left_out])
            for key, value, made in sampler.restore(saved):
                self._tell(f"{name}.{key}", value, made)

    def _of(self, part: Any, made: Mapping[int, Attributes], are_seen: Callable[[Any], bool] = is_plain) -> "_Sampler":
        if (known := next((sampler for other, sampler in self._known if other() is part), None)) is not None:
            return known
        sampler = _Sampler(part, made.get(id(part)), are_seen)
        with suppress(TypeError):  # it has slots, and cannot be remembered
            self._known.append((weakref.ref(part), sampler))
        return sampler

    def _tell_of_built(self, name: str, lost: Collection[str], left_out: Collection[str]) -> None:
        built, left = (", ".join(f"{name}.{key}" for key in keys) for keys in (lost, left_out))
        if (word := built or left) in self._told:
            return
        self._told.add(word)
        if not built:
            logger.warning(
                "loader: its %s changed once while it ran, as what stands for a table or an opened file does, so it "
                "begins as in the script; batches that follow from it may be others: if it is to come back, give its "
                "owner state_dict and load_state_dict",
                left,
            )
            return
        logger.warning(
            "loader: its %s was made while it ran and is not in the checkpoint, so it is made again%s; batches "
            "that follow from it may be others: keep it in numbers, texts, or lists, dicts, arrays or tensors of "
            "them",
            built,
            f", and {left} begins as in the script" if left else "",
        )

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

    def __init__(self, part: Any, made: Attributes | None, are_seen: Callable[[Any], bool]) -> None:
        """`are_seen` is true for values that a capture holds."""
        self._own: dict[str, Any] = vars(part)
        self._are_seen = are_seen
        self._made = made or {key: copy_of(value) for key, value in list(self._own.items()) if are_seen(value)}
        self._objects = {
            key: value for key, value in list(self._own.items()) if are_seen(value) and may_be_shared(value)
        }
        """Rows that others may hold too: these objects are filled, not replaced."""
        self._kept: dict[str, None] = {}
        """Attributes that were ever otherwise than the script has made them, in this attempt or before."""
        self._outlines = {key: outline(key, value) for key, value in list(self._own.items()) if not are_seen(value)}
        """Of the parts that no capture holds, as the script has made them."""
        self._watch = ChangeWatch(self._made, digest, operator.eq)

    def capture(self) -> dict[str, Any]:
        own, built = self.look()
        found = {key: packed(own[key]) for key in self._kept if key in own}
        absent = [key for key in self._kept if key not in self._own]
        files = [key for key in found if names_files(own[key])]
        further = {_NEW: self._new(found), _ALIASES: _aliases(found, own), _ABSENT: absent, _BUILT: [*built]}
        further |= {_FILES: files, _ALONE: [*self._watch.steady] if built or files else []}
        return found | {key: value for key, value in further.items() if value}

    def look(self) -> tuple[dict[str, Any], list[str]]:
        """See what changes; return the attributes that a capture holds, and what stands for parts that none does."""
        own = self._plain()
        self._kept |= {key: None for key, value in own.items() if key not in self._kept and self._differs(key, value)}
        built = {key: found for key, found in self._built(own).items() if not is_used_up(self._own[key])}
        seen = {key: own[key] for key in self._kept if key in own and not _is_seed(key)}
        return own, [*built, *self._watch.see(seen, built)]

    def complete(self, memory: Attributes) -> dict[str, Any]:
        absent = memory.get(_ABSENT, [])
        left = [key for key in self._kept if key not in memory and key not in absent]
        absent = [*absent, *(key for key in left if key not in self._made)]
        found = {**memory, **{key: packed(self._made[key]) for key in left if key in self._made}}
        alone = [*self._watch.steady] if memory.get(_BUILT) or memory.get(_FILES) else []
        return found | {key: value for key, value in {_ABSENT: absent, _ALONE: alone}.items() if value}

    def keep(self, memory: Attributes) -> None:
        saved = [key for key in memory if key not in _WORDS]
        self._kept |= dict.fromkeys([*saved, *memory.get(_ABSENT, ())])
        self._watch.steady |= dict.fromkeys(memory.get(_ALONE, ()))

    def digest(self) -> int:
        return hash(tuple((key, digest(value)) for key, value in list(self._own.items()) if self._are_seen(value)))

    def lost(self, memory: Attributes) -> list[str]:
        """Return what was built at a capture and is not by now, and what names files that are gone."""
        gone = [key for key in memory.get(_FILES, ()) if not names_files(unpacked(memory[key]))]
        built = self._built(self._plain()) if memory.get(_BUILT) else {}
        missing = (key for key in memory.get(_BUILT, ()) if not self._is_there(key, memory, built))
        return [*missing, *gone]

    def _is_there(self, key: str, memory: Attributes, built: Collection[str]) -> bool:
        """True for a part that is built by now, and for a mark that goes on changing or is as it was."""
        if key not in memory:
            return key in built
        return key in memory.get(_ALONE, ()) or (key in self._own and is_same(self._own[key], unpacked(memory[key])))

    def left_out(self, memory: Attributes) -> list[str]:
        """Return what cannot be put back without the parts that are lost."""
        lost, alone = self.lost(memory), memory.get(_ALONE, ())
        keys = [key for key in memory if lost and key not in {*lost, *alone, *_WORDS}]
        return [key for key in keys if key not in self._own or not is_same(self._own[key], unpacked(memory[key]))]

    def restore(self, memory: Attributes) -> list[tuple[str, Any, Any]]:
        """Make it what it was. Return seeds that the script has otherwise: key, what was saved, what the script has."""
        self.keep(memory)
        lost = self.lost(memory)
        keys = memory.get(_ALONE, ()) if lost else (*self._kept, *self._own)
        comes_back = dict.fromkeys(key for key in keys if key not in lost)
        saved = {key: unpacked(memory[key]) for key in self._kept if key in memory and key in comes_back}
        stays = {*saved, *memory.get(_BUILT, ())}
        others = [key for key in self._plain() if key in comes_back and key not in stays]
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

    def _plain(self) -> dict[str, Any]:
        """Return the attributes that a capture may hold."""
        return {
            key: value
            for key, value in list(self._own.items())
            if self._are_seen(value) and not self._is_of_process(key)
        }

    def _is_of_process(self, key: str) -> bool:
        value = self._own[key]
        return names_process(key, value) and not (key in self._made and is_same(value, self._made[key]))

    def _built(self, plain: Attributes) -> dict[str, Any]:
        """Return the outlines of the other parts, as far as they are not as the script has made them.

        Generators of random numbers are in the checkpoint by themselves.
        """
        others = ((key, value) for key, value in list(self._own.items()) if key not in plain)
        now = {key: outline(key, value) for key, value in others if not is_generator(value)}
        return {key: found for key, found in now.items() if key not in self._outlines or found != self._outlines[key]}

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
