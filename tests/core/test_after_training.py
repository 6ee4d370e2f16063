"""The time between the end of a training and the end of its script, as the status tells it and as it ends."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status import AttemptState, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.contract.manifest import Complete
from piton.contract.termination import Outcome, ScriptEnd
from piton.core.decide import decide
from piton.core.effects import Decision, OwnVolume, StartAttempt, StopAttempt
from piton.observed import JobState, ReplicaState, VolumeSeen
from piton.timing import Timing
from support.builders import (
    NOW,
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

DONE = ReplicaState.SUCCEEDED
MANIFEST = Complete(attempt=1, step=40, weights_digest="sha256:abc", best_step=30, best_metric=0.5, reason="all steps")
PROOF = said(Outcome.FINISHED, step=40, weights_digest="sha256:abc", detail="all steps", script=ScriptEnd.ENDED)
LAST = replace(a_progress(40, checkpoint=40), complete=MANIFEST)
PRICE: dict[str, Any] = {"capacity": {"maxPricePerHour": "12"}}
MASTER, WORKER = a_replica(name="master"), a_replica(name="worker")
FLYING = a_status(a_record(formed_time=NOW))
STOPPED = an_attempt(failed(143, termination=replace(PROOF, script=ScriptEnd.RUNNING)), job=None, deleting=True)


def reason(status: RunStatus) -> Reason | None:
    condition = status.condition("Training")
    return None if condition is None else condition.reason


def message(status: RunStatus) -> str:
    condition = status.condition("Training")
    return "" if condition is None else condition.message


def trained(*replicas: Any, at: datetime = NOW, **fields: Any) -> Decision:
    """The pass that hears that the training is finished."""
    seen = an_attempt(*(replicas or (MASTER, WORKER)))
    return decide(an_observed(seen, status=FLYING, progress=LAST, **fields), now=at)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"progress": LAST}, id="by its last report"),
        pytest.param({"complete": MANIFEST}, id="by the volume"),
        pytest.param({"worker": replace(WORKER, state=DONE, exit_code=0, termination=PROOF)}, id="by a worker's words"),
    ],
)
def test_a_finished_training_is_said_and_its_script_is_left_alone(fields: dict[str, Any]) -> None:
    seen = an_attempt(MASTER, fields.pop("worker", WORKER))
    first = decide(an_observed(seen, status=FLYING, **fields), now=NOW)
    second = decide(an_observed(seen, status=first.status, **fields), now=later(600))

    assert (first.effects, second.effects) == ((), ())
    assert (first.status.phase, reason(first.status)) == (Phase.TRAINING, Reason.AFTER_TRAINING)
    assert "finished the training at step 40: all steps. Its script runs on since 12:00:00 UTC" in message(first.status)
    assert [news.reason for news in first.announcements].count(Reason.AFTER_TRAINING) == 1
    assert Reason.AFTER_TRAINING not in [news.reason for news in second.announcements]
    result = second.status.result
    assert result is not None
    assert (result.step, result.weights_digest) == (40, "sha256:abc")


def test_it_is_said_once_also_while_a_zone_is_silent() -> None:
    status, seen = trained().status, an_attempt(replace(MASTER, node="n1", silent="its zone does not answer"), WORKER)
    for second in (1, 2):
        decision = decide(an_observed(seen, status=status), now=later(second))
        assert Reason.AFTER_TRAINING not in [news.reason for news in decision.announcements]
        status = decision.status
    assert reason(status) is Reason.ZONE_SILENT


def test_it_says_what_that_costs_and_how_many_have_ended() -> None:
    machine: dict[str, Any] = {"node": "n1", "placed_at": NOW, "node_price": 12}
    master, worker = a_replica(name="master", **machine), a_replica(DONE, name="worker", exit_code=0, **machine)

    status = trained(master, worker).status

    assert "at $24.00 per hour: the run waits for exit code 0 of 2 replica(s); 1 of them have ended" in message(status)


def test_nothing_is_missed_of_a_trainer_that_has_closed_its_session() -> None:
    status = trained().status
    quiet = decide(an_observed(an_attempt(MASTER, WORKER), status=status, silent_seconds=900.0), now=later(900)).status

    assert quiet.condition("Reporting") == status.condition("Reporting")
    assert reason(quiet) is Reason.AFTER_TRAINING, "also by an operator that has heard no report"


def test_a_last_report_that_comes_after_a_silence_ends_the_silence() -> None:
    """No other report follows that could."""
    seen, progress = an_attempt(MASTER, WORKER), a_progress(39)
    silent = decide(an_observed(seen, status=FLYING, progress=progress, silent_seconds=90.0), now=later(90)).status
    heard = decide(an_observed(seen, status=silent, progress=LAST, silent_seconds=0.0), now=later(91)).status

    assert silent.is_true("Reporting") is False
    assert silent.condition("Reporting") is not None
    assert heard.is_true("Reporting")


def test_a_script_that_trains_on_in_another_session_has_to_prove_its_end_again() -> None:
    seen = an_attempt(MASTER, replace(WORKER, state=DONE, exit_code=0, termination=None))
    status = trained(*seen.replicas).status
    on = decide(an_observed(an_attempt(MASTER, WORKER), status=status, progress=a_progress(41)), now=later(30)).status
    done = an_attempt(a_replica(DONE, exit_code=0))
    unproven = decide(an_observed(done, status=on, progress=a_progress(41)), now=later(60)).status.current
    last = replace(a_progress(80), complete=replace(MANIFEST, step=80))
    proven = decide(an_observed(done, status=on, progress=last), now=later(60)).status

    assert (reason(status), reason(on)) == (Reason.AFTER_TRAINING, Reason.TRAINING)
    assert on.current is not None
    assert (on.current.trained_time, on.current.done) == (None, None)
    assert unproven is not None
    assert unproven.reason is Reason.NO_PROOF
    assert proven.current is not None
    assert proven.current.reason is Reason.FINISHED
    assert proven.result is not None
    assert proven.result.step == 80


def test_an_end_that_nobody_has_seen_between_two_sessions_is_known_by_the_second() -> None:
    status = trained().status
    last = replace(a_progress(80), complete=replace(MANIFEST, step=80))
    again = decide(an_observed(an_attempt(MASTER, WORKER), status=status, progress=last), now=later(30)).status

    assert again.result is not None
    assert again.result.step == 80
    assert "finished the training at step 80" in message(again)


@pytest.mark.parametrize(
    "later_pods",
    [
        pytest.param({"lost": (a_lost("worker", node_gone=True),)}, id="its pod and its machine are gone"),
        pytest.param({"lost": (a_lost("worker"),)}, id="its pod was deleted"),
        pytest.param({"extra": replace(WORKER, state=DONE, exit_code=0, deleting=True)}, id="its pod is being deleted"),
        pytest.param(
            {"extra": a_replica(ReplicaState.WAITING, name="worker", uid="2", waiting="no room")}, id="another waits"
        ),
        pytest.param({"extra": a_replica(name="worker", uid="2", node="n9")}, id="another runs in its place"),
        pytest.param({"extra": failed(1, name="worker", uid="2")}, id="another has failed in its place"),
        pytest.param({"extra": a_replica(name="worker", uid="2", node="n9", node_gone=True)}, id="another was lost"),
    ],
)
def test_a_replica_that_has_ended_is_not_missed_whatever_becomes_of_its_pod(later_pods: dict[str, Any]) -> None:
    """The job's controller makes another pod for one that is gone. Nobody needs it."""
    extra = [later_pods.pop("extra")] if "extra" in later_pods else []
    status = trained(MASTER, replace(WORKER, state=DONE, exit_code=0, termination=PROOF)).status
    runs = an_attempt(MASTER, *extra, **{"expected_replicas": 2, **later_pods})
    ended = replace(runs, replicas=(replace(MASTER, state=DONE, exit_code=0), *extra), job=JobState.SUCCEEDED)

    doubted = decide(an_observed(runs, status=status), now=later(7200))
    goes_on = decide(an_observed(runs, status=doubted.status), now=later(7300))
    over = decide(an_observed(ended, status=goes_on.status), now=later(7330)).status

    assert (doubted.rule, goes_on.rule, goes_on.effects) == ("observe_running", "observe_running", ())
    assert goes_on.status.current is not None
    assert goes_on.status.current.verdict is None
    assert not goes_on.status.is_true("Waiting")
    assert over.current is not None
    assert over.current.verdict is Verdict.FINISHED


