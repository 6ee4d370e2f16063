"""Tables for the rules, in both directions: what speaks, and what does not."""

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from piton.api.conditions import STALLED
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.api.status_base import ConditionStatus, Phase
from piton.contract.progress import Progress
from piton.contract.termination import Limit, Outcome, PreviousEnd
from piton.core import transitions
from piton.core.decide import decide, refused, still
from piton.core.effects import AddFinalizer, CreateVolume, RemoveFinalizer, RemoveReplica, StartAttempt, StopAttempt
from piton.core.evidence import Judgement
from piton.observed import AttemptSeen, NodePoolSeen, Observed, ReplicaSeen, ReplicaState, VolumeSeen
from piton.timing import Timing, delay_seconds
from support.builders import (
    NOW,
    a_complete,
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
from support.worlds.user_rules import RIDDLES


def kinds(observed: Observed, **when: float) -> list[str]:
    return [type(effect).__name__ for effect in decide(observed, now=later(when.get("after", 0))).effects]


def test_a_new_run_is_held_before_anything_is_started() -> None:
    decision = decide(an_observed(run=meta(held=False)), now=NOW)

    assert [type(e) for e in decision.effects] == [AddFinalizer]


def test_an_attempt_takes_its_number_and_its_job_is_created() -> None:
    first = decide(an_observed(volume=VolumeSeen(exists=False)), now=NOW)
    assert [type(e) for e in first.effects] == [CreateVolume, StartAttempt]
    assert (first.status.attempt, first.status.phase) == (1, Phase.STARTING)


def test_an_attempt_whose_job_is_refused_keeps_its_number() -> None:
    first = decide(an_observed(), now=NOW)
    held = refused(an_observed(), "exceeded quota: a", status=first.status_if_refused, now=NOW).status
    assert [(attempt.number, attempt.state) for attempt in held.attempts] == [(1, AttemptState.PENDING)]
    assert held.phase is Phase.PENDING
    assert held.is_true("Waiting")

    again = decide(an_observed(status=held), now=later(60))
    assert [effect.number for effect in again.effects if isinstance(effect, StartAttempt)] == [1]


def test_a_job_that_an_operator_created_before_it_died_is_its_attempt() -> None:
    """The status that names it was not written."""
    found = decide(an_observed(an_attempt()), now=NOW)
    assert found.effects == ()
    assert [(attempt.number, attempt.state) for attempt in found.status.attempts] == [(1, AttemptState.STARTING)]


def test_a_verdict_is_written_before_the_job_is_deleted() -> None:
    seen = an_attempt(a_replica(disruption="EvictionByEvictionAPI", deleting=True), a_replica(name="b"))
    first = decide(an_observed(seen, status=a_status(a_record())), now=NOW)
    assert first.effects == ()
    assert first.status.current is not None
    assert first.status.current.verdict is Verdict.PREEMPTED

    second = decide(an_observed(seen, status=first.status), now=NOW)
    assert [type(e) for e in second.effects] == [StopAttempt]


def test_the_next_attempt_waits_until_every_replica_of_the_last_has_ended() -> None:
    stopping = a_status(a_record(state=AttemptState.STOPPING, verdict=Verdict.PREEMPTED, reason=Reason.DISRUPTED))
    alive = an_observed(an_attempt(a_replica(deleting=True), deleting=True), status=stopping)
    gone = an_observed(status=stopping)

    assert decide(alive, now=NOW).status.attempt == 1
    still = decide(alive, now=NOW).status.current
    assert still is not None
    assert still.state is AttemptState.STOPPING
    ended = decide(gone, now=NOW).status
    assert ended.preemptions == 1
    assert decide(an_observed(status=ended), now=NOW).status.attempt == 2


def test_replicas_on_a_machine_that_is_gone_are_removed_and_not_waited_for() -> None:
    stopping = a_status(a_record(state=AttemptState.STOPPING, verdict=Verdict.PREEMPTED, reason=Reason.NODE_GONE))
    lost = a_replica(node="n1", node_gone=True)
    alive = a_replica(name="b", deleting=True)

    both = decide(an_observed(an_attempt(lost, alive, deleting=True), status=stopping), now=NOW)
    assert [type(e) for e in both.effects] == [RemoveReplica]
    only_lost = decide(an_observed(an_attempt(lost, deleting=True), status=stopping), now=NOW)
    assert only_lost.status.current is not None
    assert only_lost.status.current.state is AttemptState.ENDED


def test_a_replica_that_never_started_is_given_one_second_and_its_peers_their_grace() -> None:
    stopping = a_status(a_record(state=AttemptState.STOPPING, verdict=Verdict.PREEMPTED, reason=Reason.DISRUPTED))
    waits = a_replica(ReplicaState.WAITING, name="b", never_started=True)
    decision = decide(an_observed(an_attempt(a_replica(), waits), status=stopping), now=NOW)

    assert decision.effects == (
        StopAttempt(number=1, reason=Reason.DISRUPTED),
        RemoveReplica(number=1, name="b", uid="uid-of-b", grace_seconds=1, reason=Reason.NEVER_STARTED),
    )


@pytest.mark.parametrize(("grace_seconds", "effects"), [(100, ["RemoveReplica"]), (1, []), (0, [])])
def test_what_is_on_its_way_out_quickly_enough_is_not_deleted_again(grace_seconds: int, effects: list[str]) -> None:
    stopping = a_status(a_record(state=AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.SUSPENDED))
    leaves = a_replica(ReplicaState.WAITING, never_started=True, deleting=True, grace_seconds=grace_seconds)

    assert kinds(an_observed(an_attempt(leaves, deleting=True), status=stopping)) == effects
    assert kinds(an_observed(an_attempt(leaves, deleting=True), status=stopping, run=meta(deleting=True))) == effects


def test_a_replica_that_never_started_is_left_alone_while_its_attempt_is_wanted() -> None:
    waits = a_replica(ReplicaState.WAITING, never_started=True)

    assert kinds(an_observed(an_attempt(waits), status=a_status(a_record(state=AttemptState.STARTING)))) == []


def test_a_crash_waits_for_word_of_its_peers() -> None:
    """Peers of a dead node fail at once; that the node is dead is known half a minute later."""
    seen = a_failed_attempt(failed(1, name="a"), a_replica(name="b"))
    first = decide(an_observed(seen, status=a_status(a_record())), now=NOW)
    assert first.status.current is not None
    assert first.status.current.verdict is None
    assert first.look_again_seconds == Timing().evidence_seconds

    lost = a_failed_attempt(failed(1, name="a"), a_replica(name="b", node="n1", node_gone=True))
    second = decide(an_observed(lost, status=first.status), now=later(45))
    assert second.status.preemptions == 1
    third = decide(an_observed(seen, status=first.status), now=later(91))
    assert third.status.current is not None
    assert third.status.current.verdict is Verdict.USER_FAILURE


def test_a_pod_that_the_cluster_deletes_waits_for_word_of_its_node() -> None:
    """A dead node's pods are deleted 30 s after it went silent, and the node counts as gone after 35 s."""
    deleted = an_attempt(a_replica(deleting=True, node="n1"))
    first = decide(an_observed(deleted, status=a_status(a_record())), now=NOW)
    assert first.status.current is not None
    assert first.status.current.verdict is None

    gone = an_attempt(a_replica(deleting=True, node="n1", node_gone=True))
    assert decide(an_observed(gone, status=first.status), now=later(10)).status.preemptions == 1
    by_hand = an_attempt(failed(143, deleting=True))
    assert decide(an_observed(by_hand, status=first.status), now=later(10)).status.infrastructure_failures == 1


def test_an_attempt_on_a_machine_that_goes_is_stopped_as_a_whole_with_its_grace() -> None:
    """All replicas get SIGTERM together, because a save takes all of them."""
    seen = an_attempt(a_replica(name="a"), a_replica(name="b", node="n2", leaving="taint karpenter.sh/disrupted"))
    judged = decide(an_observed(seen, status=a_status(a_record())), now=NOW)
    assert (judged.effects, judged.look_again_seconds) == ((), 0), "the verdict first, the deletion at once"
    assert judged.status.current is not None
    assert "taint karpenter.sh/disrupted" in judged.status.current.message

    stopped = decide(an_observed(seen, status=judged.status), now=NOW)
    assert stopped.effects == (StopAttempt(number=1, reason=Reason.NODE_RECLAIMED),)


def _pool(name: str = "train", **fields: Any) -> ReplicaSeen:
    return a_replica(node_pool=NodePoolSeen(name=name, **fields))


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (_pool(), "NodePool train has no terminationGracePeriod"),
        (_pool(drain_seconds=30.0), "NodePool train has a terminationGracePeriod of 30s, and a save may take 100s"),
        (_pool(drain_seconds=3600.0, is_spot=True), "a spot machine goes after 120s"),
    ],
)
def test_a_run_says_which_node_pool_would_not_let_it_save_without_the_operator(pool: ReplicaSeen, words: str) -> None:
    decision = decide(an_observed(an_attempt(pool), status=a_status(a_record())), now=NOW)
    training = decision.status.condition("Training")
    assert training is not None
    assert words in training.message
    assert "set its spec.template.spec.terminationGracePeriod to 110s" in training.message
    assert [news.reason for news in decision.announcements] == [Reason.NODE_POOL_WARNING]

    again = decide(an_observed(an_attempt(pool), status=decision.status), now=later(60))
    assert (again.announcements, again.status) == ((), decision.status), "it is said once"


