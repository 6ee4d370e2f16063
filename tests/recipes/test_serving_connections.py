"""Connections of `piton serve`: silent ones are closed, too many are refused, and none makes a traceback in the log."""

import asyncio
import logging
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from piton_trainer.serving import connections
from recipes import test_serving_bad_clients as bad_clients
from recipes.test_serving import Parrot, health, served
from recipes.test_serving_bad_clients import HEAD, a_talker, ask, connected, said, until_idle

_clients_close = bad_clients._clients_close  # a fixture

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
HEALTH = GET + b"\r\n"
JSON = "Content-Type: application/json\r\n"
NEEDS_USER_TIMEOUT = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")


async def closed(client: socket.socket, seconds: float = 5.0) -> bytes:
    """Return what was said before the server closed the connection."""
    heard = b""
    with suppress(ConnectionError):
        while piece := await said(client, seconds):
            heard += piece
    return heard


def silent(url: str, words: bytes = b"") -> socket.socket:
    client = connected(url)
    client.sendall(words)
    client.setblocking(False)
    return client


@asynccontextmanager
async def dripping(client: socket.socket, words: bytes) -> AsyncIterator[None]:
    """A client that sends a byte now and then."""

    async def drip() -> None:
        with suppress(OSError):
            for byte in words * 1000:
                client.send(bytes([byte]))
                await asyncio.sleep(0.02)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("words", [b"", b"P", b"POST /generate HTTP/1.1\r\nHost:", GET + b"X-A: b\r\n"])
async def test_a_connection_without_a_whole_head_is_closed(words: bytes) -> None:
    async with served(Parrot(), body_seconds=0.2) as (_, url):
        client = silent(url, words)
        assert await closed(client) == b""


async def test_a_head_that_comes_in_drops_is_not_waited_for() -> None:
    async with served(Parrot(), body_seconds=0.3) as (_, url):
        client = silent(url, GET)
        async with dripping(client, b"X-A: b\r\n"):
            assert await closed(client) == b""


@pytest.mark.parametrize("words", [b"", b"GET /hea"])
async def test_a_connection_that_is_silent_after_an_answer_is_closed(words: bytes) -> None:
    async with served(Parrot(), body_seconds=0.3) as (_, url):
        client = silent(url, HEALTH + words)
        assert b" 200 " in await closed(client)


async def test_an_answer_may_take_longer_than_a_request() -> None:
    parrot = Parrot()
    parrot.hush()
    async with served(parrot, body_seconds=0.2) as (session, url):
        client = ask(url, {"prompt": "a"})
        await asyncio.sleep(0.6)
        assert (await health(session, url))["streams"] == 1
        parrot.may_speak.release()
        assert b'"done": true' in await closed(client)


async def status(url: str) -> int:
    """Return the status of an answer of /health; 0: the connection was closed without one."""
    with connected(url) as client:
        client.setblocking(False)
        with suppress(ConnectionError):
            client.send(HEALTH)
        heard = b""
        with suppress(ConnectionError):
            heard = await said(client)
        return int(heard.split(b" ")[1]) if heard else 0


