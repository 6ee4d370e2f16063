"""What may have happened of which nothing was heard, and what is said when nothing is heard."""

from dataclasses import replace
from typing import Any

import pytest

from piton.api.conditions import REPORTING
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import ORDER
from piton.api.status import AttemptState, AttemptStatus, CostStatus, Result, RunStatus, Verdict
from piton.api.status_base import ConditionStatus, Phase
from piton.contract.manifest import Complete
from piton.contract.termination import Outcome
from piton.core import transitions
from piton.core.decide import decide
from piton.core.effects import Decision, StartAttempt
from piton.core.stalled import zones_to_avoid
from piton.core.unreported import may_have_saved, may_hold_checkpoint
from piton.cost.spending import spent
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState, VolumeSeen
from piton.timing import Timing
from support.builders import (
    NOW,
    a_failed_attempt,
    a_lost,
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
    meta,
    said,
)

_MADE = VolumeSeen(exists=True, name="ragcun-checkpoints", made=True)


@pytest.mark.parametrize(
    ("record", "may"),
    [
        (an_ended(reason=Reason.CANNOT_START), False),
        (an_ended(reason=Reason.GANG_INCOMPLETE), False),
        (an_ended(reason=Reason.NODE_GONE), True),
        (an_ended(reason=Reason.OUT_OF_DISK), True),
        (an_ended(reason=Reason("FromANewerVersion")), True),
        (an_ended(reason=Reason.NODE_REFUSED), False),
        (an_ended(reason=Reason.NODE_REFUSED, ended_time=later(61)), True),
        (an_ended(reason=Reason.NODE_REFUSED, trained_from=later(3600), ended_time=later(3660)), False),
        (an_ended(reason=Reason.CANNOT_START, trained_from=NOW, ended_time=later(61)), True),
        (an_ended(reason=Reason.CRASHED, running_time=NOW), True),
        (an_ended(reason=Reason.CRASHED, running_time=NOW, last_words_time=NOW), False),
        (an_ended(reason=Reason.EXITED_ZERO, running_time=NOW, last_words_time=NOW), True),
        (an_ended(reason=Reason.CRASHED, running_time=NOW, last_words_time=NOW, ended_time=later(60)), False),
        (an_ended(reason=Reason.CRASHED, running_time=NOW, last_words_time=NOW, ended_time=later(61)), True),
        (an_ended(reason=Reason.CRASHED, running_time=later(3600), last_words_time=NOW, ended_time=later(3601)), False),
        (
            an_ended(
                reason=Reason.CRASHED,
                running_time=later(3600),
                trained_from=NOW,
                last_words_time=NOW,
                ended_time=later(3601),
            ),
            True,
        ),
        (an_ended(reason=Reason.CRASHED, running_time=NOW, stage=Stage.PREPARE), False),
        (an_ended(reason=Reason.FINISHED, running_time=NOW, stage=Stage.PREPARE, ended_time=later(60)), False),
        (an_ended(reason=Reason.FINISHED, running_time=NOW, stage=Stage.PREPARE, ended_time=later(61)), True),
        (an_ended(reason=Reason.CRASHED, running_time=NOW, stage=Stage.PREPARE, ended_time=later(61)), True),
        (an_ended(reason=Reason.NODE_GONE, stage=Stage.PREPARE, ended_time=later(61)), True),
        (an_ended(reason=Reason.CANNOT_START, stage=Stage.PREPARE, ended_time=later(61)), False),
        (a_record(running_time=NOW, last_words_time=NOW), True),
        (a_record(state=AttemptState.PENDING), False),
        (a_record(state=AttemptState.STARTING), True),
        (a_record(state=AttemptState.STOPPING), False),
        (a_record(state=AttemptState.STOPPING, trained_from=NOW, ended_time=later(61)), True),
    ],
)
def test_an_attempt_may_have_saved_unless_it_never_ran_or_said_within_a_minute_that_it_failed(
    record: AttemptStatus, may: bool
) -> None:
    assert may_have_saved(record) is may


