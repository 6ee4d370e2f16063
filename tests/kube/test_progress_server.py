"""Progress over HTTPS, from the trainer's own client to the status of the run: what is let in, and what is not."""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piton.api.status_base import Phase
from piton.contract import names
from piton.contract.progress import BODY_BYTES_MAX, Progress, TrainerRequests
from piton.kube.progress_server import ProgressServer
from piton.kube.report_auth import BAD_SECONDS, GOOD_SECONDS, ReportAuthenticator
from piton.kube.report_store import Sender
from piton.kube.run_controller import Controller
from piton.kube.tls import AUTHORITY, Certificates
from piton_trainer.config import Server
from piton_trainer.telemetry.operator_client import push
from support import certificates
from support.apiserver import JOBS, NODES, PODS, RUNS, TOKEN_REVIEWS, refusal
from support.builders import a_manifest, a_progress
from support.cluster import Disrupted, Runs
from support.pilot import Pilot
from support.tokens import Token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


class Post:
    """A receiver, and a trainer that reports to it."""

    def __init__(self, pilot: Pilot, port: int, folder: Path, token_file: Path) -> None:
        self.pilot = pilot
        self.folder = folder
        self._base = f"https://127.0.0.1:{port}"
        self._token_file = token_file

    def url(self, run: str = "ragcun", namespace: str = "team") -> str:
        return f"{self._base}/namespaces/{namespace}/trainingruns/{run}/status"

    def token(self, pod: str = "ragcun-1-master-0", *, seconds: float = 3600, **words: Any) -> Token:
        """What the kubelet gives to the pod."""
        found = self.pilot.server.find(PODS, pod, words.get("namespace", "team"))
        uid = found["metadata"]["uid"] if found else "uid-of-a-ghost"
        return Token(pod=pod, pod_uid=uid, expires=self.pilot.clock.now() + timedelta(seconds=seconds), **words)

    async def report(self, progress: Progress, token: Token | None = None) -> TrainerRequests:
        """As a trainer does it."""
        self._token_file.write_text((token or self.token()).text())
        target = Server(url=self.url(), ca_cert=self.folder / AUTHORITY, token_file=self._token_file)
        return await asyncio.to_thread(push, target, progress)

    async def say(
        self, body: bytes | AsyncIterator[bytes], authorization: str | None = None, **where: str
    ) -> tuple[int, str]:
        """As anybody does it; status and text of the answer."""
        trust = ssl.create_default_context(cafile=self.folder / AUTHORITY)
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        headers = {"Authorization": f"Bearer {self.token().text()}" if authorization is None else authorization}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url(**where), data=data, headers=headers, ssl=trust) as answer,
        ):
            return answer.status, await answer.text()

    def reviews(self) -> int:
        return sum(request.resource == TOKEN_REVIEWS for request in self.pilot.server.asked)


def _taken(controller: Controller, sender: Sender, progress: Progress) -> TrainerRequests:
    """As the thread of the reports does it, in one loop."""
    controller.on_report(sender, progress)
    return controller.answer(sender)


@asynccontextmanager
async def receiving(
    pilot: Pilot, folder: Path, token_file: Path, *, authenticator: ReportAuthenticator | None = None, **options: float
) -> AsyncIterator[Post]:
    authenticator = authenticator or ReportAuthenticator(pilot.client, pilot.clock, pilot.timer)
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "renewal_seconds": 0.02, **options}
    receiver = ProgressServer(authenticator, partial(_taken, pilot.controller), Certificates(folder), **given)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(receiver.run(ready=port.set_result))
    try:
        either: list[asyncio.Future[Any]] = [serving, port]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        yield Post(pilot, port.result(), folder, token_file)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@pytest.fixture
async def post(pilot: Pilot, folder: Path, tmp_path: Path) -> AsyncIterator[Post]:
    """A run whose first attempt trains."""
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    async with receiving(pilot, folder, tmp_path / "token") as found:
        yield found


def wire(step: int = 7) -> bytes:
    return json.dumps(a_progress(step).to_wire()).encode()


# --- what is said reaches the status ----------------------------------------------------------------------------------


