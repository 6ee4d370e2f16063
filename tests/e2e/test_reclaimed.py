"""Machines that are announced to go while nobody evicts anything, and machines that go with all that tells of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hack.cluster import drills
from hack.cluster.layout import Node
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for
from support.live_operator import without_operator

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 1000
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
TRAINING = paced(STEPS, 0.1, save_every=10)
DISRUPTED = "karpenter.sh/disrupted"


def counts(status: dict[str, Any]) -> tuple[int, int, int, int]:
    """Attempts, preemptions, failures of the cluster, failures of the program."""
    return status["attempt"], status["preemptions"], status["infrastructureFailures"], status["failures"]


@contextmanager
def tainted(cluster: LiveCluster, node: str) -> Iterator[None]:
    """Karpenter's word that the machine goes; it evicts nothing that carries do-not-disrupt."""
    cluster.kubectl("taint", "node", node, f"{DISRUPTED}:NoSchedule")
    try:
        yield
    finally:
        cluster.kubectl("taint", "node", node, f"{DISRUPTED}-", check=False)


def is_told_to_stop(run: Training) -> bool:
    """Whether every pod of attempt 1 has got its SIGTERM, or is gone by now."""
    return all("deletionTimestamp" in pod["metadata"] for pod in run.pods(1))


def test_a_taint_alone_stops_the_attempt_within_two_seconds_and_no_step_is_lost(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(TRAINING)
    first = run.wait_for_node(1)
    run.wait_for_commit(20)

    with tainted(cluster, first):
        begun = time.monotonic()
        wait_for(lambda: is_told_to_stop(run), "SIGTERM", seconds=30, say=run.say)
        took = time.monotonic() - begun
        assert run.wait_for_node(2) != first
        run.hurry()
        status = run.wait_for_phase("Succeeded")

    assert took < 2
    assert counts(status) == (2, 1, 0, 0)
    assert status["lost"]["steps"] == 0
    assert (status["attempts"][0]["verdict"], status["attempts"][0]["reason"]) == ("Preempted", "NodeReclaimed")
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def vanish(cluster: LiveCluster, run: Training, node: Node) -> None:
    """The machine, its node and its pods: nothing is left, and nothing has been said."""
    names = [pod["metadata"]["name"] for pod in run.pods(1)]
    drills.kill(node)
    cluster.kubectl("delete", "node", node.name)
    cluster.kubectl("-n", run.namespace, "delete", "pods", *names, "--force", "--grace-period=0", "--ignore-not-found")


def test_a_pod_that_is_gone_with_its_node_was_preempted(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(TRAINING)
    first = Node.named(run.wait_for_node(1))
    run.wait_for_commit(20)

    vanish(cluster, run, first)

    run.wait_for_node(2)
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert counts(status) == (2, 1, 0, 0)
    assert status["attempts"][0]["verdict"] == "Preempted"
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_also_for_an_operator_that_was_away(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(TRAINING)
    first = Node.named(run.wait_for_node(1))
    run.wait_for_commit(20)

    with without_operator(cluster):
        vanish(cluster, run, first)

    run.wait_for_node(2)
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert counts(status) == (2, 1, 0, 0)
    assert (status["attempts"][0]["verdict"], status["attempts"][0]["reason"]) == ("Preempted", "NodeGone")
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
