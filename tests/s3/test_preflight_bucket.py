"""`piton preflight` writes, reads, lists and deletes one object in the bucket, and names a missing permission."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton, piton
from local.helpers import fake_parts, write_manifest
from piton.contract.assignment import Encryption
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.mirror.probe import Problem, problem_of
from support import s3

__all__ = ["piton"]

DENIED = (
    "<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/u is not authorized to perform: {}"
    "</Message></Error>"
)
KMS = Encryption(type="SSE-KMS", key_id="key")
REQUESTS = {
    "s3:ListBucket": {"method": "GET", "key": "list-type"},
    "s3:PutObject": {"method": "PUT", "key": "preflight"},
    "s3:GetObject": {"method": "GET", "key": "preflight/"},
    "s3:DeleteObject": {"method": "POST", "key": r"\?delete"},
}


def probed(uri: str, encryption: Encryption | None = None) -> Problem | None:
    return problem_of(Bucket(BucketPrefix.parse(uri, "default", "run"), encryption=encryption))


@pytest.mark.parametrize("encryption", [None, Encryption(type="SSE-S3"), KMS], ids=["none", "SSE-S3", "SSE-KMS"])
def test_a_bucket_that_can_be_used_is_left_as_it_was(
    encryption: Encryption | None, uri: str, proxy: s3.Proxy, server: s3.Server
) -> None:
    assert probed(uri, encryption) is None

    assert [line.split()[0] for line in proxy.seen] == ["GET", "PUT", "GET", "POST"]
    assert s3.keys(server.client, BucketPrefix.parse(uri).prefix) == []


@pytest.mark.parametrize("permission", REQUESTS)
def test_the_permission_that_is_missing_is_named(permission: str, uri: str, proxy: s3.Proxy) -> None:
    proxy.fail(code="AccessDenied", times=10_000, **REQUESTS[permission])

    problem = probed(uri)

    assert problem is not None
    assert problem.text.startswith(f"{uri}/default/run: {permission} is missing")
    assert [other for other in REQUESTS if other in problem.text] == [permission]
    assert "docs/mirror.md" in (problem.fix or "")
    assert ("/preflight/" in problem.text) == (permission == "s3:DeleteObject"), "what stays there is named"


def test_all_that_are_missing_are_named_at_once(uri: str, proxy: s3.Proxy) -> None:
    for permission in ("s3:ListBucket", "s3:DeleteObject"):
        proxy.fail(code="AccessDenied", times=10_000, **REQUESTS[permission])

    problem = probed(uri)

    assert problem is not None
    assert "s3:ListBucket and s3:DeleteObject are missing" in problem.text


@pytest.mark.parametrize(
    ("request_of", "named"), [("s3:PutObject", "kms:GenerateDataKey"), ("s3:GetObject", "kms:Decrypt")]
)
def test_the_permission_of_the_key_is_named_where_the_server_does(
    request_of: str, named: str, uri: str, proxy: s3.Proxy
) -> None:
    answer = (403, "application/xml", DENIED.format(f"{named} on resource: arn:aws:kms:eu-central-1:1:key/2"))
    proxy.fail(answer=answer, times=10_000, **REQUESTS[request_of])

    problem = probed(uri, KMS)

    assert problem is not None
    assert f"{named} is missing" in problem.text


def test_where_the_server_names_none_both_are_thought_of(uri: str, proxy: s3.Proxy) -> None:
    proxy.fail(code="AccessDenied", times=10_000, **REQUESTS["s3:PutObject"])

    problem = probed(uri, KMS)

    assert problem is not None
    assert "s3:PutObject, or kms:GenerateDataKey of the key, is missing" in problem.text


def test_a_server_that_does_not_encrypt_is_found_and_nothing_stays_there(
    uri: str, proxy: s3.Proxy, server: s3.Server
) -> None:
    proxy.dropped_of_writes = {"x-amz-server-side-encryption"}

    problem = probed(uri, KMS)

    assert problem is not None
    assert "does not encrypt as checkpoint.mirror.encryption asks" in problem.text
    assert s3.keys(server.client, BucketPrefix.parse(uri).prefix) == []


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        ("s3:PutObject", {"code": "InvalidRequest", "before": False}),
        ("s3:PutObject", {"answer": (404, "text/plain", "no such route"), "before": False}),
        ("s3:GetObject", {"code": "InvalidObjectState"}),
        ("s3:GetObject", {"answer": (404, "application/xml", "<Error><Code>NoSuchKey</Code></Error>")}),
        ("s3:DeleteObject", {"code": "InvalidRequest"}),
    ],
)
def test_other_trouble_leaves_nothing_there(
    action: str, fault: dict[str, Any], uri: str, proxy: s3.Proxy, server: s3.Server
) -> None:
    proxy.fail(**REQUESTS[action], **fault)

    problem = probed(uri)

    assert problem is not None
    assert "there" not in problem.text.partition(";")[2]
    assert s3.keys(server.client, BucketPrefix.parse(uri).prefix) == []


def test_what_stays_there_after_other_trouble_is_named(uri: str, proxy: s3.Proxy) -> None:
    proxy.fail(code="InvalidRequest", **REQUESTS["s3:GetObject"])
    proxy.fail(code="InvalidRequest", times=9, **REQUESTS["s3:DeleteObject"])

    problem = probed(uri)

    assert problem is not None
    assert re.search(r"; preflight/[0-9a-f]{32} stays there$", problem.text)


@pytest.fixture
def preflight(piton: Piton, tmp_path: Path, uri: str) -> Any:
    """Runs the command on a fake training with a mirror; the check of the bucket, and the exit code."""

    def call(**trainer: Any) -> tuple[dict[str, Any], int]:
        parts = fake_parts()
        parts["trainer"] |= trainer
        mirror = {"uri": uri, "encryption": {"type": "SSE-KMS", "keyId": "key"}}
        file = write_manifest(tmp_path / "run.yaml", **parts, checkpoint={"volume": {"size": "1Gi"}, "mirror": mirror})
        result = piton("preflight", file, "--dir", tmp_path / "runs", "--quiet", "--json")
        (found,) = json.loads(result.out)["runs"].values()
        return next(check for check in found["checks"] if check["name"] == "bucket"), result.code

    return call


def test_the_command_says_that_the_bucket_is_good(preflight: Any, proxy: s3.Proxy, uri: str) -> None:
    check, _ = preflight()

    assert (check["state"], check["text"]) == (
        "ok",
        f"{uri}/default/fake was listed; one object was written with SSE-KMS, read and deleted",
    )


def test_the_command_fails_where_a_permission_is_missing(preflight: Any, proxy: s3.Proxy, uri: str) -> None:
    proxy.fail(code="AccessDenied", times=10_000, **REQUESTS["s3:DeleteObject"])

    check, code = preflight()

    assert (check["state"], code) == ("failed", 1)
    assert check["text"].startswith(f"{uri}/default/fake: s3:DeleteObject is missing")


def test_the_endpoint_in_the_environment_of_the_trainer_is_the_one_that_is_asked(
    preflight: Any, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    check, _ = preflight(env=[{"name": "AWS_ENDPOINT_URL", "value": proxy.url}])

    assert check["state"] == "ok", check
