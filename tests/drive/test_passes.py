"""What a pass promises whatever is decided: it never asks for another at once that would find the same."""

import pytest

from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.core.effects import AddFinalizer, Announcement, Decision, Effect
from piton.drive import IDLE_SECONDS, PassRules, run_pass
from piton.failures import Failures
from piton.observed import Observed
from piton.ports import Unavailable
from support.cluster import FakeClock
from support.fake_world import FakeWorld

CHANGED = RunStatus(phase=Phase.STARTING)


class Quiet:
    async def announce(self, announcement: Announcement) -> None:
        raise AssertionError(f"told: {announcement}")


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
