"""The reports of `make bench-operator`: whose trainers report, what they see, and what is made of it."""

import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bench.operator_scale import report_load, reporters
from bench.operator_scale.run_watch import LateError
from piton.kube.tls import AUTHORITY, CERTIFICATE, KEY
from support import certificates


def a_pod(run: str, *, phase: str = "Running", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": run, "labels": {"piton.dev/run": run}, **meta}, "status": {"phase": phase}}


def seen(**changes: Any) -> dict[str, Any]:
    times = {"answer_seconds": [0.001, 0.05], "first_seconds": [2.0], "late_seconds": [0.0]}
    return times | {"answers": {"200": 2}, "first_not_taken": 0, "connections": 1} | changes


def test_the_first_runs_report_whose_pods_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "REPORTERS_MAX", 2)
    pods = [a_pod("run-10"), a_pod("late-1"), a_pod("run-9"), a_pod("run-11")]
    pods += [a_pod("run-1", phase="Pending"), a_pod("run-2", deletionTimestamp="2026-01-01T00:00:00Z")]

    assert [pod["metadata"]["name"] for pod in reporters.chosen(pods)] == ["run-9", "run-10"]


def test_answers_are_in_milliseconds_and_all_but_200_counts_as_not_taken() -> None:
    found = reporters.answers(seen(answers={"200": 2, "429": 3, "TimeoutError": 1}))

    assert (found["answer_ms"]["p99"], found["first_answer_seconds"]["p99"], found["not_taken"]) == (50.0, 2.0, 4)


def test_without_a_report_that_was_taken_there_are_no_figures() -> None:
    with pytest.raises(LateError, match=r"no report was taken: \{'503': 7\}; see .*bench-operator.log"):
        reporters.answers(seen(answer_seconds=[], answers={"503": 7}))


@pytest.mark.skipif(sys.platform != "linux", reason="each trainer has a loopback address of its own")
async def test_trainers_keep_their_connections_and_report_with_their_own_tokens(tmp_path: Path) -> None:
    asked: set[tuple[str, str]] = set()
    steps: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        asked.add((request.path, request.headers["Authorization"]))
        metrics = {one["name"]: one["value"] for one in (await request.json())["trainerStatus"]["metrics"]}
        steps.append(int(metrics["step"]))
        return web.json_response({}, status=429 if request.path.endswith("run-2/status") else 200)

    certificates.make(tmp_path)
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / KEY)
    app = web.Application()
    app.router.add_post("/namespaces/bench/trainingruns/{name}/status", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust).start()
    load: dict[str, Any] = {"url": f"https://127.0.0.1:{runner.addresses[0][1]}", "ca": str(tmp_path / AUTHORITY)}
    load |= {"namespace": "bench", "zero": time.time() - 60, "every_seconds": 0.2, "checkpoint_seconds": 60}
    load |= {"warm_seconds": 1.0, "seconds": 1.0, "tokens": {"run-1": "a", "run-2": "b"}}
    try:
        await report_load.report(load, tmp_path / "results.json")
    finally:
        await runner.cleanup()

    found = json.loads((tmp_path / "results.json").read_text())
    path = "/namespaces/bench/trainingruns/{}/status"
    assert asked == {(path.format("run-1"), "Bearer a"), (path.format("run-2"), "Bearer b")}
    assert found["connections"] == 2
    assert set(found["answers"]) == {"200", "429"}
    assert len(found["first_seconds"]) == 1
    assert all(60_000 <= step < 120_000 for step in steps)
