"""Volumes behind a network: answers that are lost, requests that are sent twice, files that somebody still has open."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence, read
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer
from piton_trainer.checkpoint.save.commit import is_good
from piton_trainer.clock import Clock
from piton_trainer.errors import Fenced, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from support import tiny


class Nfs:
    """What a client of NFS makes of some system calls."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.held: set[str] = set()
        """Names of files that somebody has open: they cannot be deleted, only hidden."""

    def lose_answers(self, call: str) -> None:
        """Each is done, but the answer is lost; the request that is sent again finds it done."""
        real = getattr(os, call)

        def twice(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            real(*arguments, **options)

        self._patch.setattr(os, call, twice)

    def hold(self, name: str) -> None:
        """Somebody has a file of this name open."""
        self.held.add(name)
        real = os.unlink

        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            name = os.fspath(path).rsplit("/", 1)[-1]
            if name.startswith(".nfs") and self.held:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            if name in self.held:
                os.rename(path, os.fspath(path).replace(name, ".nfs0001"), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            else:
                real(path, dir_fd=dir_fd)

        self._patch.setattr(os, "unlink", unlink)


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> Nfs:
    return Nfs(monkeypatch)


@pytest.fixture
def fence(tmp_path: Path) -> Fence:
    fence = Fence(tmp_path, disk=layout.Disk(), attempt=1)
    fence.claim()
    return fence


@pytest.fixture
def save(fence: Fence, tmp_path: Path) -> Callable[[int], None]:
    saver = BlockingCheckpointer(
        tmp_path, ranks=Ranks(), fence=fence, policy=SavePolicy(), disk=layout.Disk(), clock=Clock()
    )
    return lambda step: saver.save(Snapshot(step=step, tensors={"a": torch.full((3,), float(step))}))


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def good(directory: Path) -> list[int]:
    return [step for step, folder in layout.step_folders(directory) if is_good(folder)]


@pytest.mark.parametrize("call", ["rename", "mkdir", "replace"])
def test_an_answer_that_is_lost_costs_nothing(call: str, nfs: Nfs, tmp_path: Path, save: Callable[[int], None]) -> None:
    nfs.lose_answers(call)
    for step in (1, 2, 3, 4):
        save(step)
    assert left(tmp_path) == [names.FENCE_FILE, names.step_folder(3), names.step_folder(4)]
    assert good(tmp_path) == [4, 3]


def test_a_claim_survives_lost_answers(nfs: Nfs, tmp_path: Path) -> None:
    (tmp_path / f"{names.SAVING_PREFIX}step-000000008-1-abcdefgh").mkdir()
    nfs.lose_answers("rename")
    nfs.lose_answers("replace")
    Fence(tmp_path, disk=layout.Disk(), attempt=7).claim()
    holder = read(tmp_path)
    assert holder is not None
    assert (holder.attempt, left(tmp_path)) == (7, [names.FENCE_FILE])


def test_a_whole_run_survives_lost_answers(nfs: Nfs, tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    directory.mkdir()
    for call in ("rename", "mkdir", "replace"):
        nfs.lose_answers(call)
    assert tiny.train(directory, assignment=tiny.every(3, keep_weights_only=1)).code == 0
    assert left(directory) == [
        names.COMPLETE_FILE,
        names.FENCE_FILE,
        names.step_folder(12),
        names.step_folder(15),
        names.weights_folder(9),
    ]


def test_a_folder_that_somebody_else_took_away_is_not_taken_for_one_that_arrived(
    tmp_path: Path, fence: Fence, save: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim of a newer attempt sweeps it, and that attempt has a checkpoint of the same step already."""
    real = os.rename

    def sweep(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith(names.step_folder(2)):
            real(source, tmp_path / "elsewhere")
            Path(target).mkdir()
            (Path(target) / names.MANIFEST_FILE).write_text("of somebody else")
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", sweep)
    save(1)
    with pytest.raises(VolumeLost, match="No such file or directory"):
        save(2)
    assert good(tmp_path) == [1]


def test_a_stale_handle_does_not_hide_that_the_fence_is_gone(
    tmp_path: Path, save: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def stale(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith(names.step_folder(2)):
            Fence(tmp_path, disk=layout.Disk(), attempt=2).claim()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", stale)
    save(1)
    with pytest.raises(Fenced, match="attempt 2 has claimed"):
        save(2)


def test_what_somebody_has_open_is_swept_when_it_is_closed(
    nfs: Nfs, tmp_path: Path, save: Callable[[int], None]
) -> None:
    nfs.hold("__0_0.distcp")
    for step in (1, 2, 3):
        save(step)
    assert good(tmp_path) == [3, 2]
    assert [name[: len(layout.SWEPT_PREFIX)] for name in left(tmp_path)[:1]] == [layout.SWEPT_PREFIX]
    nfs.held.clear()
    save(4)
    assert left(tmp_path) == [names.FENCE_FILE, names.step_folder(3), names.step_folder(4)]


def test_a_file_system_that_knows_no_fsync_of_folders_will_do(
    tmp_path: Path, save: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(1)
    assert good(tmp_path) == [1]
