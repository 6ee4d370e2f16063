"""Manifests that come with a program's module: its definitions, its webhooks."""

from pathlib import Path

import yaml

from hack.cluster import api


def read(path: Path) -> api.Object:
    """The one object of a file. Definitions are long: they are read by the loader in C where PyYAML has it."""
    found: api.Object = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe
    return found
