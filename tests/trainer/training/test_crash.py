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

import pytest

import piton_trainer
from piton_trainer.checkpoint import inspect
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from support import checkpoints, ranks, tiny
from support.checkpoints import sound_steps
from support.faults import die_at
from support.processes import is_running

EVERY = 2
LONG, SHORT = 8, 2
"""Epochs: long enough to be killed several times, or to save a few times after the first kill."""
ORDERS = tiny.every(EVERY)
KILLS_VARIABLE, SEED_VARIABLE = "CRASH_KILLS", "CRASH_SEED"
KILLS = int(os.environ.get(KILLS_VARIABLE) or 200)
VICTIMS = ("trainer", "writer", "both", "group")
"""Of both, either one first. A group is the trainer's; its writer does not belong to it, and has to go all the same."""

# The last step whose body the trainer has done, the process of each rank's writer, and whether a save was in flight:
# seen from outside whenever it dies.
# Without a lock: whoever is killed while holding one would leave it locked for ever.
_trained = multiprocessing.get_context("fork").RawValue("i", 0)
_writers = multiprocessing.get_context("fork").RawArray("i", 2)
_in_flight = multiprocessing.get_context("fork").RawValue("i", 0)


def attempt(
    directory: Path,
    *,
    epochs: int = LONG,
    before: Callable[[], object] = lambda: None,
    stop_at: int = 0,
    background: bool = True,
) -> tiny.Ran:
    def note(session: piton_trainer.Session) -> None:
        assert session._services.store is not None
        checkpointer = session._services.store._checkpointer
        if isinstance(checkpointer, AsyncCheckpointer):
            _writers[session.rank] = checkpointer._writer.pid or 0
        # Steps that take no time would be done before the first save is: each save has an interval to become durable.
        while (session.step + 1) % EVERY == 0 and session._services.store.in_flight:
            checkpoints.poll(session._services.store, session._ranks)
        _in_flight.value = session._services.store.in_flight
        _trained.value = session.step + 1

    before()
    events: dict[int, tiny.Event] = dict.fromkeys(range(1, epochs * tiny.BATCHES + 1), note)
    if stop_at:
        events[stop_at] = tiny.terminate
    return tiny.train(directory, assignment=ORDERS, epochs=epochs, at=events, background_saves=background)


def check_after_kill(directory: Path, before: list[int]) -> None:
    after = sound_steps(directory)
    newest_before, newest = max(before, default=0), max(after, default=0)
    trained = max(_trained.value, newest_before)
    assert newest >= newest_before, f"the checkpoint of step {newest_before} was lost, {newest} is the newest"
    assert newest <= trained, f"a checkpoint of step {newest} when only {trained} was trained"
    assert trained - newest < 2 * EVERY, f"killed after step {trained}, but the newest checkpoint is of step {newest}"
    # One stays until a newer one was read back. Whoever dies between a commit and retention leaves one more, each time.
    assert len(after) <= max(len(before), ORDERS.save.keep_last + 1) + 1


def digest_in(directory: Path) -> str | None:
    found = inspect.complete(directory)
    return None if found is None else found.weights_digest


def digest_of_a_whole_run(directory: Path, *, epochs: int) -> str:
    """In this process, so that what torch imports late is there already in every rank that is forked."""
    attempt(directory, epochs=epochs)
    found = digest_in(directory)
    assert found is not None
    return found


