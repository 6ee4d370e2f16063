"""A trainer, its writer, or both are killed without a word: at random moments, and at each file operation of a save.

After each kill: every checkpoint is whole, none is of a step that was not trained, none that was there before is lost,
and at most one interval has to be trained again, and the one whose save was in flight. In the end the weights are those
of a run that nobody killed.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import piton_trainer
from piton.contract import names
from piton.contract.manifest import Complete
from piton_trainer.checkpoint import layout
from piton_trainer.checkpoint.background import BackgroundCheckpointer
from piton_trainer.checkpoint.commit import is_good
from support import ranks, tiny
from support.processes import is_running

EVERY = 2
LONG, SHORT = 6, 2
"""Epochs: long enough to be killed several times, or to save a few times after the first kill."""
ORDERS = tiny.every(EVERY)
KILLS = 200
SEED_VARIABLE = "CRASH_SEED"

# The last step whose body the trainer has done, its writer's process, and whether that was at a save then: seen from
# outside whenever it dies.
_trained = multiprocessing.get_context("fork").Value("i", 0)
_writer = multiprocessing.get_context("fork").Value("i", 0)
_in_flight = multiprocessing.get_context("fork").Value("i", 0)


def attempt(
    directory: Path,
    *,
    epochs: int = LONG,
    before: Callable[[], object] = lambda: None,
    stop_at: int = 0,
    background: bool = True,
) -> tiny.Ran:
    def note(session: piton_trainer.Session) -> None:
        assert session._store is not None
        checkpointer = session._store._checkpointer
        if isinstance(checkpointer, BackgroundCheckpointer):
            _writer.value = checkpointer._scribe.pid or 0
        # Steps that take no time would be done before the first save is: each save has an interval to become durable.
        while (session.step + 1) % EVERY == 0 and session._store.in_flight:
            session._store.poll()
        _in_flight.value = session._store.in_flight
        _trained.value = session.step + 1

    before()
    events: dict[int, tiny.Event] = dict.fromkeys(range(1, epochs * tiny.BATCHES + 1), note)
    if stop_at:
        events[stop_at] = tiny.terminate
    return tiny.train(directory, assignment=ORDERS, epochs=epochs, at=events, background_saves=background)


def whole_checkpoints(directory: Path) -> list[int]:
    """The steps that are there; each has to be whole."""
    folders = layout.step_folders(directory) if directory.exists() else []
    torn = [folder.name for _, folder in folders if not is_good(folder)]
    assert torn == [], f"torn: {torn}"
    return [step for step, _ in folders]


def check_after_kill(directory: Path, before: list[int]) -> None:
    after = whole_checkpoints(directory)
    newest_before, newest = max(before, default=0), max(after, default=0)
    trained = max(_trained.value, newest_before)
    assert newest >= newest_before, f"the checkpoint of step {newest_before} was lost, {newest} is the newest"
    assert newest <= trained, f"a checkpoint of step {newest} when only {trained} was trained"
    assert trained - newest < 2 * EVERY, f"killed after step {trained}, but the newest checkpoint is of step {newest}"
    # One that stays until a newer one was read back, the one just committed, and the one that a kill before that left.
    assert len(after) <= ORDERS.save.keep_last + 3


def digest_in(directory: Path) -> str | None:
    path = directory / names.COMPLETE_FILE
    return Complete.from_json(path.read_text()).weights_digest if path.exists() else None


def digest_of_a_whole_run(directory: Path, *, epochs: int) -> str:
    """In this process, so that what torch imports late is there already in every rank that is forked."""
    attempt(directory, epochs=epochs)
    found = digest_in(directory)
    assert found is not None
    return found


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_trainer_killed_at_200_random_moments_loses_at_most_one_interval_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = digest_of_a_whole_run(tmp_path / "whole", epochs=LONG)
    started = time.monotonic()
    ranks.run(1, partial(attempt, tmp_path / "timed"))
    delay_seconds_max = 0.8 * (time.monotonic() - started)
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
    dice = random.Random(seed)
    kills = runs = inside_saves = writers = 0
    directory = tmp_path / "0"
    try:
        while kills < KILLS:
            before = whole_checkpoints(directory)
            _trained.value = _writer.value = _in_flight.value = 0
            victims = dice.choice(["trainer", "writer", "both"])
            with ranks.start(1, partial(attempt, directory)) as world:
                delay_seconds = dice.uniform(0, delay_seconds_max)
                if victims != "trainer":
                    time.sleep(delay_seconds)
                    inside_saves += _in_flight.value
                    writers += kill_writer()
                if victims != "writer":
                    world.kill_after(delay_seconds if victims == "trainer" else 0)
                code = world.wait()[0].code
            assert code in (0, -signal.SIGKILL)
            wait_for_writer()
            kills += code != 0
            inside_saves += _in_flight.value if code != 0 and victims == "trainer" else 0
            check_after_kill(directory, before)
            if (found := digest_in(directory)) is not None:
                assert found == digest
                runs += 1
                directory = tmp_path / str(runs)
        ranks.run(1, partial(attempt, directory))
        assert digest_in(directory) == digest
    except BaseException:
        sys.stderr.write(f"\nreplay with {SEED_VARIABLE}={seed}; it failed at kill {kills} of run {runs}\n")
        raise
    assert inside_saves >= KILLS // 10
    with capsys.disabled():
        print(
            f"\n{kills} kills, {inside_saves} of them inside a save, and {writers} of a writer, "
            f"over {runs + 1} runs; {SEED_VARIABLE}={seed}"
        )


def kill_writer() -> bool:
    """Whether there was one to kill."""
    pid = int(_writer.value)
    if not pid or not is_running(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def wait_for_writer() -> None:
    """The kernel ends it with its trainer, but not in the same instant."""
    deadline = time.monotonic() + 30
    while is_running(int(_writer.value)):
        assert time.monotonic() < deadline, "a writer has survived its trainer"
        time.sleep(0.001)


def die_at(operation: int, directory: Path) -> None:
    """From now on, count what this process does to files in the directory, and die before the n-th time."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"} and str(directory) in str(arguments):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


