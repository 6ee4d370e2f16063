"""Whole runs with a mirror: what they end with, and what they cost training when the bucket is in trouble."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import piton_trainer
from piton.contract.assignment import Assignment, MirrorPolicy, SavePolicy
from piton_trainer import sessions
from piton_trainer.config import Server
from piton_trainer.mirror import mirror
from support import ranks, s3, tiny
from support.mirrored import HASTY, QUICK, Contents, errors, wait_for
from support.status_server import StatusServer

SAVE = SavePolicy(every_steps=4)


def orders(uri: str) -> Assignment:
    return Assignment(save=SAVE, mirror=MirrorPolicy(uri=f"{uri}/run"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "Patience", lambda: QUICK)
    monkeypatch.setattr(mirror, "Tuning", lambda **_: HASTY)


def digest(ran: tiny.Ran) -> str:
    assert (ran.code, ran.error) == (0, "")
    assert ran.complete is not None
    return ran.complete.weights_digest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one rank ends with. It also imports here what the forked ranks would else import each on its own."""
    return digest(tiny.train(tmp_path_factory.mktemp("undisturbed"), assignment=Assignment(save=SAVE)))


def test_two_ranks_whose_volume_is_deleted_between_attempts_end_with_the_same_weights(
    tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents, undisturbed: str
) -> None:
    """In processes of their own, with saves in the background; the shards of both are on one volume."""
    directory = tmp_path / "checkpoints"

    def train(folder: Path, attempt: int | None, assignment: Assignment, **options: object) -> list[tiny.Ran]:
        def body() -> tiny.Ran:
            return tiny.train(folder, assignment=assignment, attempt=attempt, background_saves=True, **options)  # type: ignore[arg-type]

        return [end.result for end in ranks.run(2, body)]

    alone = train(tmp_path / "alone", None, Assignment(save=SAVE))
    first = train(directory, 1, orders(uri), at={10: tiny.terminate})
    assert [ran.code for ran in first] == [143] * 2
    assert sum(name.endswith(".distcp") for name in bucket.folders()[bucket.newest() or ""]) == 2
    shutil.rmtree(directory)

    second = train(directory, 2, orders(uri), seed=7)

    assert [ran.resumed_from for ran in second] == [10] * 2
    assert digest(second[0]) == digest(alone[0]) != undisturbed
    bucket.assert_sound()


def test_a_bucket_that_is_gone_in_the_middle_of_a_run_costs_nothing_and_the_mirror_catches_up(
    tmp_path: Path, uri: str, proxy: s3.Proxy, server: s3.Server, bucket: Contents, undisturbed: str
) -> None:
    """The server is really stopped, and started again on its data."""
    seen: list[int] = []

    def see(session: piton_trainer.Session) -> None:
        found = session._mirror
        assert found is not None
        assert wait_for(lambda: errors(found) > 0)
        lag = found.lag()
        assert lag is not None
        seen.append(lag.steps)

    events = {6: lambda _: server.stop(), 10: see, 13: lambda _: server.start()}
    ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, at=events)

    server.wait()
    assert digest(ran) == undisturbed
    assert seen[0] in (4, 8)
    pointer = bucket.latest().newest
    assert pointer is not None
    assert pointer.step == 15
    bucket.assert_sound()


def test_a_bucket_that_stays_away_costs_no_training_and_is_said_once(
    tmp_path: Path, uri: str, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "Patience", lambda: replace(QUICK, finish=0.2))
    proxy.fail(times=10_000)
    with StatusServer() as status:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=status.url))

    assert ran.code == 0
    assert caplog.text.count("fails, and is tried again") == 1
    assert "is behind: it has step None of 15" in caplog.text
    assert status.reports[-1].metrics["mirror_lag_steps"] == 15
    assert status.reports[-1].metrics["mirror_lag_seconds"] > 0


def test_the_lag_is_reported(tmp_path: Path, uri: str, proxy: s3.Proxy) -> None:
    with StatusServer() as status:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=status.url))

    assert ran.code == 0
    assert status.reports[-1].metrics["mirror_lag_steps"] == 0
    assert status.reports[-1].metrics["mirror_lag_seconds"] == 0
    assert proxy.seen


def test_a_place_that_is_none_is_a_wrong_setting(tmp_path: Path) -> None:
    ran = tiny.train(tmp_path / "checkpoints", assignment=Assignment(mirror=MirrorPolicy(uri="gs://bucket")), attempt=1)

    assert (ran.code, ran.error) == (
        78, "checkpoint.mirror: gs://bucket is no place in a bucket; write it like s3://bucket/prefix"
    )  # fmt: skip
