"""Conversion of a manifest, from YAML or the API server, into typed values; each problem becomes one message.

A message names the path, the value and the fix, because it is all that a user sees: on the command line, and in the
condition `Accepted`.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from piton.api import validation, validation_names
from piton.api.accepted import accepted_before, keep
from piton.api.fields import DNS_LABEL, Model
from piton.api.spec import Meta, Spec
from piton.api.status import RETRY_MAX, RunStatus
from piton.contract import InputError, duration, names, quantity

ModelT = TypeVar("ModelT", bound=Model)

_AUTO = "literal['auto']"
"""The step of pydantic's that stands for the word among the forms that checkpoint.every can have."""
_OTHER_FORMS = {
    _AUTO: ", {minutes: 15}, {steps: 500}, or both of these",
    "literal['auto','off']": ", or a duration such as 90s, 15m, 24h or 1h30m",
}
"""Values that a field takes beside its words, by the step of pydantic's that stands for the words."""
_TEXT = "constrained-str"
"""The step of pydantic's that stands for a text among the forms that a field can have."""
_API_VERSION = f"{names.API_GROUP}/{names.API_VERSION}"
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "string_type": "text (quote it)",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_METADATA: Mapping[str, tuple[type, str]] = {
    "name": (str, _TYPES["string_type"]),
    "namespace": (str, _TYPES["string_type"]),
    "uid": (str, _TYPES["string_type"]),
    "generation": (int, _TYPES["int_type"]),
    "labels": (Mapping, _TYPES["dict_type"]),
    "annotations": (Mapping, _TYPES["dict_type"]),
    "finalizers": (list, _TYPES["tuple_type"]),
}
"""Types in a file's metadata of what Piton reads; an API server has checked all of it."""
_PATTERNS = {
    duration.PATTERN: "a duration such as 90s, 15m, 24h or 1h30m",
    quantity.PATTERN: 'an amount such as 4, "1.5", 500m or 16Gi',
    r"^[0-9]+(\.[0-9]{1,2})?$": 'an amount of dollars, not below zero, in quotes, such as "250"',
}

_AMOUNTS = re.compile(r"\.resources\.(requests|limits)\.")


class SpecError(InputError):
    """The manifest cannot be accepted. `problems` are messages, the most important first."""

    def __init__(self, problems: Iterable[str], parsed: "Parsed | None" = None) -> None:
        self.problems = tuple(problems)
        self.parsed = parsed
        """The manifest, as far as it could be parsed."""
        super().__init__(self.problems[0])


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A manifest in typed pieces."""

    meta: Meta
    spec: Spec | None
    """The spec in effect: the user's, or the one that was accepted last while the user's is refused. None: neither."""
    problems: tuple[str, ...]
    """Messages on why the user's is refused."""
    status: RunStatus
    meanwhile: str = ""
    """The parts of a spec that is refused that act all the same, and those that do not yet."""
    asked: Spec | None = None
    """The user's spec, also if it is refused; None if it is no spec at all."""


def parse(manifest: Mapping[str, Any]) -> Parsed:
    """Parse an object from the API server; problems are returned, so that even an invalid run can be deleted."""
    meta = meta_of(manifest["metadata"])
    status = RunStatus.read(manifest.get("status") or {})
    written, accepted = manifest.get("spec"), status.accepted.spec if status.accepted else None
    spec, problems = model_of(Spec, written, "describe the trainer and the checkpoint")
    problems += validation.check_name(meta.name)
    is_excused = (manifest["metadata"].get("annotations") or {}).get(names.ANNOTATION_OLDER_RULES) == "true"
    has_begun = status.attempt > 0 or status.unreadable is not None
    broken = validation.check(spec, has_begun=has_begun) if spec else []
    if not problems and not broken:
        return Parsed(meta=meta, spec=spec, problems=(), status=status, asked=spec)
    is_older = is_excused or (has_begun and (accepted is None or _accept(accepted) is None))
    if is_older and spec is not None:
        broken = validation.check(spec, has_begun=True, is_older=True)
    problems += broken
    in_effect, meanwhile = spec, ""
    if problems:
        accept = partial(_accept, is_older=is_older)
        before, meanwhile = accepted_before(accepted, written, accept) if accepted else (None, "")
        in_effect = None if before is None else keep(before, written)
    return Parsed(meta=meta, spec=in_effect, problems=tuple(problems), status=status, meanwhile=meanwhile, asked=spec)


def _accept(document: Mapping[str, Any], *, is_older: bool = False) -> Spec | None:
    """Return the spec if a run that has begun may have it."""
    spec, _ = model_of(Spec, document, "")
    return None if spec is None or validation.check(spec, has_begun=True, is_older=is_older) else spec


def parse_file(document: object, *, now: datetime) -> Parsed:
    """Parse a user's manifest.

    Raises:
        SpecError: it is not a TrainingRun, or one that cannot be accepted.
    """
    parsed = parse(manifest_of(document, names.KIND, now=now))
    if parsed.problems:
        raise SpecError(parsed.problems, parsed)
    return parsed


def manifest_of(document: object, kind: str, *, now: datetime) -> dict[str, Any]:
    """Return a user's document as the API server would return it: created now, and without a status.

    Raises:
        SpecError: it is not of that kind.
    """
    if not isinstance(document, Mapping):
        raise SpecError([f"the file holds no {kind}; it should begin with `apiVersion: {_API_VERSION}`"])
    for key, value in {"apiVersion": _API_VERSION, "kind": kind}.items():
        if document.get(key) != value:
            raise SpecError([f"{key}: {document.get(key)!r} is not known; write {value!r}"])
    unknown = sorted(set(document) - {"apiVersion", "kind", "metadata", "spec", "status"})
    if unknown:
        raise SpecError([_unknown(unknown[0], unknown[0], ["metadata", "spec"])])
    metadata = _metadata(document.get("metadata"))
    return {**document, "metadata": {**metadata, "creationTimestamp": now.isoformat()}, "status": None}