@pytest.mark.parametrize("words", [None, said(Outcome.STOPPED)], ids=["no message", "another program's"])
def test_exit_code_0_suffices_where_the_message_cannot_be_read(words: Any) -> None:
    done = an_attempt(a_replica(DONE, exit_code=0, termination=words))
    status = decide(an_observed(done, status=trained(a_replica()).status), now=later(60)).status

    assert status.current is not None
    assert (status.current.verdict, status.current.reason) == (Verdict.FINISHED, Reason.FINISHED)
    assert status.result is not None
    assert (status.result.step, status.result.best_step) == (40, 30)


def test_the_status_survives_a_restart_of_the_operator() -> None:
    status = trained(MASTER, replace(WORKER, state=DONE, exit_code=0, termination=PROOF)).status
    written = RunStatus.read(status.to_wire())

    assert written == status
    assert written.current is not None
    assert written.current.done == ("worker",)
    assert status.with_unknown_of(written) == status


def test_an_attempt_that_trains_again_has_to_prove_its_end_again() -> None:
    """The user has asked for more steps after the first end; its last words are lost."""
    before = an_ended(1, trained_time=NOW, step=40)
    status = trained().status.model_copy(update={"attempts": (before, a_record(2, formed_time=NOW)), "attempt": 2})
    done = an_attempt(a_replica(DONE, exit_code=0), number=2)

    skips = decide(an_observed(done, status=status), now=later(60)).status.current
    trains = decide(an_observed(done, status=status, progress=a_progress(50)), now=later(60)).status.current

    assert skips is not None
    assert trains is not None
    assert (skips.reason, trains.reason) == (Reason.FINISHED, Reason.NO_PROOF)


