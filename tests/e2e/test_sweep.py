"""A sweep on a real cluster: packed on one node, one of its runs preempted, and the table in the end."""

import csv
import io
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from hack.cluster import drills
from hack.cluster.layout import Node
from piton.contract import names
from support.live import PACED, DigestOf, LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

SHORT, LONG = 60, 300
STEPS = {"short": SHORT, "middle": SHORT + 20, "long": LONG}
ENDED = ("Succeeded", "Failed")


def a_variant(name: str, steps: int) -> dict[str, Any]:
    """Null takes away what the template has: a real API server has to let it through."""
    command = ["python", "-c", PACED, str(steps), "0.1"]
    return {"name": name, "patch": {"trainer": {"command": command}, "checkpoint": {"keep": None}}}


class Sweep:
    """The sweep of the test's namespace."""

    def __init__(self, cluster: LiveCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *words: str, stdin: str = "") -> str:
        return self.cluster.kubectl("-n", self.namespace, *words, stdin=stdin)

    def apply(self, **spec: Any) -> None:
        template = {**paced(SHORT, 0.1), "objective": {"metric": "loss"}}
        manifest = {
            "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
            "kind": names.SWEEP_KIND,
            "metadata": {"name": "ablation"},
            "spec": {"template": {"spec": template}, "variants": [a_variant(*v) for v in STEPS.items()], **spec},
        }
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))

    def object(self) -> str:
        return self.kubectl("get", "tsweep", "ablation", "-o", "json")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.object()).get("status") or {}
        return found

    def wait_for_end(self) -> dict[str, Any]:
        wait_for(lambda: self.status.get("phase") in ENDED, "the sweep's end", seconds=300, say=self.object)
        return self.status

    def results(self, form: str) -> str:
        """What a user sees who pipes the object into the command line."""
        command = [sys.executable, "-m", "piton.cli", "results", "-", "--format", form]
        return subprocess.run(command, input=self.object(), capture_output=True, text=True, check=True).stdout


@pytest.fixture
def sweep(cluster: LiveCluster, namespace: str) -> Sweep:
    return Sweep(cluster, namespace)


def test_three_variants_pack_one_node_and_one_is_preempted(
    drilled: None, sweep: Sweep, training: NewTraining, digest_of: DigestOf
) -> None:
    runs = {name: training(f"ablation-{name}") for name in STEPS}
    sweep.apply(parallelism=3, placement="Pack", limits={"deadline": "30m"})
    nodes = {run.wait_for_node(1) for run in runs.values()}
    assert len(nodes) == 1, "they are not on one node"
    for name in ("short", "middle"):
        runs[name].wait_for_phase("Succeeded")

    drills.reclaim(Node.named(nodes.pop()), notice_seconds=20)

    status = sweep.wait_for_end()
    assert (status["phase"], status["done"]) == ("Succeeded", "3/3"), status
    rows = {row["variant"]: row for row in status["runs"]}
    assert {name: row["preemptions"] for name, row in rows.items()} == {"short": 0, "middle": 0, "long": 1}
    assert {row["lostSteps"] for row in rows.values()} == {0}
    for name, steps in STEPS.items():
        assert runs[name].status["result"]["weightsDigest"] == digest_of(steps)

    table = list(csv.DictReader(io.StringIO(sweep.results("csv"))))
    assert [(line["variant"], line["metric"], line["runs"]) for line in table] == [(v, "loss", "1") for v in STEPS]
    assert float(table[-1]["difference"]) == pytest.approx(float(table[-1]["mean"]) - float(table[0]["mean"]), abs=1e-5)
    head, line = sweep.kubectl("get", "tsweep").splitlines()
    assert head.split() == ["NAME", "PHASE", "DONE", "ACTIVE", "BEST", "AGE"]
    assert line.split()[:4] == ["ablation", "Succeeded", "3/3", "0"]


def test_a_sweep_that_is_deleted_takes_its_runs_along(sweep: Sweep, training: NewTraining) -> None:
    run = training("ablation-short")
    sweep.apply(placement="Spread")
    run.wait_for_node(1)
    created = json.loads(sweep.kubectl("get", "trun", "ablation-short", "-o", "json"))
    assert created["spec"]["checkpoint"].get("keep", {}).get("last", 2) == 2, "the null was lost: the template says 3"

    sweep.kubectl("delete", "tsweep", "ablation", "--timeout=150s")

    wait_for(lambda: not sweep.kubectl("get", "trun", "-o", "name"), "the runs are gone", seconds=150)
    wait_for(lambda: not run.leftovers(), "nothing is left of it", seconds=60)