_WAITS = a_replica(ReplicaState.WAITING, never_started=True, node="n")
_REJECTED = a_replica(ReplicaState.FAILED, refused="NodeAffinity: no", began_at=NOW)


@pytest.mark.parametrize(
    ("seen", "goes"),
    [
        (an_attempt(_WAITS), True),
        (an_attempt(expected_replicas=2), True),
        (an_attempt(_WAITS, deleting=True), True),
        (an_attempt(_WAITS, deleting=True, expected_replicas=2), False),
        (an_attempt(deleting=True), False),
        (an_attempt(_WAITS, job=None), False),
        (an_attempt(_WAITS, lost=(a_lost(),)), False),
        (an_attempt(replace(_WAITS, never_started=False)), False),
        (an_attempt(replace(_WAITS, node_gone=True, began_at=NOW)), False),
        (a_failed_attempt(_REJECTED), False),
    ],
)
def test_a_deletion_knows_that_no_trainer_has_begun_only_if_it_sees_all_of_them_wait(
    seen: AttemptSeen, goes: bool
) -> None:
    status = a_status(a_record(state=AttemptState.STARTING))
    stopped = decide(an_observed(seen, status=status, run=meta(deleting=True)), now=later(61)).status
    left = decide(an_observed(status=stopped, run=meta(deleting=True), volume=_MADE), now=later(70))

    assert [type(effect).__name__ for effect in left.effects] == [*(["OwnVolume"] if goes else []), "RemoveFinalizer"]


@pytest.mark.parametrize(
    ("first", "peer", "heard"),
    [
        (failed(137), failed(1, termination=said(Outcome.FAILED)), False),
        (failed(1, termination=said(Outcome.FAILED)), failed(137), True),
        (_WAITS, failed(1, termination=said(Outcome.FAILED)), True),
        (replace(_WAITS, never_started=False), failed(1, termination=said(Outcome.FAILED)), False),
        (None, failed(1, termination=said(Outcome.FAILED)), False),
    ],
)
def test_only_the_rank_that_saves_says_what_was_saved(
    first: ReplicaSeen | None, peer: ReplicaSeen, heard: bool
) -> None:
    replicas = [replica for replica in (first, replace(peer, name="ragcun-1-worker-0")) if replica]
    seen = an_attempt(*replicas, expected_replicas=2)
    status = decide(an_observed(seen, status=a_status(a_record(running_time=NOW))), now=NOW).status
    assert status.current is not None
    assert (status.current.last_words_time is not None) is heard


def test_what_an_attempt_may_have_saved_is_known_when_it_is_not_listed_any_more() -> None:
    status = a_status(an_ended(1, reason=Reason.NODE_GONE), *(an_ended(n, reason=Reason.NODE_REFUSED) for n in (2, 3)))
    timing = Timing(kept_records=3)
    assert may_hold_checkpoint(status)

    for number in range(4, 9):
        status = transitions.enter(status, an_ended(number, reason=Reason.NODE_REFUSED), timing)
        assert may_hold_checkpoint(status)

    never = a_status(an_ended(1, reason=Reason.NODE_REFUSED))
    for number in range(2, 9):
        never = transitions.enter(never, an_ended(number, reason=Reason.NODE_REFUSED), timing)
    assert not may_hold_checkpoint(never)


def _never(first: int, last: int) -> tuple[AttemptStatus, ...]:
    return tuple(an_ended(number, reason=Reason.CANNOT_START) for number in range(first, last + 1))


@pytest.mark.parametrize(
    ("status", "may"),
    [
        (a_status(*_never(1, 3)), False),
        (a_status(*_never(11, 30)), True),  # as an older operator has left it
        (a_status(*_never(11, 30), may_hold_unlisted_work=False), False),
        (a_status(*_never(1, 2)).model_copy(update={"attempt": 3}), True),
        (a_status(), True),
    ],
)
def test_a_number_without_a_record_is_in_doubt(status: RunStatus, may: bool) -> None:
    assert may_hold_checkpoint(status) is may
    more = transitions.enter(status, an_ended(status.attempt + 1, reason=Reason.CANNOT_START), Timing(kept_records=20))
    assert may_hold_checkpoint(more) is (may and status.attempts != ())


