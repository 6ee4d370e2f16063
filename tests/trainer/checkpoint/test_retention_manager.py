"""What is verified stays whole, and what may go goes early when there is no room."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.retention import RetentionManager, with_overhead
from piton_trainer.errors import OutOfSpace
from support import tiny, weights
from support.checkpoints import flip
from support.weights import SAVED, checkpoint, retention, thin, whole

pristine, run = weights.pristine, weights.run


def damage(directory: Path, *steps: int) -> None:
    for step in steps:
        flip(directory / names.step_folder(step) / "__0_0.distcp")


def test_what_is_older_than_a_damaged_one_is_not_let_go_for_it(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(run, 15, 12)
    retention(run, keep_last=2).retain(15)
    assert whole(run) == [15, 12, 9, 6]
    assert "step-000000015 is damaged, and nothing older goes for it: __0_0.distcp has flipped bits" in caplog.text
    assert tiny.train(run, at={10: tiny.terminate}).resumed_from == 9


def test_the_verified_one_stays_until_a_newer_one_is_verified(run: Path) -> None:
    hidden = {step: (run / names.step_folder(step)).rename(run / f"hidden-{step}") for step in (15, 12)}
    same = retention(run, keep_last=1)
    same.retain(9)
    assert whole(run) == [9]
    for step, folder in hidden.items():
        folder.rename(run / names.step_folder(step))
    damage(run, 15)
    same.retain(15)
    assert whole(run) == [15, 12]
    flip(run / names.step_folder(15) / "__0_0.distcp")
    same.committed(15)
    same.retain(15)
    assert whole(run) == [15]


def test_when_the_verified_one_is_taken_away_another_one_is_read_back(run: Path) -> None:
    same = retention(run, keep_last=2)
    (run / names.step_folder(15)).rename(run / "hidden")
    same.retain(12)
    assert whole(run) == [12, 9]
    layout.discard(run / names.step_folder(12))
    (run / "hidden").rename(run / names.step_folder(15))
    for step in (18, 21):
        other = checkpoint(run, names.step_folder(15))
        again = shutil.copytree(other.folder, run / names.step_folder(step))
        (again / names.MANIFEST_FILE).write_text(replace(other.manifest, step=step).to_json())
    damage(run, 21, 18, 15)
    same.retain(21)
    assert whole(run) == [21, 18, 15, 9]


def test_what_is_damaged_goes_when_something_newer_is_verified(run: Path) -> None:
    damage(run, 12)
    same = retention(run, keep_last=9)
    same.retain(15)
    assert whole(run) == [15, 12, 9, 6, 3]
    (run / names.step_folder(15)).rename(run / "hidden")
    same = retention(run, keep_last=1)
    same.retain(12)
    assert whole(run) == [12, 9]
    (run / "hidden").rename(run / names.step_folder(15))
    same.retain(15)
    assert whole(run) == [15]


def test_what_cannot_be_read_is_not_damaged(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: Path, _: object) -> str | None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(layout, "flaw", away)
        same = retention(run, keep_last=2)
        same.retain(15)
    assert whole(run) == [15, 12, 9, 6, 3]
    assert "checkpoints that may go stay for now: [Errno 5]" in caplog.text
    same.retain(15)
    assert whole(run) == [15, 12]


def test_reading_back_stops_when_a_save_is_wanted_but_not_for_ever(run: Path) -> None:
    same = retention(run, keep_last=4)
    same.retain(15, is_wanted=lambda: True)
    assert whole(run) == [15, 12, 9, 6, 3]
    same = retention(run, keep_last=2)
    same.retain(15, is_wanted=lambda: True)
    assert whole(run) == [15, 12]


# Room.


def size_of(directory: Path, step: int) -> int:
    return layout.read_manifest(directory / names.step_folder(step)).size


class Room(layout.Disk):
    """Free are so many bytes, and what goes from the directory."""

    def __init__(self, directory: Path, free: int) -> None:
        self.total = free + self.used(directory)

    def used(self, directory: Path) -> int:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    def free_bytes(self, directory: Path) -> int:
        return max(0, self.total - self.used(directory))


def make_room(directory: Path, *, lacks: float, keep_weights_only: int = 1) -> RetentionManager:
    """For a checkpoint, when so much of one does not fit."""
    size = size_of(directory, 15)
    made = RetentionManager(
        directory,
        policy=SavePolicy(keep_last=4, keep_weights_only=keep_weights_only),
        objective=None,
        disk=Room(directory, int(with_overhead(size) - size * lacks)),
    )
    made.make_room(18, size)
    return made


def test_a_checkpoint_that_fits_costs_none_of_the_others(run: Path) -> None:
    assert make_room(run, lacks=0).free == with_overhead(size_of(run, 15))
    assert (whole(run), thin(run)) == (list(reversed(SAVED)), [])


def test_for_one_that_does_not_fit_the_last_ones_go_first(run: Path) -> None:
    make_room(run, lacks=1)
    assert (whole(run), thin(run)) == ([15], [12])


def test_then_the_weights_go(run: Path) -> None:
    weights = sum(size_of(run, step) for step in SAVED[:-1])
    make_room(run, lacks=weights / size_of(run, 15), keep_weights_only=4)
    assert (whole(run), thin(run)) == ([15], [])


def test_and_what_is_verified_never_goes(run: Path) -> None:
    damage(run, 15)
    with pytest.raises(
        OutOfSpace, match=r"is full: step 18 needs [0-9,]+ bytes with .*, [0-9,]+ are missing; the checkpoints"
    ):
        make_room(run, lacks=99)
    assert (whole(run), thin(run)) == ([15, 12], [])