@pytest.mark.parametrize("pool", [_pool(drain_seconds=110.0, is_spot=True), _pool(drain_seconds=3600.0), a_replica()])
def test_a_node_pool_that_drains_in_time_needs_no_words(pool: ReplicaSeen) -> None:
    decision = decide(an_observed(an_attempt(pool), status=a_status(a_record())), now=NOW)
    training = decision.status.condition("Training")
    assert training is not None
    assert (training.message, decision.announcements) == ("attempt 1 is running", ())


def _on(node: str, name: str = "a", **fields: Any) -> ReplicaSeen:
    return a_replica(**{"name": name, "node": node, "placed_at": NOW, **fields})


def _places(status: RunStatus) -> dict[str, str]:
    assert status.current is not None
    return {placed.name: placed.node for placed in status.current.replicas}


def test_the_status_knows_where_each_replica_of_the_attempt_in_flight_is() -> None:
    seen = an_attempt(_on("n1"), _on("n2", "b"), a_replica(ReplicaState.WAITING, name="c"))
    status = decide(an_observed(seen, status=a_status(a_record())), now=NOW).status
    assert _places(status) == {"a": "n1", "b": "n2"}
    assert decide(an_observed(seen, status=status), now=NOW).status == status, "nothing new is no write"

    lost = an_attempt(_on("n3", uid="a young pod"), _on("n2", "b"), lost=(a_lost("a", node="n1"),))
    waiting = decide(an_observed(lost, status=status), now=NOW).status
    assert _places(waiting) == {"a": "n1", "b": "n2"}, "a successor does not take its place in the books"


