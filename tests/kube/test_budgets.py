"""Budgets over the API: what nodes say that they cost, what is paused, and what goes on when it is raised."""

from typing import Any

from piton.core.reasons import Reason
from piton.core.status import AttemptState, Phase, Verdict
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


async def test_a_node_that_is_too_dear_is_left_and_kept_from_the_next_attempt(pilot: Pilot) -> None:
    pilot.cluster.price = "40"
    pilot.cluster.script[1] = Runs()
    await pilot.server.put(NODES, a_node("elsewhere", price="12"))
    await pilot.cluster.apply(a_manifest(capacity={"maxPricePerHour": "36.00"}))

    await pilot.until(lambda: pilot.run() is not None and pilot.status().infrastructure_failures > 0)
    first = pilot.status().attempts[0]
    assert (first.state, first.reason) == (AttemptState.ENDED, Reason.PRICE_TOO_HIGH)
    pilot.cluster.price = "36"
    await pilot.until_phase(Phase.SUCCEEDED)
    job = pilot.server.find(JOBS, "ragcun-2", "team")
    assert job is not None
    affinity = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    avoided = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node-of-ragcun-1-master-0"]}
    assert avoided in term["matchExpressions"]


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
