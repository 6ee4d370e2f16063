"""The stages of a run: which comes next, what an attempt at one may change, and how each ends."""

import asyncio
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import next_stage
from piton.api.status import AttemptState, AttemptStatus, MetricValue, Result, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.contract.termination import Outcome
from piton.core.decide import decide, still
from piton.core.effects import Decision, StartAttempt, StopAttempt
from piton.core.increments import End, increments
from piton.drive import reconcile
from piton.observed import AttemptSeen, Observed, ReplicaSeen, ReplicaState
from support.builders import (
    NOW,
    a_complete,
    a_failed_attempt,
    a_progress,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    failed,
    later,
    said,
)
from support.fake_world import TOTAL_STEPS, FakeWorld

PREPARE, TRAIN, EVALUATE = Stage
BOTH: dict[str, Any] = {"prepare": {}, "evaluate": {}}
TRAINED = Result(step=100, best_step=90, weights_digest="sha256:abc", reason="all steps are done")
NDCG = said(Outcome.FINISHED, step=90, metrics={"ndcg_10": 0.42}, detail="step 90: ndcg_10 0.42")


def finished(number: int, stage: Stage) -> AttemptStatus:
    return an_ended(number, Verdict.FINISHED, stage=stage, reason=Reason.FINISHED, message="done")


def an_ended_zero(**fields: Any) -> ReplicaSeen:
    return a_replica(ReplicaState.SUCCEEDED, exit_code=0, **fields)


PREPARING = a_status(a_record(1, stage=PREPARE))
TRAINING = a_status(finished(1, PREPARE), a_record(2))
EVALUATING = a_status(finished(1, PREPARE), finished(2, TRAIN), a_record(3, stage=EVALUATE), result=TRAINED)


def seen(*attempts: AttemptSeen, status: RunStatus, stages: Any = BOTH, **fields: Any) -> Observed:
    parts = {"stages": stages, **fields.pop("parts", {})}
    return an_observed(*attempts, status=status, spec_parts=parts, **fields)


def settle(status: RunStatus, *attempts: AttemptSeen, after: float = 0, **fields: Any) -> Decision:
    """Decide again and again, while the jobs stay as they are, until there is nothing to do at once."""
    for _ in range(9):
        decision = decide(seen(*attempts, status=status, **fields), now=later(after))
        if decision.effects or decision.status == status:
            return decision
        status = decision.status
    raise AssertionError(status)


# --- which comes next ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "records", "following"),
    [
        pytest.param({}, [], TRAIN, id="without stages there is training alone"),
        pytest.param({}, [finished(1, TRAIN)], None, id="and nothing after it"),
        pytest.param(BOTH, [], PREPARE, id="preparing comes first"),
        pytest.param(BOTH, [an_ended(1, stage=PREPARE)], PREPARE, id="until it is finished"),
        pytest.param(BOTH, [finished(1, PREPARE)], TRAIN, id="then training"),
        pytest.param(BOTH, [finished(1, PREPARE), an_ended(2)], TRAIN, id="until that is finished"),
        pytest.param(BOTH, [finished(1, PREPARE), finished(2, TRAIN)], EVALUATE, id="then evaluating"),
        pytest.param(BOTH, [finished(1, TRAIN), finished(2, EVALUATE)], None, id="then nothing"),
        pytest.param({"evaluate": {}}, [], TRAIN, id="what is not wanted is left out"),
        pytest.param(BOTH, [an_ended(1)], TRAIN, id="a run that trains never goes back to preparing"),
        pytest.param(
            {"prepare": {}}, [finished(1, TRAIN), an_ended(2, stage=EVALUATE)], None, id="not wanted any more"
        ),
    ],
)
def test_the_next_stage_follows_from_spec_and_status(
    stages: dict[str, Any], records: list[AttemptStatus], following: Stage | None
) -> None:
    assert next_stage(a_spec(stages=stages), a_status(*records)) is following


def test_a_whole_life_goes_through_the_stages_once_each() -> None:
    world, phases = FakeWorld(spec=a_spec(stages=BOTH)), []
    for _ in range(120):
        asyncio.run(reconcile(world, world, world))
        phases.append(world.status.phase)
        world.tick()

    ways = [phase for phase in dict.fromkeys(phases) if phase not in (Phase.PENDING, Phase.STARTING)]
    assert ways == [Phase.PREPARING, Phase.TRAINING, Phase.EVALUATING, Phase.SUCCEEDED]
    assert (world.created, world.stages_created) == ([1, 2, 3], [PREPARE, TRAIN, EVALUATE])
    status = world.status
    assert [(s.name, s.attempts, s.end_time is not None) for s in status.stages] == [(s, 1, True) for s in Stage]
    assert status.result is not None
    assert (status.result.step, status.result.weights_digest) == (TOTAL_STEPS, f"sha256:{TOTAL_STEPS}")
    assert status.result.evaluation is not None
    assert status.result.evaluation.metrics == (MetricValue(name="accuracy", value="0.75"),)


