"""Commits go into the bucket, whole and once, whatever fails on the way."""

import hashlib
import itertools
import logging
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.mirror.client import MirrorClient
from piton_trainer.mirror.messages import Timeouts
from piton_trainer.mirror.sync import BucketSync
from support import s3
from support.checkpoints import flip
from support.mirrored import FILES, HASTY, MIB, QUICK, SHARD, Contents, Volume, errors, wait_for


def test_a_commit_is_mirrored_and_latest_moves_last(volume: Volume, proxy: s3.Proxy, bucket: Contents) -> None:
    folder = volume.commit(4)

    assert volume.mirrored(4)

    pointer = bucket.latest().newest
    assert pointer is not None
    assert (pointer.step, pointer.folder, bucket.latest().attempt) == (4, folder, 1)
    assert bucket.folders() == {folder: FILES}
    writes = [line.split("/run/")[1] for line in proxy.seen if line.startswith("PUT")]
    assert writes[0] == "latest"
    assert {name.rpartition("/")[2] for name in writes[1:3]} == FILES - {names.MANIFEST_FILE}
    assert [name.rpartition("/")[2] for name in writes[3:]] == [names.MANIFEST_FILE, "latest"]


def test_a_large_file_goes_in_parts_and_its_checksum_is_compared(
    volume: Volume, tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents
) -> None:
    folder = volume.commit(4, size=12 * MIB)

    assert volume.mirrored(4)

    key = bucket.place.key(folder, SHARD)
    head = bucket.client.head_object(Bucket=s3.BUCKET, Key=key, ChecksumMode="ENABLED")
    assert head["ContentLength"] == 12 * MIB
    assert head["ChecksumSHA256"].endswith("-3")
    assert sum("partNumber=" in line for line in proxy.seen) == 3
    other = Volume(tmp_path / "other", uri, attempt=2)
    assert other.restored(None) == 4
    assert other.content(4) == volume.content(4)


def test_what_is_there_is_not_sent_again(volume: Volume, proxy: s3.Proxy, bucket: Contents) -> None:
    folder = volume.commit(4, size=6 * MIB)
    proxy.fail(method="PUT", key=names.MANIFEST_FILE, code="InternalError", times=1000)
    mirror = volume.mirror(Timeouts(backoff=60))
    mirror.committed(4)
    assert wait_for(lambda: errors(mirror) > 0)
    mirror.close(0)
    assert bucket.folders() == {folder: FILES - {names.MANIFEST_FILE}}
    proxy.heal()
    sent = proxy.bytes

    assert volume.mirrored(4)

    assert bucket.folders() == {folder: FILES}
    assert proxy.bytes - sent < MIB


