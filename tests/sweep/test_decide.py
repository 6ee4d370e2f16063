"""What is decided about a sweep: rules in both directions, does and does not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status import Evaluation, MetricValue, ProgressStatus, Result
from piton.api.status_base import ConditionStatus, Phase
from piton.ports import RefusedEffect
from piton.sweep.decide import decide
from piton.sweep.expand import digest
from piton.sweep.observed import CreateRun, MoveDeadline, ResumeRun, SuspendRun, SweepDecision
from piton.sweep.parse import parse
from piton.sweep.refusals import refused
from piton.timing import Timing
from support.builders import NOW, a_status, later
from support.sweeps import a_run_seen, a_sweep, begun, decided, edited, ends_at, observed_of, parsed

SWEEP = parsed(parallelism=2)
T, S, F = Phase.TRAINING, Phase.SUCCEEDED, Phase.FAILED


def runs(*phases: Phase | None, **fields: Any) -> list[Any]:
    """The runs of SWEEP in these phases; None: not there."""
    names = ("ragcun-baseline", "ragcun-isotropy", "ragcun-frozen")
    return [a_run_seen(n, p, **fields) for n, p in zip(names, phases, strict=False) if p is not None]


def creates(decision: SweepDecision) -> list[str]:
    return [effect.run.name for effect in decision.effects if isinstance(effect, CreateRun)]


def test_what_the_sweep_begins_with_is_written_before_any_run_is_created() -> None:
    first = decide(observed_of(SWEEP), now=NOW)

    assert (first.rule, first.effects, first.look_again_seconds) == ("planned", (), 0)
    assert first.status.plan
    assert (first.status.phase, first.status.done) == (Phase.PENDING, "0/3")


@pytest.mark.parametrize(
    ("phases", "created"),
    [
        ((), ["ragcun-baseline", "ragcun-isotropy"]),
        ((T,), ["ragcun-isotropy"]),
        ((T, T), []),
        ((S, T), ["ragcun-frozen"]),
        ((S, F), ["ragcun-frozen"]),
        ((Phase.RECOVERING, Phase.SUSPENDED), []),
        ((S, S, S), []),
    ],
)
def test_no_more_than_parallelism_are_under_way_at_once(phases: tuple[Phase, ...], created: list[str]) -> None:
    assert creates(decided(SWEEP, *runs(*phases))) == created


def test_a_created_run_is_counted_at_once() -> None:
    status = decided(SWEEP).status

    assert (status.counts.pending, status.counts.active) == (1, 2)
    assert status.phase is Phase.STARTING


def test_rows_say_what_a_person_asks() -> None:
    progress = ProgressStatus(metrics=(MetricValue(name="loss", value="0.3"), MetricValue(name="ndcg", value="0.41")))
    status = a_status(phase=T, progress=progress)
    run = replace(
        a_run_seen("ragcun-baseline", preemptions=2, lost=7), status=status.model_copy(update={"preemptions": 2})
    )

    row = decided(SWEEP, run).status.runs[0]

    assert (row.name, row.variant, row.phase, row.preemptions) == ("ragcun-baseline", "baseline", T, 2)
    assert row.metrics == (MetricValue(name="ndcg", value="0.41"),)


def test_metrics_that_were_named_are_kept_beside_the_objectives() -> None:
    sweep = parsed(metrics=["loss", "ndcg"])
    progress = ProgressStatus(metrics=(MetricValue(name="loss", value="0.3"), MetricValue(name="other", value="1")))
    run = a_run_seen("ragcun-baseline", S, best=0.5)
    run = replace(run, status=run.status.model_copy(update={"progress": progress}))

    row = decided(sweep, run).status.runs[0]

    assert {metric.name: metric.value for metric in row.metrics} == {"ndcg": "0.5", "loss": "0.3"}


def test_when_all_have_succeeded_so_has_the_sweep_and_says_who_is_best() -> None:
    seen = [a_run_seen(run.name, S, best=value) for run, value in zip(SWEEP.plan, (0.4, 0.6, 0.5), strict=True)]
    decision = decided(SWEEP, *seen)

    assert (decision.effects, decision.status.phase, decision.status.done) == ((), S, "3/3")
    assert decision.status.best == "isotropy 0.6"
    assert decision.status.results[1].metrics[0].difference is not None
    assert "all 3 runs have succeeded; best: isotropy 0.6" in decision.announcements[-1].message


def test_a_run_whose_script_goes_on_after_its_training_is_waited_for() -> None:
    """Its result is in its status already; the export may still fail."""
    exports = a_run_seen("ragcun-frozen", T, best=0.9)
    meanwhile = decided(SWEEP, *runs(S, S), exports)

    assert (meanwhile.status.phase, meanwhile.status.done) == (T, "2/3")
    assert [result.succeeded for result in meanwhile.status.results] == [1, 1, 0]
    assert decided(SWEEP, *runs(S, S), a_run_seen("ragcun-frozen", F, best=0.9)).status.phase is F


def test_one_failure_fails_the_sweep_but_only_in_the_end() -> None:
    meanwhile = decided(SWEEP, *runs(F, T, T))
    end = decided(SWEEP, *runs(F, S, S))

    assert meanwhile.status.phase is T
    assert end.status.phase is F
    failed = end.status.condition("Failed")
    assert failed is not None
    assert failed.reason is Reason.RUNS_FAILED
    assert failed.message == "2 of 3 runs have succeeded, 1 have failed: ragcun-baseline"
    assert [news.message for news in meanwhile.announcements] == ["The run ragcun-baseline has failed"]


def test_a_failure_is_announced_once() -> None:
    first = decided(SWEEP, *runs(F, T, T))

    assert decided(SWEEP, *runs(F, T, T), status=first.status).announcements == ()


def test_a_success_is_remembered_when_its_run_is_deleted_and_a_failure_begins_again() -> None:
    status = decided(SWEEP, a_run_seen("ragcun-baseline", S, best=0.5), *runs(None, F, T)).status

    decision = decided(SWEEP, *runs(None, None, T), status=status)

    assert creates(decision) == ["ragcun-isotropy"]
    assert decision.status.runs[0].metrics[0].value == "0.5"
    assert decision.status.counts.succeeded == 1


# --- suspend ----------------------------------------------------------------------------------------------------------


def test_a_suspended_sweep_suspends_its_runs_and_holds_when_they_do() -> None:
    sweep = parsed(parallelism=2, suspend=True)
    first = decided(sweep, *runs(T, S, T))
    waiting = decided(sweep, *runs(T, S, T, suspend=True))
    holding = decided(sweep, *runs(Phase.SUSPENDED, S, Phase.SUSPENDED))

    assert [effect.name for effect in first.effects if isinstance(effect, SuspendRun)] == [
        "ragcun-baseline",
        "ragcun-frozen",
    ]
    assert (first.status.phase, waiting.status.phase, holding.status.phase) == (
        Phase.STOPPING,
        Phase.STOPPING,
        Phase.SUSPENDED,
    )
    assert (waiting.effects, holding.effects) == ((), ())


def test_a_sweep_that_is_suspended_from_the_start_creates_nothing() -> None:
    decision = decided(parsed(suspend=True))

    assert (decision.effects, decision.status.phase) == ((), Phase.SUSPENDED)


def test_only_runs_that_the_sweep_has_suspended_are_let_go() -> None:
    mine = a_run_seen("ragcun-baseline", Phase.SUSPENDED, held=True)
    theirs = a_run_seen("ragcun-isotropy", Phase.SUSPENDED)

    decision = decided(SWEEP, mine, theirs)

    assert decision.effects == (ResumeRun(name="ragcun-baseline", reason=Reason.RESUMED),)


# --- the deadline -----------------------------------------------------------------------------------------------------


def test_a_run_is_told_when_the_sweep_has_to_be_over() -> None:
    sweep = parsed(limits={"deadline": "2h"})
    (effect,) = decided(sweep, now=later(600)).effects

    assert isinstance(effect, CreateRun)
    assert effect.until == ends_at("2h")


@pytest.mark.parametrize(
    ("deadline", "own", "run_ends", "moved"),
    [
        ("2h", None, "2h", None),
        ("2h", None, "3h", 7200.0),
        ("2h", "1h", "1h", None),
        ("2h", "1h", "2h", 3600.0),
        ("2h", None, None, 7200.0),
        (None, None, "2h", "none"),
        (None, None, None, None),
    ],
)
def test_a_deadline_that_was_moved_moves_the_runs(deadline: Any, own: Any, run_ends: Any, moved: Any) -> None:
    limits = {"deadline": deadline} if deadline else {}
    sweep = parsed(template={"limits": {"deadline": own} if own else {}}, limits=limits)
    run = a_run_seen("ragcun-baseline", ends_at=ends_at(run_ends) if run_ends else None)

    found = [effect.seconds for effect in decided(sweep, run).effects if isinstance(effect, MoveDeadline)]

    assert found == ([] if moved is None else [None if moved == "none" else moved])


def test_seconds_between_two_clocks_move_nothing() -> None:
    sweep = parsed(limits={"deadline": "2h"})

    assert decided(sweep, a_run_seen("ragcun-baseline", ends_at=later(7198))).effects == ()


def test_past_the_deadline_nothing_begins_and_it_ends_when_its_runs_have() -> None:
    sweep = parsed(parallelism=2, limits={"deadline": "1h"})
    stopping = decided(sweep, *runs(S, T, ends_at=ends_at("1h")), now=later(3600))
    over = decided(sweep, *runs(S, F), now=later(3601))

    assert (stopping.effects, stopping.status.phase) == ((), Phase.STOPPING)
    assert (over.effects, over.status.phase) == ((), F)
    failed = over.status.condition("Failed")
    assert failed is not None
    assert (failed.reason, failed.message.partition(";")[0]) == (
        Reason.DEADLINE_EXCEEDED,
        "limits.deadline of 1h has passed",
    )


def test_a_deadline_that_was_moved_into_the_past_reaches_the_runs() -> None:
    """They would train on, and the sweep wait for them for ever."""
    found = decided(parsed(limits={"deadline": "1h"}), *runs(T), now=later(7200))

    assert [type(effect) for effect in found.effects] == [MoveDeadline]


def test_all_that_was_trained_in_time_is_a_success_also_when_it_is_seen_late() -> None:
    sweep = parsed(limits={"deadline": "1h"})

    assert decided(sweep, *runs(S, S, S), now=later(9999)).status.phase is S


# --- onFailure --------------------------------------------------------------------------------------------------------


def test_with_stop_the_first_failure_holds_the_others_back_and_ends_the_sweep() -> None:
    sweep = parsed(parallelism=2, onFailure="Stop")
    first = decided(sweep, *runs(F, T))
    last = decided(sweep, *runs(F, Phase.SUSPENDED))

    assert first.effects == (SuspendRun(name="ragcun-isotropy", reason=Reason.RUNS_FAILED),)
    assert (first.status.phase, last.effects, last.status.phase) == (Phase.STOPPING, (), F)


# --- changes, ends, refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{"folds": 2}, {"template": {"limits": {"failures": 9}}}, {"variants": []}])
def test_a_sweep_that_was_changed_creates_nothing_more_and_says_so(parts: dict[str, Any]) -> None:
    """An older operator remembered nothing as accepted last; tests/kube/test_sweep_edits.py has what else happens."""
    decision = decide(observed_of(edited(begun(SWEEP).model_copy(update={"accepted": None}), **parts)), now=NOW)

    assert (decision.effects, decision.status.phase) == ((), Phase.REFUSED)
    accepted = decision.status.condition("Accepted")
    assert accepted is not None
    assert accepted.status is ConditionStatus.FALSE
    assert "cannot be changed once the sweep has begun" in accepted.message


_TEMPLATE: dict[str, Any] = {"limits": {"startTimeout": "1h", "hangTimeout": "90m"}}


@pytest.mark.parametrize(
    ("template", "is_same"),
    [
        ({"limits": {"startTimeout": "60m", "hangTimeout": "5400s"}}, True),
        ({"checkpoint": {"volume": {"size": "1024Mi"}}, **_TEMPLATE}, True),
        ({"suspend": False, **_TEMPLATE}, True),
        ({"limits": {"startTimeout": "61m", "hangTimeout": "90m"}}, False),
        ({"checkpoint": {"volume": {"size": "1G"}}, **_TEMPLATE}, False),
    ],
)
def test_the_same_runs_in_other_words_are_no_change(template: dict[str, Any], is_same: bool) -> None:
    """Neither a default that is written out is one, nor another unit; nor later, without what was accepted."""
    first = begun(parsed(parallelism=2, template=_TEMPLATE))
    assert first.accepted is not None

    now = edited(first, parallelism=2, template=template)
    assert now.spec is not None
    assert (now.problems == ()) is is_same
    decision = decide(observed_of(now, generation=2), now=NOW)
    assert (decision.rule == "planned") is is_same
    if is_same:
        assert (decision.status.plan, decision.status.phase) == (digest(now.spec), first.phase)
        after = decision.status.model_copy(update={"accepted": None})
        assert decide(observed_of(edited(after, parallelism=2, template=template)), now=NOW).rule == "going"


@pytest.mark.parametrize("parts", [{"parallelism": 3}, {"limits": {"deadline": "1h"}}, {"onFailure": "Stop"}])
def test_what_may_change_may_change(parts: dict[str, Any]) -> None:
    assert decided(parsed(**parts), status=begun(SWEEP)).rule == "going"


def test_a_sweep_that_cannot_work_says_why_and_creates_nothing() -> None:
    decision = decide(observed_of(parse(a_sweep(folds=1))), now=NOW)

    assert (decision.effects, decision.status.phase) == ((), Phase.REFUSED)
    assert "spec.folds: 1 is out of range" in decision.announcements[0].message


def test_very_many_problems_fit_into_a_condition() -> None:
    """Each null of a patch is one, and a patch may have thousands."""
    patch = {"trainer": {"config": {f"field{number}": None for number in range(2000)}}}
    broken = parse(a_sweep(variants=[{"name": "b", "patch": patch}]))

    status = decide(observed_of(broken), now=NOW).status

    accepted = status.condition("Accepted")
    assert accepted is not None
    assert accepted.message.startswith(broken.problems[0])
    assert accepted.message.endswith(f"; and {len(broken.problems) - 30} more, which `piton validate` lists")
    assert len(json.dumps(status.to_wire(), default=str)) < 32_768


@pytest.mark.parametrize("phase", [S, F])
def test_nothing_is_done_to_a_sweep_that_has_ended(phase: Phase) -> None:
    end = decided(SWEEP, *runs(phase, S, S)).status
    later_on = decided(parsed(parallelism=9, suspend=True), status=end, now=later(1e6))

    assert (later_on.effects, later_on.status, later_on.announcements) == ((), end, ())


def test_nothing_is_created_for_a_sweep_that_is_being_deleted() -> None:
    decision = decide(observed_of(SWEEP, status=begun(SWEEP), deleting=True), now=NOW)

    assert (decision.effects, decision.status) == ((), begun(SWEEP))


def test_a_refusal_of_the_cluster_is_told_and_tried_again() -> None:
    observed = observed_of(SWEEP, status=begun(SWEEP))
    wanted = decide(observed, now=NOW)
    all_of_them = [RefusedEffect(effect=effect, why="no reason that is known") for effect in wanted.effects]
    decision = refused(observed, wanted, all_of_them, now=NOW)

    assert decision.look_again_seconds == Timing().look_seconds
    assert decision.status.phase is Phase.PENDING
    training = decision.status.condition("Training")
    assert training is not None
    assert training.reason is Reason.REFUSED
    assert training.message == "ragcun-baseline (and 1 more): no reason that is known"
    assert [row.refused for row in decision.status.runs[:2]] == ["no reason that is known"] * 2
    assert decision.announcements[-1].reason is Reason.REFUSED


# --- sparing the API server -------------------------------------------------------------------------------------------


def _at_step(step: int) -> Any:
    run = a_run_seen("ragcun-baseline")
    record = a_status(
        *[], phase=T, progress=ProgressStatus(step=step, metrics=(MetricValue(name="ndcg", value=str(step)),))
    )
    return replace(run, status=record)


def test_steps_alone_are_written_now_and_then() -> None:
    sweep = parsed()
    written = decided(sweep, _at_step(1)).status

    soon = decided(sweep, _at_step(2), status=written, now=later(4))
    then = decided(sweep, _at_step(3), status=written, now=later(10))

    assert (soon.status, soon.look_again_seconds) == (written, 6)
    assert then.status.runs[0].metrics[0].value == "3"


def test_what_has_happened_is_written_at_once() -> None:
    sweep = parsed()
    written = decided(sweep, _at_step(1)).status

    assert (
        decided(sweep, a_run_seen("ragcun-baseline", S, 0.5), status=written, now=later(1)).status.counts.succeeded == 1
    )


def test_without_news_nothing_is_written_however_long() -> None:
    written = decided(parsed(), _at_step(1)).status

    assert decided(parsed(), _at_step(1), status=written, now=later(3600)).status == written


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ((Phase.STARTING, Phase.PREPARING), Phase.PREPARING),
        ((Phase.EVALUATING, Phase.PREPARING), Phase.EVALUATING),
        ((Phase.EVALUATING, T), T),
        ((Phase.RECOVERING, Phase.STARTING), Phase.STARTING),
    ],
)
def test_a_sweep_does_what_its_furthest_run_does(phases: tuple[Phase, ...], phase: Phase) -> None:
    assert decided(SWEEP, *runs(*phases)).status.phase is phase


def test_what_the_stage_evaluate_has_found_counts_more_than_what_training_reported() -> None:
    sweep = parsed(metrics=["mrr"])
    found = Evaluation(attempt=2, metrics=(MetricValue(name="ndcg", value="0.7"), MetricValue(name="mrr", value="0.8")))
    run = a_run_seen("ragcun-baseline", S)
    status = run.status.model_copy(update={"result": Result(best_metric="0.5", evaluation=found)})

    row = decided(sweep, replace(run, status=status)).status.runs[0]

    assert {metric.name: metric.value for metric in row.metrics} == {"ndcg": "0.7", "mrr": "0.8"}
