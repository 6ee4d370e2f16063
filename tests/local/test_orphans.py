"""Processes that outlive their attempt are found by their environment, and by their recorded ids, and killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from piton.local import orphans

SLEEPS = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
FORK = f"import subprocess, time; subprocess.Popen({SLEEPS!r}, start_new_session=True); time.sleep(60)"
FORKS = [sys.executable, "-c", FORK]


@pytest.fixture
def mark(tmp_path: object) -> Iterator[str]:
    variable = f"PITON_TEST_MARK={os.getpid()}-{tmp_path}"
    yield variable
    orphans.kill_marked(variable)


def started(command: list[str], mark: str) -> subprocess.Popen[bytes]:
    """A process with the mark that runs, and so does what it starts."""
    name, _, value = mark.partition("=")
    process = subprocess.Popen(command, env=os.environ | {name: value}, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline()
    return process


def test_what_a_process_started_in_a_session_of_its_own_is_found_and_killed_as_well(mark: str) -> None:
    process = started(FORKS, mark)
    try:
        assert len(orphans.marked(mark)) == 2
        assert orphans.kill_marked(mark) == 2
        assert orphans.marked(mark) == []
    finally:
        process.wait()


def test_other_processes_are_left_alone(mark: str) -> None:
    other = started(SLEEPS, f"{mark}-another")
    try:
        assert orphans.kill_marked(mark) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_recorded_process_counts_only_while_it_is_the_same(mark: str) -> None:
    process = started(SLEEPS, f"{mark}-another")
    try:
        recorded = orphans.identify(process.pid)
        assert recorded is not None
        assert orphans.leftovers(mark, [recorded]) == [recorded]

        earlier = replace(recorded, started="1")
        assert orphans.leftovers(mark, [earlier]) == []
        orphans.send_signal([earlier], signal.SIGKILL)
        orphans.kill([earlier])
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_process_that_has_ended_and_is_not_reaped_is_gone(mark: str) -> None:
    process = started(SLEEPS, mark)
    found = orphans.identify(process.pid)
    assert found is not None
    orphans.send_signal([found], signal.SIGKILL)

    assert orphans.wait_gone([found], 5) == []
    assert orphans.identify(process.pid) is None
    process.wait()


def test_those_that_stay_are_named(mark: str) -> None:
    process = started(SLEEPS, mark)
    found = orphans.identify(process.pid)
    assert found is not None

    assert orphans.wait_gone([found], 0.05) == [found]
    orphans.kill_marked(mark)
    process.wait()