@pytest.mark.parametrize(
    ("seen", "volume", "doubt"),
    [
        ((an_attempt(_WAITS, number=2),), _MADE, True),
        ((an_attempt(_WAITS, number=1),), _MADE, None),
        ((), _MADE, True),
        ((), VolumeSeen(exists=False), None),
        ((), replace(_MADE, made=False), None),
        ((an_attempt(_WAITS, number=3, ours=False),), VolumeSeen(exists=False), False),
    ],
    ids=["a job", "the first job", "a claim", "a new run", "a claim of the user's", "numbers that others have taken"],
)
def test_what_is_left_of_a_status_that_was_lost_raises_doubt(
    seen: tuple[AttemptSeen, ...], volume: VolumeSeen, doubt: bool | None
) -> None:
    decision = decide(an_observed(*seen, status=RunStatus(), volume=volume), now=NOW)
    assert len(decision.status.attempts) == 1
    assert decision.status.may_hold_unlisted_work is doubt


def test_a_fence_of_an_attempt_that_nobody_knows_raises_doubt() -> None:
    fenced = failed(1, termination=said(Outcome.FENCED, fence=7))
    known = a_status(a_record(running_time=NOW), may_hold_unlisted_work=False)
    status = decide(an_observed(a_failed_attempt(fenced), status=known), now=NOW).status
    assert (status.attempt, status.may_hold_unlisted_work) == (7, True)


def test_nothing_is_written_at_an_upgrade() -> None:
    """Neither for a run that has ended nor for one that trains, as the operator before has left them."""
    over = a_status(*_never(11, 30), phase=Phase.FAILED)
    ended = decide(an_observed(status=over, volume=_MADE, run=meta(held=False)), now=later(99))
    assert (ended.rule, ended.effects, ended.status) == ("ended", (), over)
    seen = an_attempt(a_replica(began_at=NOW))
    trains = decide(an_observed(seen, status=a_status(a_record(running_time=later(9)))), now=later(10)).status
    assert decide(an_observed(seen, status=trains), now=later(99)).status == trains
    assert trains.attempts[-1].trained_from is None


def _silent(seconds: float, *, status: RunStatus | None = None, **fields: Any) -> Decision:
    """Return the decision on a run whose attempt was formed at NOW, and has been silent since."""
    known = status or a_status(a_record(running_time=NOW, formed_time=NOW))
    observed = an_observed(an_attempt(a_replica()), status=known, silent_seconds=seconds, **fields)
    return decide(observed, now=later(seconds))


def test_a_minute_without_a_report_is_said_once_and_the_training_goes_on() -> None:
    early = _silent(40)
    assert early.status.condition(REPORTING) is None
    assert early.look_again_seconds == 20

    late = _silent(60)
    condition = late.status.condition(REPORTING)
    assert condition is not None
    assert (condition.status, condition.reason) == (ConditionStatus.FALSE, Reason.NO_REPORTS)
    assert "no report has come from attempt 1 for 60 s" in condition.message
    assert "NetworkPolicy" in condition.message
    assert [(news.severity, news.reason) for news in late.announcements] == [("Warning", Reason.NO_REPORTS)]
    assert late.status.phase is Phase.TRAINING

    again = _silent(120, status=late.status)
    assert (again.status, again.announcements) == (late.status, ())


def test_a_report_ends_the_silence() -> None:
    silent = _silent(60).status

    heard = _silent(1, status=silent, progress=a_progress(10)).status

    assert heard.is_true(REPORTING)


@pytest.mark.parametrize(
    "record",
    [
        a_record(running_time=NOW),
        a_record(running_time=NOW, formed_time=NOW, stage=Stage.PREPARE),
    ],
    ids=["half a gang", "a stage that has no steps"],
)
def test_nobody_is_expected_to_report_before_all_have_come_together_or_in_another_stage(record: AttemptStatus) -> None:
    assert _silent(3000, status=a_status(record)).status.condition(REPORTING) is None


