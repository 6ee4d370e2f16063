"""Lines of JSON, and of anything else, each as a function understands it; what it refuses has its line.

A JSON string may hold half of a surrogate pair, which is no character: neither a file nor a message can hold it. It is
refused where it is read, and so is character 0.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from piton.contract import InputError
from piton_trainer.data.skipped import NO_SKIPS, Contradiction, Skip, Skips
from piton_trainer.data.stream import lines
from piton_trainer.errors import BadConfig

T = TypeVar("T")


def parsed(source: str, parse: Callable[[str], T], skips: Skips = NO_SKIPS) -> Iterator[T]:
    """Yield the lines of a file or object, each as `parse` understands it.

    `parse` raises ValueError for a line that is wrong, and Contradiction for one that contradicts an earlier one.

    Raises:
        BadConfig: it is not there, a line contradicts another, or is wrong and `skips` does not take it.
    """
    for number, line in lines(source, skips):
        try:
            entry = parse(line)
        except Contradiction as error:
            raise BadConfig(f"trainer.config.data: {source}, line {number}: {error}") from error
        except (ValueError, KeyError, RecursionError) as error:
            why = f"there is no field {error}" if isinstance(error, KeyError) else str(error)
            skips.add(Skip(file=source, place=f"line {number}", why=why))
        else:
            yield entry


def json_object(line: str) -> dict[str, Any]:
    """Parse a line that has to be a JSON object.

    Raises:
        ValueError: it is none.
    """
    return expect_object(json.loads(line, object_pairs_hook=fields_of))


class _Twice(dict[str, Any]):
    """A JSON object in which a field stands twice."""

    names: tuple[str, ...]
    """Those with two values."""


def fields_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; `json` itself takes the last of two values of a field without a word."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    marked = _Twice(fields)
    marked.names = tuple(name for name, value in pairs if value != fields[name])
    return marked


def expect_object(value: Any) -> dict[str, Any]:
    """Return what `fields_of` made of a JSON object.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise InputError("it is no JSON object")
    return value


def value_of(fields: dict[str, Any], name: str) -> Any:
    """Return a field of what `fields_of` made; None where it is missing.

    Raises:
        ValueError: it stands there twice, with two values.
    """
    if isinstance(fields, _Twice) and name in fields.names:
        raise InputError(f"field {name}: stands twice, with two values")
    return fields.get(name)


def text_of(fields: dict[str, Any], name: str) -> str:
    """Return a field that has to be a text.

    Raises:
        ValueError: it is none.
    """
    text = value_of(fields, name)
    if not isinstance(text, str):
        raise InputError(f"field {name}: there is no text in it")
    return lossless(text, name)


def lossless(text: str, name: str) -> str:
    """Return a text that can be written.

    Raises:
        ValueError: it holds half of a surrogate pair, or a zero.
    """
    if "\0" in text:
        raise InputError(f"field {name}: character {text.index(chr(0)) + 1} is 0, which is no text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"field {name}: character {error.start + 1} is half of a surrogate pair") from None
    return text


def id_of(fields: dict[str, Any], name: str) -> str:
    """Return a field that has to be a name: a text or a number.

    Raises:
        KeyError: it is missing.
        ValueError: it is something else.
    """
    if name not in fields:
        raise KeyError(name)
    value = value_of(fields, name)
    if not isinstance(value, str | int | float):
        raise InputError(f"field {name}: has to be a text or a number, not {json.dumps(value)[:40]}")
    return lossless(str(value), name)
