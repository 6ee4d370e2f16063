"""The mirror against a real S3 server, with faults between the two."""

import hashlib
import json
import logging
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from piton.cli import main
from piton.contract import names
from piton.contract.assignment import Assignment, MirrorPolicy, Objective, SavePolicy
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint import layout
from piton_trainer.checkpoint.fence import Fence
from piton_trainer.clock import Clock
from piton_trainer.config import Config, Server
from piton_trainer.errors import BadConfig
from piton_trainer.exporter import Exporter
from piton_trainer.mirror import Lag, follow
from piton_trainer.mirror.bucket import Tuning
from piton_trainer.mirror.follow import Mirror, Patience
from piton_trainer.mirror.place import Latest, Place, folder_of
from support import s3, tiny
from support.status_server import StatusServer

MIB = 1 << 20
QUICK = Patience(backoff=0.02, backoff_max=0.05, restore=0.2, finish=20, stop=20)

HASTY = Tuning(tries=1, chunk_bytes=5 * MIB, connect_seconds=1, read_seconds=5)
ORDERS = Assignment(save=SavePolicy(every_steps=1), objective=Objective(metric="val_loss"))


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://{s3.BUCKET}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"


@dataclass
class Volume:
    """A checkpoint directory with a process that holds it."""

    directory: Path
    uri: str
    attempt: int = 1
    assignment: Assignment = ORDERS
    tuning: Tuning = HASTY

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.fence = Fence(self.directory, disk=layout.Disk(), attempt=self.attempt)
        self.fence.claim()

    def commit(self, step: int, *, size: int = 1000, **metrics: float) -> str:
        """A checkpoint, of bytes that no other attempt's has; the name of its folder in the bucket."""
        folder = self.directory / names.step_folder(step)
        folder.mkdir()
        data = {"__0_0.distcp": f"{self.attempt} {step} ".encode().ljust(size, b"x"), "state.json": b"{}"}
        for name, content in data.items():
            (folder / name).write_bytes(content)
        files = {n: FileEntry(size=len(c), sha256=hashlib.sha256(c).hexdigest()) for n, c in data.items()}
        manifest = Manifest(step=step, attempt=self.attempt, world_size=1, files=files, metrics=metrics)
        (folder / names.MANIFEST_FILE).write_text(manifest.to_json())
        return folder_of(step, manifest.to_json())

    def drop(self, step: int) -> None:
        shutil.rmtree(self.directory / names.step_folder(step))

    def mirror(self, patience: Patience = QUICK) -> Mirror:
        place = Place.parse(self.uri, "run")
        config = Config(checkpoint_dir=self.directory, assignment=self.assignment, attempt=self.attempt)
        return Mirror(
            config,
            place,
            MirrorPolicy(uri=self.uri),
            fence=self.fence,
            clock=Clock(),
            disk=layout.Disk(),
            patience=patience,
            tuning=self.tuning,
        )

    def mirrored(self, step: int) -> bool:
        """Mirror up to this step with a process of its own; whether all is there."""
        mirror = self.mirror()
        mirror.committed(step)
        return mirror.close(20)


@pytest.fixture
def volume(tmp_path: Path, uri: str, proxy: s3.Proxy) -> Volume:
    assert proxy.url
    return Volume(tmp_path / "volume", uri)


@pytest.fixture
def latest(server: s3.Server, uri: str) -> Callable[[], Latest]:
    def read() -> Latest:
        key = Place.parse(uri, "run").key("latest")
        body = server.client.get_object(Bucket=s3.BUCKET, Key=key)["Body"].read()
        return Latest.from_json(body.decode())

    return read


@pytest.fixture
def folders(server: s3.Server, uri: str) -> Callable[[], dict[str, set[str]]]:
    def read() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for key in s3.keys(server.client, Place.parse(uri, "run").prefix):
            folder, _, name = key.partition("/")
            if name:
                found.setdefault(folder, set()).add(name)
        return found

    return read


FILES = {"__0_0.distcp", "state.json", names.MANIFEST_FILE}
Folders = Callable[[], dict[str, set[str]]]
Read = Callable[[], Latest]


def test_a_commit_is_mirrored_and_latest_moves_last(
    volume: Volume, proxy: s3.Proxy, latest: Read, folders: Folders
) -> None:
    folder = volume.commit(4)

    assert volume.mirrored(4)

    pointer = latest().newest
    assert pointer is not None
    assert (pointer.step, pointer.folder, latest().attempt) == (4, folder, 1)
    assert folders() == {folder: FILES}
    writes = [line.split("/run/")[1] for line in proxy.seen if line.startswith("PUT")]
    assert writes[0] == "latest"
    assert {name.rpartition("/")[2] for name in writes[1:3]} == FILES - {names.MANIFEST_FILE}
    assert [name.rpartition("/")[2] for name in writes[3:]] == [names.MANIFEST_FILE, "latest"]