@pytest.mark.parametrize(
    ("order", "spec", "at"),
    [
        (Reason.SUSPENDED, {"suspend": True}, 60),
        (Reason.DEADLINE_EXCEEDED, {"limits": {"deadline": "1h"}}, 3601),
        (Reason.BUDGET_EXCEEDED, {"limits": {"budget": {"usd": "20", "onExceeded": "Stop"}}, **PRICE}, 3600),
        (Reason.BUDGET_EXCEEDED, {"limits": {"budget": {"usd": "20", "onExceeded": "Pause"}}, **PRICE}, 3600),
    ],
)
def test_the_users_orders_hold_after_the_training(order: Reason, spec: dict[str, Any], at: float) -> None:
    parts, now = a_spec(**spec), later(at)
    machine: dict[str, Any] = {"node": "n1", "placed_at": NOW, "node_price": 12}
    seen = an_attempt(replace(MASTER, **machine), replace(WORKER, **machine))
    status = trained(*seen.replicas).status

    goes_on = decide(an_observed(seen, status=status, spec=parts), now=later(1)).status
    told = decide(an_observed(seen, status=status, spec=parts), now=now).status
    stops = decide(an_observed(seen, status=told, spec=parts), now=now)
    closed = decide(an_observed(STOPPED, status=stops.status, spec=parts), now=now).status
    over = decide(an_observed(status=closed, spec=parts), now=now).status
    freed = a_spec(limits={"budget": {"usd": "100"}}, **PRICE)
    again = decide(an_observed(status=over, spec=freed), now=now)

    assert reason(goes_on) is (Reason.SUSPENDED if order is Reason.SUSPENDED else Reason.AFTER_TRAINING)
    assert [type(effect) for effect in stops.effects] == [StopAttempt]
    assert over.current is not None
    assert (over.current.verdict, over.current.reason) == (Verdict.STOPPED, order)
    assert over.result is not None
    assert over.result.step == 40
    if over.phase is Phase.SUSPENDED:
        assert [effect.number for effect in again.effects if isinstance(effect, StartAttempt)] == [2]
    else:
        failure = over.condition("Failed")
        assert failure is not None
        assert failure.message.startswith("the training finished at step 40: all steps; its script did not come to")


