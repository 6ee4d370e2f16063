"""`piton.dev/retry`: the user's word brings back a run that has failed, or that holds since it got nowhere."""

from datetime import timedelta

from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, CheckpointStatus, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide
from piton.core.effects import AddFinalizer, Decision
from piton.observed import ReplicaState
from support.builders import NOW, a_record, a_replica, a_spec, a_status, an_attempt, an_ended, an_observed, later, meta

LIMITED = a_spec(limits={"failures": 3})


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


def test_a_run_that_has_succeeded_stays_as_it_is() -> None:
    done = a_status(an_ended(1, Verdict.FINISHED), phase=Phase.SUCCEEDED)

    assert looked_at(done, "1").status == done
