"""Reads a TrainingRun or a TrainingSweep from a YAML file, the way that kubectl would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from piton.api.parse import Parsed, parse_file
from piton.clock import SystemClock
from piton.contract import InputError, names
from piton.sweep.parse import ParsedSweep
from piton.sweep.parse import parse_file as parse_sweep_file

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML as an API server understands it: dates are texts, and a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without doubled keys, merged ones excepted."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        doubled = next((key for key in keys if keys.count(key) > 1), None)
        if doubled is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {doubled} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
    try:
        return parse(_document(path), now=SystemClock().now())
    except (TypeError, RecursionError) as error:
        raise InputError(f"{path} holds something that JSON has not: {error}") from error


def _document(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name the file of a TrainingRun") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start} is not UTF-8)") from error
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path} is not YAML: {where}{error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