def test_what_follows_may_fail_as_often_as_the_limit_says_and_the_result_stays() -> None:
    status = FLYING
    words = replace(PROOF, script=ScriptEnd.FAILED, script_error="OSError: no space left")
    for number in (1, 2, 3):
        status = status.model_copy(
            update={"attempts": (*status.attempts[: number - 1], a_record(number, formed_time=NOW)), "attempt": number}
        )
        seen = an_attempt(failed(1, termination=words), number=number, job=JobState.FAILED)
        status = decide(an_observed(seen, status=status), now=later(number)).status
    over = decide(an_observed(status=status), now=later(10)).status

    assert (over.phase, over.failures) == (Phase.FAILED, 3)
    failure = over.condition("Failed")
    assert failure is not None
    assert "ended with exit code 1 after its training was finished: OSError: no space left" in failure.message
    assert over.result is not None
    assert over.result.step == 40


def test_a_status_of_an_older_operator_that_has_judged_the_end_already_is_closed_as_it_says() -> None:
    record = a_record(state=AttemptState.STOPPING, verdict=Verdict.FINISHED, reason=Reason.FINISHED, message="done")
    closed = decide(an_observed(STOPPED, status=a_status(record)), now=NOW).status

    assert closed.current is not None
    assert closed.current.verdict is Verdict.FINISHED


def test_an_evaluation_begins_when_the_script_has_ended() -> None:
    parts = a_spec(stages={"evaluate": {}})
    status = trained(a_replica(), spec=parts).status
    assert status.stage(status.attempts[0].stage) == StageStatus.model_validate(status.stages[0])
    done = an_attempt(a_replica(DONE, exit_code=0, termination=PROOF))

    closed = decide(an_observed(done, status=status, spec=parts), now=later(60)).status
    after = decide(an_observed(done, status=closed, spec=parts), now=later(61)).status

    assert [record.stage for record in status.attempts] == ["Train"]
    assert [record.stage for record in after.attempts] == ["Train", "Evaluate"]


def test_on_one_machine_the_time_is_bounded() -> None:
    hour = Timing(after_training_seconds=3600.0)
    seen = an_attempt(a_replica())
    status = trained(a_replica()).status

    waits = decide(an_observed(seen, status=status), now=later(3599), timing=hour)
    told = decide(an_observed(seen, status=status), now=later(3600), timing=hour).status
    rehearsed = decide(an_observed(seen, status=status), now=later(3600), timing=replace(hour, rehearses=True)).status

    assert waits.look_again_seconds is not None
    assert waits.look_again_seconds <= 1
    assert told.current is not None
    assert (told.current.verdict, told.current.reason, told.current.permanent) == (
        Verdict.USER_FAILURE,
        Reason.SCRIPT_TIMEOUT,
        True,
    )
    assert rehearsed.current is not None
    assert rehearsed.current.verdict is Verdict.FINISHED


