"""Objects of one kind as the API server last showed them, by name and by index, in memory.

Each object is kept as compact JSON text: a tenth of the memory of dictionaries, and a reader gets a copy of its own.
Pydantic's parser and writer are quicker than `json`'s.
A state is older or newer by its resourceVersion, which is a number (KEP-5504): what arrives late, twice or in another
order changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic_core import from_json, to_json

from piton.kube.resources import Body

Key = tuple[str, str]
"""Namespace, empty for objects of the cluster, and name."""
_GONE_MOST = 4096
KeepFields = Callable[[Body], Body]
"""Returns the fields of an object that are needed, with metadata of its own."""
IndexValue = Callable[[Mapping[str, Any]], str | None]
"""Returns the value by which an object is found again; None: it is not found by this index."""


@dataclass(frozen=True)
class Change:
    """An object that has appeared, changed or gone."""

    before_text: str | None
    after_text: str | None
    last_text: str | None = None
    """The state in which it was deleted, where the API server has sent it."""

    @cached_property
    def before(self) -> Body | None:
        """The state that was known before; None: it is new."""
        return None if self.before_text is None else _body(self.before_text)

    @cached_property
    def after(self) -> Body | None:
        """The state now; None: it was deleted."""
        return None if self.after_text is None else _body(self.after_text)

    @property
    def deleted(self) -> bool:
        """True if the object is gone."""
        return self.after_text is None

    @cached_property
    def body(self) -> Body:
        """The newest state, that is the last one of an object that is gone."""
        text = self.after_text or self.last_text or self.before_text
        assert text is not None, "a change has a state before or after it"
        return _body(text)


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    uid: str
    text: str
    """Without the resourceVersion: a state that differs in nothing else is no change."""
    values: tuple[str | None, ...]
    """Of each index."""


class Store:
    """The objects of one kind. For one event loop."""

    def __init__(
        self, keep: KeepFields, indexes: Mapping[str, IndexValue] | None = None, *, most: int | None = None
    ) -> None:
        self._keep = keep
        self._index_values = dict(indexes or {})
        self._most = most
        """Objects that are kept; beyond that the one that changed longest ago goes first, without a change."""
        self._gone: dict[str, int] = {}
        """The versions at which objects went, by uid: an answer to a write may arrive after the deletion that followed
        it. A newer state of the object says that it is back, as when a label that is selected was taken off and put on
        again."""
        self._listed = 0
        """The version of the newest complete list; one with a lower version says that the versions have gone back."""
        self._entries: dict[Key, _Entry] = {}
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._index_values}

    def __len__(self) -> int:
        return len(self._entries)

    def trimmed(self, body: Body) -> Body:
        """Return the fields that are kept. A long list takes less memory so, until it is complete."""
        kept = self._keep(body)
        kept["metadata"]["resourceVersion"] = body["metadata"].get("resourceVersion")
        return kept

    def put(self, body: Body) -> Change | None:
        """Take in a state; None: it is not newer, or differs in nothing that is kept."""
        key, version = key_of(body), version_of(body)
        before = self._entries.get(key)
        if before is not None and version <= before.version:
            return None
        uid = _uid(body)
        if version <= self._gone.get(uid, -1):
            return None
        self._gone.pop(uid, None)
        kept = self._keep(body)
        kept["metadata"].pop("resourceVersion", None)
        values = tuple(value(kept) for value in self._index_values.values())
        entry = _Entry(version=version, uid=uid, text=_text(kept), values=values)
        self._store(key, before, entry)
        if before is not None and before.text == entry.text:
            return None
        return Change(None if before is None or before.uid != uid else before.text, entry.text)

    def remove(self, body: Body) -> Change | None:
        """Take in a deletion, with the object's last state; None: it was not known, or something newer is."""
        key, before = key_of(body), self._entries.get(key_of(body))
        self._remember_gone(_uid(body), version_of(body))
        if before is None or before.uid != _uid(body) or before.version > version_of(body):
            return None
        self._drop(key)
        last = self._keep(body)
        last["metadata"].pop("resourceVersion", None)
        return Change(before.text, None, _text(last))

    def replace(self, bodies: Iterable[Body], *, version: int, restored: bool = False) -> list[Change]:
        """Take in a complete list as of that version. What it lacks is gone, unless it was written later.

        The list counts more than any state that is not newer than the list: after a restore of etcd from a backup
        objects have older versions than they had, and deleted ones are back with their uids.

        Args:
            bodies: all objects.
            version: the list's resourceVersion.
            restored: the versions begin again below those that are known, as after a restore of etcd from a backup.
        """
        if restored or version < self._listed:
            self._entries = {key: replace(entry, version=-1) for key, entry in self._entries.items()}
            self._gone.clear()
        self._listed = version
        listed, changes = set(), []
        for body in bodies:
            listed.add(key_of(body))
            self._forget_up_to(version, body)
            changes.append(self.put(body))
        for key, entry in list(self._entries.items()):
            if key not in listed and entry.version <= version:
                self._remember_gone(entry.uid, version)
                self._drop(key)
                changes.append(Change(entry.text, None))
        return [change for change in changes if change is not None]

    def get(self, namespace: str | None, name: str) -> Body | None:
        """Return a copy of the object; None: there is none."""
        entry = self._entries.get((namespace or "", name))
        return None if entry is None else _read(entry)

    def select(self, namespace: str | None, wanted: Mapping[str, str]) -> Iterator[Body]:
        """Return copies of the objects for which these indexes have these values, in the order of their arrival."""
        for key in self._keys(wanted):
            if namespace in (None, key[0]):
                yield _read(self._entries[key])

    def has_index(self, name: str) -> bool:
        """True if objects are found by this index."""
        return name in self._indexes

    def _keys(self, wanted: Mapping[str, str]) -> list[Key]:
        if not wanted:
            return list(self._entries)
        found = [self._indexes[name].get(value, {}) for name, value in wanted.items()]
        fewest, *others = sorted(found, key=len)
        return [key for key in fewest if all(key in other for other in others)]

    def _store(self, key: Key, before: _Entry | None, entry: _Entry) -> None:
        if before is not None and (before.values != entry.values or self._most):
            self._drop(key)
        self._entries[key] = entry
        for name, value in zip(self._indexes, entry.values, strict=True):
            if value is not None:
                self._indexes[name].setdefault(value, {})[key] = None
        if self._most and len(self._entries) > self._most:
            self._drop(next(iter(self._entries)))

    def _forget_up_to(self, version: int, body: Body) -> None:
        """Let a listed state count although a newer one is known, or its end, if both are older than the list."""
        key, uid = key_of(body), _uid(body)
        if self._gone.get(uid, version + 1) <= version:
            del self._gone[uid]
        entry = self._entries.get(key)
        if entry is not None and version_of(body) < entry.version <= version:
            self._entries[key] = replace(entry, version=-1)

    def _remember_gone(self, uid: str, version: int) -> None:
        self._gone.pop(uid, None)
        self._gone[uid] = version
        if len(self._gone) > _GONE_MOST:
            del self._gone[next(iter(self._gone))]

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key)
        for name, value in zip(self._indexes, entry.values, strict=True):
            if value is not None:
                keys = self._indexes[name][value]
                del keys[key]
                if not keys:
                    del self._indexes[name][value]


def version_of(body: Mapping[str, Any]) -> int:
    """Return the resourceVersion of an object or list as a number; 0 if it has none."""
    text = str((body.get("metadata") or {}).get("resourceVersion") or "")
    return int(text) if text.isascii() and text.isdigit() else 0


def key_of(body: Mapping[str, Any]) -> Key:
    """Return the namespace and name of an object."""
    meta = body["metadata"]
    return str(meta.get("namespace") or ""), str(meta["name"])


def _uid(body: Mapping[str, Any]) -> str:
    return str(body["metadata"].get("uid") or "")


def _read(entry: _Entry) -> Body:
    body = _body(entry.text)
    body["metadata"]["resourceVersion"] = str(entry.version)
    return body


def _body(text: str) -> Body:
    found: Body = from_json(text)
    return found


def _text(body: Body) -> str:
    return to_json(body).decode()
