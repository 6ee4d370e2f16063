"""Progress over real HTTP: what is said, what is heard, and that nobody waits for it."""

import http.client
import math
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest

import piton_trainer
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.progress import Progress, StopAt, TrainerRequests
from piton.contract.termination import Limit, Outcome, Termination
from piton_trainer.checkpoint.format import layout
from piton_trainer.clock import Clock
from piton_trainer.config import Server
from piton_trainer.state.train_state import TrainState
from piton_trainer.telemetry.operator_client import OperatorClient, ReportConnection, push
from piton_trainer.telemetry.progress import progress_of
from support import tiny
from support.clocks import FakeClock
from support.mirrored import wait_for
from support.status_server import StatusServer


def a_report(step: int = 1) -> Progress:
    return Progress(updated="2026-01-31T12:00:00+00:00", step=step)


def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    tiny.train(tmp_path, at={6: tiny.terminate})
    with StatusServer() as server:
        tiny.train(tmp_path, server=Server(url=server.url))
    last = server.reports[-1]
    assert (last.step, last.total_steps, last.checkpoint_step, last.resumed_from) == (15, 15, 15, 6)
    assert (last.percentage, last.remaining_seconds) == (100, 0)
    assert math.isfinite(last.metrics["loss"])
    assert server.paths[0] == "/apis/status?run=tiny"
    before = server.reports[:-1]
    assert all(report.percentage is not None and report.percentage <= 99 for report in before)
    assert [r.step for r in server.reports] == sorted(r.step or 0 for r in server.reports)


def test_a_run_that_stops_reports_its_last_checkpoint(tmp_path: Path) -> None:
    with StatusServer() as server:
        tiny.train(tmp_path, at={6: tiny.terminate}, server=Server(url=server.url))
    assert (server.reports[-1].step, server.reports[-1].checkpoint_step) == (6, 6)
    assert server.reports[-1].percentage == 40


def test_a_metric_of_the_users_does_not_pass_for_the_step(tmp_path: Path) -> None:
    with StatusServer() as server:
        tiny.train(tmp_path, at={15: lambda session: session.report(step=77)}, server=Server(url=server.url))
    assert server.reports[-1].step == 15


def wait_for_a_wish(session: piton_trainer.Session) -> None:
    """A step that is so long that the server's answer to the step before is there when it ends."""
    reporter, deadline = session._services.telemetry.operator, time.monotonic() + 10
    assert reporter is not None
    while not (reporter.stop_requested or reporter.checkpoint_requested):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_server_wishes_a_checkpoint_and_gets_one(tmp_path: Path) -> None:
    with StatusServer(lambda report: TrainerRequests(checkpoint=report.step == 1)) as server:
        orders = Assignment(save=SavePolicy(keep_last=9))
        tiny.train(tmp_path, assignment=orders, server=Server(url=server.url), at={2: wait_for_a_wish})
    steps = [step for step, _ in layout.step_folders(tmp_path)]
    assert steps == [15, 2]


def test_the_server_wishes_a_stop_and_gets_it(tmp_path: Path) -> None:
    with StatusServer(lambda _: TrainerRequests(stop=True)) as server:
        ran = tiny.train(tmp_path, server=Server(url=server.url), at={2: wait_for_a_wish})
    assert (ran.code, ran.error) == (143, "told to stop by the server or another rank; step 2 is saved")


def test_the_server_moves_a_limit_and_the_training_keeps_it_by_itself(tmp_path: Path) -> None:
    over = StopAt(time=datetime(2026, 1, 1, tzinfo=UTC), limit=Limit.BUDGET)
    log = tmp_path / "termination-log"

    def wait(session: piton_trainer.Session) -> None:
        reporter = session._services.telemetry.operator
        assert reporter is not None
        assert wait_for(lambda: reporter.stop_by is not None)

    with StatusServer(lambda _: TrainerRequests(stop_at=over)) as server:
        ran = tiny.train(tmp_path, server=Server(url=server.url), at={2: wait}, termination_log=log)

    assert (ran.code, ran.error) == (
        143,
        "limits.budget is reached, and the training stopped by itself; step 2 is saved",
    )
    last = Termination.from_json(log.read_text(encoding="utf-8"))
    assert last is not None
    assert (last.outcome, last.limit, last.checkpoint_step) == (Outcome.STOPPED, Limit.BUDGET, 2)


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_limit_is_kept_by_its_seconds_and_not_by_the_clock_of_another_machine(hours: int) -> None:
    clock = Clock()
    theirs = clock.now() + timedelta(hours=hours)
    stop_at = StopAt(time=theirs + timedelta(seconds=600), limit=Limit.DEADLINE, seconds=600.0)
    with StatusServer(lambda _: TrainerRequests(stop_at=stop_at)) as server:
        reporter = OperatorClient(Server(url=server.url), clock=clock, interval_seconds=5)
        reporter.on_report(a_report())
        assert wait_for(lambda: reporter.stop_by is not None)
        reporter.on_end(None)

    assert reporter.stop_by is not None
    assert reporter.stop_by.moment is not None
    assert 590 < reporter.stop_by.moment - clock.monotonic() <= 600