def test_a_run_that_is_deleted_then_goes_and_what_it_has_trained_stays() -> None:
    seen, run = an_attempt(MASTER, WORKER), meta(deleting=True)
    claim = VolumeSeen(exists=True, made=True, owned=True, name="ragcun-checkpoints")
    stops = decide(an_observed(seen, status=trained().status, run=run), now=later(1))
    goes = decide(an_observed(status=stops.status, run=run, volume=claim), now=later(2))

    assert [type(effect) for effect in stops.effects] == [StopAttempt]
    assert [effect.owned for effect in goes.effects if isinstance(effect, OwnVolume)] == [False]


@pytest.mark.parametrize(
    ("end", "verdict"),
    [
        pytest.param({"node_gone": True, "node": "n1"}, Verdict.PREEMPTED, id="the node is lost"),
        pytest.param(
            {"state": ReplicaState.FAILED, "exit_code": 143, "disruption": "EvictionByEvictionAPI"},
            Verdict.PREEMPTED,
            id="its pod is evicted",
        ),
        pytest.param(
            {"state": DONE, "exit_code": 0, "deleting": True, "termination": replace(PROOF, script=ScriptEnd.RUNNING)},
            Verdict.INFRASTRUCTURE,
            id="its pod is deleted, and the script exits 0 because of it",
        ),
        pytest.param(
            {"state": DONE, "exit_code": 0, "deleting": True}, Verdict.INFRASTRUCTURE, id="so does one without a word"
        ),
        pytest.param(None, Verdict.INFRASTRUCTURE, id="its job is deleted"),
    ],
)
def test_what_follows_is_done_by_the_next_attempt(end: dict[str, Any] | None, verdict: Verdict) -> None:
    status = trained(MASTER).status
    seen = [] if end is None else [an_attempt(replace(MASTER, **end))]
    for _ in range(4):
        if status.current is None or status.current.state is AttemptState.ENDED:
            break
        status = decide(an_observed(*seen, status=status), now=later(100)).status
        leaving = [tuple(replace(replica, deleting=True) for replica in each.replicas) for each in seen]
        seen = [replace(each, replicas=pods, deleting=True) for each, pods in zip(seen, leaving, strict=True)]
    begun = decide(an_observed(status=status), now=later(900)).status
    done = an_attempt(a_replica(DONE, exit_code=0, termination=PROOF), number=2)
    over = decide(an_observed(done, status=begun), now=later(990)).status

    assert [record.verdict for record in over.attempts] == [verdict, Verdict.FINISHED]
    assert over.failures == 0
    assert over.result is not None
    assert over.result.step == 40


def test_machines_that_are_taken_after_the_training_never_hold_the_run() -> None:
    """None of these attempts can leave a newer durable step."""
    status = RunStatus()
    for number in range(1, 13):
        begun = decide(an_observed(status=status), now=later(number)).status
        assert begun.attempt == number, "at once"
        manifest = replace(LAST, complete=replace(MANIFEST, attempt=number))
        known = decide(
            an_observed(an_attempt(MASTER, number=number), status=begun, progress=manifest), now=later(number)
        )
        lost = an_attempt(replace(MASTER, node_gone=True, node="n1"), number=number, job=None)
        status = decide(an_observed(lost, status=known.status), now=later(number)).status

    assert status.preemptions == 12
    assert not status.is_true("Stalled")


def test_a_run_whose_script_is_killed_again_and_again_after_hours_goes_on() -> None:
    """As with a program that never says how far it is: it may have got further each time."""
    status = RunStatus()
    for number in range(1, 9):
        at = number * 10_000
        begun = decide(an_observed(status=status), now=later(at)).status
        runs = replace(MASTER, node="n1", placed_at=later(at))
        manifest = replace(LAST, complete=replace(MANIFEST, attempt=number))
        known = decide(an_observed(an_attempt(runs, number=number), status=begun, progress=manifest), now=later(at))
        killed = an_attempt(failed(137, node="n1", placed_at=later(at)), number=number, job=JobState.FAILED)
        status = decide(an_observed(killed, status=known.status), now=later(at + 5000)).status

    assert (status.infrastructure_failures, status.is_true("Stalled")) == (8, False)