WRITER_DIES = """
import os, signal, sys
done = 0
def hook(event, arguments):
    global done
    if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"} and os.environ["DIE_IN"] in str(arguments):
        done += 1
        if done == int(os.environ["DIE_AT"]) and not os.path.exists(os.environ["DEAD"]):
            open(os.environ["DEAD"], "w").close()
            if os.environ["DIE_WITH"] == "both":
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
if "piton_trainer.checkpoint.writer" in sys.orig_argv:
    sys.addaudithook(hook)
"""


def writer_dies_at(operation: int, directory: Path, dead: Path, victims: str) -> None:
    """From now on, a writer that this process starts does the same, and takes the trainer with it where it is told."""
    plan = {"DIE_AT": str(operation), "DIE_IN": str(directory), "DIE_WITH": victims, "DEAD": str(dead)}
    os.environ.update(plan)
    site = dead.with_suffix(".site")
    site.mkdir()
    (site / "sitecustomize.py").write_text(WRITER_DIES)
    sys.path.insert(0, str(site))


def kill_writer_at_operations(every: int, tmp_path: Path, victims: str) -> int:
    """The same for the writer's operations, once in an attempt."""
    digest = digest_of_a_whole_run(tmp_path / "whole", epochs=SHORT)
    ranks.run(1, partial(attempt, tmp_path / "start", epochs=SHORT, stop_at=2 * EVERY))
    for kills in count():
        directory = shutil.copytree(tmp_path / "start", tmp_path / str(kills))
        before, dead = whole_checkpoints(directory), tmp_path / f"{kills}.dead"
        _trained.value = _writer.value = 0
        dies = partial(writer_dies_at, 1 + kills * every, directory, dead, victims)
        code = ranks.run(1, partial(attempt, directory, epochs=SHORT, before=dies))[0].code
        wait_for_writer()
        check_after_kill(directory, before)
        assert code == (-signal.SIGKILL if victims == "both" and dead.exists() else 0)
        if code != 0:
            ranks.run(1, partial(attempt, directory, epochs=SHORT))
        assert digest_in(directory) == digest
        if not dead.exists():
            return kills
        shutil.rmtree(directory)
    raise AssertionError("count() does not end")


def kill_at_operations(every: int, tmp_path: Path) -> int:
    """Kill an attempt at its first file operation, at a later one …, until it lives; how many kills that took.

    Training waits for its saves here, so that all operations are the trainer's.
    """
    digest = digest_of_a_whole_run(tmp_path / "whole", epochs=SHORT)
    ranks.run(1, partial(attempt, tmp_path / "start", epochs=SHORT, stop_at=2 * EVERY))
    for kills in count():
        directory = shutil.copytree(tmp_path / "start", tmp_path / str(kills))
        before = whole_checkpoints(directory)
        _trained.value = 0
        dies = partial(die_at, 1 + kills * every, directory)
        code = ranks.run(1, partial(attempt, directory, epochs=SHORT, before=dies, background=False))[0].code
        check_after_kill(directory, before)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL
        ranks.run(1, partial(attempt, directory, epochs=SHORT))
        assert digest_in(directory) == digest
        shutil.rmtree(directory)
    raise AssertionError("count() does not end")


def test_a_trainer_killed_at_file_operations_of_all_kinds_loses_at_most_one_interval(tmp_path: Path) -> None:
    assert kill_at_operations(13, tmp_path) > 5


@pytest.mark.parametrize("victims", ["writer", "both"])
def test_a_writer_killed_at_file_operations_of_all_kinds_loses_no_more(victims: str, tmp_path: Path) -> None:
    assert kill_writer_at_operations(17, tmp_path, victims) > 2


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victims", ["writer", "both"])
def test_a_writer_killed_at_each_single_file_operation_loses_no_more(
    victims: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = kill_writer_at_operations(1, tmp_path, victims)
    with capsys.disabled():
        print(f"\n{kills} kills of {victims}, one at each file operation of a writer that saves three times")
    assert kills > 30


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_trainer_killed_at_each_single_file_operation_loses_at_most_one_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = kill_at_operations(1, tmp_path)
    with capsys.disabled():
        print(f"\n{kills} kills, one at each file operation of an attempt that saves three times")
    assert kills > 50
