"""A run restores from a bucket only what it can prove to be its own; a restore by hand leaves the proof."""

import shutil
import sys
from pathlib import Path

import pytest

from piton.cli import main
from piton.contract.assignment import Assignment, MirrorPolicy, SavePolicy
from piton.local import own_files
from piton_trainer.mirror import client
from piton_trainer.telemetry import telemetry
from support import s3, tiny
from support.mirrored import HASTY, QUICK, Contents, Volume, wait_for


def restore_by_hand(monkeypatch: pytest.MonkeyPatch, place: str, directory: Path) -> object:
    monkeypatch.setattr(sys, "argv", ["piton", "checkpoint", "restore", place, str(directory)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize("durable_step", [None, 99], ids=["nothing was saved", "the volume is lost"])
@pytest.mark.parametrize("attempt", [2, 99])
def test_an_attempt_of_another_run_proves_nothing_however_high_its_number(
    attempt: int, durable_step: int | None, lost: Volume, bucket: Contents, tmp_path: Path
) -> None:
    before = bucket.folders(), bucket.latest()
    later = Volume(tmp_path / "later", lost.uri, attempt=attempt, uid="another", durable_step=durable_step)

    mirror = later.mirror()
    assert mirror.restore(None) is None
    assert wait_for(lambda: mirror.refusal is not None)  # reported at once, not at the first save
    mirror.close(0)

    assert [path.name for path in later.directory.iterdir()] == ["FENCE"]
    later.commit(99)
    later.mirrored(99)
    assert (bucket.folders(), bucket.latest()) == before


def test_the_machine_of_a_new_run_is_lost_before_its_first_save(
    tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "Timeouts", lambda: QUICK)
    monkeypatch.setattr(client, "Tuning", lambda **_: HASTY)
    orders = Assignment(save=SavePolicy(every_steps=4), mirror=MirrorPolicy(uri=f"{uri}/run"))
    older = tiny.train(tmp_path / "older", assignment=orders, attempt=1, seed=5)
    record = bucket.latest()
    with pytest.raises(tiny.LostError):
        tiny.train(tmp_path / "new", assignment=orders, attempt=1, uid="another", at={3: tiny.vanish})

    ran = tiny.train(tmp_path / "new", assignment=orders, attempt=2, uid="another")

    assert proxy.seen
    assert (ran.code, ran.resumed_from, len(ran.losses)) == (0, None, tiny.STEPS)
    assert ran.digest() != older.digest()
    assert bucket.latest() == record


@pytest.mark.parametrize(
    ("uid", "attempt"), [("uid-of-this-run", 2), ("uid-of-a-new-one", 1)], ids=["the run", "on a new machine"]
)
def test_what_was_restored_by_hand_is_mirrored_on_and_its_loss_is_made_good(
    uid: str, attempt: int, lost: Volume, bucket: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", mine) == 0

    volume = Volume(mine, lost.uri, attempt=attempt, uid=uid)
    assert volume.restored(6) is None
    newer = volume.commit(8)
    assert volume.mirrored(8)

    assert bucket.newest() == newer
    again = Volume(tmp_path / "again", lost.uri, attempt=attempt + 1, uid=uid)
    assert again.restored(None) == 8
    again.commit(9)
    assert again.mirrored(9)
    bucket.assert_sound()


def test_an_attempt_that_comes_back_does_not_take_from_who_went_on(
    lost: Volume, bucket: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", tmp_path / "mine") == 0
    for attempt in (1, 2):
        newest = Volume(tmp_path / "mine", lost.uri, attempt=attempt, uid="new").commit(8 + attempt)
        assert Volume(tmp_path / "mine", lost.uri, attempt=attempt, uid="new").mirrored(8 + attempt)
    old = Volume(tmp_path / "volume", lost.uri, attempt=2)
    old.commit(99)

    old.mirrored(99)

    assert bucket.newest() == newest


def test_a_restore_by_hand_mixes_no_two_runs(
    lost: Volume, tmp_path: Path, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Volume(tmp_path / "other", f"{lost.uri}/other", uid="another")
    other.commit(6)
    assert other.mirrored(6)
    before = other.content(6)

    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", other.directory) == 2

    assert "holds the checkpoints of another run" in capsys.readouterr().err
    assert other.content(6) == before
    shutil.rmtree(other.directory / "step-000000006")
    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", other.directory) == 0


def test_a_folder_that_holds_nothing_but_what_was_restored_can_become_a_runs(
    lost: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs" / "hand"
    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", root / "checkpoints") == 0
    assert own_files.is_restored(root, own_files.RUN)
    assert not own_files.is_restored(root, own_files.SWEEP)

    (root / "checkpoints" / "notes.txt").write_text("mine")
    assert not own_files.is_restored(root, own_files.RUN)
    (root / "checkpoints" / "notes.txt").rename(root / "notes.txt")
    assert not own_files.is_restored(root, own_files.RUN)
    (root / "notes.txt").unlink()
    (root / "checkpoints" / "MIRROR").unlink()
    assert not own_files.is_restored(root, own_files.RUN)


@pytest.mark.parametrize("left", ["step-000000008", "step-000000006", "weights-000000003", "COMPLETE.json"])
def test_a_restore_by_hand_touches_no_checkpoints_that_nothing_is_mirrored_of(
    left: str, lost: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = tmp_path / "stranger"
    (stranger / left).mkdir(parents=True)

    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", stranger) == 2

    assert "holds the checkpoints of another run" in capsys.readouterr().err
    assert [path.name for path in stranger.iterdir()] == [left]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("state", ["{}", '{"name": "hand", "created": "", "spec": {}, "status": {}}'])
def test_a_runs_folder_stands_for_its_checkpoints(
    state: str, is_there: bool, lost: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hand"
    root.mkdir()
    (root / "state.json").write_text(state)
    if is_there:
        (root / "checkpoints").mkdir()
    elif state == "{}":
        pytest.skip("nothing says that it is a run's")

    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", root) == 0

    assert {path.name for path in root.iterdir()} == {"state.json", "checkpoints"}
    assert {path.name for path in (root / "checkpoints").iterdir()} == {"MIRROR", "step-000000006"}


def test_a_restore_that_fails_proves_nothing(
    lost: Volume, bucket: Contents, proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fail(method="GET", key="distcp", code="InvalidObjectState", times=1000)
    assert restore_by_hand(monkeypatch, f"{lost.uri}/run", tmp_path / "mine") == 2
    proxy.heal()
    before = bucket.folders(), bucket.latest()

    assert not (tmp_path / "mine" / "MIRROR").exists()
    new = Volume(tmp_path / "mine", lost.uri, attempt=1, uid="new")
    assert new.restored(None) is None
    new.commit(2)
    new.mirrored(2)
    assert (bucket.folders(), bucket.latest()) == before