def test_where_512_replicas_are_is_less_than_a_tenth_of_what_an_object_may_weigh() -> None:
    node, uid = f"ip-10-0-0-{1:0>3}.us-east-1.compute.internal", "0b1b2a3c-1111-2222-3333-444455556666"
    replicas = [_on(node, f"{'r' * 46}-1-worker-{n}", uid=f"{uid}-{n}") for n in range(512)]
    status = decide(an_observed(an_attempt(*replicas), status=a_status(a_record())), now=NOW).status

    assert len(_places(status)) == 512
    assert len(json.dumps(status.to_wire())) < 150_000


def test_a_pod_that_is_gone_with_its_node_was_preempted_also_for_an_operator_that_was_away() -> None:
    seen = an_attempt(_on("n1"))
    status = decide(an_observed(seen, status=a_status(a_record())), now=NOW).status
    gone = a_failed_attempt(lost=(a_lost("a", node="n1", node_gone=True),))

    decision = decide(an_observed(gone, status=status), now=later(7200))

    assert (decision.status.preemptions, decision.status.infrastructure_failures) == (1, 0)
    assert decision.status.current is not None
    assert decision.status.current.message == "a on n1: the pod and the machine are gone"
    assert decision.status.current.replicas == (), "an attempt that has ended is nowhere"


def test_since_when_a_replica_runs_is_in_the_status_and_in_what_is_said_of_its_loss() -> None:
    waits = an_attempt(_on("n1", state=ReplicaState.WAITING))
    status = decide(an_observed(waits, status=a_status(a_record())), now=NOW).status
    runs = decide(an_observed(an_attempt(_on("n1")), status=status), now=later(60)).status
    assert runs.current is not None
    assert [replica.running_time for replica in runs.current.replicas] == [later(60)]
    assert decide(an_observed(an_attempt(_on("n1")), status=runs), now=later(90)).status == runs, "no heartbeat"

    gone = a_failed_attempt(lost=(a_lost("a", node="n1", node_gone=True, running_since=later(60)),))
    ended = decide(an_observed(gone, status=runs), now=later(7200)).status.current
    assert ended is not None
    assert ended.message == f"a on n1 (running since {later(60):%H:%M:%S} UTC): the pod and the machine are gone"


@pytest.mark.parametrize(
    ("outcome", "attempt", "preempted"),
    [(Outcome.STOPPED, 1, True), (Outcome.FAILED, 1, False), (Outcome.STOPPED, 7, False)],
)
def test_what_the_volume_remembers_of_an_end_without_evidence_makes_it_a_preemption(
    outcome: Outcome, attempt: int, preempted: bool
) -> None:
    """A drain took the pod and the operator together, and the job has failed by the time that one is back."""
    gone = a_failed_attempt(message="backoff limit")
    status = decide(an_observed(gone, status=a_status(a_record())), now=NOW).status
    status = decide(an_observed(gone, status=status), now=later(60)).status
    assert (status.attempts[0].reason, status.infrastructure_failures) == (Reason.NO_EVIDENCE, 1)
    assert status.attempt == 2
    report = replace(a_progress(11, resumed=10), previous=PreviousEnd(attempt=attempt, outcome=outcome))

    for _ in range(2):
        seen = an_attempt(a_replica(), number=2)
        status = decide(an_observed(seen, status=status, progress=report), now=later(90)).status

    first, train = status.attempts[0], status.stage(Stage.TRAIN)
    expected = (Verdict.PREEMPTED, Reason.DISRUPTED) if preempted else (Verdict.INFRASTRUCTURE, Reason.NO_EVIDENCE)
    assert (first.verdict, first.reason) == expected
    for counted in (status, train):
        assert (counted.preemptions, counted.infrastructure_failures) == ((1, 0) if preempted else (0, 1))


def test_a_peer_that_was_cleaned_away_after_a_crash_is_not_missed_when_its_empty_node_goes() -> None:
    """Karpenter takes an empty node away within seconds, while a crash still waits for word of the peers."""
    status = decide(an_observed(an_attempt(_on("n1"), _on("n2", "b")), status=a_status(a_record())), now=NOW).status
    crash = failed(1, name="a", uid="uid-of-a", node="n1", ended_at=later(1))
    cleaned = a_failed_attempt(crash, _on("n2", "b", deleting=True))
    status = decide(an_observed(cleaned, status=status), now=later(2)).status

    assert _places(status) == {}


def test_a_pod_that_is_being_deleted_for_no_known_reason_is_missed_when_its_node_goes_with_it() -> None:
    """Its deletion has failed the job; no peer has failed before it."""
    status = decide(an_observed(an_attempt(_on("n1")), status=a_status(a_record())), now=NOW).status
    status = decide(an_observed(a_failed_attempt(_on("n1", deleting=True)), status=status), now=later(2)).status
    assert _places(status) == {"a": "n1"}


def test_preemption_does_not_spend_the_failure_budget() -> None:
    attempts = tuple(an_ended(n) for n in range(1, 20))
    status = a_status(*attempts, preemptions=19, failures=2)

    decision = decide(an_observed(status=status), now=later(3600))

    assert decision.status.attempt == 20
    assert decision.status.failures == 2


@pytest.mark.parametrize(("failures", "phase"), [(2, Phase.RECOVERING), (3, Phase.FAILED)])
def test_the_failure_limit_ends_the_run(failures: int, phase: Phase) -> None:
    status = a_status(an_ended(3, Verdict.USER_FAILURE, reason=Reason.CRASHED), failures=failures)

    decision = decide(an_observed(status=status, spec=a_spec(limits={"failures": 3})), now=NOW)

    assert decision.status.phase is phase


