"""Generates the CustomResourceDefinitions from the typed models: `python -m piton.crd FOLDER`.

JSON Schema as pydantic writes it is not the structural schema that Kubernetes wants: references are inlined, unions
with null become optional fields, and `additionalProperties: false` goes, since the API server prunes unknown fields.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from piton.api import validation
from piton.api.cel import Cel
from piton.api.fields import Model
from piton.api.spec import Spec
from piton.api.status import RunStatus
from piton.api.status_base import Conditioned
from piton.contract import names
from piton.sweep import rules as sweep_rules
from piton.sweep.model import SweepSpec
from piton.sweep.status import SweepStatus

Columns = tuple[tuple[str, str, str, int], ...]
"""Name, type, JSONPath, priority; 1 shows with `-o wide`."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One resource."""

    kind: str
    plural: str
    short_name: str
    description: str
    spec: type[Model]
    status: type[Conditioned]
    columns: Columns
    cel: Mapping[str, Sequence[Cel]]
    """Path of a node -> what the API server checks there."""
    list_keys: Mapping[str, str]
    """Path of a list -> the field that tells its items apart."""
    sets: frozenset[str] = frozenset()
    """Paths of lists in which nothing is twice."""
    embedded: Mapping[str, type[Model]] = field(default_factory=dict)
    """Path of a free mapping -> the model that explains what belongs there. Its defaults are not written into it: they
    would change what the user has written when a new version has new ones."""

    @property
    def file_name(self) -> str:
        """Of its CRD."""
        return f"{self.plural}.{names.API_GROUP}.yaml"


_CONDITIONS = {"status.conditions": "type"}
_WHY = '.status.conditions[?(@.type=="Training")]'
"""The condition that says why a run is in its phase, waits or has ended."""
_RUN_COLUMNS: Columns = (
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", f"{_WHY}.reason", 0),
    ("Progress", "integer", ".status.progress.progressPercentage", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Loss", "string", '.status.progress.metrics[?(@.name=="loss")].value', 0),
    ("Ckpt-Age", "date", ".status.checkpoint.time", 0),
    ("Preempts", "integer", ".status.preemptions", 0),
    ("Cost", "string", ".status.cost.spent", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Stage", "string", ".status.stages[-1:].name", 1),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Failures", "integer", ".status.failures", 1),
    ("Lost", "integer", ".status.lost.steps", 1),
    ("Best", "string", ".status.result.bestMetric", 1),
    ("Price", "string", ".status.cost.perHour", 1),
    ("Budget", "string", ".status.cost.budget", 1),
    ("Message", "string", f"{_WHY}.message", 1),
)
_SWEEP_COLUMNS: Columns = (
    ("Phase", "string", ".status.phase", 0),
    ("Done", "string", ".status.done", 0),
    ("Active", "integer", ".status.counts.active", 0),
    ("Best", "string", ".status.best", 0),
    ("Cost", "string", ".status.cost.spent", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Failed", "integer", ".status.counts.failed", 1),
    ("Parallelism", "integer", ".spec.parallelism", 1),
    ("Reason", "string", f"{_WHY}.reason", 1),
)

_SELECTABLE = (".status.phase",)
"""For `kubectl get --field-selector`, from Kubernetes 1.31 on; an older API server leaves them out."""

KINDS: tuple[Kind, ...] = (
    Kind(
        kind=names.KIND,
        plural=names.PLURAL,
        short_name=names.SHORT_NAME,
        description="A model to train, on machines that may be taken away.",
        spec=Spec,
        status=RunStatus,
        columns=_RUN_COLUMNS,
        cel=validation.CEL,
        list_keys={**_CONDITIONS, "status.attempts": "number", "status.stages": "name", "spec.trainer.env": "name"},
    ),
    Kind(
        kind=names.SWEEP_KIND,
        plural=names.SWEEP_PLURAL,
        short_name=names.SWEEP_SHORT_NAME,
        description="Models to train from one template, and to compare.",
        spec=SweepSpec,
        status=SweepStatus,
        columns=_SWEEP_COLUMNS,
        cel=sweep_rules.CEL,
        list_keys={**_CONDITIONS, "status.runs": "name", "status.results": "name", "spec.variants": "name"},
        sets=frozenset({"spec.seeds"}),
        embedded={"spec.template.spec": Spec},
    ),
)

_KEPT = ("type", "description", "enum", "pattern", "format", "minimum", "maximum", "minLength", "maxLength", "minItems",
         "maxItems")  # fmt: skip
_KEPT_OF_STATUS = ("type", "description", "format")
_INT_OR_STRING = "x-kubernetes-int-or-string"
_FREE = {"x-kubernetes-preserve-unknown-fields": True}


def crd(kind: Kind) -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{names.API_GROUP}"},
        "spec": {
            "group": names.API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
                "categories": ["piton"],
            },
            "versions": [_version(kind)],
        },
    }


