"""What an API server says about an object, given its structural schema: the part of it that CRDs use."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def objections(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Why the API server would refuse the value, and which fields it would quietly drop."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: {value!r} is neither a number nor a text"
        elif "pattern" in schema and not re.search(schema["pattern"], str(value)):
            yield f"{path}: {value!r} does not match {schema['pattern']}"
        return
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        yield f"{path}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from objections(schema.get("items", {}), item, f"{path}[{index}]")
    if isinstance(value, dict):
        yield from _of_object(schema, value, path)


def _of_object(schema: Mapping[str, Any], value: Mapping[str, Any], path: str) -> Iterator[str]:
    for field in schema.get("required", ()):
        if field not in value:
            yield f"{path}.{field}: is missing"
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties")
    free = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if path == ".metadata":
        return
    for field, found in value.items():
        inner = properties.get(field, rest)
        if inner is not None:
            yield from objections(inner if isinstance(inner, dict) else {}, found, f"{path}.{field}")
        elif not free:
            yield f"{path}.{field}: is unknown and would be dropped"
