"""Reads that fail are tried again: no good checkpoint is called damaged, and no run goes back further than it must."""

import logging
import os
import random
import shutil
from collections import Counter
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch

import piton_trainer
from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Saved, Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.file_digest import digest_of
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.format.retry import READ_SECONDS, Retry
from piton_trainer.checkpoint.load import loader
from piton_trainer.checkpoint.load.rank_loader import Targets
from piton_trainer.checkpoint.save.commit import Committer, ManifestDraft
from piton_trainer.errors import Stopped, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.checkpoints import checkpointer, flip
from support.clocks import FakeClock
from support.failing_reads import CALLS, CODES, failing_reads
from support.pristine import NEWER, OLDER

DATA = b"numbers"
TURNED = torch.arange(6.0).view(2, 3).t()


def resumed_from(directory: Path, clock: FakeClock, *, before: tiny.Event = lambda _: None) -> int | None:
    """The step that a session picks, without training."""
    with piton_trainer.session(tiny.config(directory), clock=clock) as session:
        before(session)
        restored = session.restore(model=tiny.build())
    return None if restored is None else restored.step


@pytest.mark.parametrize("call", CALLS)
def test_a_volume_that_fails_for_a_minute_costs_that_minute_and_no_step(
    call: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    failed = Counter[str]()

    def fails(name: str) -> bool:
        failed[name] += name == call and clock.monotonic() < 60
        return name == call and clock.monotonic() < 60

    with failing_reads(directory, fails):
        assert resumed_from(directory, clock) == NEWER
    assert failed[call] > 0
    assert "passed over" not in caplog.text


@pytest.mark.parametrize("call", ["open", "read", "preadv", "stat", "list"])
def test_a_volume_that_fails_for_longer_ends_the_attempt_and_the_next_one_resumes_where_this_one_should_have(
    call: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    with failing_reads(directory, lambda name: name == call), pytest.raises(VolumeLost, match="could not be read for"):
        resumed_from(directory, clock)
    assert READ_SECONDS / 2 < clock.monotonic() < 3 * READ_SECONDS
    assert "passed over" not in caplog.text
    assert resumed_from(directory, FakeClock()) == NEWER


def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_absent(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_dir", os.path.isdir)  # as in Python 3.14
    with failing_reads(directory, lambda call: call == "stat"), pytest.raises(OSError, match=str(directory)):
        layout.step_folders(directory)


def test_a_checkpoint_that_is_deleted_while_others_are_listed_is_none(directory: Path) -> None:
    found = layout.committed(directory)
    assert next(found).manifest.step == NEWER
    shutil.rmtree(directory / names.step_folder(OLDER))
    assert list(found) == []


@pytest.fixture
def turned(tmp_path: Path) -> CommittedCheckpoint:
    """A checkpoint of one tensor, whose numbers are in an order that is left to torch."""
    with checkpointer(tmp_path, background=False) as saver:
        saver.save(Snapshot(step=NEWER, tensors={"turned": TURNED}))
    return next(layout.committed(tmp_path))


def test_what_is_left_to_torch_is_read_again_as_well(turned: CommittedCheckpoint) -> None:
    clock, directory = FakeClock(), turned.folder.parent
    loaded = loader.load_newest(directory, Ranks(), lambda _: Targets(fresh={"turned": None}), retry=Retry(clock))
    assert loaded is not None
    with failing_reads(directory, lambda _: clock.monotonic() < 60):
        assert torch.equal(loaded.settle()["turned"], TURNED)
    assert clock.monotonic() >= 60


def test_who_loads_tensors_without_a_session_hears_of_a_volume_that_fails_as_of_any_file(
    turned: CommittedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Retry", partial(Retry, FakeClock()))
    reads = count()

    def fails(call: str) -> bool:
        return call == "read" and next(reads) > 0  # the index is read first

    with failing_reads(turned.folder, fails), pytest.raises(OSError, match=r"cannot be loaded: .* could not be read"):
        loader.load_tensors(turned, {"turned": None})


def test_a_stop_does_not_wait_for_a_volume_that_fails(directory: Path) -> None:
    clock = FakeClock()
    stopped = pytest.raises(Stopped, match="told to stop while")
    with failing_reads(directory, lambda name: name == "preadv"), stopped:
        resumed_from(directory, clock, before=tiny.terminate)
    assert clock.monotonic() < 1


def test_what_a_volume_answers_is_not_asked_again(tmp_path: Path) -> None:
    clock = FakeClock()
    with pytest.raises(FileNotFoundError):
        Retry(clock)((tmp_path / "nothing").read_bytes, tmp_path / "nothing")
    assert clock.monotonic() == 0


def test_the_volume_is_given_more_and_more_time(tmp_path: Path) -> None:
    clock, tries = FakeClock(), list[float]()

    def fail() -> None:
        tries.append(clock.monotonic())
        raise OSError(CODES[0], os.strerror(CODES[0]))

    with pytest.raises(VolumeLost, match="Connection timed out"):
        Retry(clock)(fail, tmp_path)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert max(pauses) == pytest.approx(10.0)
    assert READ_SECONDS - 10 < tries[-1] <= READ_SECONDS


def restore_again_and_again(root: Path, pristine: Path, *, times: int, seed: int) -> Counter[str]:
    """Restores with reads that fail at random, of checkpoints some of which are damaged; what happened."""
    rng = random.Random(seed)
    happened = Counter[str]()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment]
    logging.getLogger("piton_trainer").addHandler(handler)
    for number in range(times):
        directory = Path(shutil.copytree(pristine, root / f"{os.environ['RANK']}-{number}"))
        is_damaged = rng.random() < 0.3
        if is_damaged:
            damaged = rng.choice(sorted((directory / names.step_folder(NEWER)).iterdir()))
            flip(damaged, rng.randrange(damaged.stat().st_size))
        chance, silent_seconds, clock = rng.choice([0.01, 0.05]), rng.choice([0, 0, 90]), FakeClock()

        def fails(call: str, chance: float = chance, until: float = silent_seconds, clock: FakeClock = clock) -> bool:
            failed = clock.monotonic() < until or rng.random() < chance
            happened[call] += failed
            return failed

        with failing_reads(directory, fails, rng=rng):
            step = resumed_from(directory, clock)
        passed_over = [record for record in records if "passed over" in record.getMessage()]
        assert (step, len(passed_over)) == ((OLDER, 1) if is_damaged else (NEWER, 0)), (number, seed)
        records.clear()
        happened["damaged"] += is_damaged
        happened["restored"] += 1
        shutil.rmtree(directory)
    return happened


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=[pytest.mark.crash, pytest.mark.timeout(1200)])])
def test_no_restore_goes_back_further_than_it_must_however_reads_fail(
    times: int, pristine: Path, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    act = partial(restore_again_and_again, tmp_path, pristine, times=times, seed=seed)
    with ranks.start(1, act) as world:
        (end,) = world.wait(timeout_seconds=1000)
    assert end.code == 0, f"seed {seed}"
    assert end.result["restored"] == times
    assert end.result.keys() >= {*CALLS, "damaged"}, f"seed {seed}"
    print(f"seed {seed}: {dict(end.result)}")


def commit_of_two_ranks(directory: Path, clock: FakeClock) -> Saved:
    """Rank 0 has written its file here; rank 1 says that it has."""
    disk = layout.Disk()
    fence = Fence(directory, disk=disk, attempt=1)
    fence.claim()
    committer = Committer(directory, fence=fence, policy=SavePolicy(), disk=disk, clock=clock)
    committer.begin(1, 8)
    (committer.folder(1) / "__0_0.distcp").write_bytes(DATA)
    entry = FileEntry(size=len(DATA), digest=digest_of(DATA))
    draft = ManifestDraft(step=1, world_size=2, metrics={}, versions={}, created="2026-01-01T00:00:00+00:00")
    return committer.commit(draft, {"__0_0.distcp": entry, "__1_0.distcp": entry})


def test_a_commit_without_the_file_of_another_rank_is_refused(tmp_path: Path) -> None:
    """As where each node has a directory of its own."""
    clock = FakeClock()
    with pytest.raises(VolumeLost, match=r"__1_0\.distcp could not be read for .*do all ranks save into the same"):
        commit_of_two_ranks(tmp_path, clock)
    assert layout.step_folders(tmp_path) == []
    assert clock.monotonic() < 15


def test_a_commit_waits_for_a_file_that_another_node_has_written_a_moment_ago(tmp_path: Path) -> None:
    class Late(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            (folder,) = tmp_path.glob(".saving-*")
            (folder / "__1_0.distcp").write_bytes(DATA)

    assert commit_of_two_ranks(tmp_path, Late()).step == 1
    assert [checkpoint.manifest.step for checkpoint in layout.committed(tmp_path)] == [1]