@pytest.mark.parametrize(
    "current",
    [
        an_ended(1, Verdict.FINISHED),
        an_ended(1, Verdict.PREEMPTED),
        a_record(1, state=AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.SUSPENDED),
        a_record(2, state=AttemptState.STARTING),
        a_record(2, state=AttemptState.RUNNING, running_time=NOW),
    ],
    ids=["it has finished", "it was preempted", "it is told to stop", "the next one waits", "the next one runs"],
)
def test_an_attempt_that_trains_no_more_is_not_said_to_train_on(current: AttemptStatus) -> None:
    silent = _silent(60).status
    seen = an_attempt(a_replica(ReplicaState.WAITING if current.number == 2 else ReplicaState.RUNNING), number=2)
    status = silent.model_copy(update={"attempts": (current,)})

    condition = decide(an_observed(seen, status=status, silent_seconds=90), now=later(90)).status.condition(REPORTING)

    assert condition is not None
    assert (condition.status, condition.message) == (ConditionStatus.UNKNOWN, "")


def test_an_attempt_that_was_given_no_place_to_report_to_is_not_waited_for() -> None:
    """The operator listens since a later time than its start, as when a certificate is issued."""
    pending = a_record(state=AttemptState.PENDING)
    begun = decide(an_observed(status=a_status(pending)), now=NOW).status.current
    told = decide(an_observed(status=a_status(pending), silent_seconds=5), now=NOW).status.current
    assert begun is not None
    assert told is not None
    assert (begun.reports, told.reports) == (False, None)

    for record, is_waited_for in ((begun, False), (told, True)):
        trains = record.model_copy(update={"running_time": NOW, "formed_time": NOW, "state": AttemptState.RUNNING})
        condition = _silent(3000, status=a_status(trains)).status.condition(REPORTING)
        assert (condition is not None) is is_waited_for


def test_where_nobody_listens_nothing_is_said() -> None:
    observed = an_observed(an_attempt(a_replica()), status=a_status(a_record(running_time=NOW, formed_time=NOW)))
    assert decide(observed, now=later(3000)).status.condition(REPORTING) is None


def test_a_program_of_the_users_may_be_silent_and_nobody_is_warned() -> None:
    decision = _silent(60, spec_parts={"trainer": {"image": "mine:1", "command": ["train"]}})

    condition = decision.status.condition(REPORTING)
    assert condition is not None
    assert "sends none" in condition.message
    assert decision.announcements == ()


def test_the_last_words_name_the_cause_that_only_the_trainer_knows() -> None:
    words = said(Outcome.DIVERGED, unreported="piton-operator:8443: the connection is refused")
    seen = a_failed_attempt(failed(79, termination=words))

    ended = decide(an_observed(seen, status=a_status(a_record(running_time=NOW))), now=NOW).status

    condition = ended.condition(REPORTING)
    assert condition is not None
    assert condition.message.startswith("attempt 1 could not report: piton-operator:8443: the connection is refused. ")


def test_words_of_the_cluster_or_of_a_program_say_nothing_of_what_was_saved() -> None:
    for is_ours, words in ((True, True), (False, False)):
        seen = a_failed_attempt(failed(1, termination=said(Outcome.FAILED, detail="Killed", is_ours=is_ours)))
        ended = decide(an_observed(seen, status=a_status(a_record(running_time=NOW))), now=NOW).status
        assert ended.current is not None
        assert (ended.current.last_words_time is not None) is words


# --- what nobody heard of counts as decision 44 has it, whoever wrote the program -------------------------------------


OWN = {"trainer": {"image": "i", "command": ["train"]}}
_SUSPENDED = {"state": ReplicaState.FAILED, "exit_code": 143, "deleting": True}
_LOST = said(Outcome.VOLUME_LOST, detail="read-only file system")


