"""Rank 0 tells the operator how far it is, and hears what the operator wishes (KEP-2779).

One daemon thread and a mailbox for a single letter: a newer report replaces one that was not sent yet, so a slow server
costs reports, never steps. A report that fails is lost without harm; the first failure is logged, and the newest one is
in the termination message. The first report says nothing but that there is a trainer, and the newest one is repeated
while steps take long: so the operator can tell a slow step from reports that do not arrive. The connection is kept
between reports: a handshake costs both sides more than all the rest.
"""

import errno
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit

from piton.contract.progress import Progress, StopAt, TrainerRequests
from piton.contract.termination import Limit
from piton_trainer.clock import Clock
from piton_trainer.config import Server
from piton_trainer.telemetry.callbacks import Callback

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
REPEAT_SECONDS = 30.0
"""The newest report is repeated after so long without another one."""
_ANSWER_BYTES_MAX = 65_536
_SENTENCE_MAX = 200
_WAIT_SECONDS_MAX = 60.0
"""No server keeps the trainer silent for longer, whatever it asks for."""
_WAIT_SECONDS_AT_END = 2.0
"""The same for the last report: the process ends, and a machine may be about to go."""


@dataclass(frozen=True, kw_only=True)
class StopBy:
    """Until when this trainer may go on, by the clock that never jumps: a node's time of day may be set right."""

    moment: float | None = None
    """None: no limit says anything."""
    limit: Limit | None = None

    @classmethod
    def told(cls, stop_at: StopAt, clock: Clock) -> Self:
        """Return what was told just now; only an older server has no seconds, but a moment of its own clock."""
        seconds = stop_at.seconds
        if seconds is None and stop_at.time is not None:
            seconds = (stop_at.time - clock.now()).total_seconds()
        return cls(moment=None if seconds is None else clock.monotonic() + seconds, limit=stop_at.limit)


