"""What a bucket does not do, does not know or does not say, and what that costs: a sentence, and no checkpoint."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.errors import NotMirrored
from piton_trainer.mirror.messages import Timeouts
from support import s3
from support.mirrored import MIB, SHARD, Contents, Volume, errors, wait_for

REFUSED = """<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Error><Key>{}</Key>
<Code>{}</Code><Message>as the test says</Message></Error></DeleteResult>"""


def saved_in_turn(volume: Volume, *steps: int) -> None:
    """Commit these steps with `keep.last: 2`, each mirrored before the next; the volume keeps the last two."""
    volume.assignment = Assignment(save=SavePolicy(every_steps=1, keep_last=2, keep_best=0))
    mirror = volume.mirror()
    for index, step in enumerate(steps):
        volume.commit(step)
        if index > 1:
            volume.drop(steps[index - 2])
        mirror.committed(step)
        assert wait_for(lambda: mirror._is_settled() and not mirror._commits, 30)
    assert mirror.close(20)


@pytest.mark.parametrize("code", ["AccessDenied", "InternalError", "ObjectLocked"])
def test_a_deletion_that_the_bucket_refuses_in_a_200_is_said_and_stops_nothing(
    code: str, volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    answer = (200, "application/xml", REFUSED.format("the/key", code))
    proxy.fail(method="POST", key=r"\?delete", answer=answer, times=10_000)

    saved_in_turn(volume, 2, 4, 6)

    assert len(bucket.folders()) == 3
    told = re.findall(rf"more checkpoints stay in the bucket than checkpoint.keep says: .*{code}", caplog.text)
    assert len(told) == 1
    proxy.heal()
    saved_in_turn(Volume(volume.directory, volume.uri, attempt=2), 8, 10)
    assert sorted(bucket.folders())[0].startswith("step-000000008")


def test_a_deletion_that_fails_once_is_made_up_for(volume: Volume, proxy: s3.Proxy, bucket: Contents) -> None:
    answer = (200, "application/xml", REFUSED.format("the/key", "SlowDown"))
    proxy.fail(method="POST", key=r"\?delete", answer=answer)

    saved_in_turn(volume, 2, 4, 6)

    assert [name[:14] for name in sorted(bucket.folders())] == ["step-000000004", "step-000000006"]


@pytest.mark.parametrize("code", ["NotImplemented", "AccessDenied", "InternalError"])
def test_a_server_that_lists_no_abandoned_uploads_is_good_enough(
    code: str, volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fail(method="GET", key=r"\?(.*&)?uploads", code=code, times=10_000)
    folder = volume.commit(4)

    assert volume.mirrored(4)

    assert bucket.newest() == folder
    assert caplog.text.count("abandoned uploads stay in the bucket") == 1


@pytest.mark.parametrize("size", [1000, 6 * MIB], ids=["in one piece", "in parts"])
def test_a_server_that_keeps_no_checksums_has_its_objects_read_back(
    size: int, volume: Volume, proxy: s3.Proxy, bucket: Contents
) -> None:
    proxy.dropped = {"x-amz-checksum-sha256"}
    folder = volume.commit(4, size=size)

    assert volume.mirrored(4)

    assert bucket.newest() == folder
    assert [line for line in proxy.seen if line.startswith("GET") and SHARD in line]
    bucket.assert_sound()


def test_an_object_without_a_checksum_that_is_wrong_is_sent_again(
    volume: Volume, proxy: s3.Proxy, bucket: Contents
) -> None:
    proxy.dropped = {"x-amz-checksum-sha256"}
    folder = volume.commit(4)
    bucket.write(bytes(1000), folder, SHARD)  # of the same size

    assert volume.mirrored(4)

    bucket.assert_sound()


def test_what_only_the_user_can_change_holds_no_machines(volume: Volume, proxy: s3.Proxy) -> None:
    volume.commit(4)
    proxy.fail(method="PUT", code="AccessDenied", times=10_000)
    mirror = volume.mirror(Timeouts(backoff=0.02, backoff_max=0.05, finish=600, stop=0.5))
    mirror.committed(4)

    with pytest.raises(NotMirrored, match="nothing has moved for 1s"):
        mirror.finish(lambda: False)

    mirror.close(0)


@pytest.fixture
def credentials(proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with the credentials of the process, with keys that are not valid any more."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    yield file
    boto3.DEFAULT_SESSION = None


def put_right(file: Path) -> None:
    file.write_text(f"[default]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n")


def test_keys_that_are_rotated_are_read_anew(credentials: Path, volume: Volume, bucket: Contents) -> None:
    folder = volume.commit(4)
    mirror = volume.mirror()
    mirror.committed(4)
    assert wait_for(lambda: errors(mirror) > 1, 60)

    put_right(credentials)

    assert mirror.close(60)
    assert bucket.newest() == folder


@pytest.mark.parametrize("fault", [{"code": "ExpiredToken"}, {"code": "InvalidAccessKeyId"}], ids=lambda f: f["code"])
def test_a_restore_reads_rotated_keys_anew_before_it_gives_up(
    fault: dict[str, Any], lost: Volume, proxy: s3.Proxy
) -> None:
    proxy.fail(**fault)

    assert lost.restored(None) == 6