def test_each_attempt_is_started_for_its_stage_and_says_why() -> None:
    for status, stage, reason in (
        (RunStatus(), PREPARE, Reason.FIRST_ATTEMPT),
        (a_status(an_ended(1, stage=PREPARE)), PREPARE, Reason.RETRYING),
        (a_status(finished(1, PREPARE)), TRAIN, Reason.NEXT_STAGE),
        (a_status(finished(1, PREPARE), an_ended(2)), TRAIN, Reason.RETRYING),
        (a_status(finished(1, TRAIN)), EVALUATE, Reason.NEXT_STAGE),
    ):
        (effect,) = settle(status, after=60).effects
        assert isinstance(effect, StartAttempt)
        assert (effect.number, effect.stage, effect.reason) == (status.attempt + 1, stage, reason)


@pytest.mark.parametrize(
    ("keep", "result", "step"),
    [
        ({"best": 1}, TRAINED, 90),
        ({"best": 0}, TRAINED, 100),
        ({"best": 1}, TRAINED.model_copy(update={"best_step": None}), 100),
        ({"best": 1}, None, None),
    ],
    ids=["the best", "the last where no best is kept", "the last where none is best", "nobody knows"],
)
def test_an_evaluation_is_told_which_checkpoint_it_is_about(keep: Any, result: Result | None, step: int | None) -> None:
    checkpoint = {"volume": {"claimName": "mine"}, "keep": keep}
    decision = settle(a_status(finished(1, TRAIN), result=result), parts={"checkpoint": checkpoint})

    (effect,) = decision.effects
    assert isinstance(effect, StartAttempt)
    assert effect.checkpoint_step == step


