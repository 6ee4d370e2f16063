"""Every class of answer of a bucket, or of what stands before it, for everybody who reads one: each in one sentence."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from piton.cli import main
from piton.contract import names
from piton_trainer.data import stream
from piton_trainer.data.text.sources import read_text
from piton_trainer.errors import BadConfig, DataUnavailable, Ended, VolumeLost
from piton_trainer.mirror import bucket, probe
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3 import Remedy, cache
from support import s3
from support.bad_s3 import ANSWERS, Answer, Answering
from support.mirrored import HASTY, QUICK, Volume, errors, wait_for

PLACE = f"s3://{s3.BUCKET}/somewhere"
WORDS = ("KeyError", "Traceback", "'ETag'", "NoneType", "not well-formed")
"""Of Python's own errors, which nobody can act on."""


@pytest.fixture(params=ANSWERS)
def answer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Answer]:
    found = ANSWERS[request.param]
    with Answering(found) as server:
        for name, value in s3.environment(server.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(names.ENV_DATA_CACHE, str(tmp_path / "cache"))
        for module in (stream, cache, bucket):
            monkeypatch.setattr(module, "Tuning", lambda **_: HASTY)
        yield found


@pytest.fixture
def volume(answer: Answer, tmp_path: Path) -> Volume:
    assert answer
    return Volume(tmp_path / "volume", PLACE, attempt=2)


def said(end: Ended, answer: Answer, *, users: type[Ended], others: type[Ended]) -> None:
    """The end is of the right kind, and is one sentence."""
    assert type(end) is (users if answer.remedy is Remedy.USERS else others), end.detail
    assert not [word for word in WORDS if word in end.detail]
    assert "\n" not in end.detail


def classes_of(answer: Answer) -> set[str]:
    """The words of the metrics for the class of this answer. A 200 without an ETag is no answer of S3's to a GET."""
    return {answer.remedy.name.lower(), *(["no_server"] if answer.status == 200 else [])}


@pytest.mark.parametrize("newer_than", [None, 4], ids=["an-empty-volume", "a-volume-with-checkpoints"])
def test_a_restore_that_fails_is_counted(newer_than: int | None, answer: Answer, volume: Volume) -> None:
    mirror = volume.mirror(QUICK)
    with contextlib.suppress(Ended):
        mirror.restore(newer_than)

    assert wait_for(lambda: errors(mirror) > 0)

    assert {kind for kind, number in mirror.errors().items() if number} <= classes_of(answer)
    mirror.close(0)


def test_a_restore_to_an_empty_volume(answer: Answer, volume: Volume) -> None:
    with pytest.raises(Ended) as end:
        volume.restored(None)

    said(end.value, answer, users=BadConfig, others=VolumeLost)
    assert "somewhere" in end.value.detail


def test_a_restore_to_a_volume_with_checkpoints(
    answer: Answer, volume: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    assert volume.restored(4) is None
    assert caplog.text.count("restoring from") == 1
    assert not [word for word in WORDS if word in caplog.text]


def test_an_upload(answer: Answer, volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    volume.commit(4)
    mirror = volume.mirror(QUICK)
    mirror.committed(4)

    assert wait_for(lambda: errors(mirror) >= 2)

    assert mirror._state.is_refused == (answer.remedy is Remedy.USERS)
    counted = {kind for kind, number in mirror.errors().items() if number}
    assert counted <= classes_of(answer)
    assert wait_for(lambda: mirror.refusal is not None), "it is said to people, at once or after a while"
    assert (mirror.refusal or "").startswith(f"nothing is mirrored to {PLACE}/run: ")
    assert not [word for word in WORDS if word in (mirror.refusal or "")]
    assert not mirror.close(0)
    assert caplog.text.count("fails, and is tried again") == 1
    assert not [word for word in WORDS if word in caplog.text]


def test_texts(answer: Answer) -> None:
    with pytest.raises(Ended) as end:
        read_text(f"{PLACE}/texts")

    said(end.value, answer, users=BadConfig, others=DataUnavailable)
    assert end.value.detail.startswith("trainer.config.data: cannot read s3://")


@pytest.mark.parametrize(
    "read", [stream.version_of, lambda source: list(stream.lines(source))], ids=["version", "lines"]
)
def test_rows(answer: Answer, read: object) -> None:
    assert callable(read)
    with pytest.raises(Ended) as end:
        read(f"{PLACE}/rows.jsonl")

    said(end.value, answer, users=BadConfig, others=DataUnavailable)


def test_the_probe_of_preflight(answer: Answer) -> None:
    problem = probe.problem_of(bucket.Bucket(BucketPrefix.parse(PLACE)))

    assert problem is not None
    assert problem.text.startswith(f"{PLACE}: ")
    assert not [word for word in WORDS if word in problem.text]
    assert "\n" not in problem.text


@pytest.mark.parametrize("command", ["ls", "verify", "restore"])
def test_the_command_line(
    command: str,
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = [str(tmp_path / "into")] if command == "restore" else []
    monkeypatch.setattr(sys, "argv", ["piton", "checkpoint", command, PLACE, *place])

    with pytest.raises(SystemExit) as end:
        main()

    told = capsys.readouterr().err
    assert end.value.code == 2
    assert f"{PLACE} cannot be read: " in told
    assert not [word for word in WORDS if word in told]
    assert not (tmp_path / "into").exists()
