"""Validation by the API server: CEL rules of the CRDs, each beside the Python rule with the same sentence.

    @cel("spec.trainer", "has(self.recipe) != has(self.command)", TEXT, found="has(self.recipe) ? 'both' : 'neither'")
    def one_program(spec: Spec) -> Iterator[str]: ...

The expression is true for a valid value; `self` is the value at the path. Both sides share one text: its `{names}` are
filled in by `str.format` in Python, and by expressions on the API server. An API server compiles new rules with the
functions of the version before its own. The rules may use only those of 1.29, because the oldest supported version is
1.30. It refuses rules whose cost may be too high: lists and strings need a maximum length, which `orValue` and
`string()` of a number lose.
"""

import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

Checked = TypeVar("Checked")
Check = Callable[[Checked], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Cel:
    """One entry of `x-kubernetes-validations`."""

    path: str
    """Path of the schema node, from `spec`, with `[]` for the items of a list; empty for the root."""
    expression: str
    message: str = ""
    message_expression: str = ""
    """CEL expression for a message that contains values; it replaces `message`."""
    on_creation: bool = False
    """True if updates are not checked: a value that can no longer change must not block a status or a finalizer."""

    def to_schema(self) -> dict[str, Any]:
        """Return the entry in the form of the CRD."""
        rule = f"oldSelf.hasValue() || ({self.expression})" if self.on_creation else self.expression
        messages = {"message": self.message} if self.message else {"messageExpression": self.message_expression}
        return {"rule": rule, **messages, **({"optionalOldSelf": True} if self.on_creation else {})}


@dataclass(frozen=True)
class SpecRule(Generic[Checked]):
    """A rule in Python, and its equivalents in CEL on the API server."""

    check: Check[Checked]
    cel: tuple[Cel, ...] = ()
    not_in_cel: str = ""
    """The reason why the API server leaves a part of it to Piton."""

    @cached_property
    def on_creation(self) -> bool:
        """True if it is asked at the beginning only: what it says cannot be mended later, or is no trouble any more."""
        return any(twin.on_creation for twin in self.cel)

    def __call__(self, value: Checked) -> Iterator[str]:
        """Return the messages of the Python rule."""
        return self.check(value)


Decorator = Callable[[Check[Checked] | SpecRule[Checked]], SpecRule[Checked]]


def cel(path: str, expression: str, text: str, *, on_creation: bool = False, **values: str) -> Decorator[Any]:
    """Add the CEL equivalent of the decorated rule; `values` are the expressions for the names in the text."""
    messages = {"message_expression": _filled(text, values)} if values else {"message": text}
    return _adding(Cel(path=path, expression=expression, on_creation=on_creation, **messages))


def not_in_cel(why: str) -> Decorator[Any]:
    """Record why the API server cannot check the decorated rule, or a part of it."""
    return lambda rule: replace(_rule(rule), not_in_cel=why)


def by_path(rules: Iterable[SpecRule[Any]], *more: Cel) -> dict[str, tuple[Cel, ...]]:
    """Return the CEL rules by the path of their schema node; `more` are those without a Python rule."""
    found: dict[str, tuple[Cel, ...]] = {}
    for twin in (*(twin for rule in rules for twin in rule.cel), *more):
        found[twin.path] = (*found.get(twin.path, ()), twin)
    return found


def _adding(twin: Cel) -> Decorator[Any]:
    def add(rule: Check[Any] | SpecRule[Any]) -> SpecRule[Any]:
        found = _rule(rule)
        return replace(found, cel=(twin, *found.cel))

    return add


def _rule(rule: Check[Any] | SpecRule[Any]) -> SpecRule[Any]:
    return rule if isinstance(rule, SpecRule) else SpecRule(rule)


def _filled(text: str, values: dict[str, str]) -> str:
    """Return a CEL expression for the text: literals and values, concatenated."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(text):
        parts += [_quoted(literal)] if literal else []
        parts += [] if name is None else [values[name]]
    return " + ".join(parts)


def _quoted(literal: str) -> str:
    return '"' + literal.replace("\\", "\\\\").replace('"', '\\"') + '"'
