"""A checkpoint that is not what its manifest says is noticed, named, and passed over for the one before."""

import errno
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

import piton_trainer
from piton.contract import names
from piton.contract.manifest import FORMAT, sealed
from piton_trainer.checkpoint.format import layout
from piton_trainer.errors import OutOfSpace, VolumeLost
from support import tiny
from support.checkpoints import flip
from support.clocks import FakeClock
from support.disks import FullDisk
from support.pristine import NEWER, OLDER

FILES = ["__0_0.distcp", ".metadata", "state.json"]


@pytest.fixture
def newer(directory: Path) -> Path:
    return directory / names.step_folder(NEWER)


def resumed_from(directory: Path, **config: Any) -> int | None:
    """The step that a session picks, without training."""
    with piton_trainer.session(tiny.config(directory, **config)) as session:
        restored = session.restore(model=tiny.build())
    return None if restored is None else restored.step


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, "has flipped bits"),
    "truncated": (truncate, "bytes instead of"),
    "deleted": (Path.unlink, "is missing"),
}


def test_without_damage_the_newest_checkpoint_is_chosen(directory: Path) -> None:
    assert resumed_from(directory) == NEWER


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_the_older_checkpoint_chosen(
    file: str, kind: str, directory: Path, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, complaint = DAMAGE[kind]
    damage(newer / file)
    assert resumed_from(directory) == OLDER
    assert [r.getMessage() for r in caplog.records if complaint in r.getMessage()] != []
    assert newer.name in caplog.text
    assert file in caplog.text


def test_the_files_of_a_checkpoint_are_those_that_are_tested_here(newer: Path) -> None:
    assert sorted(path.name for path in newer.iterdir()) == sorted([*FILES, names.MANIFEST_FILE])


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_text("{}")])
def test_without_a_valid_manifest_a_folder_is_no_checkpoint(
    damage: Callable[[Path], None], directory: Path, newer: Path
) -> None:
    damage(newer / names.MANIFEST_FILE)
    assert resumed_from(directory) == OLDER


def test_a_manifest_of_another_step_makes_no_checkpoint(directory: Path, newer: Path) -> None:
    newer.rename(directory / names.step_folder(9))
    assert resumed_from(directory) == OLDER


def test_when_every_checkpoint_is_damaged_the_run_starts_afresh_only_if_the_user_allows_it(directory: Path) -> None:
    for _, folder in layout.step_folders(directory):
        flip(folder / "__0_0.distcp")
    ran = tiny.train(directory)
    assert (ran.code, ran.losses) == (82, {})
    assert ran.error.startswith(
        f"none of the 2 checkpoints in {directory} is whole; to train from step 0 all the same,"
    )
    assert [step for step, _ in layout.step_folders(directory)] == [NEWER, OLDER]
    assert resumed_from(directory, allow_fresh_start=True) is None


def test_a_run_whose_reported_checkpoint_is_gone_starts_afresh_only_if_the_user_allows_it(tmp_path: Path) -> None:
    with pytest.raises(VolumeLost, match=f"step 400 was saved, and there is no checkpoint in {tmp_path} any more; to"):
        resumed_from(tmp_path, durable_step=400)
    assert resumed_from(tmp_path, durable_step=400, allow_fresh_start=True) is None


def test_a_run_that_was_preempted_before_its_first_save_starts_again_by_itself(tmp_path: Path) -> None:
    with pytest.raises(tiny.LostError):
        tiny.train(tmp_path, at={2: tiny.vanish})
    assert resumed_from(tmp_path) is None


def test_a_checkpoint_of_a_newer_format_is_not_damaged_and_no_older_one_is_taken(directory: Path, newer: Path) -> None:
    manifest = json.loads((newer / names.MANIFEST_FILE).read_text())
    del manifest["sha256"]
    (newer / names.MANIFEST_FILE).write_text(sealed({**manifest, "format": FORMAT + 1}))
    ran = tiny.train(directory)
    assert (ran.code, ran.losses) == (82, {})
    assert f"{newer} cannot be resumed from: the manifest is of format {FORMAT + 1}; this Piton knows" in ran.error


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved_again(directory: Path, newer: Path) -> None:
    flip(newer / "__0_0.distcp")
    tiny.train(directory, at={NEWER: tiny.terminate})
    assert resumed_from(directory) == NEWER


def test_a_good_checkpoint_is_kept_when_its_step_is_saved_again(directory: Path, newer: Path) -> None:
    before = (newer / names.MANIFEST_FILE).read_text()
    flip_later = directory / names.step_folder(OLDER)
    hidden = newer.rename(directory / "hidden")

    def bring_back(_: piton_trainer.Session) -> None:
        hidden.rename(newer)
        tiny.terminate(_)

    assert tiny.train(directory, at={NEWER: bring_back}).resumed_from == OLDER
    assert flip_later.exists()
    assert (newer / names.MANIFEST_FILE).read_text() == before