async def test_a_report_shows_in_the_status_while_the_attempt_trains(post: Post) -> None:
    assert await post.report(a_progress(70, checkpoint=50, loss=0.25)) == TrainerRequests()
    await post.pilot.settle(resync=False)

    status = post.pilot.status()
    assert status.progress is not None
    assert (status.progress.step, status.progress.total_steps, status.progress.progress_percentage) == (70, 1000, 7)
    assert {m.name: m.value for m in status.progress.metrics} == {"loss": "0.25"}
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.checkpoint.attempt) == (50, 1)
    assert status.phase is Phase.TRAINING


async def test_the_same_report_again_writes_nothing(post: Post) -> None:
    await post.report(a_progress(70, checkpoint=50))
    await post.pilot.settle()
    before = len(post.pilot.server.writes)
    for _ in range(5):
        await post.report(a_progress(70, checkpoint=50))
        post.pilot.advance(30)
        await post.pilot.settle()
    assert len(post.pilot.server.writes) == before


async def test_the_steps_of_a_pod_that_is_gone_with_its_node_are_known(post: Post) -> None:
    """It leaves no last words, and nobody had looked since it reported: what it said is all that there is."""
    await post.report(a_progress(70, checkpoint=50))
    await post.pilot.server.remove(NODES, "node-of-ragcun-1-master-0", None)
    await post.pilot.server.remove(PODS, "ragcun-1-master-0", "team")
    await post.pilot.server.remove(JOBS, "ragcun-1", "team")
    await post.pilot.until(lambda: post.pilot.status().attempt == 2)

    first = post.pilot.status().attempts[0]
    assert (first.step, first.checkpoint_step) == (70, 50)


async def test_an_older_attempts_report_is_never_the_newer_ones(post: Post) -> None:
    pilot, old = post.pilot, post.token()
    await post.report(a_progress(70), old)
    pilot.cluster.script[1] = Disrupted()
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)

    await post.report(a_progress(999), old)
    await pilot.settle()
    assert pilot.status().progress.step == 70  # type: ignore[union-attr]
    assert pilot.status().attempts[-1].step is None
    await post.report(a_progress(72, resumed=50), post.token("ragcun-2-master-0"))
    await post.report(a_progress(999), old)
    pilot.advance(30)
    await pilot.settle()
    status = pilot.status()
    assert status.progress is not None
    assert (status.progress.step, status.attempts[-1].step, status.lost.steps) == (72, 72, 20)


async def test_an_earlier_run_of_the_name_does_not_speak_for_this_one(post: Post) -> None:
    """Its pod has a hundred seconds of grace, and the new run has an attempt of the same number by then."""
    pilot, old = post.pilot, post.token()
    await post.report(a_progress(1), old)
    run = pilot.run()
    assert run is not None
    run["metadata"] |= {"uid": "uid-of-the-next"}
    await pilot.server.put(RUNS, run)

    await post.report(a_progress(70, checkpoint=70), old)
    await pilot.settle()

    assert (pilot.run() or {})["metadata"]["uid"] == "uid-of-the-next"
    assert pilot.status().checkpoint is None


async def test_a_restarted_operator_learns_from_the_next_report(post: Post, cluster: Any, tmp_path: Path) -> None:
    await post.report(a_progress(70, checkpoint=50))
    await post.pilot.settle()
    async with (
        Pilot(cluster, post.pilot.client) as second,
        receiving(second, post.folder, tmp_path / "second") as other,
    ):
        second.advance(30)
        await second.settle()
        kept = second.status().progress
        assert kept is not None
        assert kept.step == 70
        await other.report(a_progress(90, checkpoint=75))
        await second.settle(resync=False)
        assert second.status().checkpoint is not None
        assert second.status().checkpoint.step == 75  # type: ignore[union-attr]


async def test_many_reports_cost_few_passes(post: Post) -> None:
    """A report a second for two minutes: at most two passes and one write in ten seconds."""
    await post.report(a_progress(1))
    await post.pilot.settle(resync=False)
    asked, writes = len(post.pilot.server.asked), len(post.pilot.server.writes)
    for step in range(2, 122):
        await post.report(a_progress(step))
        post.pilot.advance(1)
        await post.pilot.settle(resync=False)
    looks = [r for r in post.pilot.server.asked[asked:] if r.resource == JOBS]
    assert 11 <= len(post.pilot.server.writes) - writes <= 13
    assert len(looks) <= 24


