"""How conditions change: row A.6 of the conformance table, each rule in both directions."""

import pytest

from piton.engine.status import REASON_RESUMED, ConditionType, JobStatus
from support.builders import NOW, later

CREATED, RUNNING, RESTARTING = ConditionType.CREATED, ConditionType.RUNNING, ConditionType.RESTARTING
SUCCEEDED, FAILED, SUSPENDED = ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.SUSPENDED


def _after(*kinds: ConditionType) -> JobStatus:
    """The status after these conditions came in, one second after the other."""
    status = JobStatus()
    for seconds, kind in enumerate(kinds):
        status = status.put(kind, kind, now=later(seconds))
    return status


def _told(status: JobStatus) -> list[tuple[str, bool]]:
    return [(condition.type, condition.status) for condition in status.conditions]


@pytest.mark.parametrize("kind", [RUNNING, RESTARTING, SUCCEEDED, SUSPENDED, CREATED])
def test_nothing_comes_after_failed(kind: ConditionType) -> None:
    failed = _after(CREATED, RUNNING, FAILED)
    assert failed.put(kind, "", now=later(60)) == failed


def test_something_may_come_after_succeeded() -> None:
    assert _told(_after(CREATED, SUCCEEDED).put(FAILED, "", now=later(60)))[-1] == (FAILED, True)


def test_the_same_again_refreshes_neither_time_nor_message() -> None:
    running = _after(CREATED, RUNNING)
    assert running.put(RUNNING, "other words", now=later(60)) == running


def test_a_condition_that_changes_moves_to_the_end() -> None:
    status = _after(CREATED, SUSPENDED, RUNNING).put(
        SUSPENDED, "", now=later(60), status=False, reason="PyTorchJobResumed"
    )
    assert _told(status) == [(CREATED, True), (RUNNING, True), (SUSPENDED, False)]


def test_another_reason_alone_keeps_the_time_of_the_transition() -> None:
    status = _after(RUNNING).put(RUNNING, "", now=later(60), reason="Another")
    condition = status.condition(RUNNING)
    assert condition is not None
    assert (condition.updated, condition.changed) == (later(60), NOW)


def test_another_status_has_a_new_time_of_transition() -> None:
    status = _after(RUNNING).put(RUNNING, "", now=later(60), status=False)
    condition = status.condition(RUNNING)
    assert condition is not None
    assert condition.changed == later(60)


def test_running_and_restarting_replace_each_other() -> None:
    assert _told(_after(CREATED, RUNNING, RESTARTING)) == [(CREATED, True), (RESTARTING, True)]
    assert _told(_after(CREATED, RUNNING, RESTARTING, RUNNING)) == [(CREATED, True), (RUNNING, True)]


@pytest.mark.parametrize("end", [SUCCEEDED, FAILED])
def test_the_end_makes_running_false_where_it_stands(end: ConditionType) -> None:
    status = _after(CREATED, RUNNING, end)
    assert _told(status) == [(CREATED, True), (RUNNING, False), (end, True)]
    assert status.conditions[1].reason == "PyTorchJobRunning"
    assert status.conditions[1].changed == later(1)


def test_suspended_leaves_running_alone() -> None:
    assert _told(_after(CREATED, RUNNING, SUSPENDED)) == [(CREATED, True), (RUNNING, True), (SUSPENDED, True)]


@pytest.mark.parametrize("kind", list(ConditionType))
def test_the_reason_is_the_kind_and_the_type(kind: ConditionType) -> None:
    assert _after(kind).conditions[0].reason == f"PyTorchJob{kind}"


def test_a_status_survives_the_api_server() -> None:
    status = _after(CREATED, RUNNING).put(SUSPENDED, "", now=later(60), status=False, reason=REASON_RESUMED)
    assert JobStatus.read(status.to_body()) == status


def test_numbers_that_are_zero_are_not_written() -> None:
    read = JobStatus.read({"replicaStatuses": {"Master": {"active": 1}, "Worker": {}}})
    assert read.to_body()["replicaStatuses"] == {"Master": {"active": 1}, "Worker": {}}
