"""What is in the bucket comes back, whole, and only to those whose it is."""

from typing import Any

import pytest

from piton_trainer.errors import BadConfig
from piton_trainer.mirror.orders import Patience
from support import s3
from support.mirrored import Contents, Volume, errors, wait_for


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

    assert lost.restored(None, Patience(backoff=0.02, restore=20)) == 6
    assert lost.content(6) == volume.content(6)


def test_a_bucket_that_is_gone_ends_an_attempt_only_if_there_is_nothing_else(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(times=10_000)

    assert lost.restored(4) is None
    with pytest.raises(RuntimeError, match=r"the volume has no checkpoint, and s3://.* is gone"):
        lost.restored(None)


def test_a_bucket_that_refuses_is_a_wrong_setting(lost: Volume, proxy: s3.Proxy) -> None:
    proxy.fail(code="AccessDenied", times=10_000)

    with pytest.raises(BadConfig, match=r"the volume has no checkpoint, and s3://.* refuses: .*AccessDenied"):
        lost.restored(None)


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
