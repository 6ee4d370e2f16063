"""What a pass promises whatever is decided: it never asks for another at once that would find the same."""

import pytest

from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.core.effects import AddFinalizer, Announcement, Decision, Effect
from piton.drive import IDLE_SECONDS, REPEATS_TOLD, PassRules, run_pass
from piton.failures import Failures
from piton.observed import Observed
from piton.ports import Unavailable
from support.cluster import FakeClock
from support.fake_world import FakeWorld

CHANGED = RunStatus(phase=Phase.STARTING)


class Quiet:
    async def announce(self, announcement: Announcement) -> None:
        raise AssertionError(f"told: {announcement}")


class Listening:
    def __init__(self) -> None:
        self.said: list[str] = []

    async def announce(self, announcement: Announcement) -> None:
        self.said.append(announcement.message)


class Failing(FakeWorld):
    """A world that carries out nothing."""

    async def apply(self, effect: Effect) -> None:
        raise Unavailable("no")


def rules(decision: Decision) -> PassRules[Observed, Effect, RunStatus]:
    return PassRules(
        decide=lambda _: decision,
        turn_down=lambda _, found, __: found,
        answer=lambda _: decision,
        is_binding=lambda *_: False,
        depends=lambda *_: False,
        stands_without=lambda _: True,
        name_of=lambda effect: type(effect).__name__,
    )


HOLD = AddFinalizer(reason=Reason.ACCEPTED)


@pytest.mark.parametrize(
    ("world", "effects", "status", "asked", "seconds"),
    [
        (FakeWorld, (), RunStatus(), 0.0, IDLE_SECONDS),
        (FakeWorld, (), RunStatus(), -5.0, IDLE_SECONDS),
        (FakeWorld, (), RunStatus(), 0.25, 0.25),
        (FakeWorld, (), RunStatus(), None, None),
        (FakeWorld, (), CHANGED, 0.0, 0.0),
        (FakeWorld, (HOLD,), RunStatus(), 0.0, 0.0),
        (Failing, (HOLD,), RunStatus(), 0.0, 1.0),
    ],
)
async def test_a_pass_that_does_nothing_and_writes_nothing_is_not_repeated_at_once(
    world: type[FakeWorld], effects: tuple[Effect, ...], status: RunStatus, asked: float | None, seconds: float | None
) -> None:
    decision = Decision(rule="x", effects=effects, status=status, look_again_seconds=asked)
    found = await run_pass(world(), Quiet(), rules(decision), Failures(FakeClock()))
    assert found is not None
    assert found.look_again_seconds == seconds


async def test_an_effect_that_does_not_stay_is_repeated_with_back_off_and_told() -> None:
    """A webhook that takes a finalizer or an owner off again answers 200."""
    decision = Decision(rule="x", effects=(HOLD,), status=RunStatus(), look_again_seconds=0.0)
    failures, listening, waits = Failures(FakeClock()), Listening(), []
    for _ in range(12):
        found = await run_pass(FakeWorld(), listening, rules(decision), failures)
        assert found is not None
        waits.append(found.look_again_seconds)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 5]
    (told,) = listening.said
    assert told.startswith(f"AddFinalizer: succeeded {REPEATS_TOLD + 1} times in a row and was undone each time")


@pytest.mark.parametrize(
    ("status", "asked"), [(CHANGED, 0.0), (RunStatus(), 5.0), (RunStatus(), None)], ids=["news", "later", "never"]
)
async def test_an_effect_that_is_wanted_again_for_a_while_is_not_told(status: RunStatus, asked: float | None) -> None:
    """As a deletion is, while pods still end."""
    decision = Decision(rule="x", effects=(HOLD,), status=status, look_again_seconds=asked)
    failures = Failures(FakeClock())
    for _ in range(12):
        found = await run_pass(FakeWorld(), Quiet(), rules(decision), failures)
        assert found is not None
        assert found.look_again_seconds == asked
