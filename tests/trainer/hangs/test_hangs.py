"""A training that hangs is found, its stacks are kept, and it ends so that the next attempt can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from torch import nn

import piton_trainer
from piton.contract import names
from piton.contract.termination import ExitCode, Outcome, Termination
from piton_trainer.hangs import collect
from piton_trainer.hangs.detection import AUTO_SECONDS, IDLE_SECONDS, Hang, HangDetector, Idle
from piton_trainer.hangs.heartbeats import Heartbeat, RankPhase, Reader, SharedHeartbeats
from piton_trainer.hangs.peers import Exchange, Peers, Stillness
from support import hanging, ranks, tiny
from support.mirrored import wait_for

BEAT = Heartbeat(rank=0, pid=1, step=7, durable_step=None, phase=RankPhase.STEPPING, time=0.0)


def judged(rule: HangDetector, *beats: Heartbeat, now: float, moved: int = 0) -> Hang | Idle | None:
    return rule.judge(beats, moved=moved, now=now)


def trained(seconds: float, *, steps: int = 20) -> tuple[HangDetector, float]:
    """A rule that has seen steps of so many seconds, and the time of the last one."""
    rule = HangDetector(limit_seconds=None, now=0.0)
    for step in range(steps):
        assert judged(rule, replace(BEAT, step=step, time=step * seconds), now=step * seconds) is None
    return rule, (steps - 1) * seconds


@pytest.mark.parametrize(("seconds", "limit"), [(0.01, AUTO_SECONDS), (1.0, AUTO_SECONDS), (60.0, 600.0)])
def test_the_limit_is_ten_median_steps_and_at_least_five_minutes(seconds: float, limit: float) -> None:
    rule, last = trained(seconds)
    stands = replace(BEAT, step=19, time=last)

    assert judged(rule, stands, now=last + limit - 1) is None
    found = judged(rule, stands, now=last + limit)
    assert isinstance(found, Hang)
    assert found.limit == pytest.approx(limit)
    assert found.step == 19


def test_one_slow_step_does_not_move_the_limit() -> None:
    rule, last = trained(60.0)
    assert judged(rule, replace(BEAT, step=20, time=last + 550), now=last + 550) is None
    assert rule.limit == pytest.approx(600)


def test_the_users_limit_holds_instead() -> None:
    rule = HangDetector(limit_seconds=5.0, now=0.0)
    assert judged(rule, BEAT, now=4.9) is None
    assert isinstance(judged(rule, BEAT, now=5.0), Hang)


@pytest.mark.parametrize("phase", [phase for phase in RankPhase if phase is not RankPhase.STEPPING])
def test_nothing_but_a_step_is_timed_by_the_limit(phase: RankPhase) -> None:
    rule = HangDetector(limit_seconds=5.0, now=0.0)
    peer = replace(BEAT, rank=1)
    assert not isinstance(judged(rule, replace(BEAT, phase=phase), peer, now=1000.0), Hang), "the peer waits for it"
    assert judged(rule, BEAT, peer, now=1004.0) is None, "the time before does not count"
    assert isinstance(judged(rule, BEAT, peer, now=1005.0), Hang)


@pytest.mark.parametrize("phase", [RankPhase.STARTING, RankPhase.BETWEEN])
def test_a_start_or_a_wait_for_data_is_over_when_nothing_moves_for_half_an_hour(phase: RankPhase) -> None:
    rule, waits = HangDetector(limit_seconds=5.0, now=0.0), replace(BEAT, phase=phase)
    for minute in range(300):  # a restore of 100 GB
        assert judged(rule, waits, now=60.0 * minute, moved=minute) is None
    last = 60.0 * 299
    assert judged(rule, waits, now=last + IDLE_SECONDS - 1, moved=299) is None
    assert isinstance(judged(rule, waits, now=last + IDLE_SECONDS, moved=299), Idle)


@pytest.mark.parametrize("phase", [RankPhase.SAVING, RankPhase.UNTIMED, RankPhase.ENDING])
def test_a_save_or_an_evaluation_may_take_hours(phase: RankPhase) -> None:
    rule = HangDetector(limit_seconds=5.0, now=0.0)
    assert all(judged(rule, replace(BEAT, phase=phase), now=60.0 * minute) is None for minute in range(600))


def test_a_machine_that_has_slept_has_not_hung() -> None:
    rule = HangDetector(limit_seconds=5.0, now=0.0)
    rule.forgive(1000.0)
    assert judged(rule, BEAT, now=1004.0) is None


def test_a_node_that_stands_still_may_wait_for_another_one(tmp_path: Path) -> None:
    here = Peers(tmp_path, node=0, nodes=3, every_seconds=10.0)
    others = [Peers(tmp_path, node=node, nodes=3, every_seconds=10.0) for node in (1, 2)]
    here.publish(Stillness(silence=300.0))
    assert here.read() is None, "the others say nothing any more"
    for other, said in zip(others, (Stillness(idle=7.0), Stillness(silence=290.0)), strict=True):
        other.publish(said)
    assert here.read() == Stillness()

    old = tmp_path / "node-1.json"
    os.utime(old, times=(old.stat().st_atime, old.stat().st_mtime - 31))
    assert here.read() == Stillness(silence=290.0), "a watchdog that has stopped telling does not count"


HANG, IDLE = Hang(seconds=301.0, limit=300.0, step=7), Idle(seconds=1800.0, step=0)


@pytest.mark.parametrize(
    ("said", "trouble", "agrees"),
    [
        (Stillness(), HANG, False),
        (Stillness(silence=140.0), HANG, False),
        (Stillness(silence=150.0), HANG, True),
        (Stillness(silence=290.0), IDLE, False),  # it trains: what waits here will hear of it
        (Stillness(idle=3.0), IDLE, False),  # it restores 100 GB from a bucket, for all
        (Stillness(idle=1700.0), IDLE, True),
    ],
)
def test_a_job_stands_still_when_the_other_nodes_do_too(
    said: Stillness, trouble: Hang | Idle, agrees: bool, tmp_path: Path
) -> None:
    exchange = Exchange(Peers(tmp_path, node=0, nodes=2, every_seconds=3600.0))
    Peers(tmp_path, node=1, nodes=2, every_seconds=3600.0).publish(said)
    exchange.start()
    assert wait_for(lambda: exchange._others is not None)
    assert exchange.agrees(trouble, time.monotonic()) is agrees
    assert exchange.agrees(trouble, time.monotonic() + 4 * 3600), "a volume that does not answer excuses nobody"


def test_what_a_framework_does_between_a_step_and_its_boundary_is_not_timed(tmp_path: Path) -> None:
    beats = SharedHeartbeats(tmp_path / "beats", 0)
    beats.stepped(1, durable_step=None)
    beats.begin_step()
    beats.end_step()
    assert Reader(tmp_path / "beats").read()[0].phase is RankPhase.BETWEEN
    beats.close()


def test_a_rank_that_is_stopped_is_missed_whatever_it_was_at() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        waits = replace(BEAT, pid=sleeper.pid, phase=RankPhase.BETWEEN)
        assert collect.with_stopped([waits]) == [waits]
        sleeper.send_signal(signal.SIGSTOP)
        assert wait_for(lambda: collect.with_stopped([waits])[0].phase is RankPhase.STEPPING)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_what_processes_do_beside_their_work_is_no_movement() -> None:
    moved = collect.Moved()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as cat:
        assert cat.stdin is not None
        reads = psutil.Process(cat.pid)

        def read(size: int) -> None:
            assert cat.stdin is not None
            before = reads.io_counters().read_chars
            cat.stdin.write(bytes(size))
            cat.stdin.flush()
            assert wait_for(lambda: reads.io_counters().read_chars >= before + size)

        assert moved.look([cat.pid], 0.0) == 0
        read(10_000)
        assert moved.look([cat.pid], 60.0) == 0
        read(300_000)
        assert moved.look([cat.pid], 119.0) == 0, "it is asked once a minute"
        assert moved.look([cat.pid], 120.0) == 1


def test_what_a_rank_writes_is_read(tmp_path: Path) -> None:
    beats = SharedHeartbeats(tmp_path / "beats", 3)
    reader = Reader(tmp_path / "beats")
    (found,) = reader.read()
    assert (found.rank, found.pid, found.step, found.phase) == (3, os.getpid(), 0, RankPhase.STARTING)

    beats.begin_step()
    assert reader.read()[0].phase is RankPhase.STARTING, "the first step belongs to the start"
    beats.stepped(1, durable_step=None)
    beats.begin_step()
    with beats.during(RankPhase.UNTIMED):
        assert reader.read()[0].phase is RankPhase.UNTIMED
    beats.stepped(2, durable_step=1)
    (found,) = reader.read()
    assert (found.step, found.durable_step, found.phase) == (2, 1, RankPhase.SAVING)

    beats.close()
    assert not (tmp_path / "beats").exists()


def test_where_ranks_are_is_said_of_the_odd_ones_first() -> None:
    waits = 'Current thread 0x1 (most recent call first):\n  File "/a/b/c.py", line 3 in barrier\n'
    stopped = "rank 2\nState:\tT (stopped)\n\n"
    texts = {0: waits, 1: waits, 2: stopped, 3: waits}
    assert collect.summary(texts) == "rank 2: no stack, process T (stopped); rank 0, 1, 3: barrier (b/c.py:3)"


def test_stacks_of_old_attempts_make_room(tmp_path: Path) -> None:
    for attempt in range(1, 9):
        collect.keep(tmp_path / f"attempt-{attempt}", {0: "text"}, ())
        os.utime(tmp_path / f"attempt-{attempt}", (attempt, attempt))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"attempt-{n}" for n in range(4, 9)]


def told(directory: Path, *, attempt: int = 1, seconds: float = 1.0) -> dict[str, str]:
    """The environment of a training that may stand still for so long."""
    log = directory / f"termination-{attempt}"
    log.touch()
    return {
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_HANG_TIMEOUT: str(seconds),
        names.ENV_CHECKPOINT_DIR: str(directory / "checkpoints"),
        names.ENV_TERMINATION_LOG: str(log),
    }


def left(environment: dict[str, str]) -> Termination | None:
    """What is left of the training that had this environment."""
    return Termination.from_json(Path(environment[names.ENV_TERMINATION_LOG]).read_text(encoding="utf-8"))


def run(way: str, environment: dict[str, str], *, world_size: int = 1) -> list[int]:
    """Stand still at step 10, in that way; the exit codes of the ranks."""
    with ranks.start(world_size, partial(hanging.main, way, 10), **environment) as world:
        return [end.code for end in world.wait()]


def run_as_a_program(way: str, environment: dict[str, str]) -> int:
    """The same, as it is started in a container."""
    command = [sys.executable, hanging.__file__, way, "10"]
    return subprocess.run(
        command, env=os.environ | environment, check=False, timeout=100, capture_output=True
    ).returncode


@pytest.mark.parametrize(
    ("way", "place", "start"),
    [("gil", "match (re/__init__.py", run), ("stop", "no stack, process T (stopped)", run_as_a_program)],
)
def test_a_rank_that_stands_still_is_ended_and_the_next_attempt_goes_on(
    way: str, place: str, start: Callable[[str, dict[str, str]], object], tmp_path: Path
) -> None:
    first, second = told(tmp_path), told(tmp_path, attempt=2)
    assert start(way, first) in (ExitCode.HUNG, [ExitCode.HUNG])  # not of SIGKILL, which PID 1 would not get
    end = left(first)
    assert end is not None
    assert (end.outcome, end.step) == (Outcome.HUNG, 9)
    assert place in end.detail
    kept = tmp_path / "checkpoints" / ".hangs" / "attempt-1" / "rank-0.txt"
    assert "State:" in kept.read_text(encoding="utf-8")

    assert run(way, second) == [ExitCode.FINISHED]
    again = left(second)
    assert again is not None
    assert (again.outcome, again.step) == (Outcome.FINISHED, 30)


def test_a_collective_that_one_rank_does_not_come_to_is_found_on_all(tmp_path: Path) -> None:
    environment = told(tmp_path, seconds=2.0)
    run("collective", environment, world_size=2)
    end = left(environment)
    assert end is not None
    assert end.outcome is Outcome.HUNG
    assert "rank 0: barrier" in end.detail
    assert "rank 1: hang" in end.detail
    assert len(list((tmp_path / "checkpoints" / ".hangs" / "attempt-1").iterdir())) == 2


def test_nobody_watches_what_a_script_does_after_its_training(tmp_path: Path) -> None:
    def watchers() -> int:
        return sum("watchdog" in " ".join(child.cmdline()) for child in psutil.Process().children())

    while_training = []
    with piton_trainer.session(tiny.config(tmp_path / "checkpoints", hang_timeout=600.0)) as session:
        session.restore(model=nn.Linear(1, 1))
        while_training = [watchers() for _ in session.steps([1, 2])]

    assert (while_training, watchers()) == ([1, 1], 0)


def test_an_evaluation_that_says_so_is_no_hang(tmp_path: Path) -> None:
    environment = told(tmp_path)
    assert run("evaluate", environment) == [ExitCode.FINISHED]
    end = left(environment)
    assert end is not None
    assert end.outcome is Outcome.FINISHED