def _metadata(metadata: object) -> Mapping[str, Any]:
    if not isinstance(metadata, Mapping) or metadata.get("name") is None:
        raise SpecError(["metadata.name: missing; give the run a name"])
    for key, (kind, wanted) in _METADATA.items():
        value = metadata.get(key)
        if value is not None and not isinstance(value, kind):
            raise SpecError([f"metadata.{key}: {show(value)} is of the wrong type; write {wanted}"])
    if problems := list(_metadata_problems(metadata)):
        raise SpecError(problems)
    return metadata


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Return what an API server refuses of the metadata, beside the name."""
    namespace, found = metadata.get("namespace"), {key: metadata.get(key) or {} for key in ("labels", "annotations")}
    if namespace and (not re.fullmatch(DNS_LABEL, namespace) or len(namespace) > 63):
        yield f"metadata.namespace: '{namespace}' is no namespace; write lower-case letters, digits and dashes"
    others = [(key, name, value) for key in found for name, value in found[key].items() if not isinstance(value, str)]
    for key, name, value in others:
        yield f"metadata.{key}.{name}: {show(value)} is of the wrong type; write {_TYPES['string_type']}"
    if not others:
        yield from validation_names.check_labels("metadata.labels", found["labels"])
        yield from validation_names.check_annotations("metadata.annotations", found["annotations"])


def meta_of(metadata: Mapping[str, Any]) -> Meta:
    """Return the part of an object's metadata that Piton uses."""
    annotations = metadata.get("annotations") or {}
    return Meta(
        name=metadata["name"],
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        deleting=bool(metadata.get("deletionTimestamp")),
        held=names.FINALIZER in (metadata.get("finalizers") or ()),
        queue=str((metadata.get("labels") or {}).get(names.LABEL_QUEUE) or ""),
        priority_class=str((metadata.get("labels") or {}).get(names.LABEL_PRIORITY_CLASS) or ""),
        allows_fresh_start=annotations.get(names.ANNOTATION_ALLOW_FRESH_START) == "true",
        save=str(annotations.get(names.ANNOTATION_SAVE) or "")[:RETRY_MAX],
        retry=str(annotations.get(names.ANNOTATION_RETRY) or "")[:RETRY_MAX],
    )


def model_of(kind: type[ModelT], spec: object, wanted: str) -> tuple[ModelT | None, list[str]]:
    """Return a spec as its model, or the messages on why it is invalid; `wanted` is the fix for a missing one."""
    if not isinstance(spec, Mapping):
        return None, [f"spec: missing; {wanted}"]
    try:
        return kind.model_validate_json(to_json(spec), strict=True), []
    except ValidationError as error:
        return None, list(dict.fromkeys(sentence(problem, kind) for problem in _relevant(error.errors())))


def _relevant(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Keep the errors about the form, mapping or word, that the value has; sort missing fields last."""
    tried = [p for p in problems if not (_AUTO in p["loc"] and isinstance(p["input"], Mapping))]
    tried = [p for p in tried if not (p["loc"][-1] == "Every" and not isinstance(p["input"], Mapping))]
    tried = [p for p in tried if p["loc"][-1] != _TEXT]  # the error about the words has this form as well
    return sorted(tried, key=lambda problem: problem["type"] == "missing")


def sentence(problem: ErrorDetails, of: type[BaseModel]) -> str:
    """Return one pydantic error as a message with path, value and fix."""
    steps = [step for step in problem["loc"] if step not in ("Every", _TEXT, *_OTHER_FORMS)]
    path = dotted(["spec", *steps])
    value, kind, context = problem["input"], problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path, str(steps[-1]), _known(of, steps[:-1]))
    if kind == "missing":
        return f"{path}: missing; it is required"
    if kind in _TYPES:
        return f"{path}: {show(value)} is of the wrong type; write {_wanted(kind, value, path)}"
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS.get(context["pattern"], f"something that matches {context['pattern']}")
        return f"{path}: {show(value)} is not allowed; write {wanted}"
    if kind in ("enum", "literal_error"):
        others = next((others for words, others in _OTHER_FORMS.items() if words in problem["loc"]), "")
        return f"{path}: {show(value)} is not known; write {context['expected']}{others}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = f"at least {context['ge']}" if kind == "greater_than_equal" else f"at most {context['le']}"
        return f"{path}: {show(value)} is out of range; write {bound}"
    return f"{path}: {show(value)} is not allowed: {problem['msg']}"


def _wanted(kind: str, value: object, path: str) -> str:
    """Return what to write in place of a value of the wrong type. Quotes turn no word into an amount, and no null."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind != "string_type" or is_number:
        return _TYPES[kind]
    if _AMOUNTS.search(path):
        return _PATTERNS[quantity.PATTERN]
    return "text" if value is None else _TYPES[kind]


def dotted(steps: Iterable[str | int]) -> str:
    """Return a path in dotted notation: `spec.trainer.env[0].name`."""
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def show(value: object) -> str:
    """Return a value as it stood in the file, cut to 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(path: str, field: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(field, known, n=1)
    fix = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
    return f"{path}: unknown field; {fix}"


def _known(kind: type[BaseModel], steps: Iterable[str | int]) -> list[str]:
    """Return the field names at a path inside a model."""
    for step in steps:
        if isinstance(step, int):
            continue
        field = next((f for f in kind.model_fields.values() if f.alias == step), None)
        inner = _inner_model(field.annotation) if field else None
        if inner is None:
            return []
        kind = inner
    return [field.alias or name for name, field in kind.model_fields.items()]


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)
