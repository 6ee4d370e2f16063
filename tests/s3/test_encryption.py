"""Every object has the encryption that the spec asks for; a server that does not encrypt gets no checkpoint."""

from pathlib import Path

import pytest

from piton.contract.assignment import Assignment, Encryption, MirrorPolicy
from piton_trainer.mirror.bucket import write_options
from piton_trainer.s3 import Remedy, S3Error
from piton_trainer.s3.cache import Remote, _what_is_wrong
from support import s3, tiny
from support.mirrored import FILES, MIB, QUICK, Contents, Volume, errors, wait_for

SSE_S3 = Encryption(type="SSE-S3")
SSE_KMS = Encryption(type="SSE-KMS", key_id="key-of-the-team")
SAID = {SSE_S3: ("AES256", None), SSE_KMS: ("aws:kms", "key-of-the-team"), None: (None, None)}
EVERYTHING = {*FILES, "latest"}


def ids(value: object) -> str:
    return value.type if isinstance(value, Encryption) else str(value)


@pytest.mark.parametrize("size", [1000, 6 * MIB], ids=["in-one-piece", "in-parts"])
@pytest.mark.parametrize("encryption", SAID, ids=ids)
def test_every_object_is_encrypted_as_the_spec_says_and_is_restored(
    encryption: Encryption | None, size: int, volume: Volume, bucket: Contents, tmp_path: Path, uri: str
) -> None:
    volume.encryption = encryption
    volume.commit(4, size=size)

    assert volume.mirrored(4)

    assert bucket.encryption() == dict.fromkeys(EVERYTHING, SAID[encryption])
    other = Volume(tmp_path / "other", uri, attempt=2, encryption=encryption)
    assert other.restored(None) == 4
    assert other.content(4) == volume.content(4)


def test_what_is_written_later_is_encrypted_and_what_is_there_stays_readable(
    volume: Volume, bucket: Contents, tmp_path: Path, uri: str
) -> None:
    """A run whose spec is changed between two attempts."""
    old = volume.commit(4)
    assert volume.mirrored(4)

    later = Volume(volume.directory, uri, attempt=2, encryption=SSE_KMS)
    new = later.commit(6)
    assert later.mirrored(6)

    assert {old, new} == bucket.folders().keys()
    heads = {
        folder: bucket.client.head_object(Bucket=s3.BUCKET, Key=bucket.place.key(folder, "MANIFEST.json"))
        for folder in (old, new)
    }
    assert [heads[folder].get("ServerSideEncryption") for folder in (old, new)] == [None, "aws:kms"]
    assert Volume(tmp_path / "empty", uri, attempt=3).restored(None) == 6, "who reads needs no setting"


@pytest.mark.parametrize("encryption", [SSE_S3, SSE_KMS], ids=ids)
def test_a_server_that_passes_over_the_headers_gets_no_checkpoint(
    encryption: Encryption, volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.dropped_of_writes = {"x-amz-server-side-encryption"}
    volume.encryption = encryption
    volume.commit(4)
    mirror = volume.mirror(QUICK)
    mirror.committed(4)
    assert wait_for(lambda: errors(mirror) >= 2)

    assert mirror._state.is_refused
    assert not mirror.close(0)
    assert bucket.folders() == {}
    assert caplog.text.count("does not encrypt as checkpoint.mirror.encryption asks") == 1


def test_an_encryption_of_a_newer_operator_is_refused_by_name(tmp_path: Path, proxy: s3.Proxy) -> None:
    """Checkpoints that leave without the encryption that was asked for cannot be called back."""
    assert proxy.url
    policy = MirrorPolicy(uri="s3://bucket/prefix", encryption=Encryption(type="DSSE-KMS", key_id="k"))

    ran = tiny.train(tmp_path / "checkpoints", assignment=Assignment(mirror=policy), attempt=1)

    unknown = "checkpoint.mirror: encryption.type: this trainer does not know DSSE-KMS"
    assert (ran.code, ran.error) == (78, f"{unknown}; use an image of the operator's version")


@pytest.mark.parametrize(
    ("head", "is_md5"),
    [
        ({}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"}, False),
        ({"ServerSideEncryption": "aws:kms:dsse", "SSEKMSKeyId": "key"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
    ],
    ids=["none", "SSE-S3", "SSE-KMS", "DSSE-KMS", "SSE-C"],
)
def test_an_etag_is_taken_for_an_md5_only_where_it_is_one(head: dict[str, str], is_md5: bool, tmp_path: Path) -> None:
    """Of training data that others have encrypted. Amazon's ETag has the same form for all of them."""
    path = tmp_path / "object"
    path.write_bytes(b"data")
    remote = Remote(bucket="bucket", key="key", etag=f'"{"0" * 32}"', size=4)

    assert (_what_is_wrong(path, remote, head) is not None) == is_md5


def test_the_options_of_a_write() -> None:
    assert write_options(None) == {}
    assert write_options(SSE_S3) == {"ServerSideEncryption": "AES256"}
    assert write_options(SSE_KMS) == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-of-the-team"}


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("KMS.DisabledException", Remedy.USERS),
        ("KMS.NotFoundException", Remedy.USERS),
        ("KMS.KMSInvalidStateException", Remedy.USERS),
        ("KMS.SomethingNew", Remedy.USERS),
        ("KMS.ThrottlingException", Remedy.TRY_AGAIN),
        ("KMS.KMSInternalException", Remedy.TRY_AGAIN),
        ("KMS.DependencyTimeoutException", Remedy.TRY_AGAIN),
        ("KMS.KeyUnavailableException", Remedy.TRY_AGAIN),
        ("NotEncrypted", Remedy.USERS),
    ],
)
def test_trouble_of_keys_has_the_class_of_what_helps(code: str, remedy: Remedy) -> None:
    assert S3Error(code, "as the test says").remedy is remedy
