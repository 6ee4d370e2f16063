"""Limits hold while no operator runs: the trainer keeps them by itself, and the operator books it so afterwards."""

from typing import Any

import pytest

from support.live import LiveCluster, NewTraining, Training, paced, wait_for
from support.live_operator import without_operator

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 6000
HOURLY = "28800"
"""A dollar per second for one of a node's eight GPUs. The operator stops a run 100 s before its budget is spent."""


def stops_by_itself(cluster: LiveCluster, run: Training, *, seconds: float) -> dict[str, Any]:
    """The record of its attempt, which nobody has told to stop."""
    with without_operator(cluster):
        assert run.running()
        wait_for(lambda: not run.running(), "it stops by itself", seconds=seconds, say=run.say)
    wait_for(lambda: run.status["attempts"][0]["state"] == "Ended", "the operator books it", seconds=60, say=run.say)
    record: dict[str, Any] = run.status["attempts"][0]
    assert record["verdict"] == "Stopped"
    assert record["checkpointStep"] == record["step"] == max(run.commits()), "what was trained is saved"
    return record


def test_a_deadline_passes(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    run.apply(paced(STEPS, 0.1, limits={"deadline": "100s"}))
    run.wait_for_commit(20)

    record = stops_by_itself(cluster, run, seconds=150)

    assert record["reason"] == "DeadlineExceeded"
    assert "limits.deadline is reached, and the training stopped by itself" in record["message"]
    assert "DeadlineExceeded" in cluster.kubectl("-n", run.namespace, "describe", "trun", run.name)
    assert run.wait_for_phase("Failed")["failures"] == 0


@pytest.mark.repeated
def test_a_budget_runs_out(cluster: LiveCluster, training: NewTraining) -> None:
    """Its end was moved while the trainer ran, and reached the trainer in an answer to a report."""
    run = training()
    limits = {"budget": {"usd": "9000"}}
    run.apply({**paced(STEPS, 0.1, limits=limits), "capacity": {"maxPricePerHour": HOURLY}})
    run.wait_for_commit(20)
    usd = float(run.status["cost"]["spent"]) + 300
    run.patch({"limits": {"budget": {"usd": f"{usd:.2f}"}}})
    for _ in range(2):  # the operator has heard of it, and so has the trainer, which reports more often
        run.wait_for_progress(seconds=90)

    record = stops_by_itself(cluster, run, seconds=400)

    assert record["reason"] == "BudgetExceeded"
    assert "limits.budget is reached, and the training stopped by itself" in record["message"]
    held = run.wait_for_phase("Suspended")
    assert float(held["cost"]["spent"]) < usd + 30, "the stop itself, and the time until the pod has ended"
