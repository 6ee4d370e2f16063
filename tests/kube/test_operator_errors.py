"""Mistakes of the operator's own at one object: told there, once, and over as soon as a pass gets through."""

from typing import Any

import pytest

from piton.api.conditions import OPERATOR_ERROR
from piton.api.status_base import Phase
from piton.kube import observe, sweep_controller
from support.apiserver import EVENTS, RUNS, SWEEPS, refusal
from support.builders import a_manifest
from support.cluster import Runs
from support.pilot import Pilot
from support.sweeps import a_sweep


def break_with(monkeypatch: pytest.MonkeyPatch, module: Any, error: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "parse", fails) if module is sweep_controller else monkeypatch.setattr(
        module.parse, "parse", fails
    )


def run_of(pilot: Pilot) -> dict[str, Any]:
    run = pilot.run()
    assert run is not None
    return run


def told(pilot: Pilot) -> list[str]:
    return [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == "OperatorError"]


async def test_a_pass_that_fails_is_told_on_the_run_once_for_each_text(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    before = run_of(pilot)["status"]
    with monkeypatch.context() as patch:
        break_with(patch, observe, OverflowError("date value 10277 out of range"))
        for _ in range(60):
            await pilot.turn(30)
        after = run_of(pilot)["status"]
        (condition,) = [c for c in after["conditions"] if c["type"] == OPERATOR_ERROR]
        assert condition["status"] == "True"
        assert "OverflowError: date value 10277 out of range" in condition["message"]
        others = [c for c in after["conditions"] if c["type"] != OPERATOR_ERROR]
        assert {**after, "conditions": others} == before
        assert len(told(pilot)) == 1
        break_with(patch, observe, OverflowError("date value 10278 out of range"))
        await pilot.turn(3600)
        await pilot.turn(3600)
        assert len(told(pilot)) == 1
        break_with(patch, observe, KeyError("spec"))
        await pilot.turn(3600)
        await pilot.turn(3600)
        assert len(told(pilot)) == 2

    for _ in range(3):
        await pilot.turn(3600)

    assert pilot.status().phase is Phase.TRAINING
    over = pilot.status().condition(OPERATOR_ERROR)
    assert over is not None
    assert over.status == "False"


async def test_a_status_that_nobody_could_have_written_is_told_and_left_alone(pilot: Pilot) -> None:
    run = await pilot.cluster.apply(a_manifest())
    await pilot.server.put(RUNS, {**run, "status": {"conditions": {"not": "a list"}, "phase": "Training"}})
    for _ in range(5):
        await pilot.turn(30)
    assert len(told(pilot)) == 1


async def test_a_sweep_says_so_as_well(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    await pilot.cluster.apply(a_sweep("abl"))
    with monkeypatch.context() as patch:
        break_with(patch, sweep_controller, ValueError("nobody has thought of this"))
        for _ in range(5):
            await pilot.settle_sweeps()
            pilot.advance(60)
        found = pilot.server.find(SWEEPS, "abl", "team")
        assert found is not None
        assert [c["status"] for c in found["status"]["conditions"] if c["type"] == OPERATOR_ERROR] == ["True"]
    pilot.advance(3600)
    await pilot.settle_sweeps()
    found = pilot.server.find(SWEEPS, "abl", "team")
    assert found is not None
    assert [c["status"] for c in found["status"]["conditions"] if c["type"] == OPERATOR_ERROR] == ["False"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "etcdserver: request is too large"),
        (500, "rpc error: code = ResourceExhausted desc = trying to send message larger than max (3 vs. 2)"),
        (413, "Request entity too large: limit is 3145728"),
    ],
)
async def test_an_object_that_is_too_large_for_the_api_server_is_shown(pilot: Pilot, status: int, words: str) -> None:
    def too_large(request: Any) -> Any:
        if request.method == "POST" and "pytorchjobs" in str(request.url):
            return refusal(status, "InternalError", words)
        return None

    pilot.server.refuse = too_large
    await pilot.cluster.apply(a_manifest())
    for _ in range(3):
        await pilot.turn()
    waiting = pilot.status().condition("Waiting")
    assert waiting is not None
    assert waiting.status == "True"
    assert words in waiting.message
