"""The operator's metrics: counted once, bounded, and gone with the run."""

from itertools import product

import pytest
from prometheus_client import generate_latest

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import CheckpointStatus, CostStatus, Lost, ProgressStatus, Verdict
from piton.api.status_base import Phase
from piton.core.increments import REASONS, End, Increments, Recovery
from piton.kube.metrics import JOB, RUN, OperatorMetrics, Registry
from piton.ports import Conflict, Refused, Unavailable
from support.apiserver import RUNS, refusal
from support.builders import NOW, a_manifest, a_record, a_status
from support.cluster import Cluster, Disrupted
from support.pilot import Death, Pilot, a_pilot


def value(meter: OperatorMetrics, name: str, **labels: str) -> float | None:
    return meter.registry.get_sample_value(name, labels)


@pytest.fixture
def meter() -> OperatorMetrics:
    return OperatorMetrics(Registry())


def test_what_can_be_known_beforehand_starts_at_zero(meter: OperatorMetrics) -> None:
    assert value(meter, "piton_runs", phase="Training") == 0
    assert value(meter, "piton_lost_steps_total") == 0
    assert "_created" not in generate_latest(meter.registry).decode()
    assert value(meter, "piton_queue_depth", controller=JOB) == 0
    assert value(meter, "piton_reconcile_errors_total", controller=RUN, fault="bug") == 0
    assert value(meter, "piton_recovery_seconds_count", cause="Preempted") == 0
    for stage, (verdict, reasons) in product(Stage, REASONS.items()):
        for reason in reasons:
            assert value(meter, "piton_attempts_total", stage=stage, verdict=verdict, reason=reason) == 0
    for reason in REASONS[Verdict.PREEMPTED]:
        assert value(meter, "piton_preemptions_total", cause=reason) == 0


def test_an_increment_is_counted_where_it_belongs(meter: OperatorMetrics) -> None:
    preempted = End(verdict=Verdict.PREEMPTED, reason=Reason.NODE_GONE)
    recovery = Recovery(verdict=Verdict.PREEMPTED, seconds=42)

    meter.count(Increments(started=(Stage.TRAIN, Stage.TRAIN), ends=(preempted,), recovery=recovery, lost_steps=7))

    assert value(meter, "piton_attempts_started_total", stage="Train") == 2
    assert value(meter, "piton_attempts_total", stage="Train", verdict="Preempted", reason="NodeGone") == 1
    assert value(meter, "piton_preemptions_total", cause="NodeGone") == 1
    assert value(meter, "piton_lost_steps_total") == 7
    assert value(meter, "piton_recovery_seconds_sum", cause="Preempted") == 42


@pytest.mark.parametrize(("verdict", "counted"), [(v, "Failure" in v or "Infra" in v) for v in Verdict])
def test_only_failures_are_counted_as_failures(meter: OperatorMetrics, verdict: Verdict, counted: bool) -> None:
    reason = REASONS[verdict][0]

    meter.count(Increments(ends=(End(verdict=verdict, reason=reason),)))

    assert value(meter, "piton_failures_total", verdict=verdict, cause=reason) == (1 if counted else None)


def test_a_run_has_series_while_it_is_there_and_none_without_a_value(meter: OperatorMetrics) -> None:
    mine = {"namespace": "team", "run": "ragcun"}
    fresh = a_status(a_record(1), phase=Phase.STARTING)
    meter.show(("team", "ragcun"), fresh)
    assert value(meter, "piton_runs", phase="Starting") == 1
    assert value(meter, "piton_run_step", **mine) is None
    assert value(meter, "piton_run_cost_dollars", **mine) is None

    meter.show(
        ("team", "ragcun"),
        a_status(
            a_record(1),
            progress=ProgressStatus(step=120, progress_percentage=40, estimated_remaining_seconds=90),
            checkpoint=CheckpointStatus(step=100, time=NOW, attempt=1),
            preemptions=3,
            lost=Lost(steps=20),
            cost=CostStatus(spent="3.71", per_hour="12.50", budget="250"),
        ),
    )
    assert value(meter, "piton_runs", phase="Starting") == 0
    assert value(meter, "piton_runs", phase="Training") == 1
    assert value(meter, "piton_run_step", **mine) == 120
    assert value(meter, "piton_run_progress_ratio", **mine) == 0.4
    assert value(meter, "piton_run_remaining_seconds", **mine) == 90
    assert value(meter, "piton_run_checkpoint_step", **mine) == 100
    assert value(meter, "piton_run_checkpoint_timestamp_seconds", **mine) == NOW.timestamp()
    assert value(meter, "piton_run_preemptions", **mine) == 3
    assert value(meter, "piton_run_lost_steps", **mine) == 20
    assert value(meter, "piton_run_cost_dollars", **mine) == 3.71
    assert value(meter, "piton_run_cost_dollars_per_hour", **mine) == 12.5
    assert value(meter, "piton_run_budget_dollars", **mine) == 250

    meter.forget(("team", "ragcun"))
    assert "ragcun" not in generate_latest(meter.registry).decode()