def _crashing(spec: Spec, *steps: int) -> RunStatus:
    """The status after as many attempts that crashed, when each had that durable step."""
    status = RunStatus()
    for step in steps:
        begun = transitions.begin(status, (), Stage.TRAIN, now=NOW, timing=Timing())
        heard = a_progress(step + 5, checkpoint=step)
        crash = Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.CRASHED, message="exit code 1")
        status = transitions.end(transitions.report(begun, heard, None, now=NOW), crash, now=NOW, timing=Timing())
    return decide(an_observed(status=status, spec=spec), now=NOW).status


@pytest.mark.parametrize(
    ("steps", "limits", "message"),
    [
        ((10, 20, 30, 40, 50), {"failures": 3}, None),
        ((10, 10), {"failures": 3}, None),
        ((10, 10, 10), {"failures": 3}, "3 failures of the program without a newer checkpoint, limits.failures is 3"),
        ((10, 10, 20, 20), {"failures": 3}, None),
        ((10, 10, 20, 20, 20), {"failures": 3}, "3 failures of the program without a newer checkpoint"),
        ((10,), {"failures": 1}, "limits.failures is 1"),
        ((10, 20, 30), {"failures": 3, "totalFailures": 4}, None),
        (
            (10, 20, 30),
            {"failures": 3, "totalFailures": 3},
            "3 failures of the program in all, limits.totalFailures",
        ),
    ],
)
def test_failures_count_from_the_newest_durable_step(
    steps: tuple[int, ...], limits: dict[str, int], message: str | None
) -> None:
    status = _crashing(a_spec(limits=limits), *steps)

    failed = status.condition("Failed")
    assert status.failures == len(steps)
    assert (status.phase is Phase.FAILED) == (message is not None)
    assert message is None or (failed is not None and message in failed.message)


def test_a_permanent_failure_ends_the_run_at_once() -> None:
    seen = a_failed_attempt(failed(78, termination=said(Outcome.BAD_CONFIG, detail="trainer.config.deph: unknown")))
    closed = decide(an_observed(seen, status=a_status(a_record())), now=NOW).status

    decision = decide(an_observed(seen, status=closed), now=NOW)

    assert decision.status.phase is Phase.FAILED
    failure = decision.status.condition("Failed")
    assert failure is not None
    assert "deph" in failure.message


@pytest.mark.parametrize(
    ("ends", "seconds"),
    [
        pytest.param([(Verdict.PREEMPTED, None)], 0, id="one preemption is followed at once"),
        pytest.param([(Verdict.PREEMPTED, None)] * 2, 10, id="a second one without a checkpoint waits"),
        pytest.param([(Verdict.PREEMPTED, None)] * 4, 40, id="and longer each time"),
        pytest.param([(Verdict.PREEMPTED, 10), (Verdict.PREEMPTED, 20)], 0, id="progress is followed at once"),
        pytest.param([(Verdict.USER_FAILURE, 10)], 10, id="a failure always waits"),
        pytest.param([(Verdict.INFRASTRUCTURE, None)] * 3, 40, id="so does a failure of the cluster"),
        pytest.param([(Verdict.INFRASTRUCTURE, None)] * 30, 3600, id="but never longer than an hour"),
        pytest.param([(Verdict.STOPPED, None)], 0, id="a stop on order is followed at once"),
    ],
)
def test_the_back_off_grows_with_what_gets_nowhere(ends: list[tuple[Verdict, int | None]], seconds: float) -> None:
    attempts = [an_ended(n, verdict, checkpoint_step=step) for n, (verdict, step) in enumerate(ends, start=1)]
    fruitless = a_status(*attempts).stage(Stage.TRAIN).fruitless_attempts

    assert delay_seconds(attempts[-1], fruitless, Timing()) == seconds


_KEPT = failed(143, node="n1", termination=said(Outcome.STOPPED, limit=Limit.DEADLINE, detail="its deadline"))
_SUSPENDED = an_attempt(a_replica(ReplicaState.FAILED, exit_code=143, node="n1", deleting=True))


@pytest.mark.parametrize("seconds", [3, 61, 600])
@pytest.mark.parametrize(
    ("seen", "limits", "reason", "words"),
    [
        (a_failed_attempt(_KEPT), {"deadline": "48h"}, Reason.STOPPED_EARLY, "the clock of n1 is wrong"),
        (a_failed_attempt(_KEPT), {}, Reason.STOPPED_EARLY, "a webhook may have set it"),
        (a_failed_attempt(failed(137, over_time=True)), {}, Reason.STOPPED_EARLY, "a policy"),
        (a_failed_attempt(failed(137, over_time=True)), {"deadline": "48h"}, Reason.STOPPED_EARLY, "was raised since"),
        (replace(_SUSPENDED, suspended=True), {}, Reason.JOB_SUSPENDED, "another client suspended the job"),
    ],
    ids=["a clock that is ahead", "a limit that the run has not", "somebody's deadline", "early", "another client"],
)
def test_ends_that_piton_has_not_ordered_wait_longer_each_time(
    seen: AttemptSeen, limits: dict[str, Any], reason: Reason, words: str, seconds: float
) -> None:
    status, waits, announced = a_status(), [], []
    for number in range(1, 6):
        record = a_record(number, running_time=NOW, formed_time=NOW, billed_from=NOW)
        status = transitions.enter(status, record, Timing())
        observed = an_observed(replace(seen, number=number), status=status, spec=a_spec(limits=limits))
        closed = decide(observed, now=later(seconds))
        status = closed.status
        assert status.current is not None
        assert (status.current.state, status.current.reason) == (AttemptState.ENDED, reason)
        assert words in status.current.message
        waits.append(delay_seconds(status.current, status.stage(Stage.TRAIN).fruitless_attempts, Timing()))
        announced.append(closed.announcements[0].severity)

    assert waits == [10, 20, 40, 80, 160]
    assert set(announced) == {"Warning"}
    assert status.failures == 0
    assert decide(an_observed(status=status), now=later(seconds)).status.is_true(STALLED)