def test_a_bucket_that_was_away_for_thousands_of_tries_is_used_when_it_is_back(
    volume: Volume, bucket: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, tries = BucketSync._step, itertools.count(1)

    def fail(sync: BucketSync) -> None:
        if next(tries) <= 2000:
            raise OSError("the bucket is away")
        step(sync)

    monkeypatch.setattr(BucketSync, "_step", fail)
    folder = volume.commit(4)
    mirror = volume.mirror(replace(QUICK, backoff=0.0, backoff_max=1e-6))
    mirror.committed(4)

    assert wait_for(lambda: bucket.folders() == {folder: FILES})

    assert mirror.close(20)


def test_uploads_in_parts_that_a_dead_process_left_are_given_up(volume: Volume, bucket: Contents) -> None:
    key = bucket.place.key("step-000000002-0123456789abcdef", SHARD)
    left = bucket.client.create_multipart_upload(Bucket=s3.BUCKET, Key=key)["UploadId"]
    bucket.client.upload_part(Bucket=s3.BUCKET, Key=key, UploadId=left, PartNumber=1, Body=b"x" * 5 * MIB)
    assert bucket.unfinished()
    volume.commit(4)

    assert volume.mirrored(4)

    assert bucket.unfinished() == []


def test_the_bucket_keeps_what_the_rules_keep(volume: Volume, bucket: Contents) -> None:
    names_ = {step: volume.commit(step, val_loss=loss) for step, loss in ((2, 0.1), (4, 0.5), (6, 0.4))}
    for step in (2, 4, 6):
        assert volume.mirrored(step)
    names_[8] = volume.commit(8, val_loss=0.6)

    assert volume.mirrored(8)

    assert bucket.folders().keys() == {names_[step] for step in (2, 6, 8)}
    assert bucket.newest() == names_[8]


def test_a_manifest_that_could_not_be_read_once_does_not_cost_the_bucket_its_checkpoint(
    volume: Volume, bucket: Contents, proxy: s3.Proxy
) -> None:
    best = volume.commit(2, val_loss=0.1)
    volume.commit(4, val_loss=0.5)
    assert volume.mirrored(4)
    volume.drop(2)  # as on a volume that was lost, and has only the newest one again
    mirror = volume.mirror()
    proxy.fail(method="GET", key=f"{best}/{names.MANIFEST_FILE}")

    for step in (6, 8):
        folder = volume.commit(step, val_loss=0.5)
        mirror.committed(step)
        assert wait_for(lambda folder=folder: bucket.newest() == folder)

    assert mirror.close(20)
    assert errors(mirror) == 1
    assert bucket.folders()[best] == FILES


def test_a_checkpoint_that_has_gone_bad_is_not_mirrored(
    volume: Volume, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    good = volume.commit(4)
    bad = volume.commit(6)
    flip(volume.directory / names.step_folder(6) / SHARD)

    assert not volume.mirrored(6)

    assert bucket.folders()[good] == FILES
    assert bucket.folders().get(bad, set()) <= {layout.STATE_FILE}
    assert bucket.newest() == good
    assert f"step-000000006 is not mirrored: {SHARD} is not what its manifest says" in caplog.text


@pytest.mark.parametrize("moment", [SHARD, names.MANIFEST_FILE, "latest"])
def test_of_two_attempts_at_once_the_higher_one_wins(
    moment: str,
    volume: Volume,
    tmp_path: Path,
    proxy: s3.Proxy,
    uri: str,
    bucket: Contents,
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
            assert second.restored(None) == 4
            newer[0] = second.commit(5)
            assert second.mirrored(5)

    proxy.on_request = overtake
    first = volume.mirror()
    first.committed(6)
    first.close(20)

    assert bucket.newest() == newer[0]
    assert bucket.latest().attempt == 2
    bucket.assert_sound()
    assert "attempt 2 has" in caplog.text


def test_an_attempt_that_lost_its_volumes_fence_mirrors_nothing(volume: Volume, proxy: s3.Proxy) -> None:
    volume.commit(4)
    Fence(volume.directory, disk=layout.Disk(), attempt=2).claim()

    assert not volume.mirrored(4)

    assert not any(line.startswith("PUT") for line in proxy.seen)


def test_another_run_of_the_same_name_neither_takes_nor_overwrites_anything(
    lost: Volume, tmp_path: Path, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    before = bucket.folders(), bucket.latest()
    fresh = Volume(tmp_path / "fresh", lost.uri, attempt=1, uid="another")
    fresh.commit(9)
    assert not fresh.mirrored(9)
    third = Volume(fresh.directory, lost.uri, attempt=3, uid="another")

    assert third.restored(9) is None
    assert not third.mirrored(9)

    assert (bucket.folders(), bucket.latest()) == before
    assert "holds the checkpoints of another run, which was at attempt 1; to begin anew" in caplog.text


def test_files_go_several_at_a_time(volume: Volume, proxy: s3.Proxy) -> None:
    volume.commit(4)
    both = threading.Barrier(2, timeout=10)

    def meet(method: str, path: str) -> None:
        if method == "PUT" and path.partition("?")[0].endswith((SHARD, layout.STATE_FILE)):
            both.wait()

    proxy.on_request = meet
    mirror = volume.mirror()
    mirror.committed(4)

    assert mirror.close(20)
    assert errors(mirror) == 0


def manifests(proxy: s3.Proxy) -> list[str]:
    """The steps whose manifests were put into the bucket, in order."""
    found = [re.search(r"PUT .*/step-0*([0-9]+)-[0-9a-f]+/MANIFEST", line) for line in proxy.seen]
    return [match[1] for match in found if match]


def disturb(volume: Volume, proxy: s3.Proxy, *, over: str) -> MirrorClient:
    """Mirror step 4; while the first part of this folder is on its way, step 6 is committed."""
    volume.tuning = replace(HASTY, concurrency=1)
    mirror = volume.mirror()
    disturbed: list[str] = []

    def commit(method: str, path: str) -> None:
        if method == "PUT" and f"{over}/{SHARD}" in path and not disturbed:
            disturbed.append(path)
            volume.commit(6, val_loss=0.5)
            mirror.committed(6)
            assert wait_for(lambda: mirror._state.known == 6)

    proxy.on_request = commit
    mirror.committed(4)
    return mirror


def test_an_older_checkpoint_gives_way_to_a_newer_one_in_the_middle_of_a_file(
    volume: Volume, proxy: s3.Proxy, bucket: Contents
) -> None:
    old = volume.commit(2, size=22 * MIB, val_loss=0.1)  # the best one, which is kept
    volume.commit(4, val_loss=0.5)
    mirror = disturb(volume, proxy, over=old)

    assert mirror.close(60)

    assert manifests(proxy) == ["4", "6", "2"]
    newer = next(index for index, line in enumerate(proxy.seen) if line.startswith("PUT") and "-000000006-" in line)
    assert sum("partNumber" in line for line in proxy.seen[:newer]) < 5
    assert len(bucket.folders()) == 3
    assert bucket.unfinished() == []
    bucket.assert_sound()


def test_an_upload_that_latest_will_move_for_is_brought_to_its_end(
    volume: Volume, proxy: s3.Proxy, bucket: Contents
) -> None:
    """Else a bucket that takes longer than the next commit would never have anything."""
    mirror = disturb(volume, proxy, over=volume.commit(4, size=12 * MIB))

    assert mirror.close(60)

    assert manifests(proxy) == ["4", "6"]
    assert bucket.latest().newest is not None


def test_uploads_keep_to_their_bandwidth(volume: Volume) -> None:
    volume.tuning = replace(HASTY, bytes_per_second=20 * MIB)
    volume.commit(4, size=12 * MIB)
    began = time.monotonic()

    assert volume.mirrored(4)

    assert time.monotonic() - began > 0.3


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
    fault: dict[str, Any], volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    # Only what is large goes in parts.
    folder = volume.commit(4, size=6 * MIB if "part" in str(fault) or "upload" in str(fault) else 1000)
    proxy.fail(**fault)

    with caplog.at_level(logging.WARNING, "piton_trainer"):
        mirror = volume.mirror()
        mirror.committed(4)
        assert mirror.close(20)

    assert bucket.newest() == folder
    assert bucket.folders() == {folder: FILES}
    bucket.assert_sound()
    assert errors(mirror) >= 1
    sentences = [record.message for record in caplog.records]
    assert len(sentences) == len(set(sentences)) > 0
    assert all("and is tried again" in sentence for sentence in sentences)


def test_two_places_of_one_bucket_do_not_mix(volume: Volume, tmp_path: Path, uri: str, bucket: Contents) -> None:
    volume.commit(4)
    assert volume.mirrored(4)
    before = bucket.folders()
    neighbour = Volume(tmp_path / "neighbour", f"{uri}-2")
    neighbour.commit(4, size=2000)

    assert neighbour.mirrored(4)

    assert bucket.folders() == before
    assert (
        hashlib.sha256(bucket.read(bucket.newest() or "", SHARD)).digest()
        == hashlib.sha256(volume.content(4)[SHARD]).digest()
    )