@pytest.mark.parametrize(
    ("error", "fault"),
    [(Conflict("late"), "conflict"), (Unavailable("down"), "api"), (Refused("quota"), "api"), (KeyError("x"), "bug")],
)
def test_a_pass_that_fails_is_measured_and_counted_by_its_fault(
    meter: OperatorMetrics, error: Exception, fault: str
) -> None:
    with pytest.raises(type(error)), meter.reconciling(RUN):
        raise error

    assert value(meter, "piton_reconcile_errors_total", controller=RUN, fault=fault) == 1
    assert value(meter, "piton_reconcile_seconds_count", controller=RUN) == 1
    assert value(meter, "piton_reconcile_seconds_count", controller=JOB) == 0


async def test_a_life_with_a_preemption_is_counted_once(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Disrupted()
    await pilot.cluster.apply(a_manifest())

    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.settle()

    assert value(pilot.meter, "piton_attempts_started_total", stage="Train") == 2
    assert value(pilot.meter, "piton_preemptions_total", cause="Disrupted") == 1
    assert value(pilot.meter, "piton_attempts_total", stage="Train", verdict="Finished", reason="Finished") == 1
    assert value(pilot.meter, "piton_runs", phase="Succeeded") == 1
    assert value(pilot.meter, "piton_reconcile_errors_total", controller=RUN, fault="bug") == 0


async def test_a_status_that_could_not_be_written_is_not_counted(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    pilot.server.refuse = lambda request: (
        refusal(503, "ServiceUnavailable", "later") if request.method == "PUT" else None
    )
    for _ in range(3):
        await pilot.settle()
        pilot.advance(5)
    assert value(pilot.meter, "piton_attempts_started_total", stage="Train") == 0
    assert value(pilot.meter, "piton_reconcile_errors_total", controller=RUN, fault="api") != 0

    pilot.server.refuse = lambda request: None
    pilot.advance(60)
    await pilot.until_phase(Phase.SUCCEEDED)
    assert value(pilot.meter, "piton_attempts_started_total", stage="Train") == 1


async def test_operators_that_die_and_follow_each_other_count_nothing_twice(cluster: Cluster) -> None:
    """Dead after any write: what the two of them have counted together is at most what has happened."""
    cluster.script[1] = Disrupted()
    await cluster.apply(a_manifest())
    started = preempted = 0.0
    for dies_after in (1, 2, 3, 4, 5, None):
        async with a_pilot(cluster, dies_after=dies_after) as pilot:
            try:
                await pilot.until_phase(Phase.SUCCEEDED)
            except Death:
                assert dies_after is not None
            started += value(pilot.meter, "piton_attempts_started_total", stage="Train") or 0
            preempted += value(pilot.meter, "piton_preemptions_total", cause="Disrupted") or 0
    assert started <= 2
    assert preempted <= 1


async def test_the_series_of_a_deleted_run_are_gone(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    assert value(pilot.meter, "piton_run_attempt", namespace="team", run="ragcun") == 1

    await pilot.server.remove(RUNS, "ragcun", "team")
    pilot.controller.wake("team", "ragcun")
    await pilot.settle()

    assert pilot.run() is None
    assert "ragcun" not in generate_latest(pilot.meter.registry).decode()
    assert value(pilot.meter, "piton_runs", phase="Succeeded") == 0
