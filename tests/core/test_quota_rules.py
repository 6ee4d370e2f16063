"""Runs that wait in a queue of Kueue's: never without quota, never a failure, and quota is given back in time."""

from dataclasses import replace
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Meta, Stage
from piton.api.status import AttemptState, QueueStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide
from piton.core.effects import (
    AddFinalizer,
    Decision,
    LeaveQueue,
    RemoveFinalizer,
    ReportPodsReady,
    RequestQuota,
    ReturnQuota,
    StartAttempt,
    StopAttempt,
)
from piton.observed import Observed, ReplicaState, ReservationSeen
from piton.rendering.workload import asked
from piton.timing import Timing
from support.builders import (
    NOW,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    later,
    meta,
)


def in_a_queue(**fields: Any) -> Meta:
    return meta(**fields).model_copy(update={"queue": "gpus", "priority_class": "research"})


def a_reservation(stage: Stage = Stage.TRAIN, **fields: Any) -> ReservationSeen:
    """An admitted one, unless told otherwise."""
    wanted = asked(in_a_queue(), a_spec(stages={"prepare": {}}), stage)
    known = {"exists": True, "queue": "gpus", "asked": wanted, "held": True, "admitted": True, "ready": False}
    return ReservationSeen(**{**known, **fields})


WAITING = a_reservation(
    held=False, admitted=False, message="insufficient unused quota for nvidia.com/gpu, 8 more needed"
)
EVICTED = a_reservation(evicted=True, message="Preempted to accommodate a workload (UID: 7) due to prioritization")
NONE = ReservationSeen()


def seen(reservation: ReservationSeen | None, *attempts: Any, **fields: Any) -> Observed:
    fields.setdefault("run", in_a_queue())
    return an_observed(*attempts, reservation=reservation, **fields)


def flying(state: AttemptState = AttemptState.RUNNING, **fields: Any) -> dict[str, Any]:
    return {"status": a_status(a_record(1, state, **fields))}


def kinds(decision: Decision) -> list[type]:
    return [type(effect) for effect in decision.effects]


def said(decision: Decision) -> str:
    training = decision.status.condition("Training")
    assert training is not None
    return training.message


def test_a_run_asks_for_quota_before_it_takes_a_number() -> None:
    decision = decide(seen(NONE), now=NOW)
    assert decision.effects == (RequestQuota(stage=Stage.TRAIN, reason=Reason.QUEUED),)
    assert (decision.status.phase, decision.status.attempt) == (Phase.QUEUED, 0)
    assert decision.status.queue == QueueStatus(name="gpus")


def test_a_run_that_waits_says_so_in_kueues_words_and_with_its_place() -> None:
    decision = decide(seen(replace(WAITING, position=3)), now=NOW)
    assert not decision.effects
    assert decision.status.phase is Phase.QUEUED
    words = "waits for quota in the queue gpus, number 3 in line: insufficient unused quota for nvidia.com/gpu"
    assert said(decision).startswith(words)
    assert decision.status.queue == QueueStatus(name="gpus", position=3)
    assert decision.announcements[0].reason is Reason.QUEUED


@pytest.mark.parametrize(
    ("shown", "position", "then"),
    [(3, 2, 2), (11, 10, 10), (100, 95, 100), (100, 90, 90), (100, 105, 100), (100, 110, 110), (900, 9, 9)],
)
def test_far_back_in_a_queue_a_place_is_written_when_it_has_changed_by_a_tenth(
    shown: int, position: int, then: int
) -> None:
    first = decide(seen(replace(WAITING, position=shown)), now=NOW).status
    status = decide(seen(replace(WAITING, position=position), status=first), now=later(15)).status

    assert status.queue == QueueStatus(name="gpus", position=then)
    assert (status == first) is (then == shown)


def test_far_back_in_a_queue_a_place_is_looked_at_less_often() -> None:
    looks = [decide(seen(replace(WAITING, position=at)), now=NOW).look_again_seconds for at in (1, 10, 40, 1000)]

    assert looks == [15, 15, 60, Timing().look_seconds_max]


