"""A trained model over HTTP, for one machine and a few people. It knows no recipe: a `TextGenerator` does the talking.

    POST /generate   {"prompt", "maxTokens", "temperature", "topK", "seed"}
        200 text/event-stream: data: {"token": "t"}, one after the other, and last data: {"done": true, ...}
        400 not a wish, or a text that the model cannot read   408 too slow   413 too long   415 no JSON
        503 too many answers at once, or too many connections
    GET /health      200 what is served

One thread computes, and requests take turns, a piece each. Nobody is asked who they are: who may talk to the port may
talk to the model. A client may be slow; one that does not move at all loses its connection.
"""

import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import torch
from aiohttp import web

from piton.contract import InputError
from piton_trainer.recipes import catalog
from piton_trainer.serving.connections import Connections, request_log
from piton_trainer.serving.text_generator import ENCODINGS, GenerateRequest, TextGenerator, TooLongError, unpack
from piton_trainer.serving.trained_model import TrainedModel

BODY_BYTES_MAX = 1 << 20
STREAMS_MAX = 8
"""Answers at a time. Each has a memory of its own, and all share one thread."""
GRACE_SECONDS = 20.0
"""From SIGTERM until every connection is closed; a kubelet kills after 30."""
STALL_SECONDS = 20.0
"""A connection is closed when nothing of an answer has left for so long: its client does not read."""
BODY_SECONDS = 30.0
"""The head of a request has to arrive in this time, and its body in as much again. The head of the next one, too."""
_CUT_SECONDS = 1.0
"""Of the grace, the time in which answers that are cut short say so to their clients."""

_log = logging.getLogger(__name__)


