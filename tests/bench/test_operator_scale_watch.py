"""The watch of `make bench-operator` goes on where a stream ended; a wait that is too long says where to look."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from bench.operator_scale import run_watch
from bench.operator_scale.run_watch import LateError, Runs
from piton.kube.resources import RUNS


def line(kind: str, version: int, *, name: str = "run-1", phase: str = "Training") -> dict[str, Any]:
    meta = {"name": name, "uid": name, "resourceVersion": str(version)}
    return {"type": kind, "object": {"metadata": meta, "status": {"phase": phase}}}


@asynccontextmanager
async def serving(*streams: list[dict[str, Any]]) -> AsyncIterator[tuple[Configuration, list[str]]]:
    """Answer each watch with the next of the streams, and the last of them without an end; note what was asked for."""
    asked: list[str] = []
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.query.get("resourceVersion", ""))
        response = web.StreamResponse()
        await response.prepare(request)
        for event in streams[min(len(asked), len(streams)) - 1]:
            await response.write(json.dumps(event).encode() + b"\n")
        if len(asked) >= len(streams):
            await over.wait()
        return response

    app = web.Application()
    app.router.add_get("/apis/piton.dev/v1alpha1/namespaces/bench/trainingruns", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Configuration(host=f"http://127.0.0.1:{port}"), asked
    finally:
        over.set()
        await runner.cleanup()


async def test_a_stream_that_ends_is_taken_up_after_its_last_version() -> None:
    runs, both = Runs(), asyncio.Event()

    def take(kind: str, body: dict[str, Any], now: float) -> None:
        runs.take(kind, body, now)
        if len(runs.seen) == 2:
            both.set()

    first = [line("ADDED", 5), line("BOOKMARK", 9, name="")]
    async with serving(first, [line("ADDED", 12, name="run-2")]) as (configuration, asked):
        watch = asyncio.create_task(run_watch.follow(configuration, RUNS, "bench", take))
        await asyncio.wait_for(both.wait(), 20)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    assert asked == ["", "9"]
    assert (sorted(runs.seen), runs.phases["Training"]) == (["run-1", "run-2"], 2)


async def test_a_history_that_is_lost_ends_the_watch_with_a_sentence() -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    async with serving([line("ADDED", 5), gone]) as (configuration, _):
        with pytest.raises(RuntimeError, match="trainingruns broke: too old resource version"):
            await asyncio.wait_for(run_watch.follow(configuration, RUNS, "bench", Runs().take), 20)


async def test_a_wait_ends_as_soon_as_it_is_true_and_says_so() -> None:
    said: list[str] = []
    await run_watch.until(lambda: True, seconds=5, state=lambda: "2 of 2 training", say=said.append, log="x")

    assert said == ["2 of 2 training"]


async def test_a_wait_that_takes_too_long_says_how_far_it_got_and_where_to_look() -> None:
    with pytest.raises(LateError, match=r"1 of 2 training after 0 s; see .*/bench-operator.log and kubectl"):
        await run_watch.until(
            lambda: False, seconds=0, state=lambda: "1 of 2 training", say=print, log="bench-operator"
        )


def test_a_run_is_unheard_while_its_condition_reporting_is_false() -> None:
    runs = Runs()

    def seen_with(*conditions: dict[str, Any]) -> bool:
        event = line("MODIFIED", 1)
        event["object"]["status"]["conditions"] = list(conditions)
        runs.take(event["type"], event["object"], 0.0)
        return runs.seen["run-1"].is_unheard

    waiting = {"type": "Waiting", "status": "False"}
    assert not seen_with()
    assert not seen_with(waiting)
    assert seen_with(waiting, {"type": "Reporting", "status": "False"})
    assert not seen_with(waiting, {"type": "Reporting", "status": "True"})
