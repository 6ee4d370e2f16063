"""A trainer that is killed without a word: at random moments, and at each single file operation of a save.

After each kill: every checkpoint is whole, none is of a step that was not trained, none that was there before is lost,
and at most one interval has to be trained again. In the end the weights are those of a run that nobody killed.
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
from piton_trainer.checkpoint.commit import is_good
from support import ranks, tiny

EVERY = 2
LONG, SHORT = 6, 2
"""Epochs: long enough to be killed several times, or to save a few times after the first kill."""
ORDERS = tiny.every(EVERY)
KILLS = 200
SEED_VARIABLE = "CRASH_SEED"

# The last step whose body the trainer has done, seen from outside whenever it dies.
_trained = multiprocessing.get_context("fork").Value("i", 0)


def attempt(
    directory: Path, *, epochs: int = LONG, before: Callable[[], object] = lambda: None, stop_at: int = 0
) -> tiny.Ran:
    def note(session: piton_trainer.Session) -> None:
        _trained.value = session.step + 1

    before()
    events: dict[int, tiny.Event] = dict.fromkeys(range(1, epochs * tiny.BATCHES + 1), note)
    if stop_at:
        events[stop_at] = tiny.terminate
    return tiny.train(directory, assignment=ORDERS, epochs=epochs, at=events)


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
    assert trained - newest <= EVERY, f"killed after step {trained}, but the newest checkpoint is of step {newest}"
    assert len(after) <= ORDERS.save.keep_last + 1


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
    delay_seconds_max = (time.monotonic() - started) / 2
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
    dice = random.Random(seed)
    kills = runs = inside_saves = 0
    directory = tmp_path / "0"
    try:
        while kills < KILLS:
            before = whole_checkpoints(directory)
            _trained.value = 0
            with ranks.start(1, partial(attempt, directory)) as world:
                world.kill_after(dice.uniform(0, delay_seconds_max))
                code = world.wait()[0].code
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            inside_saves += any(directory.glob(f"{names.SAVING_PREFIX}*"))
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
        print(f"\n{kills} kills, {inside_saves} of them inside a save, over {runs + 1} runs; {SEED_VARIABLE}={seed}")


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


def kill_at_operations(every: int, tmp_path: Path) -> int:
    """Kill an attempt at its first file operation, at a later one …, until it lives; how many kills that took."""
    digest = digest_of_a_whole_run(tmp_path / "whole", epochs=SHORT)
    ranks.run(1, partial(attempt, tmp_path / "start", epochs=SHORT, stop_at=2 * EVERY))
    for kills in count():
        directory = shutil.copytree(tmp_path / "start", tmp_path / str(kills))
        before = whole_checkpoints(directory)
        _trained.value = 0
        dies = partial(die_at, 1 + kills * every, directory)
        code = ranks.run(1, partial(attempt, directory, epochs=SHORT, before=dies))[0].code
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


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_trainer_killed_at_each_single_file_operation_loses_at_most_one_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = kill_at_operations(1, tmp_path)
    with capsys.disabled():
        print(f"\n{kills} kills, one at each file operation of an attempt that saves three times")
    assert kills > 50
