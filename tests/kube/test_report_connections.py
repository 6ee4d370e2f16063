"""Connections to the progress server: kept between reports, bounded, and closed where nobody vouches for the sender."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
from asyncio import sslproto
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from piton.contract.progress import Progress, TrainerRequests
from piton.kube.progress_server import ProgressServer
from piton.kube.report_auth import ReportAuthenticator, TooMany, Unauthenticated
from piton.kube.report_connections import TLS_BUFFER_BYTES, Bounds
from piton.kube.report_store import Sender
from piton.kube.report_thread import run_in_thread
from piton.kube.tls import AUTHORITY, Certificates
from support import certificates
from support.builders import a_progress

PATH = "/namespaces/team/trainingruns/ragcun/status"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


class Door:
    """Lets in whoever says so."""

    def __init__(self) -> None:
        self.addresses: set[str] = set()

    async def admit(self, token: str, *, address: str, namespace: str, run: str) -> Sender:
        self.addresses.add(address)
        if token == "fast":
            raise TooMany("too fast", seconds=0.2)
        if token != "good":
            raise Unauthenticated("no")
        return Sender(namespace=namespace, run=run, run_uid="uid", attempt=1)


@dataclass
class Served:
    port: int
    folder: Path
    reports: list[Progress]
    counted: Counter[int]
    server: ProgressServer

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / AUTHORITY)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust())

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.trust(), timeout=10)


def say(connection: http.client.HTTPSConnection, token: str = "good") -> http.client.HTTPResponse:
    connection.request(
        "POST", PATH, body=json.dumps(a_progress(1).to_wire()), headers={"Authorization": f"Bearer {token}"}
    )
    answer = connection.getresponse()
    answer.read()
    return answer


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Served]:
    reports: list[Progress] = []
    counted: Counter[int] = Counter()

    def count(status: int) -> None:
        counted[status] += 1

    def take(_: Sender, progress: Progress) -> TrainerRequests:
        reports.append(progress)
        return TrainerRequests()

    given: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "renewal_seconds": 0.02, "count": count, **options}
    server = ProgressServer(cast("ReportAuthenticator", Door()), take, Certificates(folder), **given)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(server.run(ready=port.set_result))
    try:
        yield Served(await port, folder, reports, counted, server)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_connection_is_kept_between_reports(folder: Path) -> None:
    async with serving(folder) as served:
        connection = served.connect()
        used = []
        for _ in range(3):
            assert (await asyncio.to_thread(say, connection)).status == 200
            used.append(connection.sock)
        connection.close()
    assert used[0] is not None
    assert used[0] is used[1] is used[2]
    assert len(served.reports) == 3


async def test_a_sender_that_is_too_fast_is_told_when_to_come_again(folder: Path) -> None:
    async with serving(folder) as served:
        connection = served.connect()
        answer = await asyncio.to_thread(say, connection, "fast")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        connection.close()


async def test_a_renewed_certificate_leaves_kept_connections_alone_and_is_there_for_new_ones(tmp_path: Path) -> None:
    folder = certificates.make(tmp_path / "tls")
    async with serving(folder) as served:
        kept, trust_of_old = served.connect(), served.trust()
        await asyncio.to_thread(say, kept)
        certificates.make(folder)
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await served.open()
                    break
                except ssl.SSLCertVerificationError:
                    await asyncio.sleep(0.02)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", served.port, ssl=trust_of_old)
        used = kept.sock
        assert (await asyncio.to_thread(say, kept)).status == 200
        assert kept.sock is used
        kept.close()
        writer.close()


async def test_a_connection_that_is_silent_for_too_long_is_closed(folder: Path) -> None:
    async with serving(folder, idle_seconds=0.1) as served:
        reader, writer = await served.open()
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 1\r\n\r\n{{".encode()
        )
        async with asyncio.timeout(10):
            assert b"400" in await reader.readline()
            await reader.read()
        writer.close()


@pytest.mark.parametrize("beginning", ["", "POST / HT", f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthor"])
async def test_a_connection_without_a_report_that_is_let_in_is_closed(folder: Path, beginning: str) -> None:
    async with serving(folder, bounds=Bounds(unknown_seconds=0.1)) as served:
        reader, writer = await served.open()
        writer.write(beginning.encode())
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_refused_sender_may_not_stay_and_one_that_is_let_in_may(folder: Path) -> None:
    async with serving(folder, bounds=Bounds(unknown_seconds=0.2)) as served:
        good, bad = served.connect(), served.connect()
        assert (await asyncio.to_thread(say, good)).status == 200
        assert (await asyncio.to_thread(say, bad, "forged")).status == 401
        assert served.server.connections() == 2
        assert served.counted == {200: 1, 401: 1}
        assert bad.sock is not None
        assert good.sock is not None
        assert await asyncio.to_thread(bad.sock.recv, 1) == b""
        used = good.sock
        assert (await asyncio.to_thread(say, good)).status == 200
        assert good.sock is used
        good.close()
        bad.close()


async def test_who_begins_no_handshake_is_not_waited_for(folder: Path) -> None:
    async with serving(folder, bounds=Bounds(of_address=1, handshake_seconds=0.1)) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as silent:
            silent.settimeout(10)
            assert await asyncio.to_thread(silent.recv, 1) == b""
        connection = served.connect()
        assert (await asyncio.to_thread(say, connection)).status == 200, "its place is free again"
        connection.close()


@pytest.mark.parametrize("bounds", [Bounds(of_address=2), Bounds(total=2)])
async def test_connections_are_bounded_and_each_that_ends_makes_room(folder: Path, bounds: Bounds) -> None:
    async with serving(folder, bounds=bounds) as served:
        first, second = await served.open(), await served.open()
        with pytest.raises(OSError):  # noqa: PT011 - closed before or in the handshake
            await served.open()
        first[1].close()
        async with asyncio.timeout(10):
            while True:
                try:
                    third = await served.open()
                    break
                except OSError:
                    await asyncio.sleep(0.01)
        for _, writer in (second, third):
            writer.close()


async def test_headers_that_are_too_long_are_refused(folder: Path) -> None:
    async with serving(folder) as served:
        reader, writer = await served.open()
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode() + b"X: y\r\n" * 40 + b"\r\n")
        async with asyncio.timeout(10):
            assert b"400" in await reader.readline()
        writer.close()


async def test_a_kept_connection_has_a_small_buffer(folder: Path) -> None:
    """asyncio's own is 256 KiB for each connection; this fails if a later Python ignores what is set."""
    async with serving(folder) as served:
        _, writer = await served.open()
        protocol = cast("Any", writer.transport)._ssl_protocol
        assert isinstance(protocol, sslproto.SSLProtocol)
        assert len(cast("Any", protocol)._ssl_buffer) == TLS_BUFFER_BYTES
        writer.close()


# --- the thread -------------------------------------------------------------------------------------------------------


async def test_a_thread_that_fails_ends_whoever_waits_for_it() -> None:
    async def fail() -> None:
        raise OSError("the port is taken")

    with pytest.raises(OSError, match="the port is taken"):
        await run_in_thread(fail, name="fails")


async def test_cancelling_ends_the_thread_and_waits_for_its_last_words() -> None:
    loop, began, words = asyncio.get_running_loop(), asyncio.Event(), []

    async def serve() -> None:
        loop.call_soon_threadsafe(began.set)
        try:
            await asyncio.Event().wait()
        finally:
            words.append(threading.current_thread().name)

    task = asyncio.create_task(run_in_thread(serve, name="serves"))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert words == ["serves"]