# --- how an attempt at a stage ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [PREPARING, EVALUATING], ids=["prepare", "evaluate"])
@pytest.mark.parametrize(
    ("replica", "verdict", "reason"),
    [
        pytest.param(an_ended_zero(), Verdict.FINISHED, Reason.EXITED_ZERO, id="exit 0 undisturbed is the end"),
        pytest.param(
            an_ended_zero(disruption="Evicted"), Verdict.PREEMPTED, Reason.DISRUPTED, id="disturbed it is not"
        ),
        pytest.param(
            an_ended_zero(disruption="Evicted", termination=said(Outcome.FINISHED)),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="unless the program says that it has finished",
        ),
        pytest.param(
            failed(1, termination=said(Outcome.FINISHED)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="and does not fail afterwards",
        ),
        pytest.param(
            an_ended_zero(termination=said(Outcome.STOPPED)),
            Verdict.INFRASTRUCTURE,
            Reason.NO_PROOF,
            id="a program that says it was stopped has not finished",
        ),
    ],
)
def test_a_stage_ends_by_its_word_or_by_exit_0(
    status: RunStatus, replica: ReplicaSeen, verdict: Verdict, reason: Reason
) -> None:
    job = (a_failed_attempt if replica.exit_code else an_attempt)(replica, number=status.attempt)
    record = decide(seen(job, status=status), now=NOW).status.current

    assert record is not None
    assert (record.verdict, record.reason) == (verdict, reason), record.message


def test_the_proof_of_the_training_proves_nothing_of_the_evaluation() -> None:
    """In a local run the final manifest is in sight while the evaluation runs."""
    running = an_attempt(a_replica(), number=3)
    assert decide(seen(running, status=EVALUATING, complete=a_complete()), now=NOW).status.phase is Phase.EVALUATING

    gone = decide(seen(status=EVALUATING, complete=a_complete()), now=NOW).status.current
    assert gone is not None
    assert (gone.verdict, gone.reason) == (Verdict.INFRASTRUCTURE, Reason.JOB_VANISHED)


def test_what_an_evaluation_found_stands_beside_what_the_training_produced() -> None:
    job = an_attempt(an_ended_zero(termination=NDCG), number=3)
    decision = settle(EVALUATING, job)

    assert decision.status.phase is Phase.SUCCEEDED
    result, succeeded = decision.status.result, decision.status.condition("Succeeded")
    assert result is not None
    assert result.evaluation is not None
    assert (result.weights_digest, result.best_step) == ("sha256:abc", 90)
    assert (result.evaluation.step, result.evaluation.attempt) == (90, 3)
    assert result.evaluation.metrics == (MetricValue(name="ndcg_10", value="0.42"),)
    assert succeeded is not None
    assert succeeded.message == "finished at step 100: all steps are done; step 90: ndcg_10 0.42"


@pytest.mark.parametrize("status", [PREPARING, EVALUATING], ids=["prepare", "evaluate"])
def test_a_stage_has_no_steps_to_lose_and_no_checkpoints(status: RunStatus) -> None:
    """Whatever its program reports: only training counts."""
    job = an_attempt(
        a_replica(disruption="Evicted", deleting=True, termination=said(Outcome.STOPPED, step=7)), number=1
    )
    running = an_attempt(a_replica(), number=status.attempt)
    followed = decide(seen(running, status=status, progress=a_progress(700, checkpoint=650)), now=NOW).status
    lost = decide(seen(job, status=followed, progress=a_progress(1, checkpoint=650)), now=NOW).status

    assert followed.current is not None
    assert (followed.current.step, followed.current.training_time) == (None, None)
    assert (lost.progress, lost.checkpoint, lost.lost.steps) == (status.progress, status.checkpoint, 0)


def test_a_preemption_is_counted_for_the_run_and_for_its_stage() -> None:
    job = an_attempt(failed(143, disruption="Evicted"), number=1)
    status = decide(seen(job, status=PREPARING), now=NOW).status

    assert (status.preemptions, status.stage(PREPARE).preemptions, status.stage(TRAIN).preemptions) == (1, 1, 0)
    assert increments(PREPARING, status).ends == (
        End(verdict=Verdict.PREEMPTED, reason=Reason.DISRUPTED, stage=PREPARE),
    )


# --- the limits of a stage -------------------------------------------------------------------------------------------


def crashed(number: int, stage: Stage) -> AttemptStatus:
    return an_ended(number, Verdict.USER_FAILURE, stage=stage, reason=Reason.CRASHED, message="exit code 1")


@pytest.mark.parametrize(
    ("records", "failures", "prepare", "phase"),
    [
        pytest.param([crashed(1, PREPARE)], 1, {}, Phase.STARTING, id="below the run's limit"),
        pytest.param([crashed(1, PREPARE)], 2, {}, Phase.FAILED, id="at the run's limit"),
        pytest.param([crashed(1, PREPARE)], 2, {"failures": 3}, Phase.STARTING, id="below its own"),
        pytest.param([crashed(1, PREPARE)], 1, {"failures": 1}, Phase.FAILED, id="at its own"),
        pytest.param([finished(1, PREPARE), crashed(2, TRAIN)], 1, {"failures": 1}, Phase.STARTING, id="not of others"),
        pytest.param([finished(1, PREPARE), crashed(2, TRAIN)], 2, {"failures": 9}, Phase.FAILED, id="nor for others"),
    ],
)
def test_failures_count_for_their_own_stage(
    records: list[AttemptStatus], failures: int, prepare: dict[str, Any], phase: Phase
) -> None:
    limits = {"limits": {"failures": 2}}
    decision = settle(a_status(*records, failures=failures), after=60, stages={"prepare": prepare}, parts=limits)

    assert decision.status.phase is phase


@pytest.mark.parametrize("records", [[finished(2, PREPARE)], [finished(2, PREPARE), crashed(3, TRAIN)]])
def test_failures_of_one_stage_are_forgiven_in_the_next(records: list[AttemptStatus]) -> None:
    prepared = StageStatus(name=PREPARE, attempts=2, failures=1, start_time=NOW, end_time=NOW)
    trains = [StageStatus(name=TRAIN, attempts=1, failures=1, start_time=NOW)] if len(records) > 1 else []
    status = a_status(crashed(1, PREPARE), *records, stages=(prepared, *trains), failures=1 + len(trains))

    assert settle(status, after=60, parts={"limits": {"failures": 2}}).status.phase is Phase.STARTING


@pytest.mark.parametrize(("after", "phase"), [(3599, Phase.PREPARING), (3600, Phase.STOPPING)])
def test_a_stage_has_a_deadline_of_its_own_from_its_first_attempt(after: float, phase: Phase) -> None:
    running = seen(an_attempt(a_replica()), status=PREPARING, stages={"prepare": {"deadline": "1h"}})

    assert decide(running, now=later(after)).status.phase is phase


def test_the_deadline_of_a_stage_that_is_over_does_not_matter() -> None:
    late: dict[str, Any] = {"stages": {"prepare": {"deadline": "1h"}}, "after": 7200}
    overdue = settle(a_status(an_ended(1, stage=PREPARE)), **late)
    prepared = settle(a_status(finished(1, PREPARE)), **late)

    assert overdue.status.phase is Phase.FAILED
    failure = overdue.status.condition("Failed")
    assert failure is not None
    assert failure.message.startswith("stages.prepare.deadline of 1h has passed")
    assert prepared.status.phase is Phase.STARTING


def test_the_deadline_of_the_run_holds_in_every_stage() -> None:
    for status in (PREPARING, TRAINING, EVALUATING):
        running = seen(
            an_attempt(a_replica(), number=status.attempt), status=status, parts={"limits": {"deadline": "1h"}}
        )
        assert decide(running, now=later(3600)).status.phase is Phase.STOPPING


def test_an_evaluation_that_fails_for_good_leaves_the_model_and_says_so() -> None:
    bad = failed(78, termination=said(Outcome.BAD_CONFIG, detail="no queries"))
    decision = settle(EVALUATING, a_failed_attempt(bad, number=3))

    failure = decision.status.condition("Failed")
    assert decision.status.phase is Phase.FAILED
    assert decision.status.result == TRAINED
    assert failure is not None
    assert failure.message.startswith("finished at step 100: all steps are done, and not evaluated: another attempt")


def test_who_wants_no_evaluation_any_more_has_a_finished_run() -> None:
    status = a_status(finished(1, TRAIN), crashed(2, EVALUATE), result=TRAINED, failures=1)

    assert settle(status, stages={}).status.phase is Phase.SUCCEEDED


# --- what the user and the world do meanwhile ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [PREPARING, EVALUATING], ids=["prepare", "evaluate"])
def test_suspending_stops_a_stage_and_resuming_starts_it_again(status: RunStatus) -> None:
    suspended: dict[str, Any] = {"parts": {"suspend": True}}
    running = an_attempt(a_replica(), number=status.attempt)
    first = settle(status, running, **suspended)
    assert [type(effect) for effect in first.effects] == [StopAttempt]
    held = settle(first.status, **suspended)
    assert held.status.phase is Phase.SUSPENDED
    assert held.status.failures == 0

    (effect,) = settle(held.status).effects
    assert isinstance(effect, StartAttempt)
    assert (effect.number, effect.stage) == (status.attempt + 1, status.attempts[-1].stage)


def test_nobody_knows_whether_a_run_that_cannot_be_read_wants_to_be_evaluated() -> None:
    trained = a_status(finished(1, TRAIN), result=TRAINED)
    unread = decide(an_observed(status=trained, problems=("spec.x: unknown",)), now=NOW)

    assert unread.status.phase is Phase.REFUSED
    assert settle(unread.status, stages={}).status.phase is Phase.SUCCEEDED


def test_a_lost_status_is_rebuilt_with_the_stage_of_the_newest_job() -> None:
    job = an_attempt(a_replica(), number=4, stage=TRAIN)
    adopted = settle(RunStatus(), job).status
    assert (adopted.phase, adopted.attempt) == (Phase.TRAINING, 4)
    preempted = settle(adopted, an_attempt(failed(143, disruption="Evicted"), number=4), after=60)

    (effect,) = preempted.effects
    assert isinstance(effect, StartAttempt)
    assert effect.stage is TRAIN, "what has trained was prepared"
    preparing = settle(RunStatus(), an_attempt(a_replica(), number=2, stage=PREPARE)).status
    assert (preparing.phase, preparing.stage(PREPARE).attempts) == (Phase.PREPARING, 1)


def test_a_stage_that_runs_causes_no_writes() -> None:
    for status in (PREPARING, EVALUATING):
        running = seen(an_attempt(a_replica(), number=status.attempt), status=status)
        first = decide(running, now=NOW).status
        again = seen(an_attempt(a_replica(), number=status.attempt), status=first, progress=a_progress(5))
        assert still(decide(again, now=later(3600)), first)


def test_an_attempt_at_a_stage_that_the_spec_has_lost_is_stopped_and_the_next_one_begins() -> None:
    running = an_attempt(a_replica(), number=1)
    stopping = settle(PREPARING, running, stages={})
    assert [type(effect) for effect in stopping.effects] == [StopAttempt]
    pending = a_status(a_record(1, AttemptState.PENDING, stage=PREPARE))

    for status in (stopping.status, pending):
        (effect,) = settle(status, stages={}).effects
        assert isinstance(effect, StartAttempt)
        assert (effect.number, effect.stage) == (2, TRAIN)