def test_a_large_file_goes_in_parts_and_its_checksum_is_compared(
    volume: Volume, tmp_path: Path, server: s3.Server, uri: str, proxy: s3.Proxy
) -> None:
    folder = volume.commit(4, size=12 * MIB)

    assert volume.mirrored(4)

    key = Place.parse(uri, "run").key(folder, "__0_0.distcp")
    head = server.client.head_object(Bucket=s3.BUCKET, Key=key, ChecksumMode="ENABLED")
    assert head["ContentLength"] == 12 * MIB
    assert head["ChecksumSHA256"].endswith("-3")
    assert sum("partNumber=" in line for line in proxy.seen) == 3
    other = Volume(tmp_path / "other", uri, attempt=2)
    assert other.mirror().restore(None) == 4
    assert content(other, 4) == content(volume, 4)


def test_what_is_there_is_not_sent_again(volume: Volume, proxy: s3.Proxy, folders: Folders) -> None:
    folder = volume.commit(4, size=6 * MIB)
    proxy.fail(method="PUT", key=names.MANIFEST_FILE, code="InternalError", times=1000)
    mirror = volume.mirror(Patience(backoff=60))
    mirror.committed(4)
    assert wait_for(lambda: lag_errors(mirror) > 0)
    mirror.close(0)
    assert folders() == {folder: FILES - {names.MANIFEST_FILE}}
    proxy.heal()
    sent = proxy.bytes

    assert volume.mirrored(4)

    assert folders() == {folder: FILES}
    assert proxy.bytes - sent < MIB


def lag_errors(mirror: Mirror) -> int:
    lag = mirror.lag()
    return 0 if lag is None else lag.errors


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Poll, often."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        pause.wait(0.01)
    return False


def test_uploads_in_parts_that_a_dead_process_left_are_given_up(volume: Volume, server: s3.Server, uri: str) -> None:
    key = Place.parse(uri, "run").key("step-000000002-0123456789abcdef", "__0_0.distcp")
    left = server.client.create_multipart_upload(Bucket=s3.BUCKET, Key=key)["UploadId"]
    server.client.upload_part(Bucket=s3.BUCKET, Key=key, UploadId=left, PartNumber=1, Body=b"x" * 5 * MIB)
    volume.commit(4)

    assert volume.mirrored(4)

    found = server.client.list_multipart_uploads(Bucket=s3.BUCKET, Prefix=Place.parse(uri).prefix)
    assert found.get("Uploads", []) == []


def test_the_bucket_keeps_what_the_rules_keep(volume: Volume, latest: Read, folders: Folders) -> None:
    names_ = {step: volume.commit(step, val_loss=loss) for step, loss in ((2, 0.1), (4, 0.5), (6, 0.4))}
    for step in (2, 4, 6):
        assert volume.mirrored(step)
    names_[8] = volume.commit(8, val_loss=0.6)

    assert volume.mirrored(8)

    assert folders().keys() == {names_[step] for step in (2, 6, 8)}
    assert newest_folder(latest) == names_[8]


def newest_folder(latest: Read) -> str | None:
    pointer = latest().newest
    return None if pointer is None else pointer.folder


