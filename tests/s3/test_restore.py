"""What is in the bucket comes back, whole, and only to those whose it is."""

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton.contract.manifest import FORMAT, sealed
from piton_trainer.errors import BadConfig, Ended, OutOfSpace, VolumeLost
from piton_trainer.mirror import client as mirror
from piton_trainer.mirror import transfer as meter
from piton_trainer.mirror.client import start
from piton_trainer.mirror.keys import LATEST
from piton_trainer.mirror.messages import Timeouts, Transfer
from piton_trainer.s3 import reader
from support import s3
from support.clocks import FakeClock
from support.mirrored import HASTY, MIB, QUICK, SHARD, Contents, InThread, Volume, errors, wait_for


def test_an_empty_volume_gets_the_newest_checkpoint(lost: Volume, volume: Volume) -> None:
    assert lost.restored(None) == 6

    assert lost.content(6) == volume.content(6)
    assert {path.name for path in lost.directory.iterdir()} == {"FENCE", "MIRROR", "step-000000006"}


def test_a_volume_with_an_older_checkpoint_gets_the_newer_one(lost: Volume, volume: Volume) -> None:
    volume.drop(6)
    again = Volume(volume.directory, lost.uri, attempt=3)

    assert again.restored(4) == 6
    assert again.restored(6) is None


def test_a_checkpoint_that_is_damaged_in_the_bucket_is_passed_over(
    lost: Volume, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    bad = max(bucket.folders())
    bucket.write(b"[]", bad, "state.json")

    assert lost.restored(None) == 4
    assert f"{bad} in the mirror is passed over: state.json is not what the manifest says" in caplog.text
    assert {path.name for path in lost.directory.iterdir()} == {"FENCE", "MIRROR", "step-000000004"}


@pytest.mark.parametrize("newer_than", [None, 4])
def test_a_checkpoint_of_a_newer_format_is_not_passed_over_for_an_older_one(
    newer_than: int | None, lost: Volume, bucket: Contents
) -> None:
    manifest = json.loads(bucket.read(bucket.newest() or "", names.MANIFEST_FILE))
    bucket.write(sealed({**manifest, "format": FORMAT + 1}).encode(), bucket.newest() or "", names.MANIFEST_FILE)

    with pytest.raises(VolumeLost, match=rf"of format {FORMAT + 1}; .* the image of the version that wrote it"):
        lost.restored(newer_than)


RESTORE_FAULTS = {
    "500": {"method": "GET", "key": "distcp", "code": "InternalError"},
    "cut": {"method": "GET", "key": "distcp"},
    "slow down": {"code": "SlowDown", "times": 2},
    "expired token": {"code": "ExpiredToken", "times": 3},
}


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in RESTORE_FAULTS.items()])
def test_restoring_goes_on_after_a_failure(
    fault: dict[str, Any], lost: Volume, volume: Volume, proxy: s3.Proxy
) -> None:
    proxy.fail(**fault)

    assert lost.restored(None, Timeouts(backoff=0.02, restore=20)) == 6
    assert lost.content(6) == volume.content(6)