_GONE = an_attempt(a_replica(node="n1", node_gone=True, name="ragcun-1-master-0"))


@pytest.mark.parametrize(
    ("seen", "spec"),
    [(_GONE, {}), (replace(_SUSPENDED, suspended=True), {"trainer": {"image": "i", "command": ["t"]}})],
    ids=["a recipe whose reports are blocked", "a program that another client suspends"],
)
def test_what_may_have_saved_for_ten_minutes_is_followed_at_once_and_never_stalled(
    seen: AttemptSeen, spec: dict[str, Any]
) -> None:
    status, begins = a_status(), NOW
    for number in range(1, 10):
        record = a_record(number, running_time=begins, formed_time=begins, billed_from=begins)
        status = transitions.enter(status, record, Timing())
        begins += later(3000) - NOW
        gone = replace(seen, number=number, replicas=tuple(replace(r, name=f"ragcun-{number}") for r in seen.replicas))
        while status.attempts[-1].state is not AttemptState.ENDED:
            status = decide(an_observed(gone, status=status, spec=a_spec(**spec)), now=begins).status
        after = decide(an_observed(status=status, spec=a_spec(**spec)), now=begins)
        assert after.status.attempt == number + 1
        assert not after.status.is_true(STALLED)


def test_a_limit_that_is_reached_counts_nothing() -> None:
    """The trainer may have counted some seconds less than the operator."""
    for seconds in (3560, 3601, 9000):
        status = a_status(a_record(running_time=NOW, formed_time=NOW))
        observed = an_observed(a_failed_attempt(_KEPT), status=status, spec=a_spec(limits={"deadline": "1h"}))
        ended = decide(observed, now=later(seconds)).status
        assert ended.current is not None
        assert (ended.current.verdict, ended.current.reason) == (Verdict.STOPPED, Reason.DEADLINE_EXCEEDED)
        assert ended.stage(Stage.TRAIN).fruitless_attempts == 0


@pytest.mark.parametrize(
    ("end", "limits", "reason"),
    [
        (_KEPT, {"deadline": "48h"}, Reason.DEADLINE_EXCEEDED),
        (failed(137, over_time=True), {"deadline": "48h"}, Reason.DEADLINE_EXCEEDED),
        (failed(137, over_time=True), {"budget": {"usd": "90"}}, Reason.BUDGET_EXCEEDED),
        (failed(137, over_time=True), {"budget": {"usd": "0.01"}, "deadline": "48h"}, Reason.BUDGET_EXCEEDED),
    ],
)
def test_a_limit_that_piton_set_by_a_higher_price_or_before_it_was_raised_counts_nothing(
    end: ReplicaSeen, limits: dict[str, Any], reason: Reason
) -> None:
    record = a_record(running_time=NOW, formed_time=NOW, billed_from=NOW, price_per_hour="4", billed_machines=1)
    spec = a_spec(capacity={"maxPricePerHour": "10"}, limits=limits)
    observed = an_observed(a_failed_attempt(replace(end, node_price=Fraction(4))), status=a_status(record), spec=spec)
    ended = decide(observed, now=later(601)).status
    assert ended.current is not None
    assert (ended.current.verdict, ended.current.reason) == (Verdict.STOPPED, reason)
    assert ended.stage(Stage.TRAIN).fruitless_attempts == 0
    assert delay_seconds(ended.current, 0, Timing()) == 0


def test_suspending_stops_the_attempt_and_counts_nothing() -> None:
    spec = a_spec(suspend=True)
    running = an_observed(an_attempt(a_replica()), status=a_status(a_record()), spec=spec)
    first = decide(running, now=NOW)
    assert first.status.phase is Phase.STOPPING
    second = decide(an_observed(an_attempt(a_replica()), status=first.status, spec=spec), now=NOW)
    assert [type(e) for e in second.effects] == [StopAttempt]
    third = decide(an_observed(status=second.status, spec=spec), now=NOW)
    fourth = decide(an_observed(status=third.status, spec=spec), now=NOW)

    assert fourth.status.phase is Phase.SUSPENDED
    assert fourth.status.is_true("Suspended")
    assert (fourth.status.preemptions, fourth.status.failures, fourth.status.infrastructure_failures) == (0, 0, 0)
    resumed = decide(an_observed(status=fourth.status), now=NOW)
    assert resumed.status.attempt == 2


def test_a_number_whose_job_was_never_created_is_closed_when_no_attempt_is_wanted() -> None:
    pending = a_status(a_record(state=AttemptState.PENDING), phase=Phase.PENDING)

    closed = decide(an_observed(status=pending, spec=a_spec(suspend=True)), now=NOW)
    assert closed.effects == ()
    assert closed.status.current is not None
    assert (closed.status.current.state, closed.status.current.verdict) == (AttemptState.ENDED, Verdict.STOPPED)

    wanted = decide(an_observed(status=pending), now=NOW)
    assert [type(e) for e in wanted.effects] == [StartAttempt]


