"""Training data out of S3: fetched once, whole, and again when it changes; what is wrong with it costs a sentence."""

import hashlib
import logging
import random
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from piton.contract import names
from piton_trainer.data import stream
from piton_trainer.data.cache_folder import cache_folder
from piton_trainer.data.text.sources import read_text
from piton_trainer.errors import BadConfig, DataUnavailable
from piton_trainer.s3 import S3Error, Tuning, reader
from piton_trainer.s3.cache import Cache
from support import ranks, s3
from support.clocks import FakeClock

PIECE = 50_000
LARGE = b"".join(hashlib.sha256(bytes([number % 256, number // 256])).hexdigest().encode() for number in range(2000))
"""Three pieces, none like another."""
Put = Callable[..., None]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(names.ENV_DATA_CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "PIECE_BYTES", PIECE)
    return tmp_path / "cache"


@pytest.fixture
def put(server: s3.Server, uri: str) -> Put:
    def write(name: str, body: bytes, **options: str) -> None:
        server.client.put_object(Bucket=s3.BUCKET, Key=f"{uri.rpartition('/')[2]}/{name}", Body=body, **options)

    return write


def gets(proxy: s3.Proxy) -> int:
    """Requests for the bytes of objects."""
    return sum(line.startswith("GET") and "list-type" not in line for line in proxy.seen)


def test_a_prefix_is_a_folder_whose_texts_come_in_the_order_of_their_keys(proxy: s3.Proxy, put: Put, uri: str) -> None:
    for key, text in {"day/z.txt": "two", "day/a/b.md": "one", "day/x.png": "-", "daylight/c.txt": "-"}.items():
        put(key, text.encode())

    assert read_text(f"{uri}/day") == read_text(f"{uri}/day/") == "one\n\ntwo"


def test_a_uri_can_name_one_object_that_is_fetched_once(proxy: s3.Proxy, put: Put, uri: str) -> None:
    assert 2 * PIECE < len(LARGE) < 3 * PIECE
    put("corpus", LARGE)

    assert read_text(f"{uri}/corpus") == LARGE.decode()
    assert gets(proxy) == 3
    assert read_text(f"{uri}/corpus") == LARGE.decode()
    assert gets(proxy) == 3


def test_an_object_that_has_changed_is_fetched_again(proxy: s3.Proxy, put: Put, uri: str) -> None:
    put("corpus", b"old")
    assert read_text(f"{uri}/corpus") == "old"
    put("corpus", b"new")

    assert read_text(f"{uri}/corpus") == "new"


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(proxy: s3.Proxy, put: Put, uri: str) -> None:
    put("corpus", LARGE)
    proxy.fail(method="GET", key="/corpus", code="AccessDenied")
    tuning = Tuning(tries=1, concurrency=1)
    cache = Cache(cache_folder(), tuning=tuning)
    found = cache.below(s3.BUCKET, f"{uri.rpartition('/')[2]}/corpus")
    part = cache_folder() / f"{found[0].name}.part"
    part.parent.mkdir()
    part.write_bytes(LARGE[: PIECE + 100])  # as a process leaves it that is killed
    with pytest.raises(S3Error):
        cache.fetch(found, "it")
    proxy.heal()
    before = gets(proxy)

    assert cache.fetch(found, "it")[0].read_bytes() == LARGE

    assert gets(proxy) - before == 2
    assert not part.exists()


@pytest.mark.parametrize("options", [{}, {"ChecksumAlgorithm": "SHA256"}], ids=["MD5", "SHA-256"])
def test_bytes_that_went_bad_on_the_way_are_found_and_not_kept(
    options: dict[str, str], proxy: s3.Proxy, put: Put, uri: str, cache: Path
) -> None:
    put("corpus", LARGE, **options)
    found = Cache(cache).below(s3.BUCKET, f"{uri.rpartition('/')[2]}/corpus")
    cache.mkdir()
    (cache / f"{found[0].name}.part").write_bytes(bytes(PIECE))

    with pytest.raises(DataUnavailable, match=r"s3://.*/corpus arrived with another (MD5|SHA-256) than S3 has of it"):
        read_text(f"{uri}/corpus")

    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert read_text(f"{uri}/corpus") == LARGE.decode()


def test_the_ranks_of_a_node_fetch_once(proxy: s3.Proxy, put: Put, uri: str) -> None:
    put("corpus", LARGE)

    ends = ranks.run(2, lambda: hashlib.sha256(read_text(f"{uri}/corpus").encode()).digest())

    assert [end.result for end in ends] == [hashlib.sha256(LARGE).digest()] * 2
    assert gets(proxy) == 3


@pytest.mark.parametrize("fault", [{"code": "SlowDown"}, {"half": True}, {}], ids=["slow-down", "cut-half", "cut"])
def test_what_fails_is_tried_again_and_the_trainings_random_numbers_are_left_alone(
    fault: dict[str, object], proxy: s3.Proxy, put: Put, uri: str
) -> None:
    put("corpus", b"some text")
    proxy.fail(method="GET", key="/corpus", **fault)
    before = random.getstate()

    assert read_text(f"{uri}/corpus") == "some text"

    assert gets(proxy) == 2
    assert random.getstate() == before


def test_an_object_that_is_written_to_while_it_is_read_is_no_mixture(proxy: s3.Proxy, put: Put, uri: str) -> None:
    put("corpus", LARGE)
    proxy.on_request = lambda method, path: put("corpus", LARGE[::-1]) if method == "HEAD" else None

    with pytest.raises(DataUnavailable, match="was written to while it was read"):
        read_text(f"{uri}/corpus")


@pytest.mark.parametrize(
    ("source", "env", "sentence"),
    [
        ("s3://no-such-bucket/x", {}, "NoSuchBucket"),
        ("s3://piton-tests/nothing/here", {}, "there is no text in s3://piton-tests/nothing/here"),
        ("s3://Not A Bucket/x", {}, "Invalid bucket name"),
        ("s3://piton-tests/x", {"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        ("s3://piton-tests/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ("s3://piton-tests/x", {"AWS_PROFILE": "nobody"}, "nobody"),
        ("s3://piton-tests/x", {"AWS_ENDPOINT_URL": "nowhere"}, "Invalid endpoint: nowhere"),
    ],
)
def test_what_the_user_can_mend_is_said_in_a_sentence(
    source: str, env: dict[str, str], sentence: str, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(BadConfig) as caught:
        read_text(source)

    assert caught.value.detail.startswith("trainer.config.data: ")
    assert sentence in caught.value.detail
    assert "\n" not in caught.value.detail


def test_missing_credentials_are_said_in_a_sentence(proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")

    with pytest.raises(BadConfig, match="Unable to locate credentials"):
        read_text("s3://piton-tests/x")


def test_an_s3_that_is_out_of_order_is_not_the_users_fault(proxy: s3.Proxy, uri: str, cache: Path) -> None:
    proxy.fail(code="InternalError", times=100)

    with pytest.raises(S3Error, match="InternalError"):
        Cache(cache, tuning=Tuning(tries=1)).below(s3.BUCKET, "x")


def test_what_does_not_fit_is_said_before_it_is_fetched(
    proxy: s3.Proxy, put: Put, uri: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put("corpus", LARGE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))

    with pytest.raises(BadConfig) as caught:
        read_text(f"{uri}/corpus")

    assert caught.value.detail == (
        f"trainer.config.data: {uri}/corpus is 0.0 GB, and {cache} has no room for it; "
        "name another folder with PITON_DATA_CACHE"
    )
    assert gets(proxy) == 0


def test_a_long_fetch_says_how_far_it_is(
    proxy: s3.Proxy, put: Put, uri: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("corpus", LARGE)
    clock = FakeClock()
    proxy.on_request = lambda *_: clock.pass_seconds(6)

    with caplog.at_level(logging.INFO, "piton_trainer"):
        found = Cache(cache, tuning=Tuning(concurrency=1), clock=clock)
        found.fetch(found.below(s3.BUCKET, f"{uri.rpartition('/')[2]}/corpus"), "the corpus")

    sentences = [record.message for record in caplog.records]
    assert sentences
    assert all(re.fullmatch(r"the corpus: 0\.00 of 0\.00 GB are here, at \d+ MB/s", text) for text in sentences)


def test_the_cache_lies_with_the_users_other_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(names.ENV_DATA_CACHE)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/piton/data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "piton" / "data"


AWAY = {
    "busy": {"code": "SlowDown"},
    "expired": {"code": "ExpiredToken"},
    "gone": {},
    "page": {"answer": (200, "text/html", "<html>log in</html>")},
}


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in AWAY.items()])
def test_what_is_in_the_cache_is_used_while_the_bucket_is_away(
    fault: dict[str, Any],
    proxy: s3.Proxy,
    put: Put,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("piton_trainer.s3.cache.Tuning", lambda: Tuning(tries=1))
    put("day/a.txt", b"one")
    assert read_text(f"{uri}/day") == "one"
    proxy.fail(times=10_000, **fault)

    assert read_text(f"{uri}/day") == "one"

    assert "its last listing and the cache are used" in caplog.text
    with pytest.raises(DataUnavailable):
        read_text(f"{uri}/night")
    next(path for path in cache_folder().iterdir() if not path.suffix).unlink()
    with pytest.raises(DataUnavailable):
        read_text(f"{uri}/day")


def test_a_bucket_that_refuses_is_not_taken_for_one_that_is_away(proxy: s3.Proxy, put: Put, uri: str) -> None:
    put("day/a.txt", b"one")
    assert read_text(f"{uri}/day") == "one"
    proxy.fail(times=10_000, code="AccessDenied")

    with pytest.raises(BadConfig, match="AccessDenied"):
        read_text(f"{uri}/day")


def test_what_was_made_of_an_object_is_used_while_the_bucket_is_away(
    proxy: s3.Proxy, put: Put, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "Tuning", lambda: Tuning(tries=1))
    put("rows.jsonl", b"{}")
    memory = tmp_path / "volume" / "cache"
    version = stream.version_of(f"{uri}/rows.jsonl", memory)
    put("rows.jsonl", b"[]")
    newer = stream.version_of(f"{uri}/rows.jsonl", memory)
    proxy.fail(times=10_000)

    assert stream.version_of(f"{uri}/rows.jsonl", memory) == newer != version
    with pytest.raises(DataUnavailable):
        stream.version_of(f"{uri}/others.jsonl", memory)
    with pytest.raises(DataUnavailable):
        stream.version_of(f"{uri}/rows.jsonl")