def test_a_bucket_that_is_gone_ends_an_attempt_only_if_there_is_nothing_else(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(times=10_000)

    assert lost.restored(4) is None
    with pytest.raises(VolumeLost, match=r"the volume has no checkpoint, and s3://.* is gone"):
        lost.restored(None)


def test_a_bucket_that_refuses_is_a_wrong_setting(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(code="AccessDenied", times=10_000)

    with pytest.raises(BadConfig, match=r"the volume has no checkpoint, and s3://.* refuses: .*AccessDenied"):
        lost.restored(None)


@pytest.mark.parametrize(
    ("code", "end"), [(errno.EIO, VolumeLost), (errno.ESTALE, VolumeLost), (errno.ENOSPC, OutOfSpace)]
)
@pytest.mark.parametrize("newer_than", [None, 4])
def test_a_volume_that_does_not_take_what_is_restored_says_so_itself(
    newer_than: int | None, code: int, end: type[Ended], lost: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(end):
        lost.restored(newer_than)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [("AWS_ENDPOINT_URL", "nowhere", "Invalid endpoint: nowhere"), ("AWS_PROFILE", "nobody", "nobody")],
)
def test_an_environment_that_cannot_work_is_a_wrong_setting_also_of_the_first_attempt(
    name: str, value: str, sentence: str, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(BadConfig, match=rf"checkpoint\.mirror: .*{sentence}"):
        volume.restored(None)


def test_a_place_that_holds_something_else_is_left_alone(lost: Volume, bucket: Contents) -> None:
    bucket.write(b"{}", "latest")

    assert lost.restored(4) is None
    with pytest.raises(BadConfig, match="latest in the bucket is not one of ours"):
        lost.restored(None)
    lost.commit(8)
    mirror = lost.mirror()
    mirror.committed(8)
    assert wait_for(lambda: errors(mirror) > 0)
    assert not mirror.close(0)
    assert bucket.read("latest") == b"{}"


def test_the_first_attempt_does_not_ask(volume: Volume, proxy: s3.Proxy) -> None:
    assert volume.restored(None) is None
    assert proxy.seen == []


@pytest.fixture
def aside(lost: Volume, bucket: Contents) -> Path:
    """Where the newest checkpoint is restored to."""
    return lost.directory / f".restoring-{bucket.newest()}"


def test_an_attempt_fetches_what_the_one_before_has_not_fetched(
    volume: Volume, tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents
) -> None:
    """The attempt before, with its process, is killed over the last piece of three."""
    folder = volume.commit(6, size=20 * MIB)
    assert volume.mirrored(6)
    killed = Volume(tmp_path / "empty", uri, attempt=2, tuning=replace(HASTY, concurrency=1))
    shard = killed.directory / f".restoring-{folder}" / SHARD
    asked: list[str] = []
    is_over = threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "GET" and path.endswith(SHARD):
            asked.append(path)
            if len(asked) == 3:
                is_over.wait(60)
                raise ConnectionError("there is nobody left to answer")

    proxy.on_request = hold
    first = killed.mirror(start=start)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(first.restore, None)
        assert wait_for(lambda: len(asked) == 3 and shard.stat().st_size == 16 * MIB, 60)
        first.close(0)
        with pytest.raises(VolumeLost, match="ends before it has done so"):
            waiting.result(20)
    is_over.set()
    before = proxy.fetched

    assert Volume(killed.directory, uri, attempt=3).restored(None) == 6

    assert 4 * MIB < proxy.fetched - before < 5 * MIB
    assert killed.content(6) == volume.content(6)
    assert {path.name for path in killed.directory.iterdir()} == {"FENCE", "MIRROR", "step-000000006"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[:-1] + b"?",
    "cut and flipped": lambda data: b"?" + data[1:500],
    "too long": lambda data: data + b"?",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_a_leftover_that_is_no_good_is_fetched_again_and_the_good_ones_are_not(
    damage: Callable[[bytes], bytes], lost: Volume, volume: Volume, aside: Path, proxy: s3.Proxy
) -> None:
    content = volume.content(6)
    aside.mkdir()
    (aside / SHARD).write_bytes(damage(content[SHARD]))
    (aside / "state.json").write_bytes(content["state.json"])
    (aside / "MANIFEST.json.0123abcd.tmp").write_text("half of")

    assert lost.restored(None) == 6

    assert lost.content(6) == content
    assert [line for line in proxy.seen if line.startswith("GET") and "state.json" in line] == []


def test_what_came_of_another_checkpoint_goes_before_the_next_one_comes(
    lost: Volume, aside: Path, proxy: s3.Proxy
) -> None:
    others = [aside.with_name(f".restoring-step-00000000{step}-0123456789abcdef") for step in (6, 9)]
    for other in others:
        other.mkdir()
        (other / SHARD).write_bytes(b"x")
    seen: list[bool] = []

    def look(_method: str, path: str) -> None:
        if SHARD in path:
            seen.append(any(other.exists() for other in others))

    proxy.on_request = look

    assert lost.restored(None) == 6

    assert set(seen) == {False}


def test_what_came_of_a_checkpoint_is_deleted_when_training_goes_on_without_it(
    lost: Volume, volume: Volume, bucket: Contents, proxy: s3.Proxy
) -> None:
    volume.drop(6)
    aside = volume.directory / f".restoring-{bucket.newest()}"
    proxy.fail(method="GET", key=SHARD, times=10_000)
    mirror = Volume(volume.directory, lost.uri, attempt=3).mirror()

    assert mirror.restore(4) is None
    assert aside.exists()
    mirror.committed(4)

    assert wait_for(lambda: not aside.exists())
    mirror.close(0)


def test_the_patience_with_a_bucket_begins_anew_whenever_a_part_has_come(
    volume: Volume, tmp_path: Path, uri: str, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE_BYTES", 100)
    volume.commit(6, size=3000)
    assert volume.mirrored(6)
    asked: list[int] = []
    """Requests for pieces, in each try."""
    clock = FakeClock()

    def break_often(method: str, path: str) -> None:
        clock.pass_seconds(1)
        if method == "GET" and path.endswith(LATEST):
            asked.append(0)
        elif method == "GET" and path.endswith(SHARD):
            asked[-1] += 1
            if asked[-1] == 6:
                proxy.fail(method="GET", key=SHARD)

    proxy.on_request = break_often
    # One request at a time: of several, the first piece's may be the one that fails, and then nothing has come.
    empty = Volume(tmp_path / "empty", uri, attempt=2, tuning=replace(HASTY, concurrency=1))

    assert empty.restored(None, Timeouts(backoff=10, restore=15), start=lambda: InThread(clock)) == 6

    assert len(asked) > 3
    assert clock.monotonic() > 3 * 15
    assert empty.content(6) == volume.content(6)


def test_a_restore_that_takes_long_tells_how_far_it_is(lost: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_REPORT_SECONDS", 0.0)
    told: list[Transfer] = []
    sync = lost.mirror(QUICK, report=told.append)

    assert sync.restore(None) == 6

    sync.close(0)
    assert {(transfer.is_restore, transfer.step, transfer.total) for transfer in told} == {(True, 6, 1002)}
    assert [transfer.done for transfer in told] == sorted(transfer.done for transfer in told)
    assert told[-1].done == 1002


@pytest.mark.parametrize("body", ["", "404 page not found"], ids=["empty", "text"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("key", ["latest", "MANIFEST", "distcp"])
def test_a_404_of_a_proxy_hides_no_checkpoint(method: str, key: str, body: str, lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(method=method, key=key, answer=(404, "text/plain", body), times=2)

    assert lost.restored(None, replace(QUICK, restore=20)) == 6
