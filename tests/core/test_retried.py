"""`piton.dev/retry`: the user's word brings back a run that has failed, or that holds since it got nowhere."""

from datetime import timedelta
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, CheckpointStatus, CostStatus, Result, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide
from piton.core.effects import AddFinalizer, Decision, StartAttempt
from piton.observed import ReplicaState
from support.builders import NOW, a_record, a_replica, a_spec, a_status, an_attempt, an_ended, an_observed, later, meta

LIMITED = a_spec(limits={"failures": 3})
PRICE: dict[str, Any] = {"capacity": {"maxPricePerHour": "12"}}


def looked_at(status: RunStatus, retry: str, *, held: bool = True, spec: Spec = LIMITED) -> Decision:
    run = meta(held=held).model_copy(update={"retry": retry})
    return decide(an_observed(status=status, spec=spec, run=run), now=later(99))


def a_failed_run(**fields: object) -> RunStatus:
    crash = an_ended(3, Verdict.USER_FAILURE, reason=Reason.CRASHED, **fields)
    saved = CheckpointStatus(step=40, time=NOW, attempt=1)
    failed = looked_at(a_status(crash, failures=3, checkpoint=saved), "").status
    assert failed.phase is Phase.FAILED
    return failed


def test_a_run_that_has_failed_goes_on_from_its_checkpoint_with_its_limits_whole() -> None:
    again = looked_at(a_failed_run(), "1")

    assert again.status.phase is Phase.PENDING
    assert not again.status.is_true("Failed")
    assert again.status.stage(Stage.TRAIN).failures_since_progress == 0
    assert again.status.failures == 3
    (event,) = again.announcements
    assert event.message == "taken up again from step 40, as piton.dev/retry asks; failures count anew"
    assert looked_at(again.status, "1").status.attempt == 4


def test_its_history_is_kept() -> None:
    failed = a_failed_run()

    again = looked_at(failed, "1").status

    assert [record.number for record in again.attempts] == [record.number for record in failed.attempts]


def test_it_is_held_again_before_anything_is_started() -> None:
    again = looked_at(a_failed_run(), "1", held=False).status

    assert [type(effect) for effect in looked_at(again, "1", held=False).effects] == [AddFinalizer]


def test_a_permanent_error_has_another_chance_too() -> None:
    """The user will have mended the settings."""
    again = looked_at(a_failed_run(permanent=True), "1").status

    assert looked_at(again, "1").status.attempt == 4


def test_one_text_counts_once() -> None:
    again = looked_at(a_failed_run(), "1").status
    failed = a_failed_run().model_copy(update={"retried": again.retried})

    assert looked_at(failed, "1").status.phase is Phase.FAILED
    assert looked_at(failed, "2").status.phase is Phase.PENDING


def test_a_text_that_comes_while_it_runs_is_not_kept_for_its_end() -> None:
    run = meta().model_copy(update={"retry": "1"})
    seen = an_attempt(a_replica())

    noted = decide(an_observed(seen, status=a_status(a_record()), run=run), now=NOW).status

    assert (noted.phase, noted.retried) == (Phase.TRAINING, "1")
    assert decide(an_observed(seen, status=noted, run=run), now=NOW).rule == "observe_running"


def test_a_run_that_holds_since_it_got_nowhere_goes_on() -> None:
    lost = an_ended(1, Verdict.INFRASTRUCTURE, reason=Reason.NO_EVIDENCE)
    stuck = a_status(*(lost.model_copy(update={"number": number}) for number in range(1, 7)))
    stalled = looked_at(stuck, "").status
    held = decide(an_observed(status=stalled), now=NOW + timedelta(days=2)).status
    assert held.phase is Phase.SUSPENDED

    again = looked_at(held, "1").status

    assert not again.is_true("Stalled")
    assert looked_at(again, "1").status.attempt == 7


def test_a_run_that_gets_nowhere_is_answered_also_while_an_attempt_is_under_way() -> None:
    lost = an_ended(1, Verdict.INFRASTRUCTURE, reason=Reason.NO_EVIDENCE)
    ended = (lost.model_copy(update={"number": number}) for number in range(1, 7))
    record = a_record(7, state=AttemptState.STARTING)
    begun = StageStatus(name=Stage.TRAIN, attempts=7, fruitless_attempts=6, start_time=NOW)
    status = a_status(*ended, record).model_copy(update={"stages": (begun,)})
    seen = an_attempt(a_replica(ReplicaState.WAITING), number=7)
    stalled = decide(an_observed(seen, status=status), now=later(98)).status
    assert stalled.is_true("Stalled")

    run = meta().model_copy(update={"retry": "1"})
    again = decide(an_observed(seen, status=stalled, run=run), now=later(99))

    assert [(news.reason, news.message) for news in again.announcements] == [
        (Reason.RETRYING, "attempt 7 goes on, as piton.dev/retry asks; failures count anew")
    ]
    assert not again.status.is_true("Stalled")
    assert (again.status.current, again.status.phase) == (record, stalled.phase)
    assert (again.status.stage(Stage.TRAIN).fruitless_attempts, again.status.stage(Stage.TRAIN).start_time) == (0, NOW)
    assert decide(an_observed(seen, status=again.status, run=run), now=later(99)).rule == "observe_running"


BUDGET: dict[str, Any] = {**PRICE, "limits": {"budget": {"usd": "0.01"}}}