def test_an_attempt_that_finished_while_it_was_told_to_stop_has_finished() -> None:
    stopping = a_status(a_record(state=AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.SUSPENDED))

    done = an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0), job=None, deleting=True)
    suspended = a_spec(suspend=True)
    ended = decide(an_observed(done, status=stopping, complete=a_complete(), spec=suspended), now=NOW).status
    cut = decide(an_observed(status=stopping, complete=a_complete(), spec=suspended), now=NOW).status

    assert ended.current is not None
    assert cut.current is not None
    assert (ended.current.verdict, cut.current.verdict) == (Verdict.FINISHED, Verdict.STOPPED)
    for status in (ended, cut):
        assert status.result is not None
        assert status.result.weights_digest == "sha256:abc"


def test_the_deadline_stops_the_attempt_and_fails_the_run() -> None:
    spec = a_spec(limits={"deadline": "1h"})
    running = an_observed(an_attempt(a_replica()), status=a_status(a_record()), spec=spec)

    assert decide(running, now=later(3599)).status.phase is Phase.TRAINING
    assert decide(running, now=later(3600)).status.phase is Phase.STOPPING
    over = decide(an_observed(status=a_status(an_ended()), spec=spec), now=later(3600))
    assert over.status.phase is Phase.FAILED
    assert over.announcements[0].reason is Reason.DEADLINE_EXCEEDED


def test_deleting_stops_everything_and_then_lets_go() -> None:
    run = meta(deleting=True)
    running = an_observed(an_attempt(a_replica()), status=a_status(a_record()), run=run)

    assert kinds(running) == ["StopAttempt"]
    leaving = an_attempt(a_replica(deleting=True), deleting=True)
    assert kinds(an_observed(leaving, status=a_status(a_record()), run=run)) == []
    stranded = an_attempt(a_replica(deleting=True, node_gone=True), deleting=True)
    assert kinds(an_observed(stranded, status=a_status(a_record()), run=run)) == ["RemoveReplica"]
    assert kinds(an_observed(run=run)) == ["RemoveFinalizer"]
    assert kinds(an_observed(run=meta(deleting=True, held=False))) == []


@pytest.mark.parametrize("known", [(), (an_ended(1, reason=Reason.CANNOT_START),)], ids=["nothing", "an older one"])
def test_a_deletion_writes_a_job_down_that_the_status_does_not_know_before_it_stops_it(
    known: tuple[AttemptStatus, ...],
) -> None:
    seen = an_attempt(a_replica(), number=2)
    first = decide(an_observed(seen, status=a_status(*known), run=meta(deleting=True)), now=NOW)

    assert first.effects == ()
    assert first.status.attempts[-1].number == 2
    after = decide(an_observed(seen, status=first.status, run=meta(deleting=True)), now=later(1))
    assert [type(effect).__name__ for effect in after.effects] == ["StopAttempt"]
    assert after.status.attempts[-1].running_time == later(1)


def test_a_run_whose_spec_cannot_be_read_can_be_deleted() -> None:
    assert kinds(an_observed(run=meta(deleting=True), problems=("spec.x: unknown",))) == ["RemoveFinalizer"]


def test_an_invalid_spec_starts_nothing_and_says_why() -> None:
    decision = decide(an_observed(problems=("spec.x: unknown field",), run=meta(held=False)), now=NOW)

    assert decision.effects == ()
    accepted = decision.status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.message) == (ConditionStatus.FALSE, "spec.x: unknown field")
    again = decide(
        an_observed(problems=("spec.x: unknown field",), run=meta(held=False), status=decision.status), now=later(9)
    )
    assert still(again, decision.status)
    assert again.announcements == ()


@pytest.mark.parametrize(
    "problems", [tuple(f"spec.field{number}: unknown field" for number in range(9000)), ("x" * 300_000,)]
)
@pytest.mark.parametrize("attempts", [(), (a_record(),)])
def test_problems_of_any_number_and_length_fit_into_a_condition(
    problems: tuple[str, ...], attempts: tuple[AttemptStatus, ...]
) -> None:
    decision = decide(an_observed(problems=problems, status=a_status(*attempts)), now=NOW)

    accepted = decision.status.condition("Accepted")
    assert accepted is not None
    assert accepted.message.startswith(problems[0][:20])
    assert len(accepted.message) < 32_768


def test_an_invalid_edit_does_not_stop_an_attempt_that_runs() -> None:
    running = an_observed(an_attempt(a_replica()), status=a_status(a_record()), problems=("spec.x: unknown",))

    assert kinds(running) == []


def test_a_job_that_disappeared_is_the_clusters_failure() -> None:
    decision = decide(an_observed(status=a_status(a_record())), now=NOW)

    assert decision.status.infrastructure_failures == 1
    assert decision.status.current is not None
    assert decision.status.current.reason is Reason.JOB_VANISHED


def test_a_foreign_job_of_our_name_is_left_alone_and_its_number_skipped() -> None:
    status = a_status(a_record(state=AttemptState.PENDING))
    decision = decide(an_observed(an_attempt(a_replica(), ours=False), status=status), now=NOW)

    assert decision.effects == ()
    assert decision.status.current is not None
    assert decision.status.current.reason is Reason.NAME_TAKEN


def test_a_foreign_claim_of_our_name_is_not_used() -> None:
    status = a_status(a_record(state=AttemptState.PENDING))
    decision = decide(an_observed(status=status, volume=VolumeSeen(exists=True, ours=False)), now=NOW)

    assert decision.effects == ()
    training = decision.status.condition("Training")
    assert training is not None
    assert training.reason is Reason.NAME_TAKEN