def serve(trained: TrainedModel, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; `ready` is told where.

    Raises:
        ValueError: the recipe cannot be asked, or the port cannot be had.
    """
    module = catalog.part(trained.recipe, "generate")
    if module is None:
        raise InputError(f"a {trained.recipe} cannot go on with a text; piton export writes it for your own programs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text_generator = module.open_model(trained, device)
    about = {"recipe": trained.recipe, "step": trained.step, "weights": trained.which}
    asyncio.run(_serve(ModelServer(text_generator, about), host, port, ready))


async def _serve(server: "ModelServer", host: str, port: int, ready: Callable[[str], None]) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _heed, told, signum)
    async with listening(server, host, port) as url:
        ready(f"step {server.about['step']:,} of {server.about['recipe']} answers at {url}")
        await told.wait()


def _heed(told: asyncio.Event, signum: signal.Signals) -> None:
    """Begin to stop; at the second signal, end at once."""
    if told.is_set():
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    told.set()


@asynccontextmanager
async def listening(server: "ModelServer", host: str, port: int) -> AsyncIterator[str]:
    """Listen while this lasts; the address. At the end whoever is being answered may hear the rest, for a while.

    Raises:
        ValueError: the port cannot be had.
    """
    addresses = resolve(host, port)
    runner = web.AppRunner(
        server.app(),
        access_log=None,
        logger=request_log(),
        shutdown_timeout=_CUT_SECONDS / 4,
        keepalive_timeout=server.body_seconds,
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, stall_seconds=server.stall_seconds)
    async with AsyncExitStack() as stack:
        stack.callback(server.close)
        stack.callback(connections.abort)
        stack.push_async_callback(runner.cleanup)
        try:
            place = await stack.enter_async_context(connections.listening(addresses, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}); take another --port") from error
        yield _as_url(*place)


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    The resolver takes an empty text, 0 and 0x0 for all addresses of this machine. Only somebody who writes one of the
    two addresses that mean that is taken at their word.

    Raises:
        ValueError: there is none, or the host is another spelling for all addresses.
    """
    if not host.strip():
        raise InputError("--host: it is empty; name an address, such as 127.0.0.1, or 0.0.0.0 or :: for all")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host: {host!r} is no address of this machine ({_reason(error)})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        parsed = ipaddress.ip_address(address)
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        if mapped.is_unspecified and host not in ("0.0.0.0", "::"):  # noqa: S104 - they say what they mean
            raise InputError(f"--host: {host!r} means all addresses of this machine; write 0.0.0.0 or :: for that")
        if host.rstrip(".").lower() == "localhost" and not mapped.is_loopback:
            raise InputError(f"--host: localhost is {address} here, which others can reach; write 127.0.0.1")
    return addresses


def _as_url(address: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class ModelServer:
    """The handlers, and the thread that computes. For one event loop."""

    def __init__(
        self,
        text_generator: TextGenerator,
        about: dict[str, Any],
        *,
        grace_seconds: float = GRACE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.about = about
        self._text_generator = text_generator
        self._grace_seconds = grace_seconds
        self.stall_seconds = stall_seconds
        self.body_seconds = body_seconds
        self._requests: dict[int, web.Request] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._streams = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_cut = False

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/health", self._health)
        app.on_shutdown.append(self._shut_down)
        return app

    def close(self) -> None:
        """Let the thread go, as soon as the piece that it computes is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok", **self.about, **self._text_generator.about(), "streams": self._streams}
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self._requests[id(request)] = request
        try:
            wanted = await self._read(request)
            return wanted if isinstance(wanted, web.Response) else await self._take_turn(request, wanted)
        finally:
            del self._requests[id(request)]

    async def _read(self, request: web.Request) -> GenerateRequest | web.Response:
        """Return what is asked for, or the refusal of it."""
        if request.content_type != "application/json":
            return _refusal(415, "send application/json")
        encoding = ", ".join(request.headers.getall("Content-Encoding", ["identity"])).strip().lower()
        if encoding not in ENCODINGS:
            return _refusal(400, f"Content-Encoding: {encoding!r} is not known here; send it as it is")
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await request.read()
            generation = GenerateRequest.from_json(unpack(body, encoding, BODY_BYTES_MAX))
            self._text_generator.check(generation.prompt)
        except (web.HTTPRequestEntityTooLarge, TooLongError):
            return _refusal(413, f"the request is longer than {BODY_BYTES_MAX:,} bytes")
        except TimeoutError:
            return _refusal(408, f"the request was not here within {self.body_seconds:g} s")
        except (web.RequestPayloadError, ConnectionError) as error:  # with the latter nobody hears it any more
            return _refusal(400, f"the request cannot be decoded: {' '.join(str(error).split())}")
        except ValueError as error:
            return _refusal(400, str(error))
        return generation

    async def _take_turn(self, request: web.Request, generation: GenerateRequest) -> web.StreamResponse:
        if self._streams >= STREAMS_MAX:
            return _refusal(503, f"{STREAMS_MAX} are being answered already; ask again", **{"Retry-After": "5"})
        self._streams += 1
        self._idle.clear()
        try:
            return await self._answer(request, generation)
        finally:
            self._streams -= 1
            if not self._streams:
                self._idle.set()

    async def _answer(self, request: web.Request, generation: GenerateRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        with suppress(ConnectionError):  # whoever asked is gone, or does not read
            await self._send(request, response.prepare(request))
            last = await self._tell(request, response, generation)
            await self._send(request, response.write(_event(**last)))
            await self._send(request, response.write_eof())
        return response

    async def _send(self, request: web.Request, writing: Coroutine[Any, Any, object]) -> None:
        """Wait for a write as long as it moves.

        Raises:
            ConnectionError: the client is gone, or has not read for a while, and its connection is closed.
        """
        sending = asyncio.ensure_future(writing)
        try:
            await asyncio.sleep(0)  # it begins
            left = _unsent(request)
            while not (await asyncio.wait({sending}, timeout=self.stall_seconds))[0]:
                before, left = left, _unsent(request)
                if left >= before:
                    _abort(request)
                    raise ConnectionResetError("the client does not read")
            sending.result()
        finally:
            sending.cancel()

    async def _tell(
        self, request: web.Request, response: web.StreamResponse, generation: GenerateRequest
    ) -> dict[str, Any]:
        """Stream the answer; the last thing to say of it."""
        pieces, count = self._text_generator.generate(generation), 0
        loop = asyncio.get_running_loop()
        try:
            while not self._is_cut and (piece := await loop.run_in_executor(self._thread, _next, pieces)) is not None:
                await self._send(request, response.write(_event(token=piece)))
                count += 1
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - torch's: out of memory, say
            _log.exception("an answer failed")
            return {"error": str(error), "tokens": count}
        return {
            "done": True,
            "tokens": count,
            "seed": generation.seed,
            **({"cut": "the server stops"} if self._is_cut else {}),
        }

    async def _shut_down(self, _: web.Application) -> None:
        """Wait for the answers that are being given; when the time is over, cut them short, and close what is left."""
        cut = min(_CUT_SECONDS, self._grace_seconds / 2)
        await self._wait_until_idle(self._grace_seconds - cut)
        self._is_cut = True
        await self._wait_until_idle(cut)
        for request in tuple(self._requests.values()):
            _abort(request)

    async def _wait_until_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)


def _unsent(request: web.Request) -> int:
    """Return the number of bytes that wait for the client in this process."""
    return 0 if request.transport is None else request.transport.get_write_buffer_size()


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _next(pieces: Iterator[str]) -> str | None:
    return next(pieces, None)


def _event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def _refusal(status: int, sentence: str, **headers: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=headers)
