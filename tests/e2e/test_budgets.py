"""Money on a real cluster: what is annotated on the nodes is spent, and a budget that is spent holds the run."""

from collections.abc import Iterator
from typing import Any

import pytest

from piton.contract import names
from support.live import DigestOf, LiveCluster, NewTraining, paced

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]

STEPS = 50
BUDGET = "130"
HOURLY = "28800"
"""A dollar per second for one of a node's eight GPUs. A stop keeps 100 of them back, a start needs 220."""
CAPACITY = {"maxPricePerHour": "28800.00"}


def budget(usd: str) -> dict[str, Any]:
    return {"budget": {"usd": usd}}


@pytest.fixture
def priced(cluster: LiveCluster) -> Iterator[None]:
    """Every node says what it costs."""
    cluster.kubectl("annotate", "nodes", "--all", "--overwrite", f"{names.ANNOTATION_PRICE}={HOURLY}")
    yield
    cluster.kubectl("annotate", "nodes", "--all", f"{names.ANNOTATION_PRICE}-")


@pytest.mark.usefixtures("priced")
def test_a_spent_budget_saves_and_holds_and_a_raised_one_goes_on(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply({**paced(STEPS, 1.0, save_every=5, limits=budget("9000")), "capacity": CAPACITY})
    run.wait_for_commit(10)

    run.patch({"limits": budget(BUDGET)})  # lower, so that nobody has to wait long for it
    held = run.wait_for_phase("Suspended", seconds=300)

    saved = max(run.commits())
    condition = next(found for found in held["conditions"] if found["type"] == "Suspended")
    assert condition["reason"] == "BudgetExceeded"
    assert f"step {saved} is saved; raise limits.budget.usd above" in condition["message"]
    assert 0 < saved < STEPS
    assert 10 < float(held["cost"]["spent"]) <= float(BUDGET)
    assert held["cost"]["perHour"] == "0.00"
    assert not run.running()

    run.patch({"limits": budget("9000")})
    status = run.wait_for_phase("Succeeded", seconds=300)
    assert status["attempts"][1]["resumedFrom"] == saved
    assert (status["failures"], status["lost"]["steps"]) == (0, 0)
    assert float(status["cost"]["spent"]) > float(held["cost"]["spent"])
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