def _ends(seconds: float, seen: AttemptSeen, *, heard: bool = False, formed: bool = True, **spec_parts: Any) -> int:
    """The attempts without progress, after one more that has ended like that after so many seconds."""
    times: dict[str, Any] = {"running_time": NOW, "trained_from": NOW, "billed_from": NOW}
    record = a_record(2, formed_time=NOW if formed else None, **times)
    status = a_status(an_ended(1, reason=Reason.NODE_GONE), record)
    progress = a_progress(5) if heard else None
    observed = an_observed(seen, status=status, progress=progress, silent_seconds=seconds, spec_parts=spec_parts)
    while observed.status.attempts[-1].state is not AttemptState.ENDED:
        observed = replace(observed, status=decide(observed, now=later(seconds)).status)
    return observed.status.stage(Stage.TRAIN).fruitless_attempts


@pytest.mark.parametrize("spec", [{}, OWN], ids=["a recipe", "a program of the user's"])
@pytest.mark.parametrize(
    ("seconds", "fields", "heard", "fruitless"),
    [
        (90, {"node_gone": True}, False, 2),
        (600, {"node_gone": True}, False, 2),
        (3601, {"node_gone": True}, False, 0),
        (3601, {"node_gone": True}, True, 2),
        (360, {"state": ReplicaState.FAILED, "exit_code": 82, "termination": _LOST}, False, 2),
        (7200, {"state": ReplicaState.FAILED, "exit_code": 82, "termination": _LOST}, False, 2),
        (7200, {"state": ReplicaState.FAILED, "disruption": "EvictionByEvictionAPI", "exit_code": 137}, False, 0),
    ],
)
def test_an_attempt_of_which_nothing_is_heard_came_far_if_it_trained_for_more_than_an_hour(
    spec: dict[str, Any], seconds: float, fields: dict[str, Any], heard: bool, fruitless: int
) -> None:
    """Last words count also if they arrive in the pass that closes the attempt."""
    replica = a_replica(**{"state": ReplicaState.RUNNING, "node": "n1", "name": "ragcun-2-master-0", **fields})
    assert _ends(seconds, an_attempt(replica, number=2), heard=heard, **spec) == fruitless


@pytest.mark.parametrize("seconds", [601, 3600])
@pytest.mark.parametrize(
    ("spec", "seen", "fruitless"),
    [
        ({}, {"node_gone": True}, 1),
        ({}, {"state": ReplicaState.FAILED, "exit_code": 137}, 1),
        (OWN, {"node_gone": True}, 2),
        (OWN, _SUSPENDED, 1),
        ({}, _SUSPENDED, 1),
    ],
    ids=[
        "a recipe",
        "a recipe that is killed",
        "a program",
        "a program that is suspended",
        "a recipe that is suspended",
    ],
)
def test_ten_minutes_of_training_that_may_have_saved_neither_count_nor_reset_the_count(
    spec: dict[str, Any], seen: dict[str, Any], fruitless: int, seconds: float
) -> None:
    replica = a_replica(**{"state": ReplicaState.RUNNING, "node": "n1", "name": "ragcun-2-master-0", **seen})
    suspended = bool(replica.deleting)
    assert _ends(seconds, an_attempt(replica, number=2, suspended=suspended), **spec) == fruitless


@pytest.mark.parametrize("spec", [{}, OWN], ids=["a recipe", "a program of the user's"])
@pytest.mark.parametrize("seconds", [90, 7200])
def test_half_a_gang_has_not_trained(spec: dict[str, Any], seconds: float) -> None:
    alone = a_replica(node="n1", node_gone=True, name="ragcun-2-master-0", began_at=NOW)
    seen = a_failed_attempt(alone, number=2, expected_replicas=2)
    assert _ends(seconds, seen, formed=False, workers={"nodes": 2}, **spec) == 2


