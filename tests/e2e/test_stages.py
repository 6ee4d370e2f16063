"""A run that prepares, trains and evaluates on a real cluster: no GPU waits, and a machine that goes costs no step."""

import json
from typing import Any

import pytest

from hack.cluster import drills
from hack.cluster.layout import Node
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for

STEPS = 1000
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
GPU = "nvidia.com/gpu"

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

PREPARE = """
import os, pathlib, time
folder = pathlib.Path(os.environ["PITON_CHECKPOINT_DIR"])
folder.mkdir(parents=True, exist_ok=True)
while not (folder / "prepare").exists():
    time.sleep(0.1)
(folder / "data").write_text("made in attempt " + os.environ["PITON_ATTEMPT"])
"""
TRAIN = """
import os, pathlib
assert (pathlib.Path(os.environ["PITON_CHECKPOINT_DIR"]) / "data").exists(), "there is nothing to train on"
"""
EVALUATE = """
import json, os, pathlib, time
folder = pathlib.Path(os.environ["PITON_CHECKPOINT"])
step = json.loads((folder / "MANIFEST.json").read_text())["step"]
while not (folder.parent / "evaluate").exists():
    time.sleep(0.1)
words = {"outcome": "finished", "step": step, "metrics": {"accuracy": 0.75}, "detail": "accuracy 0.75"}
pathlib.Path(os.environ["PITON_TERMINATION_LOG"]).write_text(json.dumps(words))
"""


def with_stages() -> dict[str, Any]:
    """A run of `paced.py` that insists on what its preparation makes."""
    spec = paced(STEPS, 0.1)
    *python, program, steps, seconds = spec["trainer"]["command"]
    spec["trainer"]["command"] = [*python, TRAIN + program, steps, seconds]
    spec["stages"] = {
        "prepare": {"command": ["python", "-c", PREPARE], "resources": {"requests": {"cpu": "50m"}}, "deadline": "10m"},
        "evaluate": {"command": ["python", "-c", EVALUATE]},
    }
    return spec


def go_on(run: Training, stage: str) -> None:
    """Let the program of that stage end; it waits, so that nobody misses it."""
    folder = wait_for(lambda: run.folder if run.folder and run.folder.exists() else None, "its folder", seconds=60)
    (folder / stage).touch()


def stage_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("piton.dev/stage", "Train"))


def test_a_run_is_prepared_without_a_gpu_survives_a_reclaim_and_is_evaluated(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(with_stages())
    run.wait_for_phase("Preparing")
    (pod,) = run.pods()
    assert (stage_of(pod), pod["spec"]["nodeName"]) == ("Prepare", "node-0")
    assert GPU not in json.dumps(pod["spec"]["containers"][0]["resources"])
    table = cluster.kubectl("-n", run.namespace, "get", "trun", run.name, "-o", "wide")
    assert {"Preparing", "Prepare"} <= set(table.splitlines()[1].split()), table
    go_on(run, "prepare")

    machine = Node.named(run.wait_for_node(2))
    run.wait_for_commit(20)
    drills.reclaim(machine, notice_seconds=20)
    run.hurry()
    run.wait_for_phase("Evaluating")
    go_on(run, "evaluate")
    done = run.wait_for_phase("Succeeded")

    assert [(a["number"], a.get("stage"), a["verdict"]) for a in done["attempts"]] == [
        (1, "Prepare", "Finished"),
        (2, "Train", "Preempted"),
        (3, "Train", "Finished"),
        (4, "Evaluate", "Finished"),
    ]
    assert [(stage["name"], stage["attempts"]) for stage in done["stages"]] == [
        ("Prepare", 1),
        ("Train", 2),
        ("Evaluate", 1),
    ]
    assert (done["preemptions"], done["failures"], done["lost"]["steps"]) == (1, 0, 0)
    assert done["result"]["evaluation"] == {
        "step": STEPS,
        "attempt": 4,
        "metrics": [{"name": "accuracy", "value": "0.75"}],
    }
    assert done["result"]["weightsDigest"] == digest_of(STEPS)
    assert gpus_of(run) == {1: None, 3: "1", 4: None}


def gpus_of(run: Training) -> dict[int, str | None]:
    """What the jobs that are left have asked for; the one that lost its machine is gone."""
    path = f"/apis/kubeflow.org/v1/namespaces/{run.namespace}/pytorchjobs?labelSelector=piton.dev%2Frun%3D{run.name}"
    found = {}
    for job in run.cluster.items(path):
        (container,) = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
        number = int(job["metadata"]["labels"]["piton.dev/attempt"])
        found[number] = container["resources"].get("limits", {}).get(GPU)
    return found


def test_a_preparation_that_fails_never_asks_for_a_gpu(training: NewTraining) -> None:
    run, spec = training(), with_stages()
    spec["stages"]["prepare"] |= {"command": ["python", "-c", "raise SystemExit(3)"], "failures": 2}
    run.apply(spec)

    failed = run.wait_for_phase("Failed")

    assert [(stage["name"], stage["attempts"]) for stage in failed["stages"]] == [("Prepare", 2)]
    assert "stages.prepare.failures is 2" in next(c["message"] for c in failed["conditions"] if c["type"] == "Failed")
    assert gpus_of(run) == {1: None, 2: None}
