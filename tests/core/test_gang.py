"""A gang is formed or it is not: until all replicas have run, no exit code is the program's failure."""

from dataclasses import replace
from datetime import timedelta

import pytest

from piton.api.reasons import Reason
from piton.api.status import AttemptState, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide
from piton.core.effects import Decision, RemoveReplica, StopAttempt
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState
from support.builders import NOW, a_record, a_replica, a_spec, a_status, an_attempt, an_observed, later

SPEC = a_spec(workers={"nodes": 2})
MASTER, WORKER = "run-1-master-0", "run-1-worker-0"


def waits(name: str = WORKER) -> ReplicaSeen:
    return a_replica(name=name, state=ReplicaState.WAITING, waiting="Unschedulable: no node", never_started=True)


def runs(name: str = MASTER) -> ReplicaSeen:
    return a_replica(name=name)


def crashed(name: str = MASTER) -> ReplicaSeen:
    return a_replica(name=name, state=ReplicaState.FAILED, exit_code=1, ended_at=NOW)


def gang(*replicas: ReplicaSeen) -> AttemptSeen:
    return replace(an_attempt(*replicas), expected_replicas=2)


def look(status: RunStatus, seen: AttemptSeen, seconds: float = 0) -> Decision:
    return decide(an_observed(seen, status=status, spec=SPEC), now=later(seconds))


def test_it_is_written_down_when_the_first_and_when_all_have_run() -> None:
    first = look(a_status(a_record()), gang(runs(), waits())).status
    assert first.current is not None
    assert (first.current.running_time, first.current.formed_time) == (NOW, None)

    second = look(first, gang(runs(), runs(WORKER)), 60).status
    assert second.current is not None
    assert (second.current.running_time, second.current.formed_time) == (NOW, later(60))


def test_replicas_need_not_run_at_the_same_time() -> None:
    """A program that fails at once fails on each node, wherever it comes first."""
    seen = look(a_status(a_record()), gang(crashed(), runs(WORKER))).status

    assert seen.current is not None
    assert seen.current.formed_time == NOW


def ended(status: RunStatus, seen: AttemptSeen) -> Verdict | None:
    """The verdict when the patience with peers is over."""
    first = look(status, seen).status
    found = first.current if seen.over else look(first, seen, 90).status.current
    assert found is not None
    return found.verdict


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (gang(crashed(), waits()), Verdict.INFRASTRUCTURE),
        (gang(crashed()), Verdict.INFRASTRUCTURE),
        (gang(crashed(), runs(WORKER)), Verdict.USER_FAILURE),
        (gang(crashed(), crashed(WORKER)), Verdict.USER_FAILURE),
    ],
    ids=["a peer waits for a node", "a peer has no pod yet", "both ran", "both crashed"],
)
def test_a_crash_is_the_programs_only_once_all_have_run(seen: AttemptSeen, verdict: Verdict) -> None:
    assert ended(a_status(a_record()), seen) is verdict


def test_that_all_have_run_is_not_forgotten() -> None:
    """The worker's pod is gone by the time its peer's crash is looked at."""
    formed = look(a_status(a_record()), gang(runs(), runs(WORKER))).status

    assert ended(formed, gang(crashed())) is Verdict.USER_FAILURE


def test_a_peer_that_comes_while_the_crash_is_looked_into_makes_it_the_programs() -> None:
    early = look(a_status(a_record()), gang(crashed(), waits())).status
    assert early.current is not None
    assert early.current.verdict is None

    late = look(early, gang(crashed(), crashed(WORKER)), 30).status
    assert late.current is not None
    assert late.current.verdict is Verdict.USER_FAILURE


def test_half_a_gang_frees_its_node_after_the_start_timeout() -> None:
    half = gang(runs(), waits())
    first = look(a_status(a_record()), half).status

    assert look(first, half, 1799).status.phase is Phase.TRAINING
    stopping = look(first, half, 1800).status

    assert stopping.current is not None
    assert (stopping.phase, stopping.current.verdict) == (Phase.STOPPING, Verdict.INFRASTRUCTURE)
    assert stopping.current.reason is Reason.GANG_INCOMPLETE
    assert stopping.current.message == (
        "1 of 2 replicas of attempt 1 have run within limits.startTimeout of 30m: "
        "run-1-worker-0: Unschedulable: no node"
    )
    assert [type(effect) for effect in look(stopping, half, 1801).effects] == [StopAttempt, RemoveReplica]


@pytest.mark.parametrize(("node", "short"), [(None, True), ("node-2", None)])
def test_half_a_gang_remembers_whether_a_replica_had_no_machine(node: str | None, short: bool | None) -> None:
    """One that has a machine may pull an image for too long: another zone would not help."""
    half = gang(runs(), replace(waits(), node=node))
    stopping = look(look(a_status(a_record()), half).status, half, 1800).status

    assert stopping.current is not None
    assert stopping.current.short_of_room is short


def test_the_operator_looks_again_in_time() -> None:
    half = gang(runs(), waits())
    first = look(a_status(a_record()), half).status

    assert 0 < (look(first, half, 1795).look_again_seconds or 0) <= 5


def test_the_wait_before_any_replica_runs_does_not_count() -> None:
    nobody = gang(waits(MASTER), waits())
    record = a_record(state=AttemptState.STARTING).model_copy(update={"created_time": NOW - timedelta(days=2)})
    old = a_status(record)

    assert look(old, nobody).status.phase is Phase.STARTING
    assert look(look(old, nobody).status, gang(runs(), waits()), 60).status.phase is Phase.TRAINING


def test_a_whole_gang_may_run_for_ever() -> None:
    whole = gang(runs(), runs(WORKER))
    first = look(a_status(a_record()), whole).status

    assert look(first, gang(runs(), waits()), 99_999).status.phase is Phase.TRAINING
