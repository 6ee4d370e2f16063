"""`piton checkpoint ls`, `verify` and `restore` of a bucket."""

import json
from pathlib import Path

import pytest

from piton_trainer.s3 import reader
from support import s3
from support.mirrored import MIB, SHARD, Contents, Volume, call


def test_people_restore_by_hand(
    volume: Volume, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume.commit(4)
    assert volume.mirrored(4)

    assert call(monkeypatch, "restore", f"{uri}/run", str(tmp_path / "mine")) == 0
    assert capsys.readouterr().out == f"step 4 of attempt 1 is restored into {tmp_path / 'mine'}\n"
    assert (tmp_path / "mine" / "step-000000004" / SHARD).exists()
    assert call(monkeypatch, "restore", uri, str(tmp_path / "other")) == 2
    assert "has no checkpoint; name the folder of the run" in capsys.readouterr().err
    assert call(monkeypatch, "restore", f"s3://no-such-bucket-{s3.BUCKET}/run", str(tmp_path / "other")) == 2
    assert "cannot be read: " in capsys.readouterr().err
    assert call(monkeypatch, "restore", "gs://bucket", str(tmp_path / "other")) == 2
    assert not (tmp_path / "other").exists()


def test_people_see_what_is_in_the_bucket(
    volume: Volume, bucket: Contents, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume.commit(4, val_loss=0.5)
    volume.commit(6, val_loss=0.25)
    assert volume.mirrored(6)
    bucket.client.delete_object(Bucket=s3.BUCKET, Key=bucket.place.key(max(bucket.folders()), "state.json"))

    assert call(monkeypatch, "ls", f"{uri}/run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert call(monkeypatch, "ls", f"S3{uri[2:]}/run", "--json") == 0
    found = json.loads(capsys.readouterr().out)

    assert [line.split()[0] for line in lines[1:3]] == ["6", "4"]
    assert "val_loss 0.25" in lines[1]
    assert lines[1].split()[-1] == "newest"
    assert lines[3] == "fence: held by attempt 1"
    assert [(row["step"], row["problem"]) for row in found["checkpoints"]] == [(6, "state.json is missing"), (4, None)]


def test_people_verify_what_is_in_the_bucket_by_its_bytes(
    volume: Volume, bucket: Contents, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reader, "PIECE_BYTES", MIB)
    good = volume.commit(4, size=6 * MIB)  # in parts, and read in pieces
    bad = volume.commit(6)
    assert volume.mirrored(6)
    assert volume.mirrored(4)
    assert call(monkeypatch, "verify", f"{uri}/run") == 0
    assert capsys.readouterr().out == "2 of 2 checkpoints are good\n"

    bucket.write(bytes(1000), bad, SHARD)

    assert call(monkeypatch, "verify", f"{uri}/run") == 1
    assert capsys.readouterr().out == (
        f"{bad}: {SHARD} has flipped bits: its digest is another\n1 of 2 checkpoints are good\n"
    )
    assert call(monkeypatch, "verify", f"{uri}/run", "--step", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "checkpoints": 1, "good": 1, "bytes": 6 * MIB + 2, "problems": []
    }  # fmt: skip
    bucket.client.delete_object(Bucket=s3.BUCKET, Key=bucket.place.key(bad, SHARD))
    assert call(monkeypatch, "verify", f"{uri}/run", "--step", "6") == 1
    assert capsys.readouterr().out == f"{bad}: {SHARD} is missing\n0 of 1 checkpoints are good\n"
    assert call(monkeypatch, "verify", f"{uri}/run", "--step", "5") == 2
    assert "has no checkpoint of step 5; it has 6, 4" in capsys.readouterr().err
    assert bucket.folders().keys() == {good, bad}


def test_a_download_that_is_cut_in_the_middle_goes_on_with_its_piece(
    volume: Volume, proxy: s3.Proxy, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE_BYTES", 600)
    volume.commit(4, size=1000)
    assert volume.mirrored(4)
    before = len(proxy.seen)
    proxy.fail(method="GET", key="distcp", half=True)

    assert call(monkeypatch, "verify", f"{uri}/run") == 0

    assert sum("distcp" in line for line in proxy.seen[before:] if line.startswith("GET")) == 3
