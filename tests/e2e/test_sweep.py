"""A sweep on a real cluster: packed on one node, one of its runs preempted, and the table in the end."""

import csv
import io
import json
from typing import Any

import pytest

from hack.cluster import drills
from hack.cluster.layout import Node
from support.live import PACED, DigestOf, LiveCluster, NewTraining, paced, wait_for
from support.live_sweep import Sweep

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

SHORT, LONG = 60, 1500
STEPS = {"short": SHORT, "middle": SHORT + 20, "long": LONG}


def a_variant(name: str, steps: int) -> dict[str, Any]:
    """It does without one thing that the template has."""
    command = ["python", "-c", PACED, str(steps), "0.1"]
    return {"name": name, "patch": {"trainer": {"command": command}}, "remove": ["checkpoint.keep"]}


def three(**spec: Any) -> dict[str, Any]:
    """The spec of a sweep of three variants."""
    template = {**paced(SHORT, 0.1), "objective": {"metric": "loss"}}
    return {"template": {"spec": template}, "variants": [a_variant(*v) for v in STEPS.items()], **spec}


@pytest.fixture
def sweep(cluster: LiveCluster, namespace: str) -> Sweep:
    return Sweep(cluster, namespace, "ablation")


def test_three_variants_pack_one_node_and_one_is_preempted(
    drilled: None, sweep: Sweep, training: NewTraining, digest_of: DigestOf
) -> None:
    runs = {name: training(f"ablation-{name}") for name in STEPS}
    sweep.apply(three(parallelism=3, placement="Pack", limits={"deadline": "30m"}))
    nodes = {run.wait_for_node(1) for run in runs.values()}
    assert len(nodes) == 1, "they are not on one node"
    for name in ("short", "middle"):
        runs[name].wait_for_phase("Succeeded")

    drills.reclaim(Node.named(nodes.pop()), notice_seconds=20)
    runs["long"].hurry()

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
    assert head.split() == ["NAME", "PHASE", "DONE", "ACTIVE", "BEST", "COST", "AGE"]
    assert line.split()[:4] == ["ablation", "Succeeded", "3/3", "0"]


def test_a_sweep_that_is_deleted_takes_its_runs_along(sweep: Sweep, training: NewTraining) -> None:
    run = training("ablation-short")
    sweep.apply(three(placement="Spread"))
    run.wait_for_node(1)
    created = json.loads(sweep.kubectl("get", "trun", "ablation-short", "-o", "json"))
    assert created["spec"]["checkpoint"].get("keep", {}).get("last", 2) == 2, "the template says 3"

    sweep.kubectl("delete", "tsweep", "ablation", "--timeout=150s")

    wait_for(lambda: not sweep.kubectl("get", "trun", "-o", "name"), "the runs are gone", seconds=150)
    wait_for(lambda: not run.leftovers(), "nothing is left of it", seconds=60)
