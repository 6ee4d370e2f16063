"""Reads a TrainingRun or a TrainingSweep from a YAML file, the way that kubectl would."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from piton.api.parse import Parsed, dotted, parse_file, show
from piton.clock import SystemClock
from piton.contract import InputError, names
from piton.sweep.parse import ParsedSweep
from piton.sweep.parse import parse_file as parse_sweep_file

T = TypeVar("T")
Steps = tuple[str | int, ...]
_DEPTH_MAX = 200
"""Levels of lists and mappings. More than that the parser of the spec does not take."""
_VALUES_MAX = 1_000_000
"""More than fit into any object of an API server; a few anchors in anchors make billions."""


class _Loader(yaml.SafeLoader):
    """YAML as an API server understands it: dates are texts, and a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping of texts, as kubectl makes it. Merged keys may be there twice, and the own one wins."""
        own = [self._name(key) for key, _ in node.value if key.value != "<<"]
        doubled = next((name for name, times in Counter(own).items() if times > 1), None)
        if doubled is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {doubled} stands twice", node.start_mark)
        self.flatten_mapping(node)
        return {self._name(key): self.construct_object(value, deep=deep) for key, value in node.value}

    def _name(self, node: yaml.Node) -> str:
        """Return the name of a field: 1 and true are texts there, which are one key in Python."""
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        if isinstance(key, bool | int | float):
            return str(key).lower()
        raise yaml.constructor.ConstructorError(None, None, f"{show(key)} is no name of a field", node.start_mark)


def _as_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return loader.construct_scalar(node)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)


def read(path: Path) -> Parsed:
    """Read and parse the file.

    Raises:
        ValueError: it cannot be read, or holds no good TrainingRun. A SpecError has all problems.
    """
    return _parsed(path, parse_file)


def read_any(path: Path) -> Parsed | ParsedSweep:
    """Read and parse the file, whichever of the two it holds.

    Raises:
        ValueError: it cannot be read, or holds neither. A SpecError has all problems.
    """
    document = _document(path)
    is_sweep = isinstance(document, dict) and document.get("kind") == names.SWEEP_KIND
    return _parsed(path, parse_sweep_file) if is_sweep else _parsed(path, parse_file)


def _parsed(path: Path, parse: Callable[..., T]) -> T:
    return parse(_document(path), now=SystemClock().now())


def _document(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name the file of a TrainingRun") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start} is not UTF-8)") from error
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path} is not YAML: {where}{error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    return _Json().value(found, ())


class _Json:
    """Conversion of what YAML can hold into what JSON can, which is all that `kubectl` sends to an API server."""

    def __init__(self) -> None:
        self._left = _VALUES_MAX

    def value(self, found: object, steps: Steps) -> object:
        """Return the value at this path as JSON has it.

        Raises:
            InputError: JSON has no such value.
        """
        self._left -= 1
        if self._left < 0:
            raise InputError(
                f"the file holds more than {_VALUES_MAX} values; write fewer, or anchors with less in them"
            )
        if len(steps) > _DEPTH_MAX:
            raise InputError(
                f"{dotted(steps[:4])}: nested without end, or too deeply; write at most {_DEPTH_MAX} levels"
            )
        match found:
            case None | bool() | int():
                return found
            case float() if math.isfinite(found):
                return found
            case str() | bytes():
                return _text(found, steps)
            case list():
                return [self.value(item, (*steps, number)) for number, item in enumerate(found)]
            case dict():
                return {(name := _text(key, steps)): self.value(item, (*steps, name)) for key, item in found.items()}
        raise InputError(f"{dotted(steps)}: {show(found)} is nothing that JSON has; write a text, or a finite number")


def _text(found: str | bytes, steps: Steps) -> str:
    """Return a text that can be sent, and given to a program."""
    try:
        text = found.decode() if isinstance(found, bytes) else found
        text.encode()
    except UnicodeError as error:
        raise InputError(f"{dotted(steps)}: {show(found)} is no text in UTF-8; put binary data into a file") from error
    if "\0" in text:
        raise InputError(f"{dotted(steps)}: {show(text)} holds a NUL, which no path and no argument can; remove it")
    return text