class ComeAgain(ConnectionError):  # noqa: N818 - a situation, not an error
    """The server takes no report now, and says when to come again."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class OperatorClient(Callback):
    """Posts progress to the operator from a background thread, and holds the requests of its answers."""

    failure: str | None = None
    """Reason for which the newest report did not arrive; None if it did."""

    def __init__(
        self,
        server: Server,
        *,
        clock: Clock,
        interval_seconds: float,
        timeout_seconds: float = TIMEOUT_SECONDS,
        repeat_seconds: float = REPEAT_SECONDS,
    ) -> None:
        self._server = server
        self.report_every_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._repeat_seconds = repeat_seconds
        self._pending: Progress | None = None
        self._clock = clock
        self._newest = Progress(updated=self._time())
        self._closing = False
        self._warned = False
        self._changed = threading.Condition()
        self._requests = TrainerRequests()
        self.stop_by: StopBy | None = None
        """Until when the server lets the run go on, by its newest answer that said so."""
        self._silent_until = 0.0
        self._postponed = False
        self._thread = threading.Thread(target=self._deliver, name="piton-report", daemon=True)
        self._thread.start()

    def on_report(self, progress: Progress) -> None:
        """Hand a report over to the thread; return at once."""
        with self._changed:
            self._pending = progress
            self._changed.notify()

    @property
    def stop_requested(self) -> bool:
        """True if the server wants the run to save and end."""
        return self._requests.stop

    @property
    def checkpoint_requested(self) -> bool:
        """True if the server wants a checkpoint that has not been made yet."""
        return self._requests.checkpoint

    def on_save(self, *, stall_seconds: float) -> None:  # noqa: ARG002 - of the event
        """Note that the requested checkpoint is being made."""
        with self._changed:
            self._requests = replace(self._requests, checkpoint=False)

    def on_end(self, progress: Progress | None) -> None:
        """Send the last report and end the thread; give up on a server that is slow to answer."""
        with self._changed:
            self._pending = progress or self._pending
            self._closing = True
            self._silent_until = min(self._silent_until, time.monotonic() + _WAIT_SECONDS_AT_END)
            self._changed.notify()
        self._thread.join(2 * self._timeout_seconds)

    def _deliver(self) -> None:
        with ReportConnection(self._server, timeout_seconds=self._timeout_seconds) as connection:
            self._send(connection, self._newest)
            while (progress := self._next()) is not None:
                self._send(connection, progress)

    def _next(self) -> Progress | None:
        """Wait for a report, and as long as the server has asked for. None: there will be no more."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pending is not None or self._closing, self._repeat_seconds):
                self._pending = replace(self._newest, updated=self._time())
            while self._pending is not None and (seconds := self._silent_until - time.monotonic()) > 0:
                self._changed.wait(seconds)
            progress, self._pending = self._pending, None
            self._newest = progress or self._newest
            return progress

    def _time(self) -> str:
        return self._clock.now().isoformat(timespec="seconds")

    def _send(self, connection: "ReportConnection", progress: Progress) -> None:
        try:
            answer = connection.push(progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.failure = _described(error, urlsplit(self._server.url))
            if not self._warned:
                logger.warning("progress is not reported, %s: %s", self._server.url, self.failure)
                self._warned = True
            if isinstance(error, ComeAgain):
                self._postpone(progress, error.seconds)
            return
        self.failure = None
        if answer.stop_at is not None:
            self.stop_by = StopBy.told(answer.stop_at, self._clock)
        with self._changed:
            self._requests = TrainerRequests(
                checkpoint=self._requests.checkpoint or answer.checkpoint,
                stop=self._requests.stop or answer.stop,
            )

    def _postpone(self, progress: Progress, seconds: float) -> None:
        """Be silent for so long, and then send the report unless there is a newer one; the last one only once."""
        with self._changed:
            self._silent_until = time.monotonic() + min(seconds, _WAIT_SECONDS_MAX)
            if self._closing and (self._postponed or seconds > _WAIT_SECONDS_AT_END):
                return
            self._postponed = self._closing
            self._pending = self._pending or progress


class ReportConnection:
    """A connection to the server that is opened when it is needed, and kept. For one thread."""

    def __init__(self, server: Server, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._server = server
        self._url = urlsplit(server.url)
        self._timeout_seconds = timeout_seconds
        self._open: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next report opens a new one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def push(self, progress: Progress) -> TrainerRequests:
        """Send one report and return the answer. A kept connection that fails is replaced once.

        Raises:
            ComeAgain: the server takes no report for a while.
            OSError: it cannot be reached, or does not take the report.
            http.client.HTTPException: it does not speak HTTP.
        """
        body, headers = json.dumps(progress.to_wire()), self._headers()
        kept = self._open is not None
        try:
            answer, text = self._exchange(body, headers)
        except (OSError, http.client.HTTPException):
            if not kept:
                raise
            answer, text = self._exchange(body, headers)  # the server has closed it since the last report
        if answer.status // 100 == http.HTTPStatus.OK // 100:
            return TrainerRequests.from_json(text)
        sentence = f"the server answered {answer.status} {answer.reason}: {text[:_SENTENCE_MAX].strip()}"
        seconds = _retry_after(answer)
        raise ConnectionError(sentence) if seconds is None else ComeAgain(sentence, seconds=seconds)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._server.token_file is not None:
            headers["Authorization"] = f"Bearer {self._server.token_file.read_text(encoding='utf-8').strip()}"
        return headers

    def _exchange(self, body: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, str]:
        path = self._url.path + (f"?{self._url.query}" if self._url.query else "")
        reusable = False
        try:
            self._open = self._open or self._connect()
            self._open.request("POST", path or "/", body=body, headers=headers)
            answer = self._open.getresponse()
            text = answer.read(_ANSWER_BYTES_MAX).decode("utf-8", "replace")
            reusable = answer.isclosed() and not answer.will_close  # it is closed once it is read to its end
        finally:
            if not reusable:
                self.close()
        return answer, text

    def _connect(self) -> http.client.HTTPConnection:
        """Prepare a connection. The authority is read again: the pod's file is renewed."""
        host, port, timeout = self._url.hostname or "", self._url.port, self._timeout_seconds
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        context = ssl.create_default_context(cafile=self._server.ca_cert)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def push(server: Server, progress: Progress, *, timeout_seconds: float = TIMEOUT_SECONDS) -> TrainerRequests:
    """Send one report over a connection of its own. Raises what `ReportConnection.push` does."""
    with ReportConnection(server, timeout_seconds=timeout_seconds) as connection:
        return connection.push(progress)


def _described(error: Exception, url: SplitResult) -> str:
    """Return what keeps reports from arriving, in words of a cluster."""
    match error:
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not of the authority that this pod was given ({error.verify_message})"
        case ssl.SSLError():
            why = f"no TLS connection ({error.reason or error})"
        case ConnectionRefusedError():
            why = "the connection is refused"
        case TimeoutError():
            why = "no answer in time, as where a NetworkPolicy drops packets"
        case socket.gaierror():
            why = f"the name is not resolved ({error.strerror})"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH):
            why = f"there is no route ({error.strerror})"
        case _:
            why = str(error) or type(error).__name__
    return f"{url.netloc}: {why}"


def _retry_after(answer: http.client.HTTPResponse) -> float | None:
    """Return the seconds after which to come again; None where the server says nothing, or a date."""
    try:
        return max(0.0, float(answer.headers["Retry-After"] or ""))
    except ValueError:
        return None
