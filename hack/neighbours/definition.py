"""Kubeflow's definition of the PyTorchJob as the chart brings it: every field and rule of it, and none of its prose.

    python -m hack.neighbours.definition FILE...

The descriptions are nine tenths of it. With them it is too large for `kubectl apply`, whose annotation holds 256 KB.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import programs
from hack.neighbours import kubeflow

_HEAD = """\
# The PyTorchJob of Kubeflow's training operator {version}, for clusters without it. `make crd-pytorchjob` makes it
# from Kubeflow's own, without the descriptions. Where that is installed, leave it: it is the same.
"""
_NAMED = ("properties", "patternProperties", "definitions")


def without_prose(part: Any, *, names: bool = False) -> Any:
    """A part of a schema without descriptions. `names`: its keys are names of fields, of which one may be called so."""
    if isinstance(part, list):
        return [without_prose(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {key: value for key, value in part.items() if names or key != "description"}
    return {key: without_prose(value, names=not names and key in _NAMED) for key, value in kept.items()}


def text() -> str:
    """The file."""
    definition = without_prose(kubeflow.definition())
    definition["metadata"].pop("annotations", None)  # the generator's version
    body = yaml.dump(definition, sort_keys=False, width=120, default_flow_style=None)
    return _HEAD.format(version=programs.named("training-operator").version) + body


if __name__ == "__main__":
    programs.need(["training-operator"], print)
    for name in sys.argv[1:]:
        Path(name).write_text(text())
