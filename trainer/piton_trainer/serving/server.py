"""A trained model over HTTP, for one machine and a few people. It knows no recipe: a `TextGenerator` does the talking.

    POST /generate   {"prompt", "maxTokens", "temperature", "topK", "seed"}
        200 text/event-stream: data: {"token": "t"}, one after the other, and last data: {"done": true, ...}
        400 not a wish, or a text that the model cannot read   413 too long   415 no JSON   503 too many at once
    GET /health      200 what is served

One thread computes, and requests take turns, a piece each. Nobody is asked who they are: who may talk to the port may
talk to the model.
"""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import torch
from aiohttp import web

from piton.contract import InputError
from piton_trainer.recipes import catalog
from piton_trainer.serving.text_generator import GenerateRequest, TextGenerator
from piton_trainer.serving.trained_model import TrainedModel

BODY_BYTES_MAX = 1 << 20
STREAMS_MAX = 8
"""Answers at a time. Each has a memory of its own, and all share one thread."""
GRACE_SECONDS = 20.0
"""From SIGTERM until answers that are still being given are cut short; a kubelet kills after 30."""

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
        loop.add_signal_handler(signum, told.set)
    async with listening(server, host, port) as url:
        ready(f"step {server.about['step']:,} of {server.about['recipe']} answers at {url}")
        await told.wait()


@asynccontextmanager
async def listening(server: "ModelServer", host: str, port: int) -> AsyncIterator[str]:
    """Listen while this lasts; the address. At the end whoever is being answered may hear the rest, for a while.

    Raises:
        ValueError: the port cannot be had.
    """
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}); take another --port") from error
        address = runner.addresses[0]
        yield f"http://{address[0]}:{address[1]}"
    finally:
        await runner.cleanup()
        server.close()


class ModelServer:
    """The handlers, and the thread that computes. For one event loop."""

    def __init__(
        self, text_generator: TextGenerator, about: dict[str, Any], *, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.about = about
        self._text_generator = text_generator
        self._grace_seconds = grace_seconds
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
        """Let the thread go."""
        self._thread.shutdown()

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok", **self.about, **self._text_generator.about(), "streams": self._streams}
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return _refusal(415, "send application/json")
        try:
            generation = GenerateRequest.from_json(await request.read())
            self._text_generator.check(generation.prompt)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"the request is longer than {BODY_BYTES_MAX:,} bytes")
        except ValueError as error:
            return _refusal(400, str(error))
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
        await response.prepare(request)
        with suppress(ConnectionResetError):  # whoever asked is gone
            await response.write(_event(**await self._tell(response, generation)))
            await response.write_eof()
        return response

    async def _tell(self, response: web.StreamResponse, generation: GenerateRequest) -> dict[str, Any]:
        """Stream the answer; the last thing to say of it."""
        pieces, count = self._text_generator.generate(generation), 0
        loop = asyncio.get_running_loop()
        try:
            while not self._is_cut and (piece := await loop.run_in_executor(self._thread, _next, pieces)) is not None:
                await response.write(_event(token=piece))
                count += 1
        except RuntimeError as error:  # torch's: out of memory, say
            _log.exception("an answer failed")
            return {"error": str(error), "tokens": count}
        return {
            "done": True,
            "tokens": count,
            "seed": generation.seed,
            **({"cut": "the server stops"} if self._is_cut else {}),
        }

    async def _shut_down(self, _: web.Application) -> None:
        """Wait for the answers that are being given; when the time is over, cut them short, and say so to each."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._grace_seconds)
        self._is_cut = True


def _next(pieces: Iterator[str]) -> str | None:
    return next(pieces, None)


def _event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def _refusal(status: int, sentence: str, **headers: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=headers)