def test_a_place_that_is_not_known_is_looked_at_less_often_the_longer_it_waits() -> None:
    unknown = replace(WAITING, position=None)
    status = decide(seen(unknown), now=NOW).status
    looks = [decide(seen(unknown, status=status), now=later(after)).look_again_seconds for after in (0, 15, 60, 3600)]

    assert looks == [15, 15, 60, Timing().look_seconds_max]


def test_waiting_is_told_once_and_its_place_is_asked_for_again() -> None:
    first = decide(seen(WAITING), now=NOW)
    again = decide(seen(WAITING, status=first.status), now=later(15))
    assert (again.status, again.announcements) == (first.status, ())
    assert again.look_again_seconds == 15


def test_a_run_that_waits_still_meets_its_deadline() -> None:
    spec = {"limits": {"deadline": "1h"}}
    assert decide(seen(WAITING, spec_parts=spec), now=later(3595)).look_again_seconds == 5
    assert decide(seen(WAITING, spec_parts=spec), now=later(3601)).status.phase is Phase.FAILED


def test_an_admitted_run_takes_its_number_and_starts() -> None:
    due = decide(seen(a_reservation()), now=NOW)
    assert (due.rule, due.status.attempt, kinds(due)) == ("start", 1, [StartAttempt])


def test_a_run_without_the_label_knows_nothing_of_queues() -> None:
    decision = decide(an_observed(), now=NOW)
    assert (decision.rule, decision.status.queue) == ("start", None)


def test_a_world_without_queues_starts_a_run_with_the_label() -> None:
    assert decide(seen(None), now=NOW).rule == "start"


@pytest.mark.parametrize(
    "reservation", [NONE, WAITING, EVICTED, a_reservation(deleting=True), a_reservation(ours=False)]
)
def test_nothing_is_started_without_quota(reservation: ReservationSeen) -> None:
    between = decide(seen(reservation), now=NOW)
    assert StartAttempt not in kinds(between)
    assert between.status.attempt == 0
    taken = decide(seen(reservation, **flying(AttemptState.PENDING)), now=NOW)
    assert StartAttempt not in kinds(taken)
    assert taken.status.current is not None
    assert (taken.status.current.verdict, taken.status.current.reason) == (Verdict.STOPPED, Reason.QUOTA_TAKEN)


def test_a_preempted_run_saves_and_stops_and_is_no_failure() -> None:
    attempt = an_attempt(a_replica())
    told = decide(seen(EVICTED, attempt, **flying()), now=NOW)
    record = told.status.current
    assert record is not None
    assert (record.state, record.verdict, record.reason) == (
        AttemptState.STOPPING,
        Verdict.STOPPED,
        Reason.QUOTA_TAKEN,
    )
    assert "Preempted to accommodate" in record.message
    assert kinds(decide(seen(EVICTED, attempt, status=told.status), now=NOW)) == [StopAttempt]
    gone = decide(seen(EVICTED, status=told.status), now=later(30)).status
    assert (gone.failures, gone.preemptions, gone.infrastructure_failures) == (0, 0, 0)


def test_a_preempted_run_stops_as_well_while_its_spec_cannot_be_read() -> None:
    told = decide(seen(EVICTED, an_attempt(a_replica()), problems=("spec.x: unknown field",), **flying()), now=NOW)
    record = told.status.current
    assert record is not None
    assert (record.state, record.reason) == (AttemptState.STOPPING, Reason.QUOTA_TAKEN)
    unread = decide(
        seen(a_reservation(), an_attempt(a_replica()), problems=("spec.x: unknown field",), **flying()), now=NOW
    )
    assert unread.rule == "observe_running"


def test_quota_is_returned_only_when_no_pod_runs() -> None:
    stopping = flying(AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.QUOTA_TAKEN)
    leaving = an_attempt(a_replica(deleting=True), deleting=True)
    assert ReturnQuota not in kinds(decide(seen(EVICTED, leaving, **stopping), now=NOW))

    ended = a_status(an_ended(1, Verdict.STOPPED), phase=Phase.RECOVERING)
    assert ReturnQuota not in kinds(decide(seen(EVICTED, leaving, status=ended), now=NOW))
    returned = decide(seen(EVICTED, status=ended), now=NOW)
    assert kinds(returned) == [ReturnQuota]
    assert returned.status.phase is Phase.QUEUED
    assert "Preempted to accommodate" in said(returned)