def test_a_lost_status_is_rebuilt_from_the_jobs() -> None:
    decision = decide(an_observed(an_attempt(a_replica(), number=4)), now=NOW)

    assert decision.status.attempt == 4
    assert (
        decide(an_observed(an_attempt(a_replica(), number=4), status=decision.status), now=NOW).rule
        == "observe_running"
    )


def test_an_older_attempt_that_still_lives_is_stopped() -> None:
    old, new = an_attempt(a_replica(), number=1), an_attempt(a_replica(), number=2)
    decision = decide(an_observed(old, new, status=a_status(an_ended(1), a_record(2))), now=NOW)

    assert [(type(e), getattr(e, "number", None)) for e in decision.effects] == [(StopAttempt, 1)]


def test_an_attempt_is_told_the_newest_step_that_was_reported_as_durable() -> None:
    report = a_progress(120, checkpoint=100)
    seen = an_observed(an_attempt(a_replica(), number=1), status=a_status(a_record(1)), progress=report)
    checkpoint = decide(seen, now=NOW).status.checkpoint
    assert checkpoint is not None
    for saved, told in ((None, None), (checkpoint, 100)):
        pending = a_record(2, state=AttemptState.PENDING)
        status = a_status(an_ended(1), pending).model_copy(update={"checkpoint": saved})
        decision = decide(an_observed(status=status, volume=VolumeSeen(exists=True, ours=True)), now=NOW)
        assert [e.checkpoint_step for e in decision.effects if isinstance(e, StartAttempt)] == [told]


def test_steps_trained_again_are_counted_once() -> None:
    status = a_status(an_ended(1, step=150, checkpoint_step=100), a_record(2))
    report = a_progress(101, checkpoint=100, resumed=100)
    first = decide(an_observed(an_attempt(a_replica(), number=2), status=status, progress=report), now=NOW).status
    second = decide(
        an_observed(
            an_attempt(a_replica(), number=2), status=first, progress=a_progress(120, checkpoint=100, resumed=100)
        ),
        now=later(60),
    ).status

    assert first.lost.steps == 50
    assert second.lost.steps == 50
    assert second.checkpoint is not None
    assert second.checkpoint.step == 100


def test_a_noticed_preemption_that_saved_loses_nothing() -> None:
    words = said(Outcome.STOPPED, step=150, checkpoint_step=150)
    seen = a_failed_attempt(failed(143, disruption="EvictionByEvictionAPI", termination=words))
    status = decide(an_observed(seen, status=a_status(a_record(step=149))), now=NOW).status
    status = decide(an_observed(seen, status=status), now=NOW).status
    report = a_progress(151, resumed=150)
    status = decide(an_observed(an_attempt(number=2), status=status), now=NOW).status
    status = decide(an_observed(an_attempt(a_replica(), number=2), status=status, progress=report), now=NOW).status

    assert status.lost.steps == 0
    assert status.preemptions == 1


def test_a_fenced_attempt_is_followed_by_a_higher_number_than_the_fence() -> None:
    seen = a_failed_attempt(failed(81, termination=said(Outcome.FENCED, fence=7)))
    status = decide(an_observed(seen, status=a_status(a_record())), now=NOW).status
    status = decide(an_observed(seen, status=status), now=later(60)).status

    assert status.attempt == 8


@pytest.mark.parametrize(
    ("ends", "blocking"),
    [
        pytest.param([(Stage.TRAIN, Reason.OUT_OF_MEMORY)], True, id="after an attempt that ran out of memory"),
        pytest.param(
            [(Stage.TRAIN, Reason.OUT_OF_MEMORY), (Stage.TRAIN, Reason.DISRUPTED)],
            True,
            id="also when the one after it was preempted",
        ),
        pytest.param([(Stage.TRAIN, Reason.CRASHED)], False, id="not after any other failure"),
        pytest.param([(Stage.PREPARE, Reason.OUT_OF_MEMORY)], False, id="not for what another stage needs"),
    ],
)
def test_saves_take_no_second_copy_of_the_state_once_memory_was_short(
    ends: list[tuple[Stage, Reason]], blocking: bool
) -> None:
    attempts = [
        an_ended(number, Verdict.USER_FAILURE, stage=stage, reason=reason)
        for number, (stage, reason) in enumerate(ends, start=1)
    ]
    pending = a_record(len(attempts) + 1, AttemptState.PENDING)
    decision = decide(an_observed(status=a_status(*attempts, pending)), now=NOW)

    (effect,) = [effect for effect in decision.effects if isinstance(effect, StartAttempt)]
    assert effect.blocking_saves is blocking
    assert ("ran out of memory" in decision.announcements[0].message) is blocking


def test_preparing_saves_nothing_whatever_ran_out_of_memory() -> None:
    attempts = (
        an_ended(1, Verdict.USER_FAILURE, reason=Reason.OUT_OF_MEMORY),
        a_record(2, AttemptState.PENDING, stage=Stage.EVALUATE),
    )
    run = a_spec(stages={"evaluate": {}})
    decision = decide(an_observed(status=a_status(*attempts), spec=run), now=NOW)

    (effect,) = [effect for effect in decision.effects if isinstance(effect, StartAttempt)]
    assert not effect.blocking_saves


def test_progress_alone_is_written_only_now_and_then() -> None:
    seen = an_attempt(a_replica())
    first = decide(an_observed(seen, status=a_status(a_record()), progress=a_progress(5)), now=NOW).status
    soon = decide(an_observed(seen, status=first, progress=a_progress(6)), now=later(1))
    at_last = decide(an_observed(seen, status=first, progress=a_progress(7)), now=later(11))

    assert still(soon, first)
    assert soon.look_again_seconds == pytest.approx(9)
    assert at_last.status.progress is not None
    assert at_last.status.progress.step == 7


