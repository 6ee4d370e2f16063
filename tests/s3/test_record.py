"""A `latest` that is no record: what lies beside it is still read, and nothing that Piton says costs the only copy."""

import shutil
from pathlib import Path

import pytest

from piton.contract import names
from piton_trainer.errors import BadConfig
from support.mirrored import Contents, Volume, call, wait_for

RECORDS = {
    "empty": "",
    "no-object": "[]",
    "nothing": "null",
    "torn": '{"format":1',
    "no-fields": "{}",
    "no-lineage": '{"format":1,"attempt":1,"owner":"o","newest":null}',
    "empty-lineage": '{"format":1,"attempt":1,"owner":"o","lineage":"","newest":null}',
    "lineage-of-words": '{"format":1,"attempt":1,"owner":"o","lineage":"a 7","newest":null}',
    "infinite": '{"format":1,"attempt":1e400,"owner":"o","lineage":"l","newest":null}',
    "deep": "[" * 100_000,
    "newest-is-a-word": '{"format":1,"attempt":1,"owner":"o","lineage":"l","newest":"step"}',
    "format-is-a-word": '{"format":"one","attempt":1,"owner":"o","lineage":"l","newest":null}',
}
NEWER = '{"format":2}'


@pytest.fixture(params=RECORDS)
def odd(request: pytest.FixtureRequest, lost: Volume, bucket: Contents) -> Volume:
    bucket.write(RECORDS[request.param].encode(), "latest")
    return lost


def test_a_run_is_refused_and_says_what_is_there(odd: Volume, bucket: Contents) -> None:
    before = bucket.folders()
    with pytest.raises(BadConfig, match="latest in the bucket is not one of ours") as end:
        odd.restored(None)
    assert "checkpoints beside it are untouched: restore them by hand" in end.value.detail
    assert "delete" not in end.value.detail
    odd.commit(8)

    mirror = odd.mirror()
    mirror.committed(8)

    assert wait_for(lambda: mirror._state.is_refused)
    mirror.close(0)
    assert bucket.folders() == before


def test_people_still_read_what_is_there(
    odd: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "ls", f"{odd.uri}/run") == 0
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == ["6", "4", "fence:"]
    assert "latest in the bucket is not one of ours" in told.err

    assert call(monkeypatch, "restore", f"{odd.uri}/run", str(tmp_path / "mine")) == 0

    assert (tmp_path / "mine" / names.step_folder(6)).is_dir()
    assert not (tmp_path / "mine" / names.MIRROR_FILE).exists(), "nothing proves whose these are"


def test_the_record_of_a_newer_version(
    lost: Volume, bucket: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.write(NEWER.encode(), "latest")

    with pytest.raises(BadConfig, match=r"has format 2, which a newer Piton writes; use the version of Piton"):
        lost.restored(None)

    assert call(monkeypatch, "restore", f"{lost.uri}/run", str(tmp_path / "mine")) == 2
    assert "a newer Piton writes" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_manifest_that_is_nested_deeply_is_torn(lost: Volume, bucket: Contents) -> None:
    newest = bucket.newest()
    assert newest
    bucket.write(b"[" * 100_000, newest, names.MANIFEST_FILE)

    assert lost.restored(None) == 4


def test_a_volume_that_was_restored_by_hand_is_restored_again_by_its_first_attempt(
    lost: Volume, bucket: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "restore", f"{lost.uri}/run", str(tmp_path / "mine")) == 0
    shutil.rmtree(tmp_path / "mine" / names.step_folder(6))

    assert Volume(tmp_path / "mine", lost.uri, attempt=1, uid="new").restored(None) == 6
