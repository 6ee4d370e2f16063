"""What is left of a run that was deleted, by a user or because its time to live has passed."""

import pytest

from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 600


def test_checkpoints_outlive_their_run_and_a_new_one_goes_on_from_them(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    run = training()
    claim = f"{run.name}-checkpoints"
    spec = paced(STEPS, 0.2, save_every=5, volume={"reclaim": "Retain"})
    run.apply(spec)
    run.wait_for_commit(10)

    run.delete("--cascade=foreground")

    left = [f"PersistentVolumeClaim {claim}"]
    wait_for(lambda: run.leftovers() == left, "all but the claim is gone", seconds=60)
    saved = max(run.commits())
    assert 10 <= saved < STEPS

    run.apply(spec)
    wait_for(lambda: "NameTaken" in str(run.status), "it says whose the claim is", seconds=60)
    described = cluster.kubectl("-n", run.namespace, "describe", "trun", run.name)
    assert f"the line spec.checkpoint.volume: {{claimName: {claim}}}" in described

    run.delete()
    assert run.leftovers() == left
    brings = {**spec["checkpoint"], "volume": {"claimName": claim}}
    run.apply({**spec, "checkpoint": brings, "ttlAfterFinished": "20s"})
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert status["attempts"][-1]["resumedFrom"] == saved
    assert status["result"]["weightsDigest"] == digest_of(STEPS)

    wait_for(lambda: not run.status, "its time to live has passed", seconds=60, say=run.say)
    wait_for(lambda: run.leftovers() == left, "what was its own is gone", seconds=60)


def test_a_run_that_is_deleted_as_if_it_owned_nothing_takes_its_job_along(
    cluster: LiveCluster, training: NewTraining
) -> None:
    """The garbage collector takes the owner off the job before the operator looks."""
    run = training()
    run.apply(paced(STEPS, 0.2, save_every=5, volume={"reclaim": "Retain"}))
    run.wait_for_commit(5)

    run.delete("--cascade=orphan")

    wait_for(lambda: run.leftovers() == [f"PersistentVolumeClaim {run.name}-checkpoints"], "it is gone", seconds=150)
