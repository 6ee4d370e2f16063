"""Clients that do not read, do not write, send nonsense or do not go; and addresses that mean more than they say."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piton_trainer.serving import server as serving
from recipes.test_serving import Parrot, health, served

LONG = {"prompt": "a" * 65_536, "maxTokens": 65_536}
PACKED = gzip.compress(b'{"prompt": "a"}', mtime=0)
HEAD = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


_clients: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _clients_close() -> Iterator[None]:
    yield
    while _clients:
        _clients.pop().close()


def connected(url: str) -> socket.socket:
    """A connection with a small window."""
    client = socket.socket()
    _clients.append(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port_of(url)))
    return client


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def ask(url: str, body: bytes | dict[str, Any], head: str = "", length: int | None = None) -> socket.socket:
    """A client that has asked, and reads nothing."""
    client = connected(url)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    client.sendall(f"{HEAD}{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content)
    client.setblocking(False)
    return client


async def said(client: socket.socket, seconds: float = 5.0) -> bytes:
    async with asyncio.timeout(seconds):
        return await asyncio.get_running_loop().sock_recv(client, 4096)


async def until_idle(session: aiohttp.ClientSession, url: str, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while (await health(session, url))["streams"]:  # noqa: ASYNC110 - it is another server's
            await asyncio.sleep(0.05)


def a_talker() -> Parrot:
    """It waits for nobody."""
    parrot = Parrot()
    parrot.may_speak.release(1_000_000)
    return parrot


async def test_clients_that_do_not_read_lose_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STREAMS_MAX", 2)
    async with served(a_talker(), stall_seconds=0.5) as (session, url):
        for _ in range(serving.STREAMS_MAX):
            ask(url, LONG)
        await asyncio.sleep(0.2)
        assert (await health(session, url))["streams"] == serving.STREAMS_MAX
        await until_idle(session, url, 60.0)


async def test_a_client_that_reads_slowly_hears_everything() -> None:
    async with served(Parrot(), stall_seconds=0.5) as (_, url):
        client, heard = ask(url, {"prompt": "a" * 8000, "maxTokens": 8000}), b""
        while not heard.endswith(b"0\r\n\r\n"):
            heard += await said(client)
            await asyncio.sleep(0.02)
    assert heard.count(b"token") == 8000 + 1
    assert b'"done": true' in heard


@asynccontextmanager
async def ended(**options: Any) -> AsyncIterator[tuple[str, Any]]:
    """A server, and what ends it."""
    listening = serving.listening(serving.ModelServer(a_talker(), {}, **options), "127.0.0.1", 0)
    url = await listening.__aenter__()

    async def end() -> float:
        began = time.monotonic()
        await listening.__aexit__(None, None, None)
        return time.monotonic() - began

    yield url, end


@pytest.mark.parametrize("kind", ["does not read", "does not write", "says nothing", "half a head"])
async def test_at_the_end_of_the_grace_every_connection_is_closed(kind: str) -> None:
    async with ended(grace_seconds=1.0) as (url, end):
        if kind == "does not read":
            ask(url, LONG)
        elif kind == "does not write":
            ask(url, b"{", length=1000)
        else:
            connected(url).sendall(b"" if kind == "says nothing" else b"POST /generate HT")
        await asyncio.sleep(0.3)
        assert await end() < 3.0


async def test_a_request_that_does_not_come_is_refused() -> None:
    async with served(Parrot(), body_seconds=0.1) as (_, url):
        client = ask(url, b"{", length=1000)
        assert b" 408 " in await said(client)


@pytest.mark.parametrize(
    ("body", "head", "words"),
    [
        ({"prompt": "a", "temperature": 1e-300}, "", b"temperature: "),
        ({"prompt": "a", "temperature": 5e-324}, "", b"temperature: "),
        (b'{"prompt": "a", "temperature": 1e999}', "", b"temperature: "),
        (b'{"prompt": "a", "temperature": NaN}', "", b""),
        (b'{"prompt": "a", "seed": 18446744073709551616}', "", b"seed: "),
        (b'{"prompt": "a", "maxTokens": true}', "", b"maxTokens: "),
        (b'{"prompt": "\\ud800"}', "", b""),
        (b'{"prompt": "\xff"}', "", b""),
        (b"[" * 100_000, "", b""),
        (json.dumps({"prompt": "a"}).encode("utf-16"), "", b""),
        (b"nonsense", "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (PACKED[:-15], "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (PACKED[:-9], "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (PACKED[:-8], "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (PACKED[:-1], "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (PACKED + b"more", "Content-Encoding: gzip\r\n", b"cannot be decoded"),
        (zlib.compress(b'{"prompt": "a"}')[:-1], "Content-Encoding: deflate\r\n", b"cannot be decoded"),
        (zlib.compress(b'{"prompt": "a"}') + b"more", "Content-Encoding: deflate\r\n", b"cannot be decoded"),
        (zlib.compress(b'{"prompt": "a"}')[2:-5], "Content-Encoding: deflate\r\n", b"cannot be decoded"),
        (b'{"prompt": "a"}', "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", b"is not known here"),
        (b"nonsense", "Content-Encoding: deflate\r\n", b"cannot be decoded"),
        (b'{"prompt": "a"}', "Content-Encoding: rot13\r\n", b"is not known here"),
    ],
)
async def test_hostile_wishes_and_encodings_are_refused(body: Any, head: str, words: bytes) -> None:
    async with served(Parrot()) as (session, url):
        client = ask(url, body, head)
        answer = await said(client)
        assert (await health(session, url))["streams"] == 0
    assert answer.split(b" ")[1] == b"400", answer
    assert words in answer


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PACKED),
        ("gzip", gzip.compress(b'{"prompt":', mtime=0) + gzip.compress(b' "a"}', mtime=0)),
        ("deflate", zlib.compress(b'{"prompt": "a"}')),
        ("deflate", zlib.compress(b'{"prompt": "a"}')[2:-4]),
    ],
)
async def test_a_packed_request_is_answered(encoding: str, body: bytes) -> None:
    async with served(Parrot()) as (_, url):
        client = ask(url, body, f"Content-Encoding: {encoding}\r\n")
        assert b" 200 " in await said(client)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_bomb_is_too_long(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    async with served(Parrot()) as (_, url):
        client = ask(url, pack(b"a" * (1 << 24)), f"Content-Encoding: {encoding}\r\n")
        assert b" 413 " in await said(client)


@pytest.mark.parametrize(
    "host", ["", " ", "0", "0x0", "00.0.0.0", "0.0", "::0", "0:0::0", "::ffff:0.0.0.0", "::ffff:0:0"]
)
def test_no_other_spelling_listens_everywhere(host: str) -> None:
    with pytest.raises(ValueError, match=r"^--host: .*0\.0\.0\.0"):
        serving.resolve(host, 0)


@pytest.mark.parametrize("host", ["no such host", "[::1]", "a" * 70, "\u00e9" * 70, "1.2.3.4.5"])
def test_a_host_that_is_none_is_said(host: str) -> None:
    with pytest.raises(ValueError, match=r"^--host: .* is no address of this machine"):
        serving.resolve(host, 0)


@pytest.mark.parametrize(
    ("host", "found"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("127.1", "127.0.0.1")]
)
def test_an_address_is_taken_at_its_word(host: str, found: str) -> None:
    assert serving.resolve(host, 0) == [found]


def test_a_name_that_leads_everywhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
    for host in ("blocked.example", "localhost"):
        with pytest.raises(ValueError, match="means all addresses"):
            serving.resolve(host, 0)


@pytest.mark.parametrize("second", [None, signal.SIGINT])
def test_the_second_signal_ends_at_once(second: signal.Signals | None, tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import asyncio\nfrom piton_trainer.serving import server\n"
        "from recipes.test_serving_bad_clients import a_talker\n"
        "about = {'recipe': 'parrot', 'step': 3}\n"
        f"model = server.ModelServer(a_talker(), about, grace_seconds={2 if second is None else 60})\n"
        "asyncio.run(server._serve(model, '127.0.0.1', 0, lambda line: print(line, flush=True)))\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            ask(process.stdout.readline().split()[-1], LONG)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            if second is not None:
                time.sleep(0.5)
                process.send_signal(second)
            assert process.wait(timeout=20) == (0 if second is None else -second)
        finally:
            process.kill()
