"""A training that is done waits for its bucket, as long as that gets anywhere."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from piton.contract import names
from piton_trainer.errors import NotMirrored
from piton_trainer.mirror import client as trainers_side
from piton_trainer.mirror import transfer as meter
from piton_trainer.mirror.client import MirrorClient, start
from piton_trainer.mirror.messages import Transfer
from piton_trainer.runtime.child_process import ChildProcess
from support import s3
from support.checkpoints import flip
from support.mirrored import HASTY, MIB, QUICK, SHARD, Contents, Volume, wait_for

STALL_SECONDS = 5.0
"""A busy machine may stop a process for half of that."""


def never() -> bool:
    return False


@pytest.fixture
def finish(volume: Volume) -> Callable[..., MirrorClient]:
    """A mirror that is told of a step."""

    def begin(step: int, **patience: float) -> MirrorClient:
        mirror = volume.mirror(replace(QUICK, **patience))
        mirror.committed(step)
        return mirror

    return begin


def test_an_upload_that_comes_further_is_waited_for_and_told(
    volume: Volume, bucket: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes twice as long as it may stand still."""
    monkeypatch.setattr(trainers_side, "_REPORT_SECONDS", 1.0)
    volume.tuning = replace(HASTY, bytes_per_second=4 * MIB)
    folder = volume.commit(4, size=40 * MIB)
    told: list[Transfer] = []
    mirror = volume.mirror(replace(QUICK, finish=STALL_SECONDS), report=told.append)
    mirror.committed(4)

    assert mirror.finish(never)

    assert mirror.close(0)
    assert bucket.newest() == folder
    assert 2 <= len(told) <= 40 / 4 * 3
    assert all(not transfer.is_restore and 0 < transfer.done <= transfer.total for transfer in told)


def test_a_large_file_that_begins_anew_gets_somewhere(volume: Volume, proxy: s3.Proxy, bucket: Contents) -> None:
    """Sending it takes longer than it may stand still, and its end fails once."""
    volume.tuning = replace(HASTY, bytes_per_second=4 * MIB)
    folder = volume.commit(4, size=24 * MIB)
    proxy.fail(method="POST", key="uploadId", code="InternalError")
    mirror = volume.mirror(replace(QUICK, finish=STALL_SECONDS))
    mirror.committed(4)

    assert mirror.finish(never)

    assert mirror.close(0)
    assert bucket.newest() == folder


def test_an_upload_that_gets_nowhere_is_given_up_and_said(
    volume: Volume, proxy: s3.Proxy, finish: Callable[..., MirrorClient]
) -> None:
    volume.commit(4)
    proxy.fail(method="PUT", key=SHARD, times=10_000)
    mirror = finish(4, finish=0.5)

    with pytest.raises(
        NotMirrored,
        match=r"done at step 4, which is on the volume but not in s3://.*: nothing has moved",
    ):
        mirror.finish(never)

    assert not mirror.close(0)


def test_what_is_only_sent_again_and_again_does_not_count_as_getting_anywhere(
    volume: Volume, proxy: s3.Proxy, finish: Callable[..., MirrorClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both parts arrive each time, and then they cannot be put together."""
    monkeypatch.setattr(meter, "_REPORT_SECONDS", 0.0)
    volume.commit(4, size=6 * MIB)
    proxy.fail(method="POST", key="uploadId", code="InternalError", times=10_000)
    mirror = finish(4, finish=STALL_SECONDS)

    with pytest.raises(NotMirrored):
        mirror.finish(never)

    assert sum("partNumber=1" in line for line in proxy.seen) > meter._AGAIN_MAX
    mirror.close(0)


def test_a_process_that_dies_over_and_over_is_not_waited_for_without_end(volume: Volume) -> None:
    volume.commit(4)

    def die() -> ChildProcess:
        raise OSError("no more processes")

    mirror = volume.mirror(replace(QUICK, finish=600), start=die)
    mirror.committed(4)

    with pytest.raises(NotMirrored, match="cannot be started"):
        mirror.finish(never)

    assert not mirror.close(0)


def test_a_checkpoint_that_has_gone_bad_is_not_waited_for(volume: Volume, finish: Callable[..., MirrorClient]) -> None:
    volume.commit(4)
    volume.commit(6)
    flip(volume.directory / names.step_folder(6) / SHARD)
    mirror = finish(6, finish=60)

    with pytest.raises(NotMirrored, match=r"at step 6, .* There is step 4;"):
        mirror.finish(never)

    mirror.close(0)


def test_the_bucket_of_another_run_is_not_waited_for(lost: Volume, volume: Volume) -> None:
    other = Volume(volume.directory.with_name("other"), lost.uri, uid="another")
    other.commit(9)
    mirror = other.mirror(replace(QUICK, finish=60))
    mirror.committed(9)

    assert mirror.finish(never)

    assert not mirror.close(0)


def test_a_stop_bounds_the_wait(volume: Volume, proxy: s3.Proxy, finish: Callable[..., MirrorClient]) -> None:
    volume.commit(4)
    proxy.fail(times=10_000)
    mirror = finish(4, finish=600, stop=0.2)

    assert not mirror.finish(lambda: True)

    mirror.close(0)


def test_a_stop_while_only_older_checkpoints_are_left_is_no_matter(
    volume: Volume, proxy: s3.Proxy, bucket: Contents, finish: Callable[..., MirrorClient]
) -> None:
    old = volume.commit(2)
    newest = volume.commit(4)
    is_over = threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT" and f"{old}/{SHARD}" in path:
            is_over.wait(20)

    proxy.on_request = hold
    mirror = finish(4, finish=600, stop=0.2)

    assert wait_for(lambda: bucket.folders().get(newest, set()) > {names.MANIFEST_FILE})
    assert mirror.finish(lambda: True)

    is_over.set()
    mirror.close(0)


def test_a_process_that_is_killed_over_the_last_upload_is_replaced(volume: Volume, bucket: Contents) -> None:
    folder = volume.commit(4)
    mirror = volume.mirror(start=start)
    assert wait_for(lambda: mirror._process is not None)
    assert mirror._process is not None
    mirror._process.kill()
    mirror.committed(4)

    assert mirror.finish(never)

    assert bucket.newest() == folder
    assert mirror.close(0)
