"""What goes wrong on clusters. Each ends with a sentence that says what is wrong, or goes on when it is mended."""

import json

import pytest

from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 60
GREEDY = "x = bytearray(64 << 20)\nwhile True: x += bytes(64 << 20)"


def message(run: Training) -> str:
    """What the run says of itself."""
    return " ".join(c.get("message", "") for c in run.status.get("conditions", []))


def test_an_image_that_does_not_exist_is_named(training: NewTraining, digest_of: DigestOf) -> None:
    """It may come yet: the run waits, says for what, and trains when the image is right."""
    run = training()
    spec = paced(STEPS, 0.0)
    run.apply({**spec, "trainer": {**spec["trainer"], "image": "localhost:1/nobody/knows:1"}})

    wait_for(lambda: "localhost:1/nobody/knows:1" in message(run), "the image is named", seconds=60)

    assert run.status["failures"] == 0
    run.delete()
    run.apply(spec)
    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)


def test_out_of_memory_is_the_users_failure_and_ends_the_run(training: NewTraining) -> None:
    run = training()
    spec = paced(STEPS, 0.0, limits={"failures": 1}, template={"resources": {"limits": {"memory": "200Mi"}}})
    spec["trainer"]["command"] = ["python", "-c", GREEDY]
    run.apply(spec)

    status = run.wait_for_phase("Failed")

    assert status["attempts"][-1]["reason"] == "OutOfMemory"
    assert "memory" in message(run)
    assert (status["preemptions"], status["infrastructureFailures"]) == (0, 0)


def test_on_a_full_volume_what_would_go_later_goes_early(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    spec = paced(
        STEPS, 0.1, save_every=1, limits={"failures": 1}, volume={"size": "1Mi", "storageClassName": "bounded"}
    )
    spec["checkpoint"]["keep"] = {"last": 50}
    run.apply(spec)

    status = run.wait_for_phase("Succeeded")

    assert status["result"]["weightsDigest"] == digest_of(STEPS)
    assert status["checkpoint"]["step"] == max(run.commits())


def test_a_quota_that_forbids_is_quoted_and_waited_for(
    cluster: LiveCluster, training: NewTraining, namespace: str, digest_of: DigestOf
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(quota))
    run = training()
    run.apply(paced(STEPS, 0.0))

    wait_for(lambda: "exceeded quota" in message(run), "the quota is quoted", seconds=60)

    assert run.status["failures"] == 0
    cluster.kubectl("-n", namespace, "delete", "resourcequota", "none")
    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)
