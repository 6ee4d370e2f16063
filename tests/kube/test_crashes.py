"""The operator dies after every single write, or never hears what became of one: the end is always the same."""

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from kmock import Request

from piton.api.status import Verdict
from piton.api.status_base import Phase
from support.apiserver import RUNS
from support.builders import NOW, a_manifest
from support.cluster import Cluster, Disrupted, Fate, Runs, Vanishes
from support.feed import Event
from support.pilot import Death, Pilot, a_pilot

Chapter = Callable[[Pilot], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Story:
    """A life in chapters. Who takes over from a dead operator goes on with the chapter in which it died."""

    script: dict[int, Fate]
    chapters: tuple[Chapter, ...]
    writes: int
    """Writes of an undisturbed life, events included; the first test keeps this number honest."""
    creates: dict[str, int]
    verdicts: list[Verdict] = field(default_factory=list)
    """In the end; none: the run does not exist any more."""


async def _succeed(pilot: Pilot) -> None:
    await pilot.until(lambda: pilot.run() is not None and pilot.status().phase is Phase.SUCCEEDED)
    await pilot.settle()


async def _train_and_suspend(pilot: Pilot) -> None:
    await pilot.until(lambda: pilot.status().phase is Phase.TRAINING)
    await pilot.cluster.apply(a_manifest(suspend=True))


async def _resume(pilot: Pilot) -> None:
    await pilot.until(lambda: pilot.status().phase is Phase.SUSPENDED)
    await pilot.cluster.apply(a_manifest())


async def _train_and_delete(pilot: Pilot) -> None:
    await pilot.until(lambda: pilot.status().phase is Phase.TRAINING and pilot.status().attempt == 2)
    await pilot.server.delete(RUNS, "ragcun", "team")


async def _go(pilot: Pilot) -> None:
    await pilot.until(lambda: pilot.run() is None)


STORIES = {
    "preempted": Story(
        script={1: Disrupted(), 2: Vanishes()},
        chapters=(_succeed,),
        writes=31,
        creates={"persistentvolumeclaims": 1, "pytorchjobs": 3},
        verdicts=[Verdict.PREEMPTED, Verdict.PREEMPTED, Verdict.FINISHED],
    ),
    "suspended": Story(
        script={1: Runs(), 2: Runs()},
        chapters=(_train_and_suspend, _resume, _train_and_delete, _go),
        writes=23,
        creates={"persistentvolumeclaims": 1, "pytorchjobs": 2},
    ),
}


class Life:
    """A story that is being lived, by one operator after another."""

    def __init__(self, story: Story, cluster: Cluster) -> None:
        self.story = story
        self.cluster = cluster
        self._left = list(story.chapters)

    async def begin(self) -> None:
        self.cluster.script = dict(self.story.script)
        await self.cluster.apply(a_manifest())

    async def go_on(self, pilot: Pilot) -> None:
        while self._left:
            await self._left[0](pilot)
            self._left.pop(0)


def _check(story: Story, pilot: Pilot, *, blind: bool = False) -> None:
    """`blind`: the only sign of a disruption may have been in a watch that was behind the others."""
    assert pilot.creates() == story.creates
    run = pilot.run()
    if run is None:
        assert not story.verdicts
        return
    status = pilot.status()
    if blind:
        assert len(status.attempts) == len(story.verdicts)
        assert not {attempt.verdict for attempt in status.attempts} - {*story.verdicts, Verdict.INFRASTRUCTURE}
    else:
        assert [attempt.verdict for attempt in status.attempts] == story.verdicts
        assert (status.preemptions, status.infrastructure_failures) == (story.verdicts.count(Verdict.PREEMPTED), 0)
    assert status.failures == 0
    assert status.is_true("Succeeded")
    assert run["metadata"]["finalizers"] == []


def _every_write() -> list[tuple[str, int]]:
    return [(name, write) for name, story in STORIES.items() for write in range(1, story.writes + 1)]


@pytest.mark.parametrize("name", STORIES)
async def test_an_undisturbed_life_takes_so_many_writes(cluster: Cluster, name: str) -> None:
    life = Life(STORIES[name], cluster)
    await life.begin()
    async with a_pilot(cluster) as pilot:
        await life.go_on(pilot)
        _check(life.story, pilot)
    assert len(cluster.server.writes) == life.story.writes


@pytest.mark.parametrize(("name", "write"), _every_write())
async def test_an_operator_that_dies_after_a_write_is_replaced_without_a_trace(
    cluster: Cluster, name: str, write: int
) -> None:
    life = Life(STORIES[name], cluster)
    await life.begin()
    async with a_pilot(cluster, dies_after=write) as first:
        with pytest.raises(Death):
            await life.go_on(first)
    async with a_pilot(cluster) as second:
        await life.go_on(second)
        _check(life.story, second)


@pytest.mark.parametrize(("name", "write"), _every_write())
async def test_a_write_whose_answer_is_lost_is_not_done_twice(cluster: Cluster, name: str, write: int) -> None:
    life = Life(STORIES[name], cluster)
    cluster.server.lose_answers_of = {write}
    await life.begin()
    async with a_pilot(cluster) as pilot:
        await life.go_on(pilot)
        _check(life.story, pilot)
    assert cluster.server.lost == 1


# --- the cache is behind, or wrong ------------------------------------------------------------------------------------


async def _live(
    story: Story, cluster: Cluster, disturb: Callable[[Pilot], None], *, at: int, blind: bool = False
) -> None:
    """Live a story in which the watches are disturbed when a certain write arrives."""
    life, count = Life(story, cluster), itertools.count(1)
    await life.begin()
    async with a_pilot(cluster) as pilot:

        async def before(_: Request) -> None:
            if next(count) == at:
                disturb(pilot)

        cluster.server.before_write = before
        await life.go_on(pilot)
        _check(story, pilot, blind=blind)


@pytest.mark.parametrize(("name", "write"), _every_write())
async def test_watches_that_are_30_s_late_from_any_write_on_lose_nothing(
    cluster: Cluster, name: str, write: int
) -> None:
    def delay(pilot: Pilot) -> None:
        end = pilot.clock.now() + timedelta(seconds=30)
        pilot.feed.hold = lambda _: pilot.clock.now() < end

    await _live(STORIES[name], cluster, delay, at=write)


@pytest.mark.parametrize(("name", "write"), _every_write())
async def test_watches_that_are_cut_at_any_write_and_answer_410_lose_nothing(
    cluster: Cluster, name: str, write: int
) -> None:
    await _live(STORIES[name], cluster, lambda pilot: pilot.feed.forget(), at=write)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", STORIES)
async def test_events_that_come_twice_and_in_another_order_for_each_kind_change_nothing(
    cluster: Cluster, name: str, seed: int
) -> None:
    def disturb(pilot: Pilot) -> None:
        pilot.feed.rng = random.Random(seed)

    await _live(STORIES[name], cluster, disturb, at=1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", STORIES)
async def test_kinds_that_are_late_by_turns_lose_nothing(cluster: Cluster, name: str, seed: int) -> None:
    """Each event may wait for some turns, so that pods are newer than their jobs, or a run older than its pods."""
    rng = random.Random(seed)

    def disturb(pilot: Pilot) -> None:
        late: dict[str, datetime] = {}

        def hold(event: Event) -> bool:
            kind = str(event[1].plural)
            if late.get(kind, NOW) <= pilot.clock.now():
                late[kind] = pilot.clock.now() + timedelta(seconds=rng.choice([0, 0, 5, 15, 40]))
            return late[kind] > pilot.clock.now()

        pilot.feed.hold = hold

    await _live(STORIES[name], cluster, disturb, at=1, blind=True)
