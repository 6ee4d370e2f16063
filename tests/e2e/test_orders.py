"""What a user may ask of a run at any moment: suspend it or its job, resume, delete it, apply it with no operator."""

import pytest

from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for
from support.live_operator import without_operator

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 1000
"""At five or ten steps a second: time for what a test does. Then the run hurries to its end."""


def test_suspended_it_saves_and_resumed_it_goes_on(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(paced(STEPS, 0.2, save_every=500))
    run.wait_for_node(1)
    wait_for(lambda: (run.status.get("progress") or {}).get("step", 0) >= 10, "ten steps", seconds=60)

    run.patch({"suspend": True})

    suspended = run.wait_for_phase("Suspended")
    saved = max(run.commits())
    wait_for(lambda: not run.running(), "its pod has ended", seconds=30, say=run.say)
    run.hurry()
    assert suspended["checkpoint"]["step"] == saved
    run.patch({"suspend": False})
    status = run.wait_for_phase("Succeeded")
    assert status["attempts"][1]["resumedFrom"] == saved
    assert (status["preemptions"], status["failures"], status["lost"]["steps"]) == (0, 0, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_a_job_that_another_client_suspends_is_stopped_with_a_save_and_the_run_goes_on(
    training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    run.apply(paced(STEPS, 0.2))
    run.wait_for_commit(20)

    patch = '{"spec": {"runPolicy": {"suspend": true}}}'
    run.cluster.kubectl("-n", run.namespace, "patch", "pytorchjob", f"{run.name}-1", "--type=merge", "-p", patch)

    run.wait_for_node(2)
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    stopped = status["attempts"][0]
    assert (stopped["verdict"], stopped["reason"]) == ("Stopped", "JobSuspended"), stopped
    assert (status["attempt"], status.get("failures", 0), status.get("infrastructureFailures", 0)) == (2, 0, 0)
    assert status["lost"]["steps"] == 0
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_deleted_while_it_trains_it_leaves_nothing(training: NewTraining) -> None:
    run = training()
    run.apply(paced(STEPS, 1.0))
    run.wait_for_commit(10)

    run.delete()

    wait_for(lambda: not run.leftovers(), "nothing is left", seconds=120, say=lambda: ", ".join(run.leftovers()))


def test_applied_while_the_operator_is_down_it_is_trained_later(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    with without_operator(cluster):
        run.apply(paced(STEPS, 0.0))
        assert not run.status

    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)
