"""A training in a pod that stands still: its stacks are on the volume, and the run goes on from its checkpoint."""

import os
import signal

import pytest

from hack.cluster import processes
from hack.cluster.layout import Node
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 1000


def trainer_of(run: Training) -> int:
    """The process of the run's only rank, by its number on this machine. In its container it is PID 1."""
    found = processes.members(Node.named(run.wait_for_node(1)).cgroup)
    (pid,) = [pid for pid, command in found.items() if "soft_margin_loss" in command]
    return pid


@pytest.mark.usefixtures("drilled")
def test_a_trainer_that_is_stopped_is_found_and_the_run_goes_on(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(paced(STEPS, 0.1, limits={"hangTimeout": "20s"}))
    run.wait_for_commit(20)

    os.kill(trainer_of(run), signal.SIGSTOP)

    wait_for(lambda: run.status["attempts"][0].get("reason") == "Hung", "it is found", seconds=90, say=run.say)
    run.hurry()
    described = cluster.kubectl("-n", run.namespace, "describe", "trun", run.name)
    assert "no stack, process T (stopped)" in described
    assert "limits.hangTimeout is 20s" in described
    status = run.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 0)
    assert status["attempts"][1]["resumedFrom"] >= 20
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
    assert run.folder is not None
    assert "State:" in (run.folder / ".hangs" / "attempt-1" / "rank-0.txt").read_text(encoding="utf-8")