def test_the_way_from_a_wish_to_a_durable_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured, and not judged: on a cluster the interval of reports, 5 s, comes on top."""
    wished: list[float] = []

    def generation(report: Progress) -> TrainerRequests:
        if report.step == 3 and not wished:
            wished.append(time.monotonic())
        return TrainerRequests(checkpoint=bool(wished) and report.step == 3)

    saved: list[float] = []
    with StatusServer(generation) as server:
        orders = Assignment(save=SavePolicy(keep_last=9))
        seen = at_each_step_after(4, lambda: saved.append(time.monotonic()), tmp_path)
        tiny.train(tmp_path, assignment=orders, server=Server(url=server.url), at={4: wait_for_a_wish, **seen})
    assert {step for step, _ in layout.step_folders(tmp_path)} >= {4}
    with capsys.disabled():
        print(f"\nfrom a wish to a durable save: {1000 * (saved[0] - wished[0]):.0f} ms")


def at_each_step_after(first: int, action: Callable[[], None], directory: Path) -> dict[int, tiny.Event]:
    """Do it in the first step that finds the save of an earlier one durable."""
    done: list[bool] = []

    def look(_: piton_trainer.Session) -> None:
        if not done and any(step == first for step, _ in layout.step_folders(directory)):
            done.append(True)
            action()

    return dict.fromkeys(range(first + 1, tiny.STEPS + 1), look)


def test_a_server_that_is_not_there_is_mentioned_once_and_disturbs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StatusServer() as gone:
        url = gone.url
    ran = tiny.train(tmp_path, server=Server(url=url))
    assert ran.complete is not None
    assert [r.getMessage() for r in caplog.records if "progress is not reported" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.name == "piton_trainer.telemetry.operator_client"]) == 1


def test_a_server_that_refuses_is_mentioned_with_its_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StatusServer(status=403) as server:
        tiny.train(tmp_path, server=Server(url=server.url))
    assert "the server answered 403 Forbidden" in caplog.text


def test_a_server_that_does_not_answer_costs_reports_and_never_steps() -> None:
    release = threading.Event()

    def hang(_: Progress) -> TrainerRequests:
        release.wait(10)
        return TrainerRequests()

    with StatusServer(hang) as server:
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=0, timeout_seconds=0.2)
        for step in range(1000):
            reporter.report(a_report(step), now=float(step))
        reporter.on_end(a_report(1000))
        release.set()
    steps = [report.step for report in server.reports]
    assert len(steps) < 10
    assert steps[-1] == 1000


def test_reports_keep_their_distance() -> None:
    with StatusServer() as server:
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=5)
        assert reporter.is_due(100.0)
        reporter.report(a_report(), now=100.0)
        assert not reporter.is_due(104.9)
        assert reporter.is_due(105.0)
        reporter.on_end(None)


def test_one_connection_carries_many_reports() -> None:
    with StatusServer(keeps=True) as server:
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=0)
        for step in range(1, 4):
            reporter.on_report(a_report(step))
            assert wait_for(lambda step=step: [r.step for r in server.reports][-1:] == [step])
        reporter.on_end(None)
        assert server.connections == 1


def test_a_connection_that_the_server_has_closed_meanwhile_costs_no_report() -> None:
    with StatusServer(keeps=True) as server, ReportConnection(Server(url=server.url)) as connection:
        server.hangs_up.set()
        for step in range(1, 4):
            connection.push(a_report(step))
        assert ([report.step for report in server.reports], server.connections) == ([1, 2, 3], 3)


def test_a_new_connection_that_fails_is_not_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepted: list[int] = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    found, _ = listening.accept()
                    accepted.append(found.fileno())
                    found.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with pytest.raises((OSError, http.client.HTTPException)):
            push(Server(url=f"http://127.0.0.1:{listening.getsockname()[1]}"), a_report())
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert len(accepted) == 1


def test_after_a_refusal_the_server_hears_nothing_until_it_wants_to_and_then_the_newest() -> None:
    with StatusServer(keeps=True) as server:
        server.refusals = [0.5]
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=0)
        began = time.monotonic()
        reporter.on_report(a_report(1))
        assert wait_for(lambda: not server.refusals)
        for step in (2, 3):
            reporter.on_report(a_report(step))
        assert wait_for(lambda: len(server.reports) == 2)
        assert time.monotonic() - began >= 0.5
        reporter.on_end(None)
    assert ([report.step for report in server.reports], server.connections) == ([1, 3], 1)


@pytest.mark.parametrize(("refusals", "steps"), [([0.1], [9, 9]), ([0.1, 0.1, 0.1], [9, 9]), ([30.0], [9])])
def test_the_last_report_is_sent_again_once_unless_the_server_wants_to_wait_for_long(
    refusals: list[float], steps: list[int]
) -> None:
    with StatusServer(keeps=True) as server:
        server.refusals = list(refusals)
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=5)
        reporter.on_end(a_report(9))
    assert [report.step for report in server.reports] == steps


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=piton", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_the_token_is_read_again_for_each_report_and_goes_over_tls(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    with StatusServer() as server:
        server.secure(*map(str, certificate))
        target = Server(url=server.url, ca_cert=certificate[0], token_file=token)
        for secret in ("one\n", "two"):
            token.write_text(secret)
            push(target, a_report())
    assert server.tokens == ["Bearer one", "Bearer two"]


def test_a_kept_connection_sends_the_token_of_each_report(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    token = tmp_path / "token"
    with StatusServer(keeps=True) as server:
        server.secure(*map(str, certificate))
        target = Server(url=server.url, ca_cert=certificate[0], token_file=token)
        with ReportConnection(target) as connection:
            for secret in ("one\n", "two"):
                token.write_text(secret)
                connection.push(a_report())
    assert (server.tokens, server.connections) == (["Bearer one", "Bearer two"], 1)


def test_a_new_connection_trusts_the_authority_that_the_file_names_now(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    authority = tmp_path / "ca.crt"
    shutil.copyfile(certificate[0], authority)
    with StatusServer(keeps=True) as server:
        server.secure(*map(str, certificate))
        server.hangs_up.set()
        with ReportConnection(Server(url=server.url, ca_cert=authority)) as connection:
            connection.push(a_report())
            authority.write_text(certifi.contents())
            with pytest.raises(OSError, match="certificate verify failed"):
                connection.push(a_report())
            shutil.copyfile(certificate[0], authority)
            connection.push(a_report())


def test_a_server_that_nobody_vouches_for_gets_no_token(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with StatusServer() as server:
        server.secure(*map(str, certificate))
        with pytest.raises(OSError, match="certificate verify failed"):
            push(Server(url=server.url, token_file=tmp_path / "token"), a_report())
    assert server.tokens == []


def remaining(state: TrainState, *, training_seconds: float | None = None, total: int | None = None) -> int | None:
    return progress_of(
        state,
        assignment=Assignment(training_seconds=training_seconds),
        total=total,
        started=(10, 100.0),
        durable_step=None,
        resumed_from=10,
        previous=None,
        mirror_refusal=None,
        resume_warning=None,
        metrics={},
        now=FakeClock().now(),
        complete=None,
    ).remaining_seconds


def test_the_time_that_is_left_follows_the_pace_of_this_attempt() -> None:
    state = TrainState(step=20, training_seconds=120.0)
    assert remaining(state, total=50) == 60
    assert remaining(state, training_seconds=130) == 10
    assert remaining(state, total=50, training_seconds=130) == 10
    assert remaining(state) is None
    assert remaining(TrainState(step=10, training_seconds=100.0), total=50) is None


def test_a_trainer_says_at_once_that_it_is_there_and_repeats_its_newest_report_while_a_step_takes_long() -> None:
    with StatusServer(keeps=True) as server:
        reporter = OperatorClient(Server(url=server.url), clock=Clock(), interval_seconds=5, repeat_seconds=0.05)
        assert wait_for(lambda: server.greetings > 1)
        reporter.on_report(a_report(7))
        assert wait_for(lambda: len(server.reports) > 1)
        reporter.on_end(None)
    assert {report.step for report in server.reports} == {7}
    assert reporter.failure is None


def _refused(_: Path) -> Server:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return Server(url=f"https://127.0.0.1:{free.getsockname()[1]}/")


def _unknown(_: Path) -> Server:
    return Server(url="https://piton-operator.invalid:8443/")


@pytest.mark.parametrize(
    ("server", "words"),
    [(_refused, "the connection is refused"), (_unknown, "the name is not resolved")],
)
def test_what_keeps_reports_from_arriving_is_known_in_words(
    tmp_path: Path, server: Callable[[Path], Server], words: str
) -> None:
    reporter = OperatorClient(server(tmp_path), clock=Clock(), interval_seconds=5)
    reporter.on_end(a_report())

    assert reporter.failure is not None
    assert words in reporter.failure


def test_a_certificate_of_another_authority_is_named(certificate: tuple[Path, Path]) -> None:
    with StatusServer() as server:
        server.secure(*map(str, certificate))
        reporter = OperatorClient(
            Server(url=server.url, ca_cert=Path(certifi.where())), clock=Clock(), interval_seconds=5
        )
        reporter.on_end(a_report())

    assert reporter.failure is not None
    assert "its certificate is not of the authority that this pod was given" in reporter.failure


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        reporter = OperatorClient(Server(url=url), clock=Clock(), interval_seconds=5, timeout_seconds=0.05)
        assert wait_for(lambda: reporter.failure is not None)
        assert "no answer in time" in (reporter.failure or "")
        reporter.on_end(None)


def test_the_last_words_of_a_run_say_why_its_reports_did_not_arrive(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    tiny.train(tmp_path / "run", server=_refused(tmp_path), termination_log=log)

    words = Termination.from_json(log.read_text())
    assert words is not None
    assert words.unreported is not None
    assert words.unreported.endswith("the connection is refused")
