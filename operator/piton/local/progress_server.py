"""HTTP server on 127.0.0.1 for the progress of this machine's trainers, in the wire format of KEP-2779.

The path contains the attempt's number, so that late reports of an older attempt are not counted for the new one.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

from piton.contract.progress import BODY_BYTES_MAX, Progress, TrainerRequests

TOKEN = "local"  # noqa: S105 - no secret
"""Token for the trainers. It is not checked, but transformers reports nothing without one."""

_PATH = re.compile(r"/attempts/([0-9]{1,9})/status")

OnReport = Callable[[int, Progress], None]
"""Called in the server's thread with the attempt's number and its report."""


class LocalProgressServer:
    """The newest report of each attempt."""

    def __init__(self, port: int, on_report: OnReport) -> None:
        self._port = port
        self._on_report = on_report
        self._lock = Lock()
        self._newest: dict[int, Progress] = {}

    def url(self, attempt: int) -> str:
        """Return the URL for the reports of that attempt."""
        return f"http://127.0.0.1:{self._port}/attempts/{attempt}/status"

    def newest(self, attempt: int) -> Progress | None:
        """Return the last report of that attempt."""
        with self._lock:
            return self._newest.get(attempt)

    def take(self, attempt: int, progress: Progress) -> None:
        """Store a report; one at a time."""
        with self._lock:
            self._newest[attempt] = progress
            self._on_report(attempt, progress)


@contextmanager
def receiving(on_report: OnReport) -> Iterator[LocalProgressServer]:
    """Run the server on a free port within the context."""
    with _Server(on_report) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="receiver", daemon=True)
        thread.start()
        try:
            yield server.receiver
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, on_report: OnReport) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = LocalProgressServer(self.server_port, on_report)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no error for a trainer that ends during a report."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        """Take in one report; answer with wishes, of which a local run has none: it sends signals."""
        found = _PATH.fullmatch(self.path)
        size = self.headers.get("Content-Length", "")
        if found is None:
            self.send_error(404)
        elif not size.isdigit() or int(size) > BODY_BYTES_MAX:
            self.send_error(411)
        else:
            self._take(int(found[1]), self.rfile.read(int(size)))

    def _take(self, attempt: int, body: bytes) -> None:
        try:
            progress = Progress.from_json(body)
        except ValueError as error:
            self.send_error(400, explain=str(error))
            return
        assert isinstance(self.server, _Server)
        self.server.receiver.take(attempt, progress)
        answer = TrainerRequests().to_json().encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: the terminal is not a web server's log."""
