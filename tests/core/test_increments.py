"""What a pass adds to the counters."""

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, AttemptStatus, Lost, RunStatus, Verdict
from piton.core.increments import REASONS, End, Increments, Recovery, increments
from support.builders import NOW, a_record, a_status, an_ended, later

FALLEN = an_ended(1, Verdict.PREEMPTED, failing_time=NOW, ended_time=later(20), training_time=NOW)


def between(*records: AttemptStatus, before: RunStatus) -> Increments:
    return increments(before, a_status(*records))


def test_a_pass_that_changes_nothing_adds_nothing() -> None:
    status = a_status(FALLEN, a_record(2, training_time=later(50)), lost=Lost(steps=7))

    assert increments(status, status) == Increments()


def test_an_attempt_counts_as_started_when_its_job_is_created() -> None:
    pending, starting = a_record(1, AttemptState.PENDING), a_record(1, AttemptState.STARTING)

    assert between(pending, before=a_status()).started == ()
    assert between(starting, before=a_status(pending)).started == (Stage.TRAIN,)
    assert between(a_record(1), before=a_status(starting)).started == ()


def test_an_attempt_counts_as_ended_when_nothing_of_it_is_left() -> None:
    running, stopping = a_record(1), a_record(1, AttemptState.STOPPING, verdict=Verdict.PREEMPTED)

    assert between(stopping, before=a_status(running)).ends == ()
    assert between(FALLEN, before=a_status(stopping)).ends == (End(verdict=Verdict.PREEMPTED, reason=Reason.DISRUPTED),)


def test_lost_steps_are_those_of_this_pass() -> None:
    old, new = a_status(a_record(1), lost=Lost(steps=5)), a_status(a_record(1), lost=Lost(steps=12))

    assert increments(old, new).lost_steps == 7
    assert increments(new, old).lost_steps == 0, "a status that was lost is no negative loss"


@pytest.mark.parametrize("state", [AttemptState.RUNNING, AttemptState.STARTING])
def test_a_recovery_lasts_from_the_first_sign_of_the_end_to_the_first_report(state: AttemptState) -> None:
    """A report can be there before the cluster says that the replica runs."""
    before = a_status(FALLEN, a_record(2, state))

    found = between(FALLEN, a_record(2, state, training_time=later(50)), before=before)

    assert found.recovery == Recovery(verdict=Verdict.PREEMPTED, seconds=50)


def test_attempts_that_never_trained_only_prolong_a_recovery() -> None:
    second = an_ended(2, Verdict.INFRASTRUCTURE, failing_time=later(60))
    before = a_status(FALLEN, second, a_record(3))

    found = between(FALLEN, second, a_record(3, training_time=later(90)), before=before)

    assert found.recovery == Recovery(verdict=Verdict.PREEMPTED, seconds=90)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([a_record(1, training_time=NOW)], id="the first attempt"),
        pytest.param([FALLEN, a_record(2)], id="nothing is reported yet"),
        pytest.param(
            [FALLEN, a_record(2, AttemptState.STOPPING, training_time=later(500))], id="last words are no report"
        ),
        pytest.param(
            [an_ended(1, Verdict.STOPPED, training_time=NOW), a_record(2, training_time=later(9))],
            id="somebody had suspended it",
        ),
    ],
)
def test_what_is_no_recovery(records: list[AttemptStatus]) -> None:
    before = a_status(*records[:-1], records[-1].model_copy(update={"training_time": None}))

    assert between(*records, before=before).recovery is None


def test_every_verdict_has_its_reasons() -> None:
    assert set(REASONS) == set(Verdict)