async def test_a_run_that_is_gone_is_forgotten(post: Post) -> None:
    token = post.token()
    await post.report(a_progress(70), token)
    assert len(post.pilot.controller._reports) == 1
    await post.pilot.cluster.apply(a_manifest())
    run = post.pilot.run()
    assert run is not None
    run["metadata"]["finalizers"] = []
    await post.pilot.server.put(RUNS, run)
    await post.pilot.server.remove(RUNS, "ragcun", "team")
    await post.report(a_progress(71), token)
    await post.pilot.settle()
    assert len(post.pilot.controller._reports) == 0


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "sentence"),
    [
        ("", "a token is needed"),
        ("Basic dXNlcjpwYXNz", "a token is needed"),
        ("Bearer not-a-token", "not a service account's"),
        ("Bearer a.b.c", "not a service account's"),
        ("Bearer " + "a" * 7000, "not a service account's"),
    ],
)
async def test_without_a_token_nobody_is_heard_and_nobody_is_asked(
    post: Post, authorization: str, sentence: str
) -> None:
    status, text = await post.say(wire(), authorization)
    assert (status, post.reviews()) == (401, 0)
    assert sentence in text


async def test_a_forged_token_is_refused(post: Post) -> None:
    status, text = await post.say(wire(), f"Bearer {post.token().text(signature='forged')}")
    assert (status, text) == (401, "the token is not valid here\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"audience": "https://kubernetes.default.svc"}, "not meant for piton.dev"),
        ({"seconds": -1}, "has expired"),
    ],
)
async def test_a_token_that_says_itself_that_it_is_no_good_costs_no_review(
    post: Post, words: dict[str, Any], sentence: str
) -> None:
    status, text = await post.say(wire(), f"Bearer {post.token(**words).text()}")
    assert (status, post.reviews()) == (401, 0)
    assert sentence in text


async def test_an_api_server_that_does_not_know_audiences_proves_nothing(post: Post) -> None:
    post.pilot.server.knows_audiences = False
    assert (await post.say(wire()))[0] == 401


async def test_a_token_of_no_pod_is_refused(post: Post) -> None:
    token = Token(pod=None, expires=post.pilot.clock.now() + timedelta(hours=1))
    assert await post.say(wire(), f"Bearer {token.text()}") == (403, "the token is not a pod's\n")


async def test_the_pod_of_another_run_is_refused(post: Post) -> None:
    await post.pilot.cluster.apply(a_manifest("other"))
    await post.pilot.until(lambda: post.pilot.server.find(PODS, "other-1-master-0", "team") is not None)
    token = post.token("other-1-master-0").text()
    status, text = await post.say(wire(), f"Bearer {token}")
    assert (status, text) == (403, "pod 'other-1-master-0' belongs to run 'other', not to 'ragcun'\n")
    assert (await post.say(wire(), f"Bearer {token}", run="other"))[0] == 200


async def test_a_pod_of_another_namespace_is_refused(post: Post) -> None:
    status, text = await post.say(wire(), namespace="elsewhere")
    assert (status, text) == (403, "the token is from namespace 'team', not from 'elsewhere'\n")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {}},
        {"labels": {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: "first"}},
        {"labels": {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: "2"}},
        {"ownerReferences": []},
        {"ownerReferences": [{"kind": "PyTorchJob", "name": "ragcun-1", "uid": "another", "controller": True}]},
    ],
    ids=["no labels", "no number", "another attempt", "no owner", "another job"],
)
async def test_a_pod_that_only_looks_like_the_runs_is_refused(post: Post, change: dict[str, Any]) -> None:
    pod = post.pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    pod["metadata"] |= change
    await post.pilot.server.put(PODS, pod)
    assert await post.say(wire()) == (403, "pod 'ragcun-1-master-0' belongs to no run\n")


async def test_a_job_that_is_not_a_runs_speaks_for_none(post: Post) -> None:
    job = post.pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    job["metadata"]["ownerReferences"] = []
    await post.pilot.server.put(JOBS, job)
    assert (await post.say(wire()))[0] == 403


async def test_a_pod_that_leaves_may_still_say_its_last_words(post: Post) -> None:
    """Its job is gone the moment that it was told to stop."""
    token = post.token()
    await post.report(a_progress(70), token)
    await post.pilot.server.remove(JOBS, "ragcun-1", "team")
    assert await post.report(a_progress(72, checkpoint=72), token) == TrainerRequests()


# --- what is asked of the API server ----------------------------------------------------------------------------------


