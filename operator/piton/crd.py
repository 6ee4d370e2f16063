"""Generates the CustomResourceDefinition from the typed models: `python -m piton.crd`.

JSON Schema as pydantic writes it is not the structural schema that Kubernetes wants: references are inlined, unions
with null become optional fields, and `additionalProperties: false` goes, since the API server prunes unknown fields.
"""

import sys
from typing import Any

import yaml

from piton.contract import names
from piton.core import rules
from piton.core.model import Spec
from piton.core.status import RunStatus

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "integer", ".status.progress.progressPercentage", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Loss", "string", '.status.progress.metrics[?(@.name=="loss")].value', 0),
    ("Ckpt-Age", "date", ".status.checkpoint.time", 0),
    ("Preempts", "integer", ".status.preemptions", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Stage", "string", ".status.stages[-1:].name", 1),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Failures", "integer", ".status.failures", 1),
    ("Lost", "integer", ".status.lost.steps", 1),
    ("Best", "string", ".status.result.bestMetric", 1),
    ("Reason", "string", '.status.conditions[?(@.type=="Training")].reason', 1),
)
"""Name, type, JSONPath, priority; 1 shows with `-o wide`."""

_KEPT = ("type", "description", "enum", "pattern", "format", "minimum", "maximum", "minLength", "maxLength", "maxItems")
_FREE = {"x-kubernetes-preserve-unknown-fields": True}
_LIST_KEYS = {
    "status.conditions": "type",
    "status.attempts": "number",
    "status.stages": "name",
    "spec.trainer.env": "name",
}


def crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.API_GROUP}"},
        "spec": {
            "group": names.API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": [names.SHORT_NAME],
                "categories": ["piton"],
            },
            "versions": [_version()],
        },
    }


def _version() -> dict[str, Any]:
    root = {
        "type": "object",
        "description": "A model to train, on machines that may be taken away.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(Spec.model_json_schema(), "spec"),
            "status": _structural(RunStatus.model_json_schema(mode="serialization"), "status"),
        },
    }
    _add_cel(root, "")
    return {
        "name": names.API_VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
            for name, kind, path, priority in COLUMNS
        ],
        "schema": {"openAPIV3Schema": root},
    }


def _structural(schema: dict[str, Any], path: str, definitions: dict[str, Any] | None = None) -> dict[str, Any]:
    """One node of the schema, and everything below it; `path` is dotted, from `spec` or `status`."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    node = _resolve(schema, definitions)
    out = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        out |= {"type": "string", "enum": [node["const"]]}
    if "type" not in out:  # a union: either form is checked by the models
        return {"description": out.get("description", ""), **_FREE}
    if path.startswith("spec") and isinstance(node.get("default"), bool | int | str):
        out["default"] = node["default"]
    if node["type"] == "array":
        out |= _array(node, path, definitions)
    if node["type"] == "object":
        out |= _object(node, path, definitions)
    _add_cel(out, path)
    return out


def _array(node: dict[str, Any], path: str, definitions: dict[str, Any]) -> dict[str, Any]:
    key = _LIST_KEYS.get(path)
    as_map = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]} if key else {}
    return {"items": _structural(node["items"], path, definitions), **as_map}


def _object(node: dict[str, Any], path: str, definitions: dict[str, Any]) -> dict[str, Any]:
    values = node.get("additionalProperties")
    if values is True:
        return dict(_FREE)
    if isinstance(values, dict):
        return {"additionalProperties": _structural(values, path, definitions)}
    fields = {name: _structural(field, f"{path}.{name}", definitions) for name, field in node["properties"].items()}
    return {"properties": fields} | ({"required": node["required"]} if node.get("required") else {})


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and see through `X or null`; the field's own words win over the type's."""
    choices = node.get("anyOf")
    if choices and {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        if len(rest) == 1:
            node = {**rest[0], **{key: value for key, value in node.items() if key != "anyOf"}}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def _add_cel(out: dict[str, Any], path: str) -> None:
    if path in rules.CEL:
        out["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules.CEL[path]]


def main() -> None:
    """Write the CRD to stdout."""
    sys.stdout.write("# Generated from the typed models by `make crd`; a test compares.\n")
    yaml.safe_dump(crd(), sys.stdout, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    main()
