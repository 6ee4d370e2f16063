"""Runs that share nodes, and runs that take several."""

from pathlib import Path

import pytest
import yaml

from support import boxed
from support.live import DigestOf, NewTraining, Training, paced, wait_for

ROOT = Path(__file__).parents[2]
GPUS_PER_NODE = 8
STEPS = 60
LONG_STEPS = 500
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
THE_MASTER_ENDS_FIRST = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(60 if os.environ["RANK"] == "0" else 600)
"""

WAITS_FOR_SIGTERM = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(600)
"""

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


def nodes_of(run: Training) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in run.pods())


def test_two_runs_share_a_node_and_do_not_mix(training: NewTraining, digest_of: DigestOf) -> None:
    """Half a node each, and one of them is told to stop: the other never hears of it."""
    only = {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}
    first, second = training("first"), training("second")
    first.apply(paced(LONG_STEPS, 0.1, template=only))
    second.apply(paced(2 * LONG_STEPS, 0.1, template=only))
    assert first.wait_for_node(1) == second.wait_for_node(1) == "node-1"
    first.wait_for_commit(10)

    first.patch({"suspend": True})
    first.wait_for_phase("Suspended")
    second.wait_for_phase("Training")
    for run in (first, second):
        run.hurry()
    first.patch({"suspend": False})

    assert first.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(LONG_STEPS)
    status = second.wait_for_phase("Succeeded")
    assert status["attempt"] == 1
    assert status["result"]["weightsDigest"] == digest_of(2 * LONG_STEPS)


def test_eight_runs_of_one_gpu_fill_one_node(training: NewTraining, digest_of: DigestOf) -> None:
    """They need not train for that: eight imports of torch take two cores a minute."""
    only = {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}
    runs = [training(f"run-{number}") for number in range(GPUS_PER_NODE)]
    waits = paced(STEPS, 0.0, template=only)
    waits["trainer"]["command"] = ["python", "-c", WAITS_FOR_SIGTERM]
    for run in runs:
        run.apply(waits)
    wait_for(lambda: all(nodes_of(run) == ["node-1"] and run.node(1) for run in runs), "eight pods", seconds=120)

    ninth = training("ninth")
    ninth.apply(paced(STEPS, 0.0, template=only))
    # The scheduler's first word is about its claim, which has no volume for a moment.
    wait_for(lambda: "nvidia.com/gpu" in _why_it_waits(ninth), "the ninth has no room and says so", seconds=30)

    runs[0].delete()
    assert ninth.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)
    ninth.cluster.kubectl("-n", ninth.namespace, "delete", "trun", "--all", "--timeout=170s")


def test_the_quickstart_trains_on_two_nodes(training: NewTraining) -> None:
    """Master and worker find each other by name, on two machines, and train the quickstart's model."""
    spec = yaml.safe_load((ROOT / "manifests" / "quickstart.yaml").read_text())["spec"]
    spec["trainer"]["config"] |= {"steps": 40, "evalEvery": 20}
    spec["workers"] |= {"gpusPerNode": 1, "nodes": 2}
    run = training()
    with boxed.in_one_zone():
        run.apply(spec)
        status = run.wait_for_phase("Succeeded")

    assert (status["attempt"], status["result"].get("step")) == (1, 40), status
    assert run.complete().weights_digest == status["result"]["weightsDigest"]


def test_a_command_on_two_nodes_whose_master_ends_first_runs_once(training: NewTraining) -> None:
    """The job has succeeded with its master, and its controller deletes the worker, which still runs."""
    spec = paced(STEPS, 0.1)
    spec["trainer"]["command"] = ["python", "-c", THE_MASTER_ENDS_FIRST]
    spec["workers"] |= {"nodes": 2}
    run = training()
    run.apply(spec)
    wait_for(lambda: len(run.running()) == 2, "both nodes run", seconds=120, say=run.say)

    status = run.wait_for_phase("Succeeded")

    assert (status["attempt"], status["preemptions"], status["failures"]) == (1, 0, 0), status
    assert status["attempts"][0]["reason"] == "ExitedZero"


def _why_it_waits(run: Training) -> str:
    conditions = run.status.get("conditions", [])
    return next((c["message"] for c in conditions if c["type"] == "Training" and "Unschedulable" in c["message"]), "")