async def test_a_token_is_reviewed_again_only_after_a_while(post: Post) -> None:
    token = post.token()
    for _ in range(3):
        await post.report(a_progress(1), token)
    assert post.reviews() == 1
    post.pilot.advance(GOOD_SECONDS)
    await post.report(a_progress(3), token)
    assert post.reviews() == 2


async def test_a_token_is_not_believed_beyond_its_time(post: Post) -> None:
    token = post.token(seconds=60)
    await post.report(a_progress(1), token)
    post.pilot.advance(60)
    with pytest.raises(ConnectionError, match="401"):
        await post.report(a_progress(2), token)


async def test_a_bad_token_is_asked_about_once_in_a_while(post: Post) -> None:
    forged = f"Bearer {post.token().text(signature='forged')}"
    assert [(await post.say(wire(), forged))[0] for _ in range(3)] == [401, 401, 401]
    assert post.reviews() == 1
    post.pilot.advance(BAD_SECONDS)
    await post.say(wire(), forged)
    assert post.reviews() == 2


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_an_api_server_that_does_not_answer_is_503_and_then_all_is_well(
    post: Post, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    post.pilot.server.refuse = lambda request: refusal(status, "Sorry", "not now")
    assert [(await post.say(wire()))[0] for _ in range(3)] == [503, 503, 503]
    assert [r.getMessage() for r in caplog.records if r.name == "piton.kube.progress_server"] == [
        "reports cannot be checked"
    ]
    post.pilot.server.refuse = lambda request: None
    post.pilot.advance(1)
    assert (await post.say(wire()))[0] == 200


class SlowDoor(ReportAuthenticator):
    """The API server lets us wait."""

    async def admit(self, token: str, *, address: str, namespace: str, run: str) -> Sender:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_api_server_that_takes_too_long_is_503(pilot: Pilot, folder: Path, tmp_path: Path) -> None:
    authenticator = SlowDoor(pilot.client, pilot.clock, pilot.timer)
    async with receiving(pilot, folder, tmp_path / "token", authenticator=authenticator, patience_seconds=0.05) as post:
        assert (await post.say(wire()))[0] == 503


# --- what is no report ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff\xfe\xfd", b"[" * 100_000, b'{"trainerStatus": {}}'],
    ids=lambda body: repr(body[:9]),
)
async def test_garbage_is_400_with_a_sentence(post: Post, body: bytes) -> None:
    status, text = await post.say(body)
    assert status == 400
    assert text.strip()
    assert len(post.pilot.controller._reports) == 0


async def test_what_is_too_long_is_413(post: Post) -> None:
    assert (await post.say(b" " * BODY_BYTES_MAX + wire()))[0] == 413
    assert (await post.say(wire() + b" " * (BODY_BYTES_MAX - len(wire()))))[0] == 200


async def test_a_path_that_is_none_is_404(post: Post) -> None:
    assert (await post.say(wire(), run="ragcun/status/of"))[0] == 404


async def test_a_report_that_does_not_arrive_is_not_waited_for(pilot: Pilot, folder: Path, tmp_path: Path) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with receiving(pilot, folder, tmp_path / "token", patience_seconds=0.5) as post:
        await post.report(a_progress(1))
        assert await post.say(trickle()) == (400, "the report did not arrive within 0.5 s\n")


async def test_a_trainer_that_dies_in_the_middle_of_a_report_disturbs_nobody(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    trust = ssl.create_default_context(cafile=post.folder / AUTHORITY)
    port = int(post.url().split(":")[2].split("/")[0])
    await post.report(a_progress(1))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    path = post.url().partition(str(port))[2]
    head = ["Host: x", f"Authorization: Bearer {post.token().text()}", "Content-Length: 500", "Expect: 100-continue"]
    writer.write("\r\n".join([f"POST {path} HTTP/1.1", *head, "", "{"]).encode())
    await writer.drain()
    assert b"100" in await reader.readline()
    writer.transport.abort()
    await post.report(a_progress(2))
    assert caplog.records == []


# --- the certificate --------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_used_for_new_connections(pilot: Pilot, tmp_path: Path) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    folder = certificates.make(tmp_path / "tls")
    async with receiving(pilot, folder, tmp_path / "token") as post:
        await post.report(a_progress(1))
        certificates.make(folder)
        async with asyncio.timeout(10):
            while True:
                try:
                    await post.report(a_progress(2))
                    break
                except ssl.SSLCertVerificationError:
                    await asyncio.sleep(0.02)
