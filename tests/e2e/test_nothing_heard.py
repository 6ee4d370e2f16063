"""Work of which nothing was heard, and a program that ends by itself on a machine that takes no new pods."""

import json

import pytest

from hack.install.chart import DEPLOYMENT, NAMESPACE
from support.changed_pods import changed_pods
from support.live import LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(420)]
SERVICE = f"{DEPLOYMENT}.{NAMESPACE}.svc"
BLOCKED = (
    '[JSONPatch{op: "add", path: "/spec/hostAliases", value: [Object.spec.hostAliases{ip: "127.0.0.1", '
    f'hostnames: ["{SERVICE}"]}}]}}]'
)
"""Reports go to the pod itself, where nobody listens. The box enforces no NetworkPolicy."""


def _condition(run: Training, kind: str) -> dict[str, str]:
    return next((c for c in run.status.get("conditions", []) if c["type"] == kind), {})


def _events(run: Training, reason: str) -> list[str]:
    found = json.loads(run.cluster.kubectl("-n", run.namespace, "get", "events", "-o", "json"))["items"]
    return [event["message"] for event in found if event["reason"] == reason]


def test_a_program_that_says_nothing_keeps_what_it_has_saved(training: NewTraining) -> None:
    run, spec = training(), paced(1, 0.0, volume={"reclaim": "Retain"})
    spec["trainer"]["command"] = ["sh", "-c", "echo weights > /checkpoints/model.bin"]
    run.apply(spec)
    assert run.wait_for_phase("Succeeded")["attempt"] == 1

    run.delete()

    left = [f"PersistentVolumeClaim {run.name}-checkpoints"]
    wait_for(lambda: run.leftovers() == left, "all but the claim is gone", seconds=60)
    (said,) = _events(run, "VolumeKept")
    assert f"the line spec.checkpoint.volume: {{claimName: {run.name}-checkpoints}}" in said


def test_blocked_reports_are_a_condition_and_what_was_saved_outlives_machine_and_run(
    cluster: LiveCluster, training: NewTraining
) -> None:
    run = training()
    with changed_pods(cluster, run.namespace, BLOCKED):
        run.apply(paced(5000, 0.2, save_every=20, volume={"reclaim": "Retain"}))
        wait_for(lambda: _condition(run, "Reporting").get("status") == "False", "it says so", seconds=150, say=run.say)
        assert run.phase == "Training"
        run.wait_for_commit(20)
        pod = f"{run.name}-1-master-0"
        cluster.kubectl("-n", run.namespace, "delete", "pod", pod, "--grace-period=0", "--force")
        run.delete()

    left = [f"PersistentVolumeClaim {run.name}-checkpoints"]
    wait_for(lambda: run.leftovers() == left, "all but the claim is gone", seconds=120)


def test_a_program_that_is_done_on_a_cordoned_machine_is_done(cluster: LiveCluster, training: NewTraining) -> None:
    run, spec = training(), paced(1, 0.0)
    spec["trainer"]["command"] = ["sh", "-c", "sleep 20"]
    run.apply(spec)
    node = run.wait_for_node(1)
    cluster.kubectl("cordon", node)
    try:
        status = run.wait_for_phase("Succeeded")
    finally:
        cluster.kubectl("uncordon", node)

    assert (status["attempt"], status["attempts"][0]["reason"]) == (1, "ExitedZero")