def test_half_a_gang_of_a_recipe_leaves_its_zone() -> None:
    half = an_ended(
        1, Verdict.INFRASTRUCTURE, reason=Reason.GANG_INCOMPLETE, running_time=NOW, zone="a", short_of_room=True
    )
    master = a_replica(name="ragcun-2-master-0", node="n1", zone="b", placed_at=NOW)
    waits = a_replica(ReplicaState.WAITING, name="ragcun-2-worker-0", never_started=True)
    record = a_record(2, running_time=NOW, trained_from=NOW, billed_from=NOW, zone="b")
    observed = an_observed(
        an_attempt(master, waits, number=2), status=a_status(half, record), spec=a_spec(workers={"nodes": 2})
    )
    stopped = decide(observed, now=later(1800)).status
    ended = decide(replace(observed, status=stopped, attempts=()), now=later(1801)).status
    assert ended.attempts[-1].reason is Reason.GANG_INCOMPLETE
    assert zones_to_avoid(ended) == ("a", "b")


def test_an_attempt_that_was_in_flight_when_the_status_was_restored_has_ended_and_costs_no_more() -> None:
    flying = a_record(1, billed_from=NOW, price_per_hour="3600", billed_machines=1)
    status = a_status(flying).model_copy(update={"cost": CostStatus(time=later(5))})
    found = an_attempt(a_replica(name="ragcun-3-master-0"), number=3)
    adopted = decide(an_observed(found, status=status), now=later(1000)).status
    assert [(record.number, record.state) for record in adopted.attempts] == [
        (1, AttemptState.ENDED),
        (3, AttemptState.STARTING),
    ]
    assert adopted.may_hold_unlisted_work
    assert spent(adopted, later(2000)) == 5


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE])
@pytest.mark.parametrize("known", [RunStatus(), a_status(a_record(1, stage=Stage.PREPARE))], ids=["none", "first"])
def test_the_stages_before_that_of_a_job_which_the_status_does_not_know_are_finished(
    stage: Stage, known: RunStatus
) -> None:
    """Else it had not been created. Without that the run succeeded with a stage that had no end, and no result."""
    found = an_attempt(a_replica(name="ragcun-3-master-0"), number=3, stage=stage)
    spec = a_spec(stages={"prepare": {}, "evaluate": {}})
    proof = Complete(attempt=2, step=60, weights_digest="blake3:1")
    adopted = decide(an_observed(found, status=known, spec=spec, complete=proof), now=later(1000)).status
    assert adopted.stage(Stage.PREPARE).end_time == later(1000)
    assert adopted.stage(stage).end_time is None
    assert (adopted.stage(Stage.TRAIN).end_time is not None) == (stage is Stage.EVALUATE)
    assert (adopted.result.step if adopted.result else None) == (60 if stage is Stage.EVALUATE else None)
    assert [each.name for each in adopted.stages] == [
        each for each in ORDER if each in (Stage.PREPARE, Stage.TRAIN, stage)
    ]


@pytest.mark.parametrize(("best", "result"), [(1, Result(best_step=40)), (0, Result(step=40))])
def test_of_a_result_that_was_lost_the_step_stays_that_the_evaluation_was_told(best: int, result: Result) -> None:
    """Without it the next evaluation took another checkpoint, and the run succeeded without a result."""
    seen = an_attempt(a_replica(), number=3, stage=Stage.EVALUATE, evaluated_step=40)
    spec = a_spec(stages={"evaluate": {}}, checkpoint={"volume": {"size": "1Gi"}, "keep": {"best": best}})
    adopted = decide(an_observed(seen, status=a_status(a_record(2)), spec=spec), now=later(1000)).status
    assert adopted.result == result
    vanished = decide(an_observed(status=adopted, spec=spec), now=later(2000)).status
    retried = decide(an_observed(status=vanished, spec=spec), now=later(4000))
    (start,) = (effect for effect in retried.effects if isinstance(effect, StartAttempt))
    assert (start.stage, start.checkpoint_step) == (Stage.EVALUATE, 40)


def test_that_is_so_as_well_while_the_spec_cannot_be_read() -> None:
    found = an_attempt(a_replica(), number=2, stage=Stage.TRAIN)
    adopted = decide(an_observed(found, status=RunStatus(), problems=("spec.x: unknown; remove it",)), now=NOW).status
    assert adopted.stage(Stage.PREPARE).end_time == NOW
    assert adopted.stage(Stage.TRAIN).end_time is None
