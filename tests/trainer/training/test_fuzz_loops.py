"""The random loops of `make fuzz-loops`: drawn from a seed, made simpler, and a fault that is planted is found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuzz_loops import loop as words
from fuzz_loops.changes import CHANGES
from fuzz_loops.draw import draw, is_right
from fuzz_loops.loop import KILL, TERM, Kill, Loop, simpler
from fuzz_loops.play import Kind, Verdict, play
from fuzz_loops.shrink import smallest
from piton_trainer.state import tracked_objects
from piton_trainer.state.own_generators import OwnGenerators
from piton_trainer.training import run_restore
from piton_trainer.training.gradient_accumulation import Gradients

SIMPLE = Loop(batches=5, every=2, scheduler="StepLR", noise=("torch",), kills=(Kill(step=3),))

OWN_BUFFERS: dict[str, Any] = {"ranks": 2, "shares": 2, "parallel": "ddp", "parts": ("batchnorm",), "broadcasts": False}


def test_a_seed_always_has_the_same_loops() -> None:
    loops = [draw(7, number) for number in range(200)]
    assert loops == [draw(7, number) for number in range(200)]
    assert len(set(loops)) == 200
    assert all(map(is_right, loops))


def test_a_loop_is_repeated_from_what_is_printed_of_it() -> None:
    loops = [draw(7, number) for number in range(200)]
    assert [Loop.from_json(loop.to_json()) for loop in loops] == loops
    assert json.loads(Loop().to_json()) == {}


def test_all_words_are_drawn() -> None:
    drawn = frozenset[str]().union(*(draw(1, number).words for number in range(1000)))
    lists = (words.PARTS, words.OPTIMIZERS, words.STATIC_GROUPS, words.MOVING_GROUPS, words.SCHEDULERS, words.EMAS)
    more = (words.KEPT, words.REFUSED, words.STANDARD, words.SAMPLERS, words.LOADERS, words.NOISE, tuple(CHANGES))
    known = {word for part in lists + more for word in part}
    assert known - drawn == set()
    assert {kill.signal for number in range(50) for kill in draw(1, number).kills} == {KILL, TERM}


def test_a_loop_is_made_simpler_until_nothing_is_left_of_it() -> None:
    for number in range(20):
        loop, rounds = draw(3, number), 0
        while (smaller := next(simpler(loop), None)) is not None:
            loop, rounds = smaller, rounds + 1
            assert rounds < 200
        assert loop == Loop(seed=loop.seed)


def test_a_loop_that_resumes_as_it_should_is_exact(tmp_path: Path) -> None:
    kills = (Kill(step=2), Kill(step=4, signal=KILL))
    loop = Loop(ranks=3, parallel="ddp", shares=3, parts=("dropout", "batchnorm"), kills=kills)
    assert play(loop, tmp_path / "loop") == Verdict(kind=Kind.EXACT)


def forget_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = tracked_objects.TrackedObjects.restore

    def all_but_one(objects: Any, *given: Any) -> list[str]:
        kept = objects._objects.pop("scheduler", None)
        told = restore(objects, *given)
        if kept is not None:
            objects._objects["scheduler"] = kept
        return told

    monkeypatch.setattr(tracked_objects.TrackedObjects, "restore", all_but_one)


def save_between_two_batches_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gradients, "wait", lambda *_: False)


def fail_at_the_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError("planted")

    monkeypatch.setattr(tracked_objects, "set_model_state_dict", fail)


def forget_generators_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnGenerators, "restore", lambda *_: None)


def give_all_ranks_the_buffers_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_restore, "BUFFERS", "nothing")


@pytest.mark.parametrize(
    ("plant", "changes", "kind", "reason"),
    [
        (forget_the_schedule, {}, Kind.DIFFERENT, "scheduler"),
        (save_between_two_batches_of_a_step, {"accumulate": 2}, Kind.DIFFERENT, "weights"),
        (fail_at_the_restore, {}, Kind.TRACEBACK, "ArithmeticError: planted"),
        (forget_generators_of_the_users, {"parts": ("own noise",)}, Kind.DIFFERENT, "loss"),
        (give_all_ranks_the_buffers_of_rank_0, OWN_BUFFERS, Kind.DIFFERENT, "buffers"),
    ],
)
def test_a_fault_that_is_planted_is_found(
    plant: Any, changes: dict[str, Any], kind: Kind, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    verdict = play(replace(SIMPLE, **changes), tmp_path / "loop")
    assert verdict.kind is kind
    assert reason in verdict.reason


def test_a_loop_that_fails_is_printed_without_what_does_not_matter() -> None:
    loops = (draw(5, number) for number in range(3000))
    loop = next(loop for loop in loops if {"fsdp2", "dropout", "StepLR"} <= loop.words and loop.kills[1:])
    found = smallest(loop, lambda smaller: {"dropout", "StepLR"} <= smaller.words and bool(smaller.kills))
    assert replace(found, kills=()) == Loop(seed=loop.seed, parts=("dropout",), scheduler="StepLR")
    assert [replace(kill, step=1) for kill in found.kills] == [Kill(step=1)]
