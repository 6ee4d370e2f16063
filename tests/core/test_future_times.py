"""The clock of the operator is set back, or another operator with a right clock goes on: nothing waits for hours."""

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, Verdict
from piton.core.decide import decide
from piton.core.effects import StartAttempt
from piton.core.unreported import may_have_saved
from piton.failures import BACKOFF_SECONDS_MAX, Failures
from piton.observed import ReplicaState
from support.builders import NOW, a_record, a_replica, a_status, an_attempt, an_ended, an_observed, later
from support.cluster import FakeClock

AHEAD = later(6 * 3600)


def test_a_back_off_whose_begin_is_yet_to_come_begins_now() -> None:
    status = a_status(an_ended(verdict=Verdict.USER_FAILURE, reason=Reason.CRASHED, ended_time=AHEAD))
    found = decide(an_observed(status=status), now=NOW)
    assert found.rule == "backing_off"
    left = found.look_again_seconds
    assert left is not None
    assert left <= 60

    after = decide(an_observed(status=found.status), now=later(left))
    assert any(isinstance(effect, StartAttempt) for effect in after.effects)


def test_what_does_not_start_keeps_its_machine_no_longer_than_its_patience() -> None:
    """Else it would be paid for until the clock comes to the time that was written."""
    waits = a_replica(
        ReplicaState.WAITING, node="n", placed_at=NOW, cannot_start=True, waiting="ErrImagePull: x: not found"
    )
    record = a_record(state=AttemptState.STARTING, failing_time=AHEAD, placed_time=AHEAD)
    first = decide(an_observed(an_attempt(waits), status=a_status(record)), now=NOW)
    after = decide(an_observed(an_attempt(waits), status=first.status), now=later(301))
    assert after.status.attempts[-1].verdict is Verdict.USER_FAILURE


def test_clocks_that_differ_by_a_little_change_nothing() -> None:
    status = a_status(an_ended(verdict=Verdict.USER_FAILURE, reason=Reason.CRASHED, ended_time=later(20)))
    found = decide(an_observed(status=status), now=NOW)
    assert found.status.attempts[-1].ended_time == later(20)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN])
def test_work_of_two_hours_is_kept_whatever_the_clock_said_when_it_began(stage: Stage) -> None:
    record = an_ended(stage=stage, running_time=AHEAD, ended_time=later(2 * 3600), last_words_time=later(7200))
    assert may_have_saved(record)


def test_what_failed_is_tried_again_when_the_clock_was_set_back() -> None:
    clock = FakeClock(AHEAD)
    failures = Failures(clock)
    failures.note("create job", "500")
    failures.end_pass(["create job"], failed=True, is_away=True)
    assert failures.is_early("create job")
    failures.note_refusal("own volume", "no")
    failures.note_reworded()
    clock.advance(-6 * 3600)
    assert not failures.is_early("create job")
    assert not failures.is_refused("own volume")
    assert (failures.seconds_left() or 0.0) <= BACKOFF_SECONDS_MAX
    assert not failures.seconds_to_reword()