def test_after_it_has_returned_its_quota_a_run_waits_its_turn_under_a_new_number() -> None:
    ended = a_status(an_ended(1, Verdict.STOPPED), phase=Phase.QUEUED)
    waits = decide(seen(replace(EVICTED, held=False, admitted=False), status=ended), now=NOW)
    assert (waits.rule, waits.status.phase, waits.effects) == ("queued", Phase.QUEUED, ())
    due = decide(seen(a_reservation(), status=waits.status), now=NOW)
    assert due.status.attempt == 2


def test_a_run_returns_its_quota_also_while_it_backs_off() -> None:
    failed = a_status(an_ended(1, Verdict.USER_FAILURE, reason=Reason.CRASHED), failures=1)
    assert kinds(decide(seen(EVICTED, status=failed), now=later(1))) == [ReturnQuota]


def test_after_a_spot_preemption_the_run_keeps_its_quota_and_goes_on() -> None:
    lost = a_status(an_ended(1, Verdict.PREEMPTED), phase=Phase.RECOVERING)
    due = decide(seen(a_reservation(), status=lost), now=NOW)
    assert (due.rule, due.status.attempt, kinds(due)) == ("start", 2, [StartAttempt])


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        ({"spec_parts": {"suspend": True}}, Phase.SUSPENDED),
        ({"problems": ("spec.x: unknown field",)}, Phase.REFUSED),
        ({"spec_parts": {"limits": {"deadline": "1s"}}}, Phase.FAILED),
    ],
)
def test_a_run_that_is_not_about_to_start_leaves_the_queue(fields: dict[str, Any], phase: Phase) -> None:
    decision = decide(seen(a_reservation(), **fields), now=later(5))
    assert (kinds(decision), decision.status.phase) == ([LeaveQueue], phase)
    assert decision.status.queue is None


def test_a_run_that_is_suspended_leaves_the_queue_only_when_its_attempt_has_ended() -> None:
    stopping = flying(AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.SUSPENDED)
    leaving = an_attempt(a_replica(deleting=True), deleting=True)
    spec = {"suspend": True}
    assert kinds(decide(seen(a_reservation(), leaving, spec_parts=spec, **stopping), now=NOW)) == []


def test_a_run_that_has_ended_leaves_the_queue_before_it_is_released() -> None:
    ended = a_status(an_ended(1, Verdict.FINISHED), phase=Phase.SUCCEEDED)
    assert kinds(decide(seen(a_reservation(), status=ended), now=NOW)) == [LeaveQueue, RemoveFinalizer]


def test_a_run_that_is_deleted_leaves_the_queue_when_nothing_of_it_runs() -> None:
    run = in_a_queue(deleting=True)
    attempt = an_attempt(a_replica())
    assert kinds(decide(seen(a_reservation(), attempt, run=run, **flying()), now=NOW)) == [StopAttempt]
    assert kinds(decide(seen(a_reservation(), run=run, **flying()), now=NOW)) == [LeaveQueue, RemoveFinalizer]


def test_a_run_that_needs_something_else_than_it_has_asked_for_asks_again_between_attempts() -> None:
    bigger = {"spec_parts": {"workers": {"nodes": 2}}}
    assert kinds(decide(seen(a_reservation(), **bigger), now=NOW)) == [LeaveQueue]
    flies = decide(seen(a_reservation(ready=True), an_attempt(a_replica()), **flying(), **bigger), now=NOW)
    assert (flies.rule, kinds(flies)) == ("observe_running", [])


def test_each_stage_asks_for_what_it_needs() -> None:
    stages: dict[str, Any] = {"spec_parts": {"stages": {"prepare": {}}}}
    first = decide(seen(NONE, **stages), now=NOW)
    assert first.effects == (RequestQuota(stage=Stage.PREPARE, reason=Reason.QUEUED),)
    prepared = a_status(an_ended(1, Verdict.FINISHED, stage=Stage.PREPARE))
    had = decide(seen(a_reservation(Stage.PREPARE), status=prepared, **stages), now=NOW)
    assert kinds(had) == [LeaveQueue]
    then = decide(seen(NONE, status=had.status, **stages), now=NOW)
    assert then.effects == (RequestQuota(stage=Stage.TRAIN, reason=Reason.QUEUED),)