class Bomb:
    """What an attacker would put into a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


class Reacher:
    """What an attacker who knows of early Python 3.11 would try."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (Metadata, "__init__")


class EarlyPickler(pickle.Pickler):
    """Writes members of enums as Python 3.11.2 does."""

    def reducer_override(self, thing: object) -> Any:
        return (getattr, (type(thing), thing.name)) if isinstance(thing, Enum) else NotImplemented


def forge(folder: Path, index: object, pickler: type[pickle.Pickler] = pickle.Pickler) -> None:
    """Replace a checkpoint's index by another one, with a manifest that agrees."""
    stream = io.BytesIO()
    pickler(stream).dump(index)
    data = stream.getvalue()
    (folder / ".metadata").write_bytes(data)
    manifest = json.loads((folder / names.MANIFEST_FILE).read_text())
    manifest["files"][".metadata"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    (folder / names.MANIFEST_FILE).write_text(sealed(manifest))


def read_index(folder: Path) -> Metadata:
    index: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return index


def test_a_malicious_index_is_refused_unopened(
    directory: Path, newer: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    forge(newer, Bomb())
    assert resumed_from(directory) == OLDER
    assert not (tmp_path / "exploded").exists()
    assert ".metadata is refused: it asks for pathlib.Path.touch" in caplog.text


def test_an_index_that_an_early_python_wrote_is_read(directory: Path, newer: Path) -> None:
    forge(newer, read_index(newer), EarlyPickler)
    assert b"getattr" in (newer / ".metadata").read_bytes()
    assert resumed_from(directory) == NEWER


def test_what_lets_members_of_enums_in_lets_nothing_else_in(
    directory: Path, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forge(newer, Reacher())
    assert resumed_from(directory) == OLDER
    assert ".metadata is refused: it asks for builtins.getattr" in caplog.text


def test_an_index_with_something_to_unpickle_is_refused(
    directory: Path, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = read_index(newer)
    index.state_dict_metadata["model/0.weight"] = BytesStorageMetadata()
    forge(newer, index)
    assert resumed_from(directory) == OLDER
    assert "metadata.BytesStorageMetadata" in caplog.text


def test_an_index_that_names_a_file_elsewhere_is_refused(
    directory: Path, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = read_index(newer)
    next(iter(index.storage_data.values())).relative_path = "../elsewhere"
    forge(newer, index)
    assert resumed_from(directory) == OLDER
    assert "it names a file that is not in the manifest" in caplog.text


def test_an_index_that_is_no_index_is_refused(directory: Path, newer: Path, caplog: pytest.LogCaptureFixture) -> None:
    forge(newer, {"not": "an index"})
    assert resumed_from(directory) == OLDER
    assert "it is not an index of shards" in caplog.text


@pytest.mark.parametrize("file", ["shard", layout.STATE_FILE, names.MANIFEST_FILE])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_stays_full_keeps_the_older_checkpoint_and_ends_the_run_with_its_code(
    file: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = tiny.train(tmp_path, disk=FullDisk(step=8, file=file, code=code))
    assert (ran.code, max(ran.losses)) == (80, tiny.STEPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        names.END_FILE,
        names.FENCE_FILE,
        names.step_folder(4),
    ]
    said = f"piton: the disk of {tmp_path} is full; the checkpoints that are there are untouched"
    assert capsys.readouterr().err.splitlines()[1:] == [said]
    assert resumed_from(tmp_path) == 4


def test_another_error_of_the_disk_is_no_full_disk(tmp_path: Path) -> None:
    disk = FullDisk(step=8, file="shard", code=errno.EIO)
    ran = tiny.train(tmp_path, disk=disk, clock=FakeClock(), assignment=tiny.every(4, patience_seconds=60))
    assert (ran.code, max(ran.losses)) == (82, tiny.STEPS)
    assert ran.error == (
        f"nothing could be saved for 1m: the volume of {tmp_path} fails (Input/output error); "
        "what it holds is untouched; step 4 is the newest checkpoint"
    )
    assert resumed_from(tmp_path) == 4


def test_a_disk_that_fills_up_inside_a_large_tensor_is_a_full_disk_too(tmp_path: Path) -> None:
    """torch.save then covers the OSError up with a RuntimeError about its own bookkeeping."""
    session = piton_trainer.session(tiny.config(tmp_path), disk=FullDisk(step=1, file="shard"))
    with pytest.raises(OutOfSpace), session:
        train_one_step(session, nn.Linear(50_000, 1))


def train_one_step(session: piton_trainer.Session, model: nn.Module) -> None:
    session.restore(model=model)
    assert list(session.steps([0])) == [0]
