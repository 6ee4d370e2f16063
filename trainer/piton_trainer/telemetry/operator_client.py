"""Rank 0 tells the operator how far it is, and hears what the operator wishes (KEP-2779).

One daemon thread and a mailbox for a single letter: a newer report replaces one that was not sent yet, so a slow server
costs reports, never steps. A report that fails is lost without harm; the first failure is logged.
"""

import http.client
import json
import logging
import ssl
import threading
from dataclasses import replace
from urllib.parse import urlsplit

from piton.contract.progress import Progress, StopAt, TrainerRequests
from piton_trainer.config import Server
from piton_trainer.telemetry.callbacks import Callback

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
_ANSWER_BYTES_MAX = 65_536
_SENTENCE_MAX = 200


class OperatorClient(Callback):
    """Posts progress to the operator from a background thread, and holds the requests of its answers."""

    def __init__(self, server: Server, *, interval_seconds: float, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._server = server
        self.report_every_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._pending: Progress | None = None
        self._closing = False
        self._warned = False
        self._changed = threading.Condition()
        self._requests = TrainerRequests()
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

    @property
    def stop_at(self) -> StopAt | None:
        """Until when the server lets the run go on, by its newest answer that said so."""
        return self._requests.stop_at

    def on_save(self, *, stall_seconds: float) -> None:  # noqa: ARG002 - of the event
        """Note that the requested checkpoint is being made."""
        with self._changed:
            self._requests = replace(self._requests, checkpoint=False)

    def on_end(self, progress: Progress | None) -> None:
        """Send the last report and end the thread; give up on a server that is slow to answer."""
        with self._changed:
            self._pending = progress or self._pending
            self._closing = True
            self._changed.notify()
        self._thread.join(2 * self._timeout_seconds)

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                progress, self._pending = self._pending, None
            if progress is None:
                return
            self._send(progress)

    def _send(self, progress: Progress) -> None:
        try:
            answer = push(self._server, progress, timeout_seconds=self._timeout_seconds)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._warned:
                logger.warning("progress is not reported, %s: %s", self._server.url, error)
                self._warned = True
            return
        with self._changed:
            self._requests = TrainerRequests(
                checkpoint=self._requests.checkpoint or answer.checkpoint,
                stop=self._requests.stop or answer.stop,
                stop_at=answer.stop_at or self._requests.stop_at,
            )


def push(server: Server, progress: Progress, *, timeout_seconds: float = TIMEOUT_SECONDS) -> TrainerRequests:
    """Send one report and return the answer.

    Raises:
        OSError: the server cannot be reached, or does not take the report.
        http.client.HTTPException: it does not speak HTTP.
    """
    url = urlsplit(server.url)
    connection = _connection(server, url.hostname or "", url.port, timeout_seconds)
    try:
        headers = {"Content-Type": "application/json"}
        if server.token_file is not None:
            headers["Authorization"] = f"Bearer {server.token_file.read_text(encoding='utf-8').strip()}"
        path = url.path + (f"?{url.query}" if url.query else "")
        connection.request("POST", path or "/", body=json.dumps(progress.to_wire()), headers=headers)
        answer = connection.getresponse()
        text = answer.read(_ANSWER_BYTES_MAX).decode("utf-8", "replace")
    finally:
        connection.close()
    if answer.status // 100 != http.HTTPStatus.OK // 100:
        raise ConnectionError(f"the server answered {answer.status} {answer.reason}: {text[:_SENTENCE_MAX].strip()}")
    return TrainerRequests.from_json(text)


def _connection(server: Server, host: str, port: int | None, timeout_seconds: float) -> http.client.HTTPConnection:
    if server.url.startswith("http://"):
        return http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    context = ssl.create_default_context(cafile=server.ca_cert)
    return http.client.HTTPSConnection(host, port, timeout=timeout_seconds, context=context)