@pytest.mark.parametrize(
    ("status", "spec", "told"),
    [
        (a_status(an_ended(1, Verdict.FINISHED), phase=Phase.SUCCEEDED), LIMITED, "the run has Succeeded"),
        (a_status(a_record(1)), LIMITED, "attempt 1 is under way"),
        (a_status(an_ended(1, ended_time=later(98))), LIMITED, "the next attempt starts by itself"),
        (
            a_status(an_ended(1, Verdict.USER_FAILURE, reason=Reason.CRASHED, ended_time=later(98)), failures=1),
            LIMITED,
            "the next attempt starts by itself",
        ),
        (
            a_status(an_ended(1, Verdict.STOPPED), phase=Phase.SUSPENDED),
            a_spec(suspend=True),
            "set spec.suspend to false",
        ),
        (a_status(an_ended(1, Verdict.STOPPED), phase=Phase.SUSPENDED), a_spec(**BUDGET), "limits.budget: "),
    ],
    ids=["succeeded", "under way", "preempted", "backs off", "suspended", "over its budget"],
)
def test_a_wish_that_changes_nothing_is_answered_once(status: RunStatus, spec: Spec, told: str) -> None:
    seen = (an_attempt(a_replica()),) if status.current and status.current.state is AttemptState.RUNNING else ()
    run = meta().model_copy(update={"retry": "1"})

    first = decide(an_observed(*seen, status=status, spec=spec, run=run), now=later(99))
    again = decide(an_observed(*seen, status=first.status, spec=spec, run=run), now=later(99))

    (event,) = first.announcements
    assert (event.severity, event.reason) == ("Normal", Reason.NOTHING_TO_RETRY)
    assert told in event.message
    assert (first.effects, first.status.phase, first.status.attempts) == ((), status.phase, status.attempts)
    assert first.status.retried == "1"
    assert again.rule != "retried"
    assert Reason.NOTHING_TO_RETRY not in {news.reason for news in again.announcements}


def test_a_text_that_the_manifest_of_a_new_run_has_is_no_wish() -> None:
    first = looked_at(RunStatus(), "1")
    assert (first.rule, first.status.retried, first.announcements) == ("retried", "1", ())


# --- a loop that was left by break ------------------------------------------------------------------------------------


def a_run_left_by_break(reason: str = "left by break", **spec: object) -> RunStatus:
    done = an_ended(3, Verdict.FINISHED, reason=Reason.FINISHED, trained_time=NOW, step=40)
    evaluated = an_ended(4, Verdict.FINISHED, reason=Reason.FINISHED, stage=Stage.EVALUATE)
    records = (done, evaluated) if spec else (done,)
    result = Result(step=40, weights_digest="sha256:abc", reason=reason)
    ended = looked_at(a_status(*records, result=result), "", spec=a_spec(**spec)).status
    assert ended.phase is Phase.SUCCEEDED
    return ended


@pytest.mark.parametrize("reason", ["left by break", "the script ended its loop"])
@pytest.mark.parametrize("stages", [{}, {"stages": {"evaluate": {}}}], ids=["train", "evaluate"])
def test_a_training_that_was_left_by_break_goes_on_and_is_evaluated_anew(reason: str, stages: dict[str, Any]) -> None:
    ended, spec = a_run_left_by_break(reason, **stages), a_spec(**stages)

    again = looked_at(ended, "1", spec=spec)
    begun = looked_at(again.status, "1", spec=spec)

    assert (again.status.phase, again.status.is_true("Succeeded")) == (Phase.PENDING, False)
    (event,) = again.announcements
    assert (
        event.message == "the training goes on from step 40, which its script had left by break: piton.dev/retry asks"
    )
    (start,) = [effect for effect in begun.effects if isinstance(effect, StartAttempt)]
    assert (start.stage, start.number, start.go_on_after) == (Stage.TRAIN, ended.attempt + 1, ended.attempt)
    assert begun.status.result == ended.result
    assert looked_at(begun.status, "1", spec=spec).status.attempt == start.number


def test_what_it_proved_before_does_not_prove_the_end_of_what_goes_on() -> None:
    begun = looked_at(looked_at(a_run_left_by_break(), "1").status, "1").status
    done = an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0), number=begun.attempt)
    judged = decide(an_observed(done, status=begun, spec=LIMITED), now=later(200)).status.current

    assert judged is not None
    assert judged.reason is Reason.NO_PROOF


@pytest.mark.parametrize("reason", ["all steps are done", "the script finished the training", "val reached its target"])
def test_a_training_whose_end_was_meant_stays_succeeded(reason: str) -> None:
    ended = a_run_left_by_break(reason)

    assert looked_at(ended, "1").status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"spec": a_spec(limits={"deadline": "60s"})}, "limits.deadline: it has passed"),
        (
            {"spec": a_spec(limits={"budget": {"usd": "1"}}, **PRICE)},
            "limits.budget: it does not pay for another attempt",
        ),
        (
            {"spec": a_spec(limits={"budget": {"usd": "1", "onExceeded": "Stop"}}, **PRICE)},
            "limits.budget: it does not pay for another attempt",
        ),
        ({"problems": ("spec.trainer: no",)}, "spec: it is refused (spec.trainer: no)"),
    ],
)
def test_a_run_that_could_not_begin_an_attempt_does_not_go_on_and_stays_succeeded(
    fields: dict[str, Any], why: str
) -> None:
    run = meta().model_copy(update={"retry": "1"})
    ended = a_run_left_by_break().model_copy(update={"cost": CostStatus(earlier="3", time=NOW)})

    told = decide(an_observed(status=ended, run=run, **fields), now=later(99))
    again = decide(an_observed(status=told.status, run=run, **fields), now=later(100))

    assert (told.status.phase, again.status.phase) == (Phase.SUCCEEDED, Phase.SUCCEEDED)
    assert told.announcements[0].message.startswith(f"{why}, so the training does not go on")
    assert again.announcements == ()
