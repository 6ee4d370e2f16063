"""Lines of JSON, and of anything else, each as a function understands it; what it refuses has its line.

A JSON string may hold half of a surrogate pair, which is no character: neither a file nor a message can hold it. It is
refused where it is read.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from piton.contract import InputError
from piton_trainer.data.stream import lines
from piton_trainer.errors import BadConfig

T = TypeVar("T")


def parsed(source: str, parse: Callable[[str], T]) -> Iterator[T]:
    """Yield the lines of a file or object, each as `parse` understands it.

    Raises:
        BadConfig: it is not there, or a line is wrong.
    """
    for number, line in lines(source):
        try:
            yield parse(line)
        except KeyError as error:
            raise BadConfig(f"trainer.config.data: {source}, line {number}: there is no field {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadConfig(f"trainer.config.data: {source}, line {number}: {error}") from error


def json_object(line: str) -> dict[str, Any]:
    """Parse a line that has to be a JSON object.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(line)
    if not isinstance(found, dict):
        raise InputError("it is no JSON object")
    return found


def text_of(found: dict[str, Any], name: str) -> str:
    """Return a field that has to be a text.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(found.get(name), str):
        raise InputError(f"field {name}: there is no text in it")
    return lossless(found[name], name)


def lossless(text: str, name: str) -> str:
    """Return a text that can be written.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"field {name}: character {error.start + 1} is half of a surrogate pair") from None
    return text


def id_of(found: dict[str, Any], name: str) -> str:
    """Return a field that has to be a name: a text or a number.

    Raises:
        KeyError: it is missing.
        ValueError: it is something else.
    """
    value = found[name]
    if not isinstance(value, str | int | float):
        raise InputError(f"field {name}: has to be a text or a number, not {json.dumps(value)[:40]}")
    return lossless(str(value), name)
