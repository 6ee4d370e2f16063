"""Budgets over the API: what nodes say that they cost, what is paused, and what goes on when it is raised."""

from typing import Any

from piton.api.reasons import Reason
from piton.api.status import AttemptState, Verdict
from piton.api.status_base import Phase
from piton.rendering.affinity import INSTANCE_TYPE, ZONE
from piton.sweep.parse import parse
from piton.sweep.status import SweepStatus
from support.apiserver import JOBS, NODES, SWEEPS
from support.builders import a_manifest
from support.cluster import Runs, a_node
from support.pilot import Pilot
from support.sweeps import a_sweep


def _a_run(usd: str, price: str = "3600.00") -> dict[str, Any]:
    return a_manifest(capacity={"maxPricePerHour": price}, limits={"budget": {"usd": usd}})


async def test_a_budget_pauses_the_run_nothing_is_paid_and_raising_it_goes_on(pilot: Pilot) -> None:
    pilot.cluster.price = "3600"
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await pilot.cluster.apply(_a_run("300"))
    status = await pilot.until_phase(Phase.SUSPENDED)

    condition = status.condition("Suspended")
    assert condition is not None
    assert condition.reason is Reason.BUDGET_EXCEEDED
    assert "raise limits.budget.usd above" in condition.message
    assert [(a.verdict, a.reason) for a in status.attempts] == [(Verdict.STOPPED, Reason.BUDGET_EXCEEDED)]
    assert status.cost is not None
    assert 200 <= float(status.cost.spent) <= 300
    assert status.cost.per_hour == "0.00"
    for _ in range(3):
        await pilot.turn()  # its pods go
    status = pilot.status()
    pilot.advance(9000)
    await pilot.settle()
    assert pilot.status() == status

    await pilot.cluster.apply(_a_run("900"))
    again = await pilot.until_phase(Phase.TRAINING)
    assert again.attempt == 2


async def test_time_alone_writes_no_status_and_the_limit_wakes_the_operator(pilot: Pilot) -> None:
    pilot.cluster.price = "36"
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(_a_run("20", "36.00"))
    await pilot.until_phase(Phase.TRAINING)
    writes = pilot.count("PUT")

    for _ in range(5):
        await pilot.turn(100)
    assert pilot.count("PUT") == writes
    await pilot.turn(2000)
    await pilot.turn()
    await pilot.settle()
    assert pilot.status().phase is Phase.SUSPENDED


def _affinity_of(pilot: Pilot, job: str) -> dict[str, Any]:
    found = pilot.server.find(JOBS, job, "team")
    assert found is not None
    pod = found["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    affinity: dict[str, Any] = pod["affinity"]
    return affinity


def _lists_of_nodes(pilot: Pilot) -> int:
    return sum(request.resource == NODES and request.name is None for request in pilot.server.asked)


async def test_a_node_that_is_too_dear_is_left_and_its_type_kept_from_the_next_attempt_in_that_zone(
    pilot: Pilot,
) -> None:
    labels = {INSTANCE_TYPE: "p4d.24xlarge", ZONE: "us-east-1a", "karpenter.sh/capacity-type": "spot"}
    pilot.cluster.price, pilot.cluster.node_labels = "40", labels
    pilot.cluster.script[1] = Runs()
    await pilot.server.put(NODES, a_node("elsewhere", price="12", labels={**labels, ZONE: "us-east-1b"}))
    await pilot.cluster.apply(a_manifest(capacity={"maxPricePerHour": "36.00", "tiers": ["Spot"]}))
    await pilot.until(lambda: pilot.run() is not None and pilot.status().attempt == 1)
    await pilot.turn()
    assert _lists_of_nodes(pilot) == 0, "a large cluster has many nodes; they are looked at when there is a reason to"

    await pilot.until(lambda: pilot.status().infrastructure_failures > 0)
    first = pilot.status().attempts[0]
    assert (first.state, first.reason) == (AttemptState.ENDED, Reason.PRICE_TOO_HIGH)
    pilot.cluster.price = "36"
    await pilot.until_phase(Phase.SUCCEEDED)
    there = {"key": INSTANCE_TYPE, "operator": "In", "values": ["p4d.24xlarge"]}
    not_there = {"key": ZONE, "operator": "NotIn", "values": ["us-east-1a"]}
    required = _affinity_of(pilot, "ragcun-2")["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert any(
        there in term["matchExpressions"] and not_there in term["matchExpressions"]
        for term in required["nodeSelectorTerms"]
    )


async def test_no_node_is_ever_avoided_by_its_name(pilot: Pilot) -> None:
    """Karpenter launches nothing for a pod whose affinity names the host name, whatever the operator."""
    pilot.cluster.price = "40"
    await pilot.server.put(NODES, a_node("dear", price="99"))
    await pilot.cluster.apply(a_manifest(capacity={"maxPricePerHour": "36.00"}))
    await pilot.until(lambda: pilot.run() is not None and pilot.status().attempt == 3)

    jobs = pilot.server.all(JOBS)
    assert len(jobs) > 0
    assert "kubernetes.io/hostname" not in str(jobs)


async def test_an_operator_that_was_away_over_the_limit_stops_what_ran_on(pilot: Pilot) -> None:
    pilot.cluster.price = "3600"
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(_a_run("600"))
    await pilot.until_phase(Phase.TRAINING)
    pilot.clock.advance(5000)  # time that the operator's timers do not see
    await pilot.controller.resync()
    status = await pilot.until_phase(Phase.SUSPENDED)
    assert status.cost is not None
    assert float(status.cost.spent) >= 5000


def _sweep(usd: str) -> dict[str, Any]:
    template = {"capacity": {"maxPricePerHour": "3600.00"}}
    return a_sweep(parallelism=2, template=template, limits={"budget": {"usd": usd}})


async def test_a_sweeps_budget_holds_all_that_train_and_a_raised_one_lets_them_go(pilot: Pilot) -> None:
    pilot.cluster.price = "3600"
    pilot.cluster.fates = {f"ragcun-{variant}-1": Runs() for variant in ("baseline", "isotropy")}
    await pilot.cluster.apply(_sweep("600"))

    async def until(phase: Phase) -> SweepStatus:
        for _ in range(100):
            await pilot.settle_sweeps()
            found = pilot.server.find(SWEEPS, "ragcun", "team")
            assert found is not None
            if parse(found).status.phase is phase:
                return parse(found).status
            await pilot.cluster.step()
            pilot.advance(5.0)
        raise AssertionError(f"not {phase} after 100 turns")

    held = await until(Phase.SUSPENDED)
    assert held.cost is not None
    assert 350 <= float(held.cost.spent) <= 600
    assert held.cost.per_hour == "0.00"
    assert [row.phase for row in held.runs] == [Phase.SUSPENDED, Phase.SUSPENDED, Phase.PENDING]
    condition = held.condition("Suspended")
    assert condition is not None
    assert condition.reason is Reason.BUDGET_EXCEEDED

    await pilot.cluster.apply(_sweep("9000"))
    done = await until(Phase.SUCCEEDED)
    assert done.cost is not None
    assert float(done.cost.spent) > float(held.cost.spent)
