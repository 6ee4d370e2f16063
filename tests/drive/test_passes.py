"""What a pass promises whatever is decided: it never asks for another at once that would find the same.

And it writes no status each second for words that alternate.
"""

import pytest

from piton.api.conditions import OPERATOR_ERROR, in_phase, with_trouble
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.core.effects import AddFinalizer, Announcement, Decision, Effect
from piton.core.wait_reasons import Wait, waits
from piton.drive import IDLE_SECONDS, REPEATS_TOLD, PassRules, run_pass
from piton.failures import Failures
from piton.observed import Observed
from piton.ports import Unavailable
from support.builders import NOW
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


def waits_for(message: str, *, reason: Reason = Reason.UNSCHEDULABLE) -> Decision:
    known = in_phase(RunStatus(), Phase.STARTING, Reason.UNSCHEDULABLE, "no room", now=NOW, generation=1)
    status, news = waits(known, Phase.STARTING, Wait(reason=reason, message=message), now=NOW, generation=1)
    return Decision(rule="x", status=status, announcements=news)


@pytest.mark.parametrize("other", [Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED])
async def test_two_causes_that_alternate_are_written_each_ten_seconds_and_the_newest_stays(other: Reason) -> None:
    """Events of a scheduler and of an autoscaler, say: each is news for a status, and nothing has changed."""
    clock, world, listening = FakeClock(), FakeWorld(), Listening()
    failures = Failures(clock)
    causes = [waits_for("the scheduler has no node"), waits_for("the autoscaler has no quota", reason=other)]
    for second in range(300):
        found = await run_pass(world, listening, rules(causes[second % 2]), failures)
        clock.advance(1)
    assert found is not None
    assert 25 <= len(world.written) <= 32
    assert len(listening.said) <= len(world.written)

    waits_seconds = found.look_again_seconds
    assert waits_seconds is not None
    clock.advance(waits_seconds)
    await run_pass(world, listening, rules(causes[1]), failures)
    assert world.status == causes[1].status
    if other is Reason.IMAGE_PULL_FAILED:
        assert listening.said[-1] == "the autoscaler has no quota"


async def test_what_cannot_be_read_is_quoted_each_ten_seconds_whatever_it_says() -> None:
    """Two servers behind one address, say, that fail in words of their own: no Event and no write in each pass."""
    clock, world, listening = FakeClock(), FakeWorld(), Listening()
    failures = Failures(clock)

    def blind(why: str) -> Decision:
        status = with_trouble(
            world.status, OPERATOR_ERROR, Reason.CLUSTER_UNREADABLE, why, now=clock.now(), generation=1
        )
        return Decision(rule="x", status=status, announcements=(Announcement(reason=Reason.REFUSED, message=why),))

    for second in range(100):
        await run_pass(world, listening, rules(blind(("no leader", "no endpoints")[second % 2])), failures)
        clock.advance(1)
    assert 9 <= len(world.written) <= 12
    assert len(listening.said) == len(world.written)


async def test_what_is_more_than_words_is_written_at_once() -> None:
    clock, world, failures = FakeClock(), FakeWorld(), Failures(FakeClock())
    for decision in (waits_for("a"), waits_for("b"), waits_for("c")):
        await run_pass(world, Listening(), rules(decision), failures)
    before = len(world.written)
    trains = in_phase(world.status, Phase.TRAINING, Reason.TRAINING, "trains", now=clock.now(), generation=1)
    await run_pass(world, Quiet(), rules(Decision(rule="x", status=trains)), failures)
    mended = in_phase(trains, Phase.TRAINING, Reason.TRAINING, "trains on", now=clock.now(), generation=2)
    await run_pass(world, Quiet(), rules(Decision(rule="x", status=mended)), failures)
    assert len(world.written) == before + 2
