"""Whole runs with a mirror: what they end with, and what they cost training when the bucket is in trouble."""

import os
import shutil
import signal
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

import piton_trainer
from piton.contract.assignment import Assignment, MirrorPolicy, SavePolicy
from piton.contract.termination import Outcome, Termination
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Server
from piton_trainer.mirror import client
from piton_trainer.telemetry import telemetry
from support import ranks, s3, tiny
from support.mirrored import HASTY, QUICK, Contents, errors, wait_for
from support.status_server import StatusServer

SAVE = SavePolicy(every_steps=4)


def orders(uri: str) -> Assignment:
    return Assignment(save=SAVE, mirror=MirrorPolicy(uri=f"{uri}/run"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "Timeouts", lambda: QUICK)
    monkeypatch.setattr(client, "Tuning", lambda **_: HASTY)


def digest(ran: tiny.Ran) -> str:
    assert (ran.code, ran.error) == (0, "")
    return ran.digest()


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
        found = session._services.telemetry.mirror
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
    monkeypatch.setattr(telemetry, "Timeouts", lambda: replace(QUICK, finish=3, behind=0.0))
    proxy.fail(times=10_000)
    with StatusServer() as status:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=status.url))

    assert list(ran.losses) == list(range(1, tiny.STEPS + 1))
    assert caplog.text.count("fails, and is tried again") == 1
    assert "is behind: it has step None of 15" in caplog.text
    assert status.reports[-1].metrics["mirror_lag_steps"] == 15
    assert "mirror_step" not in status.reports[-1].metrics
    assert (status.reports[-1].mirror_refusal or "").startswith(f"nothing is mirrored to {uri}/run")
    assert status.reports[-1].metrics["mirror_lag_seconds"] > 0


def test_a_run_whose_last_checkpoint_is_not_in_the_bucket_is_not_finished_and_the_next_attempt_only_uploads_it(
    tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents, monkeypatch: pytest.MonkeyPatch, undisturbed: str
) -> None:
    """On two ranks: neither says that the run is finished."""
    monkeypatch.setattr(telemetry, "Timeouts", lambda: replace(QUICK, stop=0.2))  # once it is refused
    directory, logs = tmp_path / "checkpoints", [tmp_path / "0", tmp_path / "1"]
    for log in logs:
        log.touch()

    def train(attempt: int) -> list[tiny.Ran]:
        def body() -> tiny.Ran:
            log = logs[int(os.environ["RANK"])]
            return tiny.train(directory, assignment=orders(uri), attempt=attempt, seed=attempt, termination_log=log)

        return [end.result for end in ranks.run(2, body)]

    proxy.fail(times=10_000, code="AccessDenied")
    first = train(1)
    words = Termination.from_json(logs[0].read_text())
    proxy.heal()
    monkeypatch.setattr(telemetry, "Timeouts", lambda: replace(QUICK, finish=60))
    second = train(2)

    assert [ran.code for ran in first] == [84, 84]
    assert [ran.complete for ran in first] == [None, None]
    assert words is not None
    assert (words.outcome, words.step, words.checkpoint_step) == (Outcome.NOT_MIRRORED, tiny.STEPS, tiny.STEPS)
    assert "There is no checkpoint" in words.detail
    assert "AccessDenied" in words.detail
    assert [ran.resumed_from for ran in second] == [tiny.STEPS] * 2
    assert [ran.losses for ran in second] == [{}, {}]
    assert digest(second[0])
    assert (bucket.newest() or "").startswith(f"step-{tiny.STEPS:09d}-")
    bucket.assert_sound()


def test_a_stop_over_the_last_upload_leaves_it_to_the_next_attempt(
    tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents, monkeypatch: pytest.MonkeyPatch, undisturbed: str
) -> None:
    monkeypatch.setattr(telemetry, "Timeouts", lambda: replace(QUICK, finish=600, stop=0.2))
    is_over = threading.Event()

    def stop(method: str, path: str) -> None:
        if method == "PUT" and f"/step-{tiny.STEPS:09d}-" in path:
            os.kill(os.getpid(), signal.SIGTERM)
            is_over.wait(60)

    proxy.on_request = stop
    stopped = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1)
    proxy.on_request = None
    is_over.set()
    ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=2)

    assert (stopped.code, stopped.complete) == (143, None)
    assert stopped.error == "told to stop by SIGTERM; step 15 is saved"
    assert (ran.losses, digest(ran)) == ({}, undisturbed)
    assert (bucket.newest() or "").startswith(f"step-{tiny.STEPS:09d}-")


def test_a_restore_may_take_longer_than_the_ranks_wait_for_each_other(
    tmp_path: Path, uri: str, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch, undisturbed: str
) -> None:
    monkeypatch.setattr(dist, "new_group", partial(dist.new_group, timeout=timedelta(seconds=10)))
    monkeypatch.setattr(client, "_REPORT_SECONDS", 1.0)
    first = tiny.train(tmp_path / "first", assignment=orders(uri), attempt=1, at={10: tiny.terminate})
    assert first.code == 143
    monkeypatch.setattr(client, "Tuning", lambda **_: replace(HASTY, read_seconds=60))
    held: list[str] = []

    def hold(method: str, path: str) -> None:
        if method == "GET" and path.endswith((".distcp", layout.STATE_FILE)):
            held.append(path)
            threading.Event().wait(11 if path.endswith(layout.STATE_FILE) else 13)

    proxy.on_request = hold
    with StatusServer() as status:

        def body() -> tiny.Ran:
            server = Server(url=status.url)
            return tiny.train(tmp_path / "second", assignment=orders(uri), attempt=2, server=server)

        second = [end.result for end in ranks.run(2, body)]

    assert held
    assert [(ran.code, ran.resumed_from) for ran in second] == [(0, 10)] * 2
    restoring = [report.metrics for report in status.reports if "mirror_restored_bytes" in report.metrics]
    assert restoring
    assert all(0 < found["mirror_restored_bytes"] <= found["mirror_restore_bytes"] for found in restoring)


def test_the_lag_is_reported(tmp_path: Path, uri: str, proxy: s3.Proxy) -> None:
    with StatusServer() as status:
        ran = tiny.train(tmp_path / "checkpoints", assignment=orders(uri), attempt=1, server=Server(url=status.url))

    assert ran.code == 0
    assert status.reports[-1].metrics["mirror_lag_steps"] == 0
    assert status.reports[-1].metrics["mirror_step"] == tiny.STEPS
    assert status.reports[-1].metrics["mirror_lag_seconds"] == 0
    assert proxy.seen


def test_that_the_bucket_is_of_another_run_is_reported(
    tmp_path: Path, uri: str, proxy: s3.Proxy, undisturbed: str
) -> None:
    tiny.train(tmp_path / "earlier", assignment=orders(uri), attempt=1)

    with StatusServer() as server:
        ran = tiny.train(
            tmp_path / "later", assignment=orders(uri), attempt=1, uid="another", server=Server(url=server.url)
        )

    assert digest(ran) == undisturbed
    refusal = server.reports[-1].mirror_refusal
    assert refusal is not None
    assert "holds the checkpoints of another run" in refusal


def test_a_place_that_is_none_is_a_wrong_setting(tmp_path: Path) -> None:
    ran = tiny.train(tmp_path / "checkpoints", assignment=Assignment(mirror=MirrorPolicy(uri="gs://bucket")), attempt=1)

    assert (ran.code, ran.error) == (
        78, "checkpoint.mirror: gs://bucket is no place in a bucket; write it like s3://bucket/prefix"
    )  # fmt: skip