def test_a_last_report_without_steps_hides_none() -> None:
    """transformers says 100 % in the end, and no step."""
    seen = an_attempt(a_replica())
    status = decide(an_observed(seen, status=a_status(a_record()), progress=a_progress(970)), now=NOW).status
    last = Progress(updated="", percentage=100, metrics={"train_loss": 0.5})
    status = decide(an_observed(seen, status=status, progress=last), now=later(60)).status

    assert status.progress is not None
    assert (status.progress.progress_percentage, status.progress.step, status.progress.total_steps) == (100, 970, 1000)


def test_one_of_several_trainings_of_a_script_is_shown_and_is_no_step_of_the_run() -> None:
    seen = an_attempt(a_replica())
    fold = Progress(updated="", session="fold-1 step 30/100", metrics={"loss": 0.5})
    status = decide(an_observed(seen, status=a_status(a_record()), progress=fold), now=NOW).status

    assert status.progress is not None
    assert (status.progress.session, status.progress.step) == ("fold-1 step 30/100", None)
    assert status.checkpoint is None


def test_what_was_shown_stays_until_the_next_attempt_speaks_but_for_the_time_left() -> None:
    known = replace(a_progress(70, loss=0.25), remaining_seconds=600)
    crashed = an_observed(a_failed_attempt(failed(1)), status=a_status(a_record()), progress=known)
    status = decide(crashed, now=NOW).status
    for later_on in (later(100), later(1000)):
        status = decide(an_observed(a_failed_attempt(failed(1)), status=status), now=later_on).status

    assert status.attempt == 2
    assert status.progress is not None
    assert (status.progress.step, status.progress.progress_percentage, status.progress.eta) == (70, 7, None)
    assert status.current is not None
    assert status.current.step is None


def test_what_a_vanished_attempt_had_reported_is_written_down() -> None:
    status = a_status(a_record())
    status = decide(an_observed(status=status, progress=a_progress(70, checkpoint=50)), now=NOW).status

    assert [(r.state, r.step, r.checkpoint_step) for r in status.attempts] == [(AttemptState.ENDED, 70, 50)]


def test_a_refusal_is_told_and_tried_again() -> None:
    observed = an_observed(status=a_status(a_record(state=AttemptState.PENDING), phase=Phase.PENDING))
    decision = refused(observed, "no reason that is known", now=NOW)

    training = decision.status.condition("Training")
    assert training is not None
    assert (training.reason, training.message) == (Reason.REFUSED, "no reason that is known")
    assert decision.look_again_seconds is not None
    assert decide(an_observed(status=decision.status), now=NOW).effects != ()


@pytest.mark.parametrize("how", sorted(RIDDLES))
def test_a_refusal_is_told_where_another_version_has_written_the_status(how: str) -> None:
    """As that of a deletion: the run has stages, phases or verdicts that this version does not know."""
    known = a_status(an_ended(1, Verdict.PREEMPTED, reason=Reason.NODE_GONE), phase=Phase.PENDING)
    written = RIDDLES[how]({"stages": [], **known.to_wire()})
    observed = an_observed(status=RunStatus.read(written))
    assert observed.status.unreadable
    decision = refused(observed, "no reason that is known", now=NOW)
    waiting = decision.status.condition("Waiting")
    assert waiting is not None
    assert waiting.message == "no reason that is known"


SUCCEEDED = a_status(an_ended(1, Verdict.FINISHED, reason=Reason.FINISHED), phase=Phase.SUCCEEDED)
FAILED = a_status(an_ended(1, Verdict.USER_FAILURE, reason=Reason.CRASHED), phase=Phase.FAILED)


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED], ids=["Succeeded", "Failed"])
@pytest.mark.parametrize("after", [0, 10_000_000])
def test_a_settled_run_yields_no_effects(status: RunStatus, after: float) -> None:
    finished = an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0))
    released = an_observed(finished, status=status, run=meta(held=False), spec=a_spec(limits={"deadline": "1h"}))
    held = an_observed(finished, status=status)

    assert still(decide(released, now=later(after)), status)
    assert [type(e) for e in decide(held, now=later(after)).effects] == [RemoveFinalizer]


def test_a_suspended_run_yields_no_effects() -> None:
    spec = a_spec(suspend=True)
    status = decide(an_observed(spec=spec), now=NOW).status

    assert status.phase is Phase.SUSPENDED
    assert still(decide(an_observed(spec=spec, status=status), now=later(10_000_000)), status)


def test_a_settled_run_keeps_as_many_jobs_as_a_running_one() -> None:
    done = [an_ended(number, Verdict.FINISHED if number == 6 else Verdict.PREEMPTED) for number in range(1, 7)]
    status = a_status(*done, phase=Phase.SUCCEEDED)
    jobs = [a_failed_attempt(failed(143, name=f"pod-{n}"), number=n) for n in range(1, 7)]

    decision = decide(an_observed(*jobs, status=status), now=later(60))

    assert [effect.number for effect in decision.effects if isinstance(effect, StopAttempt)] == [1, 2, 3]
    left = decide(an_observed(*jobs[3:], status=status), now=later(90))
    assert kinds_of(left.effects) == ["RemoveFinalizer"]


def kinds_of(effects: tuple[object, ...]) -> list[str]:
    return [type(effect).__name__ for effect in effects]