def test_a_label_on_a_run_that_trains_without_quota_stops_it() -> None:
    decision = decide(seen(NONE, an_attempt(a_replica()), **flying()), now=NOW)
    assert decision.status.current is not None
    assert decision.status.current.reason is Reason.QUOTA_TAKEN


def test_a_run_whose_label_is_taken_off_goes_on_and_leaves_the_queue_afterwards() -> None:
    attempt = an_attempt(a_replica())
    assert decide(seen(a_reservation(ready=True), attempt, run=meta(), **flying()), now=NOW).rule == "observe_running"
    lost = a_status(an_ended(1), phase=Phase.RECOVERING)
    after = decide(seen(a_reservation(), run=meta(), status=lost), now=NOW)
    assert (after.rule, kinds(after), after.status.queue) == ("start", [LeaveQueue, StartAttempt], None)


def test_kueue_is_told_once_that_all_pods_run_and_again_when_they_do_not() -> None:
    pair = (a_replica(), a_replica(ReplicaState.WAITING, "ragcun-1-worker-0"))
    assert kinds(decide(seen(a_reservation(), an_attempt(*pair), **flying()), now=NOW)) == []
    attempt = an_attempt(a_replica(), a_replica(name="ragcun-1-worker-0"))
    told = decide(seen(a_reservation(), attempt, **flying()), now=NOW)
    assert told.effects == (ReportPodsReady(ready=True, reason=Reason.TRAINING),)
    assert kinds(decide(seen(a_reservation(ready=True), attempt, **flying()), now=NOW)) == []
    lost = a_status(an_ended(1), phase=Phase.RECOVERING)
    again = decide(seen(a_reservation(ready=True), status=lost), now=NOW)
    assert again.effects == (ReportPodsReady(ready=False, reason=Reason.RETRYING),)


def test_a_workload_of_somebody_elses_is_left_alone_and_said() -> None:
    decision = decide(seen(a_reservation(ours=False)), now=NOW)
    assert not decision.effects
    assert "trainingrun-ragcun exists and does not belong to this run; delete it" in said(decision)


def test_a_run_is_held_before_it_asks_for_quota() -> None:
    assert kinds(decide(seen(NONE, run=in_a_queue(held=False)), now=NOW)) == [AddFinalizer]


UNREADABLE = ReservationSeen(unreadable="the cluster serves no Workloads of kueue.x-k8s.io/v1beta2 (404)")


@pytest.mark.parametrize("state", [AttemptState.PENDING, None], ids=["its number is taken", "between two attempts"])
def test_nothing_begins_while_nobody_can_tell_the_quota(state: AttemptState | None) -> None:
    status = a_status(a_record(1, state)) if state else a_status(an_ended(1, Verdict.PREEMPTED))
    decision = decide(seen(UNREADABLE, status=status), now=later(60))
    assert (decision.effects, decision.status.phase) == ((), Phase.QUEUED)
    assert decision.announcements[0].reason is Reason.QUEUE_UNREADABLE
    again = decide(seen(UNREADABLE, status=decision.status), now=later(120))
    assert (again.effects, again.announcements, again.status) == ((), (), decision.status)


def test_a_place_in_a_queue_is_kept_while_nobody_can_tell_the_quota() -> None:
    """Else the Workload would be forgotten, and its quota be kept from others for ever."""
    status = a_status(a_record(1, AttemptState.RUNNING)).model_copy(update={"queue": QueueStatus(name="gpus")})
    decision = decide(seen(UNREADABLE, an_attempt(a_replica()), status=status), now=NOW)
    assert decision.status.queue == QueueStatus(name="gpus")
    assert decision.status.current is not None
    assert decision.status.current.verdict is None


def test_the_label_taken_off_nothing_waits_for_a_queue_that_cannot_be_read() -> None:
    decision = decide(seen(UNREADABLE, run=meta()), now=NOW)
    assert [type(effect) for effect in decision.effects][-1] is StartAttempt