class Storm:
    """Kills at random moments, attempt after attempt; a run that is finished is followed by another one."""

    def __init__(self, root: Path, rng: random.Random, *, size: int) -> None:
        self._root = root
        self._rng = rng
        self._size = size
        self._run_seconds = 0.0
        self._digest = ""
        self.kills = dict.fromkeys(VICTIMS, 0)
        self.inside_saves = self.resumes = self.runs = 0

    def rage(self, kills: int) -> None:
        """So many kills, and so many attempts that trained on from a checkpoint; then the run is finished."""
        self._digest = self._finish(self._root / "whole")
        started = time.monotonic()
        self._finish(self._root / "timed")
        self._run_seconds = time.monotonic() - started
        while min(sum(self.kills.values()), self.resumes) < kills:
            self._strike()
        assert self._finish(self.directory) == self._digest

    def _finish(self, directory: Path) -> str:
        ends = ranks.run(self._size, partial(attempt, directory))
        assert [end.code for end in ends] == [0] * self._size
        found = digest_in(directory)
        assert found is not None
        return found

    @property
    def directory(self) -> Path:
        """Of the run under way."""
        return self._root / str(self.runs)

    def _strike(self) -> None:
        """One attempt, and a kill in it unless it is done before."""
        before = sound_steps(self.directory)
        forget()
        with ranks.start(self._size, partial(attempt, self.directory, before=os.setpgrp)) as world:
            self._hit(world)
            world.end_as_torchrun_does()
            codes = {end.code for end in world.wait()}
        # A rank whose peer has died ends with an error, if it gets to that.
        assert codes <= {0, -signal.SIGKILL} or codes == {1, -signal.SIGKILL}
        wait_for_writers()
        check_after_kill(self.directory, before)
        self.resumes += bool(before) and _trained.value > 0
        if (found := digest_in(self.directory)) is not None:
            assert found == self._digest
            self.runs += 1

    def _hit(self, world: ranks.World) -> None:
        """Kill somebody some time, and the trainer at last, unless it is done before."""
        # One in five may die while it gets ready; the others have resumed by then.
        waits = self._rng.random() < 0.8
        while waits and _trained.value == 0 and not world.ends_within(0.001):
            continue
        victims, writer_first = self._rng.choice(VICTIMS), self._rng.random() < 0.5
        rank = self._rng.randrange(self._size)
        if victims == "writer":
            if not world.ends_within(self._delay()) and kill_writer(rank):
                self._count(victims)
            victims = "trainer"
        if world.ends_within(self._delay()):
            return
        self._count(victims)
        if victims == "both" and writer_first:
            kill_writer(rank)
        world.kill_groups() if victims == "group" else world.kill(rank=rank)
        if victims == "both" and not writer_first:
            kill_writer(rank)

    def _delay(self) -> float:
        return self._rng.uniform(0, 0.25 * self._run_seconds)

    def _count(self, victims: str) -> None:
        self.kills[victims] += 1
        self.inside_saves += _in_flight.value


@pytest.mark.crash
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("size", "kills"), [(1, KILLS), (2, KILLS // 10)])
def test_a_trainer_killed_at_random_moments_loses_at_most_one_interval_each_time(
    size: int, kills: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest_of_a_whole_run(tmp_path / "warm", epochs=SHORT)
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
    started = time.monotonic()
    storm = Storm(tmp_path, random.Random(seed), size=size)
    try:
        storm.rage(kills)
    except BaseException:
        sys.stderr.write(f"\nreplay with {SEED_VARIABLE}={seed}; it failed after {storm.kills} in run {storm.runs}\n")
        raise
    with capsys.disabled():
        print(
            f"\n{size} ranks: {sum(storm.kills.values())} kills "
            f"({', '.join(f'{count} of {who}' for who, count in storm.kills.items())}), "
            f"{storm.inside_saves} inside a save, {storm.resumes} attempts that trained on from a checkpoint, "
            f"{storm.runs + 1} runs, {time.monotonic() - started:.0f} s; {SEED_VARIABLE}={seed}"
        )
    assert storm.inside_saves >= kills // 10
    assert min(storm.kills.values()) >= kills // 20


def forget() -> None:
    """What was seen of the attempt before."""
    _trained.value = _in_flight.value = 0
    _writers[:] = [0] * 2


def kill_writer(rank: int) -> bool:
    """Whether there was one to kill."""
    pid = int(_writers[rank])
    if not pid or not is_running(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def wait_for_writers() -> None:
    """The kernel ends them with their trainers, but not in the same instant."""
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in _writers[:] if pid):
        assert time.monotonic() < deadline, "a writer has survived its trainer"
        time.sleep(0.001)


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
if "piton_trainer.checkpoint.save.writer" in sys.orig_argv:
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
        before, dead = sound_steps(directory), tmp_path / f"{kills}.dead"
        forget()
        dies = partial(writer_dies_at, 1 + kills * every, directory, dead, victims)
        code = ranks.run(1, partial(attempt, directory, epochs=SHORT, before=dies))[0].code
        wait_for_writers()
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
        before = sound_steps(directory)
        forget()
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
