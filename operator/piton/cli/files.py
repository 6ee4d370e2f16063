"""Reads a TrainingRun or a TrainingSweep from a YAML file, the way that kubectl would."""

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from piton.api.parse import Parsed, dotted, parse_file, show
from piton.clock import SystemClock
from piton.contract import InputError, names
from piton.sweep.parse import ParsedSweep
from piton.sweep.parse import parse_file as parse_sweep_file

Steps = tuple[str | int, ...]
STDIN = "-"
_DEPTH_MAX = 200
"""Levels of lists and mappings. More than that the parser of the spec does not take."""
_VALUES_MAX = 1_000_000
"""More than fit into any object of an API server; a few anchors in anchors make billions."""
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{form: True for word in ("y", "yes", "on", "true") for form in (word, word.capitalize(), word.upper())},
    **{form: False for word in ("n", "no", "off", "false") for form in (word, word.capitalize(), word.upper())},
}
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OCTAL = re.compile(r"([-+]?)0(?=[0-7])")
_INT = re.compile(r"[-+]?(0[bB][01]+|0[oO][0-7]+|0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT64, _UINT64 = 2**63, 2**64


def _scalar(text: str) -> Any:
    """Return what kubectl makes of a word without quotes.

    Its parser has the booleans of YAML 1.1, the octal numbers of both versions, and no numbers to the base 60.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    plain = text.replace("_", "") if text[0] in "+-0123456789" else text
    whole = _OCTAL.sub(r"\g<1>0o", plain)
    if _INT.fullmatch(whole) and -_INT64 <= (number := int(whole, 0)) < _UINT64:
        return number
    if _FLOAT.fullmatch(plain) and math.isfinite(found := float(plain)):
        return found
    return text


_PREFIX = "tag:yaml.org,2002:"
_TAGS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}


class _Loader(yaml.SafeLoader):
    """YAML as kubectl understands it: dates are texts, and a key that stands twice is a mistake."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: tuple[bool, bool] | bool) -> str:
        """Return the tag of a node that has none. `implicit` begins with True where a scalar has no quotes."""
        if kind is yaml.ScalarNode and isinstance(implicit, tuple) and implicit[0]:
            return _PREFIX + ("merge" if value == "<<" else _TAGS[type(_scalar(value or ""))])
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

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
        if isinstance(key, bool):
            return str(key).lower()
        if isinstance(key, int | float):
            return str(_number(key))
        raise yaml.constructor.ConstructorError(None, None, f"{show(key)} is no name of a field", node.start_mark)


def _as_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _as_scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar with one of these tags, which may be written there: `!!float 3`."""
    found = _scalar(_as_text(loader, node))
    if type(found) is int and node.tag == f"{_PREFIX}float":
        return float(found)
    if _TAGS[type(found)] != node.tag.removeprefix(_PREFIX):
        problem = f"{show(node.value)} is no {node.tag.removeprefix(_PREFIX)}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return found


for _tag in ("null", "bool", "int", "float"):
    _Loader.add_constructor(_PREFIX + _tag, _as_scalar)
for _tag in ("timestamp", "merge"):
    _Loader.add_constructor(_PREFIX + _tag, _as_text)


def read_any(path: Path) -> Parsed | ParsedSweep:
    """Read and parse the file, whichever of the two it holds.

    Raises:
        ValueError: it cannot be read, or holds neither. A SpecError has all problems.
    """
    document = _document(path)
    is_sweep = isinstance(document, dict) and document.get("kind") == names.SWEEP_KIND
    now = SystemClock().now()
    return parse_sweep_file(document, now=now) if is_sweep else parse_file(document, now=now)


def read_text(path: Path, what: str = names.KIND) -> str:
    """Return the text of a file, or of stdin for `-`.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return (_read_stdin(what) if str(path) == STDIN else path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name the file of a {what}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start} is not UTF-8)") from error


def _read_stdin(what: str) -> bytes:
    if sys.stdin is None:  # it was closed before the program began
        raise InputError(f"{STDIN} cannot be read (stdin is closed); pipe a {what} into the command, or name its file")
    return sys.stdin.buffer.read()


def _document(path: Path) -> object:
    """Return the document of a file. Call it once for each file: what comes through a pipe can be read once."""
    text = read_text(path)
    try:
        found = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path} is not YAML: {where}{error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    return _Json().value(_meant(found, path), ())


def _meant(documents: Sequence[object], path: Path) -> object:
    """Return the only document, or the only one of Piton among others, such as a Namespace; None: there is none.

    Raises:
        InputError: there are several, and nobody can tell.
    """
    if len(documents) <= 1:
        return next(iter(documents), None)
    kinds = (names.KIND, names.SWEEP_KIND)
    ours = [document for document in documents if isinstance(document, dict) and document.get("kind") in kinds]
    if len(ours) != 1:
        raise InputError(
            f"{path} holds {len(documents)} documents, and {len(ours) or 'none'} of them of the kind {kinds[0]} or "
            f"{kinds[1]}; name a file with one"
        )
    return ours[0]


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
            case None | bool():
                return found
            case int() | float() if math.isfinite(found):
                return _number(found)
            case str() | bytes():
                return _text(found, steps)
            case list():
                return [self.value(item, (*steps, number)) for number, item in enumerate(found)]
            case dict():
                return {(name := _text(key, steps)): self.value(item, (*steps, name)) for key, item in found.items()}
        raise InputError(f"{dotted(steps)}: {show(found)} is nothing that JSON has; write a text, or a finite number")


def _number(found: float) -> float:
    """Return a number as an API server reads it: whole ones that fit are whole however they were written, as 1e3."""
    fits = -_INT64 <= found < _INT64
    return int(found) if fits and found == int(found) else float(found)


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