def _version(kind: Kind) -> dict[str, Any]:
    schema = _Schema(kind)
    root = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": schema.structural(kind.spec.model_json_schema(), "spec"),
            "status": schema.structural(kind.status.model_json_schema(mode="serialization"), "status"),
        },
    }
    schema.add_cel(root, "")
    return {
        "name": names.API_VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path} | ({"priority": priority} if priority else {})
            for name, type_, path, priority in kind.columns
        ],
        "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
        "schema": {"openAPIV3Schema": root},
    }


class _Schema:
    """Makes structural schemas of one kind."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def structural(
        self, schema: dict[str, Any], path: str, definitions: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One node of the schema, and everything below it; `path` is dotted, from `spec` or `status`."""
        definitions = schema.get("$defs", {}) if definitions is None else definitions
        node = _resolve(schema, definitions)
        out = {key: node[key] for key in _KEPT if key in node}
        if path in self._kind.embedded and node.get("additionalProperties") is True:
            inner = self.structural(self._kind.embedded[path].model_json_schema(), path)
            return {**inner, "description": out["description"]}
        if "const" in node:
            out |= {"type": "string", "enum": [node["const"]]}
        if path.startswith("status"):  # one new word, or a longer one, would cost the whole status beside an older CRD
            out = {key: value for key, value in out.items() if key in _KEPT_OF_STATUS}
        if node.get(_INT_OR_STRING):
            return {**{key: out[key] for key in ("description",) if key in out}, _INT_OR_STRING: True}
        if "type" not in out:  # a union: either form is checked by the models
            return {**out, **_FREE}
        if path.startswith("spec") and isinstance(node.get("default"), bool | int | str) and not self._within(path):
            out["default"] = node["default"]
        if node["type"] == "array":
            out |= self._array(node, path, definitions)
        if node["type"] == "object":
            out |= self._object(node, path, definitions)
        self.add_cel(out, path)
        return out

    def add_cel(self, out: dict[str, Any], path: str) -> None:
        """The rules that a good API server checks by itself."""
        found = self._kind.cel.get(path)
        if found:
            out["x-kubernetes-validations"] = [rule.to_schema() for rule in found]

    def _within(self, path: str) -> bool:
        return any(path.startswith(f"{embedded}.") for embedded in self._kind.embedded)

    def _array(self, node: dict[str, Any], path: str, definitions: dict[str, Any]) -> dict[str, Any]:
        key = self._kind.list_keys.get(path)
        unique: dict[str, Any] = {"x-kubernetes-list-type": "set"} if path in self._kind.sets else {}
        if key:
            unique = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        return {"items": self.structural(node["items"], f"{path}[]", definitions), **unique}

    def _object(self, node: dict[str, Any], path: str, definitions: dict[str, Any]) -> dict[str, Any]:
        values = node.get("additionalProperties")
        if values is True and "properties" not in node:
            return dict(_FREE)
        if isinstance(values, dict):
            return {"additionalProperties": self.structural(values, f"{path}.*", definitions)}
        properties = node["properties"].items()
        fields = {name: self.structural(field, f"{path}.{name}", definitions) for name, field in properties}
        required = {"required": node["required"]} if node.get("required") else {}
        return {"properties": fields, **required, **(_FREE if values is True else {})}


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


def main() -> None:
    """Write every CRD into the folder."""
    for kind in KINDS:
        text = yaml.safe_dump(crd(kind), sort_keys=False, width=120, allow_unicode=True)
        head = "# Generated from the typed models by `make crd`; a test compares.\n"
        (Path(sys.argv[1]) / kind.file_name).write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
