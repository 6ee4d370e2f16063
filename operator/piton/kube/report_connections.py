"""Connections of trainers: accepted within bounds, and closed again if nobody vouches for their sender in time.

    accept --room--> TLS handshake --> aiohttp's handler --a report is let in--> kept, until it is silent for too long
      | full           | 10 s            | nothing is let in for 15 s
      v                v                 v
    closed           closed            closed

The bounds hold before the handshake, which costs the most. asyncio lays out a buffer of 256 KiB for each TLS
connection, and a report has less than 1: with a smaller one a connection costs 39 KB instead of 279 KB.
"""

import asyncio
import resource
import socket
import ssl
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

TLS_BUFFER_BYTES = 16_384
"""One TLS record has no more."""
_FILES_BESIDE = 256
"""Files that the rest of the process may have open."""
_AGAIN_SECONDS = 1.0
"""Time after which connections are accepted again when the process has no more files, as asyncio has it."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds on connections."""

    total: int = 8192
    of_address: int = 256
    """Pods of one node may share its address, where the network hides theirs."""
    handshake_seconds: float = 10.0
    unknown_seconds: float = 15.0
    """Time for the first report that is let in. The API server may need 10 s of it for the review of the token."""


class Connection(asyncio.Protocol):
    """One connection, in front of the handler that speaks HTTP."""

    def __init__(self, inner: asyncio.Protocol, *, unknown_seconds: float, lost: Callable[[], None]) -> None:
        self._inner = inner
        self._unknown_seconds = unknown_seconds
        self._lost = lost
        self._expiry: asyncio.TimerHandle | None = None
        self.begun = False
        """True once the handshake is over: from then on `lost` is called at the end."""

    def vouch(self) -> None:
        """Note that a report was let in: the connection may stay."""
        if self._expiry is not None:
            self._expiry.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on, and begin to wait for a report."""
        assert isinstance(transport, asyncio.Transport)
        self.begun = True
        self._expiry = asyncio.get_running_loop().call_later(self._unknown_seconds, transport.abort)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and make room for another."""
        self.vouch()
        self._lost()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()


class Listener:
    """Accepts connections. For one event loop."""

    def __init__(self, handler: Callable[[], asyncio.Protocol], context: ssl.SSLContext, bounds: Bounds) -> None:
        self._handler = handler
        self._context = context
        self._bounds = bounds
        self._open: Counter[str] = Counter()
        self._total = 0
        self._handshakes: set[asyncio.Task[None]] = set()
        sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES

    def __len__(self) -> int:
        """Connections that are open, those in their handshake included."""
        return self._total

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(listening)
                except OSError:  # no more files, or the peer has gone: the others go on
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                self._welcome(connection, str(peer[0]))
        finally:
            for task in self._handshakes:
                task.cancel()
            await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _welcome(self, connection: socket.socket, address: str) -> None:
        if self._total >= self._bounds.total or self._open[address] >= self._bounds.of_address:
            connection.close()
            return
        self._total += 1
        self._open[address] += 1
        task = asyncio.create_task(self._shake_hands(connection, address))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, address: str) -> None:
        kept = Connection(
            self._handler(), unknown_seconds=self._bounds.unknown_seconds, lost=lambda: self._forget(address)
        )
        try:
            with suppress(OSError):  # TLS's errors are some: whoever speaks no TLS is nothing to tell
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: kept,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=self._bounds.handshake_seconds,
                )
        finally:
            if not kept.begun:
                self._forget(address)

    def _forget(self, address: str) -> None:
        self._total -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


def allow_files(count: int) -> None:
    """Let the process open so many files, and those that it needs besides, if the system permits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _FILES_BESIDE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
