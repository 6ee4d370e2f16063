"""Hypothesis drives one checkpoint directory: attempts claim, save, die at any file operation, meet a failing disk.

Bits flip, people prune, attempts that were overtaken go on as if nothing had happened. After each move: whatever is
there is whole or was damaged by us, what was durable stays until retention takes it, and a resume never goes back.
"""

import errno
import os
import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from piton.cli import checkpoints
from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import Saved, inspect
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence, read
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.loader import newest_step
from piton_trainer.checkpoint.save.commit import ManifestDraft
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.checkpoint.save.messages import Answer, Commit, Request, Sealed, Write, WriterSettings
from piton_trainer.checkpoint.save.writer import Writer
from support import ranks
from support.clocks import FakeClock
from support.faults import Fault, Faults

KEEP_LAST = 2
WEIGHTS = "weights"
PRUNE = checkpoints.RetentionRule(keep_last=KEEP_LAST, keep_best=0, metric=None, goal="Minimize")
CODES = st.none() | st.sampled_from([errno.ENOSPC, errno.EIO, errno.ESTALE])
READ_CODES = st.sampled_from([errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EAGAIN])
MAYBE_A_FAULT = st.none() | st.none() | st.builds(Fault, st.integers(1, 16), CODES)
MEMORY = os.memfd_create("memory")
happened: Counter[str] = Counter()


class Attempt:
    """A trainer's writer, as far as the directory can tell."""

    def __init__(self, settings: WriterSettings) -> None:
        self.owner = settings.owner
        self.writer = Writer(settings, MEMORY)


