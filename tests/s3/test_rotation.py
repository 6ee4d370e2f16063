"""Credentials that are rotated while a process runs: whatever is said of the old ones, the new ones are read."""

import configparser
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

import boto3
import pytest

from piton.contract import names
from piton_trainer.data import stream
from piton_trainer.data.text.sources import read_text
from piton_trainer.errors import BadConfig
from piton_trainer.mirror.messages import Timeouts
from piton_trainer.s3 import Tuning, cache
from piton_trainer.s3.client import S3Connection
from support import s3
from support.mirrored import HASTY, Contents, Volume, errors, wait_for

REFUSALS = [
    (400, "ExpiredToken"),
    (403, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch"),
    (403, "AccessDenied"),
    (403, "InvalidSecurity"),
    (401, "Unauthorized"),
    (403, "XVendorNotYou"),
    (401, "XVendorWhoAreYou"),
]
STEADY = Timeouts(backoff=0.02, backoff_max=0.05, restore=5, finish=20, stop=20)


@pytest.fixture
def rotate(tmp_path: Path, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write a secret to the file of credentials, which processes read."""
    file = tmp_path / "credentials"

    def write(secret: str) -> None:
        found = configparser.ConfigParser()
        found["default"] = {"aws_access_key_id": s3.ACCESS_KEY, "aws_secret_access_key": secret}
        with file.open("w") as out:
            found.write(out)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv(names.ENV_DATA_CACHE, str(tmp_path / "cache"))
    for module in (stream, cache):
        monkeypatch.setattr(module, "Tuning", lambda **_: Tuning(tries=2))
    write(s3.SECRET_KEY)
    return write


def says(status: int, code: str) -> Callable[[str, str, HTTPResponse, bytes], bytes]:
    """The server's own refusal of a wrong secret, in other words."""

    def alter(method: str, path: str, answer: HTTPResponse, body: bytes) -> bytes:
        if answer.status != 403:
            return body
        answer.status = status
        return b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    return alter


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_mirror_reads_the_new_ones(
    status: int, code: str, rotate: Callable[[str], None], volume: Volume, proxy: s3.Proxy, bucket: Contents
) -> None:
    proxy.alter = says(status, code)
    rotate("old")
    newest = volume.commit(4)
    mirror = volume.mirror(STEADY)
    mirror.committed(4)
    assert wait_for(lambda: errors(mirror) > 0)

    rotate(s3.SECRET_KEY)

    assert mirror.close(10)
    assert bucket.newest() == newest


@pytest.mark.parametrize(("status", "code"), REFUSALS)
@pytest.mark.parametrize("kind", ["texts", "rows"])
def test_data_are_read_with_the_new_ones(
    kind: str, status: int, code: str, rotate: Callable[[str], None], proxy: s3.Proxy, server: s3.Server, uri: str
) -> None:
    for name in ("t/0.txt", "rows.jsonl"):
        server.client.put_object(Bucket=s3.BUCKET, Key=f"{uri.rpartition('/')[2]}/{name}", Body=b"text")
    proxy.alter = says(status, code)
    rotate("old")
    S3Connection(HASTY).client.meta.region_name  # noqa: B018 - boto3 remembers the credentials that it reads first
    rotate(s3.SECRET_KEY)

    if kind == "texts":
        assert read_text(f"{uri}/t") == "text"
    else:
        assert list(stream.lines(f"{uri}/rows.jsonl")) == [(1, "text")]


@pytest.mark.usefixtures("rotate")
@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "InvalidSecurity", "XVendorNotYou"])
def test_a_refusal_of_the_new_ones_too_is_said_at_once(code: str, proxy: s3.Proxy, volume: Volume, uri: str) -> None:
    proxy.fail(code=code, times=10_000)

    with pytest.raises(BadConfig, match=code):
        read_text(f"{uri}/t")
    assert len(proxy.seen) == 2
    proxy.seen.clear()
    with pytest.raises(BadConfig, match=code):
        Volume(volume.directory, uri, attempt=2).restored(None)
    assert len(proxy.seen) == 2
