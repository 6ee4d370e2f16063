"""The evidence that a local attempt gives the core: as pods would, from processes."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from piton.contract.termination import Outcome, Termination
from piton.local import attempt as module
from piton.local.attempt import LocalAttempt
from piton.local.processes import Replica
from piton.observed import ReplicaState
from support.builders import NOW


@dataclass
class FakeReplica:
    """A process that ends when the test says so."""

    name: str
    log: Path = Path("log")
    exit_code: int | None = None
    terminated: int = 0
    killed: bool = field(default=False)

    def terminate(self) -> None:
        self.terminated += 1


@pytest.fixture(autouse=True)
def _kills(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(replicas: list[Any]) -> None:
        for replica in replicas:
            replica.killed, replica.exit_code = True, 137

    monkeypatch.setattr(module, "kill", kill)


def an_attempt(tmp_path: Path, count: int = 2, **fields: Any) -> tuple[LocalAttempt, list[FakeReplica]]:
    replicas = [FakeReplica(f"trainer-{index}", log=tmp_path / f"{index}.log") for index in range(count)]
    logs = [tmp_path / f"termination-{index}" for index in range(count)]
    made = LocalAttempt(number=1, termination_logs=logs, begun=NOW, **fields)
    made.replicas = cast("tuple[Replica, ...]", tuple(replicas))
    return made, replicas


def test_replicas_run_until_a_poll_sees_their_end(tmp_path: Path) -> None:
    attempt, (first, _) = an_attempt(tmp_path)
    (tmp_path / "termination-0").write_text(Termination(outcome=Outcome.FINISHED, step=7).to_json())
    first.exit_code = 0

    seen = attempt.seen()
    assert seen is not None
    assert [replica.state for replica in seen.replicas] == [ReplicaState.RUNNING] * 2
    assert attempt.poll(NOW)
    assert not attempt.poll(NOW)

    seen = attempt.seen()
    assert seen is not None
    ended, runs = seen.replicas
    assert (ended.state, ended.exit_code, ended.ended_at) == (ReplicaState.SUCCEEDED, 0, NOW)
    assert ended.termination is not None
    assert ended.termination.step == 7
    assert runs.state is ReplicaState.RUNNING
    assert attempt.alive


def test_a_stop_is_one_sigterm_and_sigkill_after_the_grace_period(tmp_path: Path) -> None:
    attempt, replicas = an_attempt(tmp_path)
    attempt.stop(NOW, 10)
    attempt.stop(NOW, 10)
    attempt.poll(NOW + timedelta(seconds=9))
    assert [(replica.terminated, replica.killed) for replica in replicas] == [(1, False)] * 2
    assert not attempt.undisturbed

    attempt.poll(NOW + timedelta(seconds=10))
    attempt.poll(NOW + timedelta(seconds=11))
    assert all(replica.killed for replica in replicas)
    assert not attempt.alive
    assert not attempt.ended_by_itself


def test_a_reclaimed_machine_and_a_lost_one_look_like_those_of_a_cluster(tmp_path: Path) -> None:
    reclaimed, _ = an_attempt(tmp_path)
    reclaimed.reclaim(NOW, 30)
    lost, _ = an_attempt(tmp_path)
    lost.lose()
    lost.poll(NOW)

    seen = reclaimed.seen()
    assert seen is not None
    assert all(replica.node_reclaimed and replica.deleting for replica in seen.replicas)
    assert not seen.deleting, "Piton did not order it"
    seen = lost.seen()
    assert seen is not None
    assert all(replica.node_gone for replica in seen.replicas)


def test_the_log_of_the_replica_that_failed_first_is_the_one_to_read(tmp_path: Path) -> None:
    attempt, (first, second) = an_attempt(tmp_path)
    second.exit_code = 1
    attempt.poll(NOW)
    first.exit_code = 1
    attempt.poll(NOW + timedelta(seconds=1))

    assert attempt.failed_log() == second.log
    assert attempt.ended_by_itself


def test_a_program_that_cannot_be_started_is_a_container_that_cannot(tmp_path: Path) -> None:
    attempt, _ = an_attempt(tmp_path, why_not_started="no such file: train.sh")

    seen = attempt.seen()
    assert seen is not None
    (replica,) = seen.replicas
    assert (replica.state, replica.cannot_start) == (ReplicaState.WAITING, True)
    assert replica.waiting == "no such file: train.sh"
    attempt.stop(NOW, 1)
    assert attempt.seen() is None


@pytest.mark.parametrize("text", ["", "not JSON", "\udcff"])
def test_a_termination_log_that_is_none_is_none(text: str, tmp_path: Path) -> None:
    attempt, replicas = an_attempt(tmp_path, count=1)
    (tmp_path / "termination-0").write_bytes(text.encode(errors="surrogateescape"))
    replicas[0].exit_code = 1
    attempt.poll(NOW)

    seen = attempt.seen()
    assert seen is not None
    assert seen.replicas[0].termination is None
