"""A TrainingSweep on a real cluster, as the e2e tests see it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from piton.contract import names
from support.live import LiveCluster, wait_for

_ENDED = ("Succeeded", "Failed")


class Sweep:
    """A TrainingSweep on the cluster."""

    def __init__(self, cluster: LiveCluster, namespace: str, name: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name

    def kubectl(self, *words: str, stdin: str = "") -> str:
        """What kubectl prints, in the sweep's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *words, stdin=stdin)

    def apply(self, spec: Mapping[str, Any], *, labels: Mapping[str, str] | None = None) -> None:
        """Apply it, as a user does."""
        manifest = {
            "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
            "kind": names.SWEEP_KIND,
            "metadata": {"name": self.name, "labels": dict(labels or {})},
            "spec": spec,
        }
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))

    def object(self) -> str:
        """All of it, in JSON."""
        return self.kubectl("get", "tsweep", self.name, "-o", "json")

    @property
    def status(self) -> dict[str, Any]:
        """Its status; empty while there is none."""
        found: dict[str, Any] = json.loads(self.object()).get("status") or {}
        return found

    def wait_for_end(self, *, seconds: float = 300) -> dict[str, Any]:
        """Until all of its runs have ended; its status then."""
        wait_for(lambda: self.status.get("phase") in _ENDED, "the sweep's end", seconds=seconds, say=self.object)
        return self.status

    def results(self, form: str) -> str:
        """What a user sees who pipes the object into the command line."""
        command = [sys.executable, "-m", "piton.cli", "results", "-", "--format", form]
        return subprocess.run(command, input=self.object(), capture_output=True, text=True, check=True).stdout
