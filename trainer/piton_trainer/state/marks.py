"""Marks of what a process has made: a flag that a table is built, the number or the name of an opened file.

Where a value is saved by itself, the thing that it stands for may be in no checkpoint, and nobody can see everywhere
where it may be. So a mark comes back only once it has been seen to change again: what goes on changing counts or
remembers. Until then all that has not changed beside it stays as the script makes it, as a resume without any memory
has it.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

_ABSENT: Any = object()
_NOTHING: tuple[Any, ...] = (None, "", [], (), {})
_FEW = 64
_STANDARD_STREAMS = 3


class ChangeWatch:
    """Sees which values of one object go on changing while its marks and its unsaved parts stay."""

    def __init__(
        self, made: Mapping[str, Any], token: Callable[[Any], Any], is_same: Callable[[Any, Any], bool]
    ) -> None:
        """`made` is what the script has made; `token` is what a value is compared by, and `is_same` does that."""
        self._made = made
        self._token = token
        self._is_same = is_same
        self._parts: Mapping[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._marks: frozenset[str] = frozenset()
        self.steady: dict[str, None] = {}
        """Values that were seen to go on changing, in this attempt or before."""

    def see(self, values: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
        """Look at the values that are not as the script has made them, and at the other parts; return the marks."""
        now = {key: self._token(value) for key, value in values.items()}
        marks = frozenset(key for key, value in values.items() if _is_mark(self._made.get(key, _ABSENT), value))
        parts = {**parts, **{key: now[key] for key in marks if key not in self.steady}}
        stays = self._stays(parts)
        for key, token in now.items():
            if (stays or key in self._marks) and self._has_changed(key, token) and not _names_open_files(values[key]):
                self.steady[key] = None
        self._parts, self._before, self._marks = parts, now, marks
        return [key for key in values if key in marks and key not in self.steady]

    def _has_changed(self, key: str, token: Any) -> bool:
        if key in self._before:
            return not self._is_same(token, self._before[key])
        return key not in self._made or not self._is_same(token, self._token(self._made[key]))

    def _stays(self, parts: Mapping[str, Any]) -> bool:
        if parts.keys() != self._parts.keys():
            return False
        return all(self._is_same(parts[key], self._parts[key]) for key in parts)


def _is_mark(made: Any, value: Any) -> bool:
    """True if a value may stand for something that this process has made since the script has made it otherwise.

    Args:
        made: what the script has made; `_ABSENT` where there was nothing.
        value: what there is now.
    """
    kind = type(value)
    if kind is bool:
        return made is not value
    was_nothing = made is _ABSENT or (type(made) in (int, float) and made == -1) or _is_nothing(made)
    if kind in (int, str):
        return (was_nothing and value != made) or _names_open_files(value)
    return was_nothing and _names_open_files(value)


def _names_open_files(value: Any) -> bool:
    """True for the number of a regular file that this process has open, or a few of them."""
    if type(value) is int:
        return _is_open_file(value)
    items: Iterable[Any] = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    few = list(items)[: _FEW + 1]
    return 0 < len(few) <= _FEW and all(type(item) is int and _is_open_file(item) for item in few)


def _is_nothing(made: Any) -> bool:
    return any(type(made) is type(nothing) and made == nothing for nothing in _NOTHING)


def _is_open_file(number: int) -> bool:
    if not _STANDARD_STREAMS <= number < 2**31:
        return False
    with suppress(OSError):
        return stat.S_ISREG(os.fstat(number).st_mode)
    return False
