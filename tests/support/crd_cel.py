"""What the CEL rules of a CRD say about an object, without an API server: Google's CEL, walking the schema.

Only CEL itself and optionals are there, which every API server since 1.29 has: a rule that needs more does not compile.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional

Broken = tuple[str, str]
"""A rule, and what it says."""


def broken(schema: Mapping[str, Any], value: Any, old: Any = None) -> Iterator[Broken]:
    """The rules that the value, and all that is in it, breaks; `old` is what an update replaces."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield from _checked(rule, value, old)
    if isinstance(value, list):
        for item in value:
            yield from broken(schema.get("items", {}), item)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for field, found in value.items():
            inner = schema.get("properties", {}).get(field, schema.get("additionalProperties", {}))
            yield from broken(inner, found, before.get(field))


def _checked(rule: Mapping[str, Any], value: Any, old: Any) -> Iterator[Broken]:
    expression = rule["rule"]
    if rule.get("optionalOldSelf"):
        expression = expression.replace("oldSelf", "optional.none()" if old is None else "optional.of(oldSelf)")
    elif "oldSelf" in expression and old is None:
        return
    if not _evaluated(expression, value, old):
        yield rule["rule"], rule["message"] if "message" in rule else _evaluated(rule["messageExpression"], value, old)


def _evaluated(expression: str, value: Any, old: Any) -> Any:
    found = _compiled(expression).eval(data={"self": value, "oldSelf": old})
    assert found.type() in (cel.Type.BOOL, cel.Type.STRING), f"{expression}: {found.plain_value()}"
    return found.plain_value()


@cache
def _compiled(expression: str) -> cel.Expression:
    env = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}, extensions=[ext_optional.ExtOptional()])
    return env.compile(expression)
