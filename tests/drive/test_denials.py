"""Requests that the API server never serves, in a fake world: what does not need them goes on, and is shown."""

from contextlib import suppress
from typing import Any

import pytest

from piton.api.conditions import ACCEPTED, WAITING
from piton.api.status import AttemptState
from piton.drive import reconcile
from piton.failures import Failures
from piton.observed import ReservationSeen
from piton.ports import PortError
from support.fake_denials import ANSWERS, FORBIDDEN, sentence
from support.fake_world import FakeWorld

FAILS = "500 InternalError"


async def play(world: FakeWorld, failures: Failures, seconds: int) -> None:
    for _ in range(seconds):
        with suppress(PortError):
            await reconcile(world, world, world, failures=failures)
        world.admit()
        world.tick()


def told(world: FakeWorld, request: str, answer: str) -> list[str]:
    return [news.message for news in world.announced if sentence(request, answer) in news.message]


@pytest.mark.parametrize("answer", sorted(ANSWERS))
async def test_a_training_of_which_kueue_cannot_be_told_is_shown_and_paid_for(answer: str) -> None:
    request, world = "patch workloads", FakeWorld(reservation=ReservationSeen())
    world.denials.answers[request], failures = answer, Failures(world)
    await play(world, failures, 20)
    record = world.status.current
    assert record is not None
    assert record.state is AttemptState.RUNNING
    assert record.billed_from is not None
    assert world.status.checkpoint is not None
    assert len(told(world, request, answer)) == (answer == FORBIDDEN)
    assert world.status.is_true(WAITING) is (answer == FORBIDDEN)


async def test_a_training_that_cannot_be_stopped_is_shown_to_the_end() -> None:
    world = FakeWorld()
    failures = Failures(world)
    await play(world, failures, 8)
    world.denials.answers["delete jobs"] = FORBIDDEN
    world.spec, world.generation = world.spec.model_copy(update={"suspend": True}), 2
    world.version += 1
    await play(world, failures, 3)
    before = world.status.checkpoint
    await play(world, failures, 7)
    assert before is not None
    assert world.status.checkpoint is not None
    assert world.status.checkpoint.step > before.step
    assert len(told(world, "delete jobs", FORBIDDEN)) == 1


@pytest.mark.parametrize("request_", ["create claims", "create jobs"])
@pytest.mark.parametrize("typo", [{"x": 1}, {}])
async def test_a_change_of_the_spec_is_answered_while_nothing_can_be_made(request_: str, typo: dict[str, Any]) -> None:
    world = FakeWorld()
    failures = Failures(world)
    await play(world, failures, 8)
    world.kill_node(world.jobs[1])
    world.volume = request_ != "create claims"
    world.denials.answers[request_] = FAILS
    await play(world, failures, 4)
    world.typo, world.generation = typo, 2
    world.version += 1
    await play(world, failures, 2)
    assert (world.status.observed_generation, world.status.is_true(ACCEPTED)) == (2, not typo)
    assert world.created == [1]
    assert not told(world, request_, FAILS)