async def until_answered(url: str, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while await status(url) != 200:  # noqa: ASYNC110 - it is another server's
            await asyncio.sleep(0.05)


async def test_connections_that_are_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    async with served(Parrot()) as (_, url):
        guests = [silent(url) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = [silent(url) for _ in range(3)]
        for client in refused:
            assert b" 503 " in await closed(client)
        assert await status(url) in (0, 503)
        assert len([line for line in caplog.messages if line.startswith("2 connections are open")]) == 1
        guests.pop().close()
        await until_answered(url)


@pytest.mark.parametrize(
    ("files", "most"),
    [(resource.RLIM_INFINITY, 256), (65_536, 256), (300, range(50, 221)), (120, range(1, 41)), (8, 1)],
)
def test_the_limit_of_connections_is_below_the_one_of_files(
    files: int, most: int | range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    found = connections._connections_max()
    assert found == most or (isinstance(most, range) and found in most)


async def test_without_free_files_there_is_one_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with served(Parrot()) as (session, url):
        await health(session, url)
        waiting = [silent(url, HEALTH) for _ in range(5)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free(), before[1]))
            await asyncio.sleep(1.2)  # asyncio tries again each second
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for client in waiting:
            assert b" 200 " in await said(client)
    assert [line for line in caplog.messages if "accept" in line] == [
        "no connection can be accepted: Too many open files; raise the limit of open files (ulimit -n)"
    ]
    assert not any(record.exc_info for record in caplog.records)


def lowest_free() -> int:
    with Path("/dev/null").open() as file:
        return file.fileno()


@pytest.mark.parametrize(
    "words",
    [
        b"\x16\x03\x01\x02\x00\x01" + b"a" * 50,
        b"\0\xff\r\n\r\n",
        HEALTH + b"\0\xff\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        GET + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        HEAD.encode() + b"Content-Length: -1\r\n\r\n",
        HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD.encode() + b"Content-Encoding: br\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    ],
    ids=["tls", "junk", "junk after a request", "version", "long", "negative", "chunk", "two lengths", "brotli"],
)
async def test_a_request_that_is_none_is_one_line_at_most(words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served(Parrot()) as (_, url):
        client = connected(url)
        with suppress(ConnectionError):
            client.sendall(words)
        client.setblocking(False)
        await closed(client)
    assert len(caplog.records) <= 1
    for record in caplog.records:
        assert record.exc_info is None
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "words",
    [
        HEAD.encode() + b"Content-Length: 100\r\n\r\n{",
        HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD.encode().replace(b"application/json", b"text/plain") + b"Content-Length: 100\r\n\r\n{",
        GET + b"Content-Length: 100\r\n\r\n{",
        b"GET /hea",
        HEAD.encode() + b'Content-Length: 38\r\n\r\n{"prompt": "' + b"a" * 24 + b'"}',
    ],
    ids=["body", "chunks", "refused", "no body wanted", "head", "answer"],
)
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_client_that_goes_away_is_no_line(words: bytes, how: str, caplog: pytest.LogCaptureFixture) -> None:
    parrot = Parrot()
    parrot.hush()
    async with served(parrot) as (session, url):
        client = connected(url)
        client.sendall(words)
        await asyncio.sleep(0.1)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await asyncio.sleep(0.1)
        parrot.may_speak.release(1000)
        await until_idle(session, url, 5.0)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_client_that_resets_while_its_answer_waits_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async with served(a_talker()) as (session, url):
        client = ask(url, bad_clients.LONG)
        await asyncio.sleep(0.5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await until_idle(session, url, 10.0)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


@NEEDS_USER_TIMEOUT
async def test_a_client_that_does_not_read_small_pieces_loses_its_place_before_the_buffers_are_full() -> None:
    parrot = Parrot()
    parrot.hush()
    async with served(parrot, stall_seconds=0.5) as (session, url):
        ask(url, {"prompt": "a" * 60_000, "maxTokens": 60_000})
        began = time.monotonic()
        while (await health(session, url))["streams"] and time.monotonic() < began + 20:
            parrot.may_speak.release(4)  # a little less than 30 bytes each
            await asyncio.sleep(0.02)
        assert parrot.told * 27 < connections.BUFFER_BYTES * 2
        assert (await health(session, url))["streams"] == 0


@NEEDS_USER_TIMEOUT
async def test_a_client_that_asks_and_asks_and_reads_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 1)
    async with served(Parrot(), stall_seconds=0.5) as (_, url):
        client = silent(url)
        for _ in range(100):
            with suppress(BlockingIOError, ConnectionError):
                client.send(HEALTH * 100)
            await asyncio.sleep(0.01)
        await until_answered(url)
    assert not any(record.exc_info for record in caplog.records)