class RandomDirectory(RuleBasedStateMachine):
    """One directory, one adversary."""

    faults: Faults

    def __init__(self) -> None:
        super().__init__()
        happened["directories"] += 1
        self.directory = Path(tempfile.mkdtemp())
        self.highest = 0
        self.attempts: list[Attempt] = []
        self.good: dict[int, bytes] = {}
        self.flipped: set[int] = set()
        self.committing: tuple[int, bytes] | None = None
        """What may or may not be there after a commit that was disturbed."""
        self.may_delete = False

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    def holder(self) -> str | None:
        """Who may commit."""
        found = read(self.directory)
        return None if found is None else found.owner

    # --- attempts ----------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.claim(None)

    @precondition(lambda self: len(self.attempts) < 3)
    @rule(fault=MAYBE_A_FAULT)
    def claim(self, fault: Fault | None) -> None:
        number = self.highest + 1
        fence = Fence(self.directory, disk=layout.Disk(), attempt=number)
        try:
            with self.faults.armed(self.directory, fault):
                fence.claim()
        except OSError:
            assert self.faults.struck is not None
        found = read(self.directory)
        self.highest = 0 if found is None else found.attempt
        assert self.highest in (number - 1, number)
        if self.faults.struck is None:
            assert self.highest == number
            assert [path.name for path in self.directory.iterdir() if path.name.startswith((".saving", ".swept"))] == []
            self.attempts.append(Attempt(self.settings(fence)))
        self.note()

    def settings(self, fence: Fence) -> WriterSettings:
        return WriterSettings(
            directory=self.directory,
            attempt=fence.attempt,
            owner=fence.owner,
            is_main=True,
            policy=SavePolicy(keep_last=KEEP_LAST),
            objective=None,
        )

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        content=st.binary(min_size=1, max_size=8),
        is_overtaken=st.booleans(),
        first=MAYBE_A_FAULT,
        second=MAYBE_A_FAULT,
    )
    def save(
        self, data: st.DataObject, content: bytes, is_overtaken: bool, first: Fault | None, second: Fault | None
    ) -> None:
        """By whoever thinks that it may; perhaps somebody claims in the middle of it."""
        attempt = data.draw(st.sampled_from(self.attempts))
        step = max(self.good, default=0) + 1
        os.pwrite(MEMORY, b"{}" + content, 0)
        small = [FilePart("state.json", 0, 2), FilePart(WEIGHTS, 2, len(content))]
        answer = self.execute(attempt, Write(step=step, parts=[], small=small), first)
        if not isinstance(answer, Sealed):
            assert self.faults.struck is not None or self.holder() != attempt.owner
            return
        assert self.holder() == attempt.owner
        if is_overtaken:
            self.claim(None)
        self.committing = step, content
        draft = ManifestDraft(step=step, world_size=1, metrics={}, versions={}, created="2026-01-01T00:00:00+00:00")
        answer = self.execute(attempt, Commit(draft=draft, files=None), second)
        if self.holder() != attempt.owner:
            assert not isinstance(answer, Saved)
            self.committing = None
            happened["fenced"] += 1
        elif isinstance(answer, Saved):
            self.good[step], self.committing = content, None
            happened["saved"] += 1
        else:
            assert self.faults.struck is not None

    def execute(self, attempt: Attempt, order: Request, fault: Fault | None) -> Answer | None:
        """What the writer answers; None: it has died."""
        answers = []
        with self.faults.armed(self.directory, fault):
            answers.append(attempt.writer.execute(order))
        if not answers:
            self.attempts.remove(attempt)
        self.note()
        return answers[0] if answers else None

    @precondition(lambda self: self.attempts and self.good)
    @rule(data=st.data(), fault=MAYBE_A_FAULT)
    def retain(self, data: st.DataObject, fault: Fault | None) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        step = max(self.good)
        saved = Saved(step=step, folder=self.directory / names.step_folder(step), size=0)
        try:
            with self.faults.armed(self.directory, fault):
                attempt.writer.follow_up(saved, is_wanted=lambda: False)
        except OSError:
            assert self.faults.struck is not None
        self.may_delete = True
        happened["retained"] += 1
        self.note()

    @precondition(lambda self: self.good)
    @rule(operation=st.integers(1, 16), code=READ_CODES)
    def look_for_the_newest(self, operation: int, code: int) -> None:
        """As a restore does first, on a volume that fails for a moment."""
        retry = Retry(FakeClock())
        with self.faults.armed(self.directory, Fault(operation, code)):
            newest = newest_step(self.directory, retry)
        assert newest is not None
        assert newest >= max(self.good), "a resume goes back"
        happened["looked"] += self.faults.struck is not None

    # --- the world ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.good)
    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.good)))
        folder = self.directory / names.step_folder(step)
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        del self.good[step]
        self.flipped.add(step)
        happened["flipped"] += 1

    @precondition(lambda self: self.good)
    @rule(fault=MAYBE_A_FAULT)
    def prune(self, fault: Fault | None) -> None:
        try:
            with self.faults.armed(self.directory, fault):
                checkpoints.prune(self.directory, PRUNE, dry_run=False)
        except (OSError, ValueError):
            assert self.faults.struck is not None
        self.may_delete = True
        happened["pruned"] += 1
        self.note()

    def note(self) -> None:
        if (struck := self.faults.struck) is not None:
            happened["killed" if struck.code is None else "failed"] += 1

    @invariant()
    def what_is_there_is_whole_and_nothing_is_lost(self) -> None:
        found = inspect.survey(self.directory)
        bad = {check.found.step for check in inspect.verify(found) if check.problem}
        assert bad <= self.flipped, "torn"
        there = {item.step: (item.folder / WEIGHTS).read_bytes() for item in found if item.step not in bad}
        expected = self.good if self.committing is None else self.good | dict([self.committing])
        assert there.items() <= expected.items(), "what was never saved"
        gone = self.good.keys() - there.keys()
        newest = sorted(self.good.keys() | self.flipped)[-KEEP_LAST:]
        assert not gone or (self.may_delete and not gone & set(newest)), "what was durable is lost"
        assert max(there, default=0) >= max(self.good, default=0), "a resume goes back"
        assert (best := inspect.newest_good(found)) is None or best.step == max(there)
        self.good, self.flipped, self.committing, self.may_delete = there, bad, None, False


def play(examples: int) -> Counter[str]:
    # Power is not lost here, so that what a process has written stays.
    os.fsync = lambda _: None  # type: ignore[assignment]
    RandomDirectory.faults = Faults()
    rules = settings(max_examples=examples, stateful_step_count=30, deadline=None, database=None)
    run_state_machine_as_test(RandomDirectory, settings=rules)
    return happened


@pytest.mark.parametrize("examples", [25, pytest.param(300, marks=[pytest.mark.crash, pytest.mark.timeout(1200)])])
def test_a_checkpoint_directory_survives_whatever_happens_to_it(examples: int) -> None:
    with ranks.start(1, partial(play, examples)) as world:
        (end,) = world.wait(timeout_seconds=1000)
    assert end.code == 0
    assert end.result.keys() >= {"saved", "fenced", "killed", "failed", "flipped", "pruned", "retained", "looked"}
