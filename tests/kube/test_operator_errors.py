"""Mistakes of the operator's own at one object: told there, once, and over as soon as a pass gets through."""

import itertools
from typing import Any

import pytest

from piton.api import parse as manifests
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


def fail_in_turn(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
    """Let one pass after the other meet these errors; None: it gets through."""
    real, turns = manifests.parse, itertools.cycle(errors)

    def fails(*args: Any, **options: Any) -> Any:
        error = next(turns)
        if error is not None:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(manifests, "parse", fails)


@pytest.mark.parametrize(
    ("errors", "texts"),
    [
        ((TypeError("one"), KeyError("other")), 2),
        ((TypeError("one"), KeyError("other"), ValueError("third")), 3),
        ((TypeError("number 1"), TypeError("number 2")), 1),
    ],
)
async def test_texts_in_turn_are_told_once_each_and_the_back_off_stays(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch, errors: tuple[Exception, ...], texts: int
) -> None:
    await _train(pilot)
    fail_in_turn(monkeypatch, *errors)
    writes, passes = len(pilot.server.writes), len(pilot.server.asked)
    for _ in range(600):
        await pilot.settle(resync=False)
        pilot.advance(1)
    assert len(pilot.server.writes) - writes == 2 * texts
    assert len(told(pilot)) == texts
    assert len(pilot.server.asked) - passes < 100


async def test_an_error_that_comes_and_goes_is_no_stampede(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    await _train(pilot)
    fail_in_turn(monkeypatch, KeyError("cached"), None)
    writes = len(pilot.server.writes)
    for _ in range(300):
        await pilot.settle()
        pilot.advance(2)
    assert len(pilot.server.writes) - writes < 60


async def test_texts_that_never_repeat_are_bounded(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    await _train(pilot)
    words = itertools.product("abcdefghij", repeat=3)

    def fails(*_: object, **__: object) -> None:
        raise TypeError("".join(next(words)))

    monkeypatch.setattr(manifests, "parse", fails)
    writes = len(pilot.server.writes)
    for _ in range(300):
        await pilot.settle()
        pilot.advance(2)
    assert len(pilot.server.writes) - writes <= 2 * 16
    assert len(pilot.controller._errors._told["team", "ragcun"].shown) <= 32


@pytest.mark.parametrize(
    "answer",
    [
        (422, "Invalid", "TrainingRun.piton.dev ragcun is invalid: status.attempts[0].state: Unsupported value"),
        (500, "InternalError", "etcdserver: request is too large"),
        (500, "InternalError", "Internal error occurred: no webhook"),
        (409, "Conflict", "the object has been modified"),
    ],
)
async def test_an_event_tells_it_although_the_status_cannot_be_written(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str]
) -> None:
    await _train(pilot)
    break_with(monkeypatch, observe, OverflowError("date value 10277 out of range"))
    pilot.server.refuse = lambda request: refusal(*answer) if request.method == "PUT" else None
    for _ in range(10):
        await pilot.turn(30)
    assert len(told(pilot)) == 1
    (event,) = [event for event in pilot.server.all(EVENTS) if event["reason"] == "OperatorError"]
    assert event["count"] == 1


async def test_the_condition_tells_it_although_no_event_can_be_posted(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _train(pilot)
    break_with(monkeypatch, observe, OverflowError("date value 10277 out of range"))
    pilot.server.refuse = lambda request: refusal(403, "Forbidden", "no") if request.resource == EVENTS else None
    writes = len(pilot.server.writes)
    for _ in range(10):
        await pilot.turn(30)
    assert [c["status"] for c in run_of(pilot)["status"]["conditions"] if c["type"] == OPERATOR_ERROR] == ["True"]
    assert len(pilot.server.writes) - writes == 2


async def _train(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
