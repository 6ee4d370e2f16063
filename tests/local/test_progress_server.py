import http.client
import json
import urllib.error
import urllib.request
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from piton.contract.progress import BODY_BYTES_MAX, Progress
from piton.local.progress_server import LocalProgressServer, receiving


def post(url: str, body: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def a_report(step: int) -> bytes:
    return json.dumps(Progress(updated="2026-11-21T12:00:00Z", step=step, metrics={"loss": 1.5}).to_wire()).encode()


def test_the_newest_report_of_each_attempt_is_kept_apart() -> None:
    heard: list[tuple[int, int | None]] = []
    with receiving(lambda attempt, progress: heard.append((attempt, progress.step))) as receiver:
        post(receiver.url(2), a_report(5))
        late = post(receiver.url(1), a_report(9))
        newest = [receiver.newest(attempt) for attempt in (1, 2, 3)]

    assert late == (200, b"{}")
    assert [progress and progress.step for progress in newest] == [9, 5, None]
    assert heard == [(2, 5), (1, 9)]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/attempts/1/status", b"no JSON", 400),
        ("/attempts/1/status", b"{}", 400),
        ("/attempts/1/status", b"[" * 100_000, 400),
        ("/attempts/x/status", b"{}", 404),
        ("/status", b"{}", 404),
    ],
)
def test_what_is_no_report_is_refused_and_the_server_goes_on(path: str, body: bytes, code: int) -> None:
    with receiving(lambda attempt, progress: None) as receiver:
        answer, _ = refused(receiver, path, body)

        assert answer == code
        assert post(receiver.url(1), a_report(1)) == (200, b"{}")


def test_a_report_that_is_too_long_is_refused_unread() -> None:
    """Its length is enough: a server that answers and leaves would break the pipe of a sender that still speaks."""
    with receiving(lambda attempt, progress: None) as receiver:
        url = urlsplit(receiver.url(1))
        with closing(http.client.HTTPConnection(url.netloc, timeout=10)) as connection:
            connection.putrequest("POST", url.path)
            connection.putheader("Content-Length", str(BODY_BYTES_MAX + 1))
            connection.endheaders()
            assert connection.getresponse().status == 411
        assert post(receiver.url(1), a_report(1)) == (200, b"{}")


def refused(receiver: LocalProgressServer, path: str, body: bytes) -> tuple[int, bytes]:
    return post(receiver.url(1).replace("/attempts/1/status", path), body)
