"""Limits for the connections of an HTTP server: their number, and the time that a client may be silent.

aiohttp closes connections that send no request (`keepalive_timeout`). It has no limit for their number, and none for
clients that do not read an answer.
"""

import asyncio
import logging
import resource
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

CONNECTIONS_MAX = 256
BUFFER_BYTES = 16 * 1024
"""Bytes of an answer in this process, and in the kernel. With more, the stall of a slow client is noticed late."""
_BACKLOG = 16
"""Connections that asyncio accepts in one turn of the event loop, before `admit` can refuse any."""
_SPARE_FILES = 4 * _BACKLOG + 16
"""Accepted connections exist for up to four turns of the event loop before the refused ones are closed."""
_WARN_AGAIN_SECONDS = 60.0
_FULL = b'{"error": "too many connections are open; try again"}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)
_ACCEPT_FAILED = "socket.accept() out of system resource"
_LINE_CHARACTERS = 200

_log = logging.getLogger(__name__)


def request_log() -> logging.Logger:
    """Return the logger for aiohttp. It has one line for a bad request, and none for a client that went away."""
    log = logging.getLogger(f"{__name__}.requests")
    log.addFilter(_as_line)
    return log


def _as_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        sentence = ascii(" ".join(getattr(error, "message", str(error)).split()).removesuffix(" ^"))[1:-1]
        record.msg, record.args = f"{record.getMessage()}: {sentence[:_LINE_CHARACTERS]}", ()
        record.exc_info = record.exc_text = None
    return True


class Connections:
    """Accepts connections for aiohttp, and refuses those that are too many."""

    def __init__(self, server: web.Server, *, stall_seconds: float) -> None:
        self._server = server
        self._stall_seconds = stall_seconds
        self._most = _connections_max()
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._warned_at = -_WARN_AGAIN_SECONDS

    @asynccontextmanager
    async def listening(self, addresses: list[str], port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen on these addresses; yield the first one with its port.

        Raises:
            OSError: an address or the port cannot be had.
        """
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        outer = loop.get_exception_handler()
        loop.set_exception_handler(self._on_loop_error)
        try:
            for address in addresses:
                server = await loop.create_server(lambda: _Entrance(self), address, port, backlog=_BACKLOG)
                servers.append(server)
            yield servers[0].sockets[0].getsockname()[:2]
        finally:
            for server in servers:
                server.close()
            loop.set_exception_handler(outer)

    def abort(self) -> None:
        """Close every connection at once, also those with answers that nobody reads."""
        for transport in tuple(self._transports):
            transport.abort()

    def admit(self, transport: asyncio.Transport) -> None:
        """Hand the connection to aiohttp, or refuse it."""
        if len(self._server.connections) >= self._most:
            self._warn(f"{self._most} connections are open, the most that are accepted here; others get a 503")
            transport.write(_REFUSAL)
            transport.close()
            return
        self._transports.add(transport)
        _limit(transport, self._stall_seconds)
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if context.get("message") == _ACCEPT_FAILED and isinstance(error, OSError):
            self._warn(f"no connection can be accepted: {error.strerror}; raise the limit of open files (ulimit -n)")
        else:
            loop.default_exception_handler(context)

    def _warn(self, sentence: str) -> None:
        """Log a warning, at most one each minute."""
        now = asyncio.get_running_loop().time()
        if now >= self._warned_at + _WARN_AGAIN_SECONDS:
            self._warned_at = now
            _log.warning(sentence)


class _Entrance(asyncio.Protocol):
    """The first protocol of a connection, until it is admitted."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.admit(cast("asyncio.Transport", transport))


def _limit(transport: asyncio.Transport, stall_seconds: float) -> None:
    """Keep the buffers small, and let the kernel close the connection when its client does not read any more."""
    transport.set_write_buffer_limits(high=BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; the others have the limits of each answer
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_seconds * 1000))


def _connections_max() -> int:
    """Return the number of connections for which this process may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    opened = Path("/dev/fd")
    used = len(tuple(opened.iterdir())) if opened.is_dir() else 0
    return max(1, min(CONNECTIONS_MAX, files - used - _SPARE_FILES))
