"""Receives the trainers' progress: KEP-2779's report over HTTPS, with a pod's token.

    POST /namespaces/{ns}/trainingruns/{name}/status   200 and wishes
        400 not a report   401 no good token   403 not that run's   404 no such path   413 too long
        429 too fast   503 ask again

Who is not let in is not listened to: the body is read after the token was found to be good. Connections are kept
between reports; a renewed certificate is used for new ones.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from piton.contract import names
from piton.contract.progress import BODY_BYTES_MAX, Progress, TrainerRequests
from piton.kube.listening import listening
from piton.kube.report_auth import Forbidden, ReportAuthenticator, TooMany, Unauthenticated
from piton.kube.report_connections import Bounds, Connection, Listener, allow_files
from piton.kube.report_store import Sender
from piton.kube.tls import Certificates
from piton.ports import PortError

PATH = f"/namespaces/{{namespace}}/{names.PLURAL}/{{run}}/status"
PATIENCE_SECONDS = 10.0
"""Seconds that the API server may take for the token review, and the sender for its body. Trainers wait for 5."""
RENEWAL_SECONDS = 30.0
"""Seconds between two checks of the certificate's files."""
IDLE_SECONDS = 75.0
"""Seconds between two reports after which a connection is closed. Trainers report every 5 s; a step may take longer."""
COMPLAINT_SECONDS = 60.0
"""Seconds between two log lines that reports cannot be checked."""

OnReport = Callable[[Sender, Progress], TrainerRequests]
"""Called with each report that was let in; what it returns is the answer."""

_STOP_SECONDS = 1.0
"""Time for the answers under way when the operator ends: whoever gets none reports again to the next one."""
_HEADERS_MAX = 32
_READ_BYTES = 16_384
"""Bytes of a body that wait to be read, twice at most, while the token is reviewed."""

_log = logging.getLogger(__name__)


class ProgressServer:
    """The server. For one event loop."""

    def __init__(
        self,
        authenticator: ReportAuthenticator,
        on_report: OnReport,
        certificates: Certificates,
        *,
        host: str,
        port: int,
        patience_seconds: float = PATIENCE_SECONDS,
        renewal_seconds: float = RENEWAL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        bounds: Bounds | None = None,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare it; `count` is called with the status of each answer."""
        self._authenticator = authenticator
        self._on_report = on_report
        self._certificates = certificates
        self._host = host
        self._port = port
        self._patience_seconds = patience_seconds
        self._renewal_seconds = renewal_seconds
        self._idle_seconds = idle_seconds
        self._bounds = bounds or Bounds()
        self._count = count
        self._listener: Listener | None = None
        self._complained_at = -math.inf

    async def run(self, *, ready: Callable[[int], None] | None = None) -> None:
        """Listen until cancelled; `ready` is called with the port once that is so.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post(PATH, self._receive)
        limits: dict[str, Any] = {"max_headers": _HEADERS_MAX, "read_bufsize": _READ_BYTES}
        waits: dict[str, Any] = {"keepalive_timeout": self._idle_seconds, "shutdown_timeout": _STOP_SECONDS}
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, **limits, **waits)
        await runner.setup()
        assert runner.server is not None
        allow_files(self._bounds.total)
        listener = self._listener = Listener(runner.server, self._certificates.context, self._bounds)
        try:
            with listening(self._port, host=self._host) as found:
                if ready is not None:
                    ready(found.getsockname()[1])
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(listener.accept(found), name="accept")
                    tasks.create_task(self._renew(), name="renew")
        finally:
            await runner.cleanup()

    def connections(self) -> int:
        """Return the number of connections that are open. May be called from any thread."""
        return 0 if self._listener is None else len(self._listener)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renewal_seconds)
            self._certificates.refresh()

    async def _receive(self, request: web.Request) -> web.Response:
        """Take in one report. The connection of a sender that somebody vouches for is kept."""
        answer = await self._answer(request)
        self._count(answer.status)
        transport = request.transport
        if answer.status == HTTPStatus.OK and transport is not None and not transport.is_closing():
            connection = transport.get_protocol()
            assert isinstance(connection, Connection)
            connection.vouch()
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(self._patience_seconds):
                sender = await self._authenticator.admit(
                    _token(request), address=request.remote or "", **request.match_info
                )
            progress = await self._read(request)
        except Unauthenticated as refusal:
            return _response(401, str(refusal), {"WWW-Authenticate": "Bearer"})
        except Forbidden as refusal:
            return _response(403, str(refusal))
        except TooMany as refusal:
            return _response(429, str(refusal), {"Retry-After": str(math.ceil(refusal.seconds))})
        except (PortError, TimeoutError) as error:
            self._complain(str(error) or "the API server takes too long")
            return _response(503, "whether the token is good cannot be found out now; try again", {"Retry-After": "10"})
        except ValueError as error:
            return _response(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _response(413, f"a report has at most {BODY_BYTES_MAX} bytes")
        wishes = self._on_report(sender, progress)
        return web.Response(text=wishes.to_json(), content_type="application/json")

    async def _read(self, request: web.Request) -> Progress:
        try:
            async with asyncio.timeout(self._patience_seconds):
                return Progress.from_json(await request.read())
        except (TimeoutError, ConnectionError):  # the sender may have died: that is nothing to tell
            raise ValueError(f"the report did not arrive within {self._patience_seconds:g} s") from None

    def _complain(self, why: str) -> None:
        """Now and then, not for every report."""
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            _log.warning("reports cannot be checked", extra={"fields": {"error": why}})


def _token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("a token is needed: Authorization: Bearer …")
    return token.strip()


def _response(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{sentence}\n", headers=headers)
