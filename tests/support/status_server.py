"""A server that takes progress reports, as the operator would: real HTTP on a port of this machine."""

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from piton.contract.progress import Progress, TrainerRequests
from support.local_server import LocalServer


class StatusServer(LocalServer):
    """Collects reports; `answer` says what to reply to each. The first of a trainer, which says nothing, is counted."""

    def __init__(
        self, answer: Callable[[Progress], TrainerRequests] | None = None, *, status: int = 200, keeps: bool = False
    ) -> None:
        self.reports: list[Progress] = []
        self.greetings = 0
        self.tokens: list[str | None] = []
        self.paths: list[str] = []
        self.connections = 0
        self.refusals: list[float] = []
        """Seconds of Retry-After; each is said to one report, with status 429."""
        self.hangs_up = threading.Event()
        """While it is set, a connection is closed after an answer that did not say so."""
        self._keeps = keeps
        self._answer = answer or (lambda _: TrainerRequests())
        self._status = status
        self._scheme = "http"
        super().__init__(self._handler())

    def secure(self, certificate: str, key: str) -> None:
        """Speak TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/apis/status?run=tiny"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if owner._keeps else "HTTP/1.0"

            def setup(self) -> None:
                owner.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                progress = Progress.from_wire(json.loads(body))
                if progress == Progress(updated=progress.updated):
                    owner.greetings += 1
                    self._reply(TrainerRequests())
                    return
                owner.paths.append(self.path)
                owner.tokens.append(self.headers.get("Authorization"))
                owner.reports.append(progress)
                self._reply(owner._answer(progress), refused=owner.refusals.pop(0) if owner.refusals else None)

            def _reply(self, requests: TrainerRequests, *, refused: float | None = None) -> None:
                answer = requests.to_json().encode()
                self.send_response(owner._status if refused is None else 429)
                if refused is not None:
                    self.send_header("Retry-After", str(refused))
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                if owner.hangs_up.is_set():
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                """Nothing: the tests look at the reports."""

        return Handler
