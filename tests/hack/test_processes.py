"""Processes and their pid files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import processes
from hack.cluster.shell import BoxError, run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The real ones belong to a box that may be up."""
    monkeypatch.setattr(processes, "PIDS", tmp_path / "pids")
    monkeypatch.setattr(processes, "LOGS", tmp_path / "logs")
    yield tmp_path
    for name in processes.names():
        processes.stop(name, seconds=0)


def test_it_runs_until_it_is_stopped() -> None:
    processes.start("sleeper", ["sleep", "600"])
    pid = processes.running("sleeper")
    assert pid is not None

    processes.stop("sleeper")

    assert processes.running("sleeper") is None
    assert processes.names() == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_ignores_sigterm_is_killed_with_its_children() -> None:
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait"])
    log = processes.log_of("stubborn")
    processes.wait_for("the child", lambda: log.exists() and log.read_text().endswith("\n"), seconds=10)

    processes.stop("stubborn", seconds=0.2)

    assert processes.running("stubborn") is None
    processes.wait_for("the child to die", lambda: processes._start_time(int(log.read_text())) is None, seconds=10)


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(folder: Path) -> None:
    (folder / "pids").mkdir()
    (folder / "pids" / "old.pid").write_text(f"{os.getpid()} 1\n")

    assert processes.running("old") is None
    processes.stop("old")


def test_waiting_for_the_dead_ends_and_quotes_the_log() -> None:
    processes.start("broken", ["sh", "-c", "echo no such flag; exit 1"])

    with pytest.raises(BoxError, match="no such flag"):
        processes.wait_for("it to be ready", lambda: False, seconds=60, of="broken")


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(BoxError, match=r"failed with 3:\nno"):
        run(["sh", "-c", "echo no >&2; exit 3"])


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(BoxError, match="no-such-program is not installed"):
        run(["no-such-program"])