def test_a_checkpoint_that_has_gone_bad_is_not_mirrored(
    volume: Volume, latest: Read, folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    good = volume.commit(4)
    volume.commit(6)
    damage(volume.directory / names.step_folder(6) / "__0_0.distcp")

    assert not volume.mirrored(6)

    assert folders() == {good: FILES}
    assert newest_folder(latest) == good
    assert "step-000000006 is not mirrored: __0_0.distcp is not what its manifest says" in caplog.text


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def assert_sound(server: s3.Server, uri: str, folders: Folders) -> None:
    """Whatever has a manifest has all files, each with the content that the manifest says."""
    place = Place.parse(uri, "run")
    for folder, files in folders().items():
        if names.MANIFEST_FILE not in files:
            continue
        body = {
            name: server.client.get_object(Bucket=s3.BUCKET, Key=place.key(folder, name))["Body"].read()
            for name in files
        }
        manifest = Manifest.from_json(body[names.MANIFEST_FILE].decode())
        assert manifest.files.keys() == files - {names.MANIFEST_FILE}
        for name, entry in manifest.files.items():
            assert hashlib.sha256(body[name]).hexdigest() == entry.sha256


@pytest.mark.parametrize("moment", ["__0_0.distcp", names.MANIFEST_FILE, "latest"])
def test_of_two_attempts_at_once_the_higher_one_wins(
    moment: str,
    volume: Volume,
    tmp_path: Path,
    proxy: s3.Proxy,
    server: s3.Server,
    uri: str,
    latest: Read,
    folders: Folders,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each on a volume of its own, so that only the bucket can tell them apart."""
    volume.commit(4)
    assert volume.mirrored(4)
    volume.commit(6)
    newer: list[str] = []

    def overtake(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(moment) and not newer:
            newer.append("")
            second = Volume(tmp_path / "other", uri, attempt=2)
            assert second.mirror().restore(None) == 4
            newer[0] = second.commit(5)
            assert second.mirrored(5)

    proxy.on_request = overtake
    first = volume.mirror()
    first.committed(6)
    first.close(20)

    assert newest_folder(latest) == newer[0]
    assert latest().attempt == 2
    assert_sound(server, uri, folders)
    assert "attempt 2 has" in caplog.text


def test_an_attempt_that_lost_its_volumes_fence_mirrors_nothing(volume: Volume, proxy: s3.Proxy) -> None:
    volume.commit(4)
    Fence(volume.directory, disk=layout.Disk(), attempt=2).claim()

    mirror = volume.mirror()
    mirror.committed(4)
    mirror.close(20)

    assert not any(line.startswith("PUT") for line in proxy.seen)


@pytest.fixture
def lost(volume: Volume, tmp_path: Path, uri: str) -> Volume:
    """The next attempt, on an empty volume, after steps 4 and 6 were mirrored."""
    volume.commit(4)
    volume.commit(6)
    assert volume.mirrored(6)
    return Volume(tmp_path / "empty", uri, attempt=2)


def content(volume: Volume, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (volume.directory / names.step_folder(step)).iterdir()}


def test_an_empty_volume_gets_the_newest_checkpoint(lost: Volume, volume: Volume) -> None:
    assert lost.mirror().restore(None) == 6

    assert content(lost, 6) == content(volume, 6)
    assert {path.name for path in lost.directory.iterdir()} == {"FENCE", "MIRROR", "step-000000006"}


def test_a_volume_with_an_older_checkpoint_gets_the_newer_one(lost: Volume, volume: Volume) -> None:
    shutil.rmtree(volume.directory / names.step_folder(6))
    again = Volume(volume.directory, lost.uri, attempt=3)

    assert again.mirror().restore(4) == 6
    assert again.mirror().restore(6) is None


def test_a_checkpoint_that_is_damaged_in_the_bucket_is_passed_over(
    lost: Volume, server: s3.Server, uri: str, folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    bad = max(folders())
    key = Place.parse(uri, "run").key(bad, "state.json")
    server.client.put_object(Bucket=s3.BUCKET, Key=key, Body=b"[]")

    assert lost.mirror().restore(None) == 4
    assert f"{bad} in the mirror is passed over: state.json is not what the manifest says" in caplog.text
    assert {path.name for path in lost.directory.iterdir()} == {"FENCE", "MIRROR", "step-000000004"}


RESTORE_FAULTS = {
    "500": {"method": "GET", "key": "distcp", "code": "InternalError"},
    "cut": {"method": "GET", "key": "distcp"},
    "slow down": {"code": "SlowDown", "times": 2},
}


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in RESTORE_FAULTS.items()])
def test_restoring_goes_on_after_a_failure(
    fault: dict[str, Any], lost: Volume, volume: Volume, proxy: s3.Proxy
) -> None:
    proxy.fail(**fault)

    assert lost.mirror(Patience(backoff=0.02, restore=20)).restore(None) == 6
    assert content(lost, 6) == content(volume, 6)


def test_retries_and_downloads_leave_the_trainings_random_numbers_alone(lost: Volume, proxy: s3.Proxy) -> None:
    lost.tuning = replace(HASTY, tries=2)
    proxy.fail(method="GET", code="SlowDown")
    before = random.getstate()

    assert lost.mirror().restore(None) == 6

    assert random.getstate() == before
    assert sum(line.endswith("/latest") for line in proxy.seen if line.startswith("GET")) > 1


def test_a_bucket_that_is_gone_ends_an_attempt_only_if_there_is_nothing_else(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(times=10_000)

    assert lost.mirror().restore(4) is None
    with pytest.raises(RuntimeError, match=r"the volume has no checkpoint, and s3://.* is gone"):
        lost.mirror().restore(None)


def test_a_bucket_that_refuses_is_a_wrong_setting(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(code="AccessDenied", times=10_000)

    with pytest.raises(BadConfig, match=r"the volume has no checkpoint, and s3://.* refuses: .*AccessDenied"):
        lost.mirror().restore(None)


def test_a_place_that_holds_something_else_is_left_alone(lost: Volume, server: s3.Server, uri: str) -> None:
    server.client.put_object(Bucket=s3.BUCKET, Key=Place.parse(uri, "run").key("latest"), Body=b"{}")

    assert lost.mirror().restore(4) is None
    with pytest.raises(BadConfig, match="latest in the bucket is not one of ours"):
        lost.mirror().restore(None)
    lost.commit(8)
    mirror = lost.mirror()
    mirror.committed(8)
    assert wait_for(lambda: lag_errors(mirror) > 0)
    assert not mirror.close(0)
    assert server.client.get_object(Bucket=s3.BUCKET, Key=Place.parse(uri, "run").key("latest"))["Body"].read() == b"{}"


def test_the_first_attempt_does_not_ask(volume: Volume, proxy: s3.Proxy) -> None:
    assert volume.mirror().restore(None) is None
    assert proxy.seen == []


def test_another_run_of_the_same_name_neither_takes_nor_overwrites_anything(
    lost: Volume, tmp_path: Path, folders: Folders, latest: Read, caplog: pytest.LogCaptureFixture
) -> None:
    before = folders(), latest()
    fresh = Volume(tmp_path / "fresh", lost.uri, attempt=1)
    fresh.commit(9)
    assert not fresh.mirrored(9)
    third = Volume(fresh.directory, lost.uri, attempt=3)

    assert third.mirror().restore(9) is None
    assert not third.mirrored(9)

    assert (folders(), latest()) == before
    assert "holds the checkpoints of another run, which was at attempt 1; delete them" in caplog.text


def test_uploads_keep_to_their_bandwidth(volume: Volume) -> None:
    volume.tuning = replace(HASTY, bytes_per_second=20 * MIB)
    volume.commit(4, size=12 * MIB)
    began = time.monotonic()

    assert volume.mirrored(4)

    assert time.monotonic() - began > 0.3


def test_people_restore_by_hand(
    volume: Volume, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume.commit(4)
    assert volume.mirrored(4)

    assert call(monkeypatch, "restore", f"{uri}/run", str(tmp_path / "mine")) == 0
    assert capsys.readouterr().out == f"step 4 of attempt 1 is restored into {tmp_path / 'mine'}\n"
    assert (tmp_path / "mine" / "step-000000004" / "__0_0.distcp").exists()
    assert call(monkeypatch, "restore", uri, str(tmp_path / "other")) == 2
    assert "has no checkpoint; name the folder of the run" in capsys.readouterr().err
    assert call(monkeypatch, "restore", f"s3://no-such-bucket-{s3.BUCKET}/run", str(tmp_path / "other")) == 2
    assert "cannot be read: " in capsys.readouterr().err
    assert call(monkeypatch, "restore", "gs://bucket", str(tmp_path / "other")) == 2
    assert not (tmp_path / "other").exists()


def test_people_see_what_is_in_the_bucket(
    volume: Volume, server: s3.Server, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume.commit(4, val_loss=0.5)
    volume.commit(6, val_loss=0.25)
    assert volume.mirrored(6)
    server.client.delete_object(Bucket=s3.BUCKET, Key=Place.parse(uri, "run").key(newest_of(server, uri), "state.json"))

    assert call(monkeypatch, "ls", f"{uri}/run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert call(monkeypatch, "ls", f"{uri}/run", "--json") == 0
    found = json.loads(capsys.readouterr().out)

    assert [line.split()[0] for line in lines[1:3]] == ["6", "4"]
    assert "val_loss 0.25" in lines[1]
    assert lines[1].split()[-1] == "newest"
    assert lines[3] == "fence: held by attempt 1"
    assert [(row["step"], row["problem"]) for row in found["checkpoints"]] == [(6, "state.json is missing"), (4, None)]


def newest_of(server: s3.Server, uri: str) -> str:
    return max(key.partition("/")[0] for key in s3.keys(server.client, Place.parse(uri, "run").prefix) if "/" in key)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["piton", "checkpoint", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


# Whole sessions.


def orders(uri: str) -> Assignment:
    return Assignment(save=SavePolicy(every_steps=4), mirror=MirrorPolicy(uri=uri))


@pytest.fixture
def undisturbed(tmp_path: Path) -> str:
    ran = tiny.train(tmp_path / "undisturbed", assignment=Assignment(save=SavePolicy(every_steps=4)))
    assert ran.complete is not None
    return ran.complete.weights_digest


def test_a_run_whose_volume_is_deleted_restores_and_ends_with_the_same_weights(
    tmp_path: Path, uri: str, proxy: s3.Proxy, undisturbed: str
) -> None:
    directory = tmp_path / "checkpoints"
    assert tiny.train(directory, assignment=orders(uri), attempt=1, at={10: tiny.terminate}).code == 143
    shutil.rmtree(directory)

    ran = tiny.train(directory, assignment=orders(uri), attempt=2, seed=7)

    assert (ran.code, ran.resumed_from) == (0, 10)
    assert ran.complete is not None
    assert ran.complete.weights_digest == undisturbed
    assert proxy.seen


def test_a_bucket_that_is_gone_costs_no_training_and_is_said_once(
    tmp_path: Path,
    uri: str,
    proxy: s3.Proxy,
    undisturbed: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(follow, "Patience", lambda: replace(QUICK, finish=0.2))
    monkeypatch.setattr(follow, "Tuning", lambda **_: HASTY)
    proxy.fail(times=10_000)
    with StatusServer() as server:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=server.url))

    assert ran.code == 0
    assert ran.complete is not None
    assert ran.complete.weights_digest == undisturbed
    assert caplog.text.count("fails, and is tried again") == 1
    assert "is behind: it has step None of 15" in caplog.text
    assert server.reports[-1].metrics["mirror_lag_steps"] == 15
    assert server.reports[-1].metrics["mirror_lag_seconds"] > 0


def test_the_lag_is_reported_and_shown(tmp_path: Path, uri: str, proxy: s3.Proxy) -> None:
    with StatusServer() as server:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=server.url))

    assert ran.code == 0
    assert server.reports[-1].metrics["mirror_lag_steps"] == 0
    assert server.reports[-1].metrics["mirror_lag_seconds"] == 0
    assert proxy.seen


def test_prometheus_sees_the_lag() -> None:
    exporter = Exporter(world_size=1, interval_seconds=5, lag=lambda: Lag(steps=3, seconds=1.5, errors=2))

    text = generate_latest(exporter.registry).decode()

    assert "piton_trainer_mirror_lag_steps 3.0" in text
    assert "piton_trainer_mirror_lag_seconds 1.5" in text
    assert "piton_trainer_mirror_errors_total 2.0" in text


def test_a_place_that_is_none_is_a_wrong_setting(tmp_path: Path) -> None:
    ran = tiny.train(tmp_path / "checkpoints", assignment=orders("gs://bucket"), attempt=1)

    assert (ran.code, ran.error) == (
        78, "checkpoint.mirror: gs://bucket is no place in a bucket; write it like s3://bucket/prefix"
    )  # fmt: skip


FAULTS = {
    "500 while a part is sent": {"method": "PUT", "key": "partNumber=2", "code": "InternalError"},
    "slow down": {"code": "SlowDown", "times": 6},
    "cut before the request arrives": {"method": "PUT", "key": "state.json"},
    "cut before the answer arrives": {"method": "PUT", "key": "state.json", "before": False},
    "cut when parts are put together": {"method": "POST", "key": "uploadId", "before": False},
    "token expired for a while": {"code": "ExpiredToken", "times": 3},
    "the last word is lost": {"method": "PUT", "key": "latest", "before": False, "times": 1},
    "everything is cut for a while": {"times": 5},
}


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name.replace(" ", "-")) for name, fault in FAULTS.items()])
def test_whatever_fails_for_a_while_is_made_up_for(
    fault: dict[str, Any],
    volume: Volume,
    proxy: s3.Proxy,
    latest: Read,
    folders: Folders,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Only what is large goes in parts.
    folder = volume.commit(4, size=6 * MIB if "part" in str(fault) or "upload" in str(fault) else 1000)
    proxy.fail(**fault)

    with caplog.at_level(logging.WARNING, "piton_trainer"):
        mirror = volume.mirror()
        mirror.committed(4)
        assert mirror.close(20)

    pointer = latest().newest
    assert pointer is not None
    assert pointer.folder == folder
    assert folders() == {folder: FILES}
    assert lag_errors(mirror) >= 1
    sentences = [record.message for record in caplog.records]
    assert len(sentences) == len(set(sentences)) > 0
    assert all("and is tried again" in sentence for sentence in sentences)
