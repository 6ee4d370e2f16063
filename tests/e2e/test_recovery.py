"""Pods that train, and lose their node, their operator or their API server. The weights in the end are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from hack.cluster import box, drills, processes
from hack.cluster.layout import Node
from hack.install.chart import NAMESPACE
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for
from support.live_operator import without_operator

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 1000
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
SAVE_EVERY = 10
TRAINING = paced(STEPS, 0.1, save_every=SAVE_EVERY)


def counts(status: dict[str, Any]) -> tuple[int, int, int, int]:
    """Attempts, preemptions, failures, lost steps."""
    return status["attempt"], status["preemptions"], status["failures"], status["lost"]["steps"]


def test_undisturbed_it_takes_one_attempt(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(TRAINING)
    run.wait_for_commit(20)
    run.hurry()

    status = run.wait_for_phase("Succeeded")

    assert counts(status) == (1, 0, 0, 0)
    assert status["result"]["weightsDigest"] == run.complete().weights_digest == digest_of(STEPS)


def test_a_noticed_reclaim_loses_no_step(drilled: None, training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(TRAINING)
    first = run.wait_for_node(1)
    run.wait_for_commit(20)

    drills.reclaim(Node.named(first), notice_seconds=20)

    assert run.wait_for_node(2) != first
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert counts(status) == (2, 1, 0, 0)
    assert status["attempts"][0]["verdict"] == "Preempted"
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_a_killed_node_costs_at_most_one_interval(drilled: None, training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(TRAINING)
    first = run.wait_for_node(1)
    run.wait_for_commit(20)

    drills.kill(Node.named(first))

    assert run.wait_for_node(2, seconds=250) != first  # Kubernetes by itself evicts after 5 minutes
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    attempts, preemptions, failures, lost = counts(status)
    assert (attempts, preemptions, failures) == (2, 1, 0)
    assert lost <= SAVE_EVERY
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_a_cut_off_zombie_cannot_commit(drilled: None, training: NewTraining, digest_of: DigestOf) -> None:
    """It lives on with the volume in its hands; the next attempt claims the fence, and takes it from there."""
    steps = 3000  # five minutes: it must not end by itself before the node counts as lost
    run = training()
    run.apply(paced(steps, 0.1, save_every=SAVE_EVERY))
    zombie = Node.named(run.wait_for_node(1))
    run.wait_for_commit(20)

    drills.cut(zombie)
    wait_for(lambda: run.fence() == 2, "attempt 2 has claimed the fence", seconds=200)

    committed_by_1 = {step for step, attempt in run.commits().items() if attempt == 1}
    assert max(committed_by_1) > 20, "it was no zombie: it never saved while it was cut off"
    run.hurry()
    with watching_commits(run) as seen:
        status = run.wait_for_phase("Succeeded", seconds=400)
    assert {step for step, attempt in seen if attempt == 1} <= committed_by_1
    assert max(step for step, attempt in seen if attempt == 2) == steps
    assert counts(status)[:3] == (2, 1, 0)
    assert status["result"]["weightsDigest"] == digest_of(steps)
    drills.heal(zombie)
    wait_for(lambda: not run.pods(1) and not trainers_on(zombie), "the zombie is gone", seconds=180)


def test_the_operator_dies_and_nothing_is_trained_twice(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(TRAINING)
    for step in (20, 60, 100):
        run.wait_for_commit(step)
        cluster.kubectl("-n", NAMESPACE, "delete", "pods", "--all", "--force", "--grace-period=0")

    run.hurry()
    status = run.wait_for_phase("Succeeded")

    assert counts(status) == (1, 0, 0, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_the_api_server_restarts_and_nobody_notices(drilled: None, training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(TRAINING)
    for step in (20, 60, 100):
        run.wait_for_commit(step)
        box.restart("kube-apiserver")

    run.hurry()
    status = run.wait_for_phase("Succeeded")

    assert counts(status) == (1, 0, 0, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_a_node_dies_while_the_operator_is_down(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    """Nothing was seen as it happened; the state alone has to tell."""
    run = training()
    run.apply(TRAINING)
    first = Node.named(run.wait_for_node(1))
    run.wait_for_commit(20)

    with without_operator(cluster):
        drills.kill(first)
        drills.add(first)  # a new machine under the old name: the pod's object went with the old one

    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert counts(status)[0] == 2
    assert counts(status)[2] == 0
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


@contextmanager
def watching_commits(run: Training) -> Iterator[set[tuple[int, int]]]:
    """Every (step, attempt) that is on the volume at any moment while this lasts, and at its end."""
    seen: set[tuple[int, int]] = set()
    done = False

    def watch() -> None:
        while not done:
            seen.update(run.commits().items())

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done = True
        thread.join()
        seen.update(run.commits().items())


def trainers_on(node: Node) -> list[str]:
    """The trainers that run on the node, whatever the cluster believes."""
    return [command for command in processes.members(node.cgroup).values() if "piton_trainer" in command]
