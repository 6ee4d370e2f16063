"""How a dark zone is left: in what order, at what pace, and who need not wait for it."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Meta
from piton.api.status import AttemptState, AttemptStatus, Verdict
from piton.kube import outages, zone_turns
from piton.kube.nodes import UNREACHABLE_SECONDS
from piton.kube.outages import Digest, Outages, SilentNodes
from piton.kube.zone_turns import Urgency, ZoneTurns
from piton.rendering.affinity import ZONE
from support.apiserver import NODES, PODS, RUNS, Body
from support.builders import NOW, a_manifest, a_record, a_spec, a_status, later, meta
from support.cluster import Cluster, Runs, a_node
from support.pilot import FakeTimer, Pilot


def _younger() -> Meta:
    return meta().model_copy(update={"created": later(5)})


PATIENCE, LOOK = zone_turns.PATIENCE_SECONDS, 30
FIRST = Urgency()


class Zone:
    """Runs of a dark zone, each of which looks every 30 s, at a time of its own."""

    def __init__(self, runs: int, nodes: int = 1, spread: int = 0) -> None:
        rng = random.Random(runs)
        self.turns = ZoneTurns()
        self.urgency = {f"team/r{number}-1": FIRST for number in range(runs)}
        self.since = {job: [later(rng.randint(0, spread)) for _ in range(nodes)] for job in self.urgency}
        self.phase = {job: rng.randrange(LOOK) for job in self.urgency}
        self.left: dict[str, int] = {}
        """When all nodes of a job count as gone, in seconds; in this order."""

    def pass_seconds(self, begin: int, end: int) -> None:
        for second in range(begin, end):
            for job, since in self.since.items():
                if job not in self.left and second % LOOK == self.phase[job]:
                    self.look(job, since, second)

    def look(self, job: str, since: list[datetime], second: int) -> None:
        now = later(second)
        if all(self.turns.take("z", job, at, self.urgency[job], now) <= now for at in since):
            self.left[job] = second


@pytest.mark.parametrize(
    ("runs", "nodes", "spread"), [(170, 1, 0), (170, 1, 15), (20, 8, 15), (3, 1, 10), (500, 2, 40), (1, 4, 9)]
)
def test_a_zone_is_left_within_ten_minutes_after_the_patience_and_not_at_once(
    runs: int, nodes: int, spread: int
) -> None:
    zone = Zone(runs, nodes, spread)
    zone.pass_seconds(0, 1300)
    times = sorted(zone.left.values())
    assert len(times) == runs
    assert times[0] >= PATIENCE
    assert times[-1] <= PATIENCE + 600 + spread
    a_minute = max(sum(at <= other < at + 60 for other in times) for at in times)
    assert a_minute <= 2 * (runs // zone_turns.TURNS + 1)


def test_the_more_urgent_and_the_older_leave_first() -> None:
    zone = Zone(24, spread=15)
    jobs = list(zone.urgency)
    random.Random(3).shuffle(jobs)
    for place, job in enumerate(jobs):
        created = NOW - timedelta(days=30 - place)
        if place < 3:
            zone.urgency[job] = Urgency(priority=100, created=NOW - timedelta(days=place))
        elif place < 6:
            zone.urgency[job] = Urgency(deadline=later(3600 * place), created=created)
        else:
            zone.urgency[job] = Urgency(created=created)
    zone.pass_seconds(0, 1300)
    turn = {job: (at - 600) // 60 for job, at in zone.left.items()}
    assert [turn[job] for job in jobs] == sorted(turn.values())


def test_attempts_that_the_other_zones_do_not_take_slow_the_others_down() -> None:
    zone = Zone(160)
    zone.pass_seconds(0, 600 + zone_turns.TURNS * 60 // 2)
    gone = len(zone.left)
    for job in zone.left:
        zone.turns.follow(job.rpartition("-")[0], unplaced_since=later(600))
    zone.pass_seconds(840, 1140)
    assert 3 <= len(zone.left) - gone <= 7, "one a minute"
    for job in zone.left:
        zone.turns.follow(job.rpartition("-")[0], unplaced_since=None)
    zone.pass_seconds(1140, 1500)
    assert len(zone.left) == 160


@pytest.mark.parametrize("how", ["forgotten", "not followed any more", "placed"])
def test_runs_that_are_gone_slow_nobody_down(how: str) -> None:
    zone = Zone(160)
    zone.pass_seconds(0, 600 + zone_turns.TURNS * 60 // 2)
    first, runs = list(zone.left), [job.rpartition("-")[0] for job in zone.left]
    for run in runs:
        zone.turns.follow(run, unplaced_since=later(600))
    for run in runs:
        if how == "forgotten":
            zone.turns.forget(run)
        elif how == "placed":
            zone.turns.follow(run, unplaced_since=None)
    for second in range(840, 1500, 10):
        zone.pass_seconds(second, second + 10)
        for job in zone.left:
            if job not in first:
                zone.turns.follow(job.rpartition("-")[0], unplaced_since=None)
    assert len(zone.left) == 160


def test_those_whose_nodes_are_back_take_no_turn() -> None:
    zone = Zone(80)
    zone.pass_seconds(0, 590)
    for job in list(zone.since)[:76]:
        del zone.since[job]
    zone.pass_seconds(690, 1000)
    assert len(zone.left) == 4


def test_a_zone_that_turns_dark_again_is_waited_for_again() -> None:
    turns = ZoneTurns()
    assert turns.take("z", "team/r-1", NOW, FIRST, later(30)) == later(600)
    for second in (600, 630):
        assert turns.take("z", "team/r-1", NOW, FIRST, later(second)) == later(600)
    dark_again = later(1500)
    assert turns.take("z", "team/r-1", dark_again, FIRST, later(1540)) == later(2100)


def test_a_node_that_answers_again_does_not_make_the_others_of_its_job_count_earlier() -> None:
    turns = ZoneTurns()
    turns.take("z", "team/r-1", NOW, FIRST, later(40))
    for second in (400, 430, 460):
        found = turns.take("z", "team/r-1", later(360), FIRST, later(second))
    assert found == later(960)


def test_nodes_that_turn_silent_in_one_second_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[str, float]] = []
    real = Digest._judge

    def judge(self: Digest, zone: str, since: float) -> SilentNodes | None:
        judged.append((zone, since))
        return real(self, zone, since)

    monkeypatch.setattr(Digest, "_judge", judge)
    some = [a_node(f"n{n}", ready="Unknown", since=later(n % 3).isoformat(), labels={ZONE: "z"}) for n in range(300)]
    digest = Digest(map(outages._kept, some))
    assert {found and found.silent for found in map(digest.silence, map(outages._kept, some))} == {300}
    assert len(judged) == 3


class _Nodes:
    """Reads that count how often all nodes are listed."""

    def __init__(self, nodes: list[Body]) -> None:
        self.nodes, self.lists = nodes, 0

    async def get(self, *_: object, **__: object) -> None:
        return None

    async def list(self, *_: object, **__: object) -> list[Body]:
        self.lists += 1
        return self.nodes


async def test_all_silent_nodes_are_judged_by_one_list() -> None:
    since = later(0).isoformat()
    reads = _Nodes([a_node(f"n{n}", ready="Unknown", since=since, labels={ZONE: "z"}) for n in range(50)])
    judge = Outages(reads, FakeTimer())
    for number, node in enumerate(reads.nodes):
        assert await judge.of(node, f"team/r{number}-1", now=later(60)) is not None
    assert reads.lists == 1


WORKLOAD = {"spec": {"priority": 100}}
WITH_DEADLINE = a_spec(limits={"deadline": "9h"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (outages.urgency_of(meta(), a_spec(), WORKLOAD), outages.urgency_of(meta(), a_spec(), None)),
        (
            outages.urgency_of(meta(), WITH_DEADLINE, None),
            outages.urgency_of(meta(), a_spec(), None),
        ),
        (
            outages.urgency_of(meta(), a_spec(), WORKLOAD),
            outages.urgency_of(meta(), WITH_DEADLINE, None),
        ),
        (outages.urgency_of(meta(), a_spec(), None), outages.urgency_of(_younger(), a_spec(), None)),
        (outages.urgency_of(_younger(), a_spec(), WORKLOAD), outages.urgency_of(meta(), None, None)),
    ],
    ids=["priority", "deadline", "priority before deadline", "age", "priority before age"],
)
def test_the_urgency_of_a_run_is_its_priority_in_its_queue_its_deadline_and_its_age(
    first: Urgency, second: Urgency
) -> None:
    assert first.key("z") < second.key("a")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (a_record(2), True),
        (a_record(2, AttemptState.STOPPING, verdict=Verdict.PREEMPTED), True),
        (a_record(2, AttemptState.STOPPING, verdict=Verdict.STOPPED), False),
        (a_record(2, AttemptState.STOPPING, verdict=Verdict.FINISHED), False),
        (a_record(2, AttemptState.STOPPING, verdict=Verdict.USER_FAILURE, permanent=True), False),
    ],
    ids=["runs", "preempted", "stopped by a limit", "finished", "failed for good"],
)
def test_only_what_starts_another_attempt_waits_for_a_turn(record: AttemptStatus, expected: bool) -> None:
    status = a_status(record)
    assert outages.starts_another(meta(), status, a_spec()) is expected
    assert not outages.starts_another(meta(deleting=True), status, a_spec())
    assert not outages.starts_another(meta(), status, a_spec(suspend=True))


# --- with the operator ------------------------------------------------------------------------------------------------


async def dark(pilot: Pilot, names: list[str], *, spread: int = 0, nodes: int = 2) -> None:
    """Runs train in one zone, and all of its nodes turn silent, within so many seconds."""
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    pilot.cluster.node_labels = {ZONE: "z"}
    for name in names:
        await pilot.cluster.apply(a_manifest(name, workers={"nodes": nodes}))
    await pilot.until(lambda: all((r.get("status") or {}).get("phase") == "Training" for r in pilot.server.all(RUNS)))
    await pilot.turn()
    seconds = _spread(spread)
    for node in sorted({pod["spec"]["nodeName"] for pod in pilot.server.all(PODS)}):
        since = (pilot.clock.now() + timedelta(seconds=next(seconds))).isoformat()
        await pilot.server.put(NODES, a_node(node, ready="Unknown", since=since, labels={ZONE: "z"}))
    pilot.cluster.node_labels = {ZONE: "y"}


def _spread(seconds: int) -> Iterator[int]:
    while True:
        yield from range(0, seconds + 1, 3)


async def pass_time(pilot: Pilot, seconds: int) -> None:
    for _ in range(0, seconds, 10):
        await pilot.settle()
        await pilot.cluster.step()
        pilot.advance(10)


@pytest.mark.parametrize("spread", [0, 9])
async def test_all_nodes_of_a_job_count_as_gone_in_one_turn(pilot: Pilot, spread: int) -> None:
    names = ["ra", "rb", "rc"]
    await dark(pilot, names, spread=spread, nodes=4)
    await pass_time(pilot, 590)
    assert {pilot.status(name).attempt for name in names} == {1}
    await pass_time(pilot, 210)
    assert {pilot.status(name).attempt for name in names} == {2}
    assert {pilot.status(name).attempts[0].reason for name in names} == {Reason.ZONE_SILENT}


async def test_a_zone_is_left_at_one_attempt_a_minute_while_no_other_zone_has_machines(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def place_nothing(_: Cluster) -> None:
        return

    names = [f"r{number}" for number in range(24)]
    await dark(pilot, names, nodes=1)
    monkeypatch.setattr(Cluster, "_schedule", place_nothing)
    await pass_time(pilot, 590)
    left = []
    for _ in range(8):
        await pass_time(pilot, 60)
        left.append(sum(pilot.status(name).attempt == 2 for name in names))
    assert left[:3] == [3, 6, 9]
    assert [after - before for before, after in pairwise(left[3:])] == [1] * 4


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("order", ["delete", "suspend"])
async def test_a_deletion_or_suspension_waits_only_for_the_90_seconds_of_a_silent_node(
    pilot: Pilot, order: str, nodes: int
) -> None:
    names = ["ra", "rb", "rc"]
    await dark(pilot, names, nodes=nodes)
    await pass_time(pilot, 60)
    if order == "delete":
        await pilot.server.delete(RUNS, "rb", "team")
    else:
        await pilot.cluster.apply(a_manifest("rb", workers={"nodes": nodes}, suspend=True))
    await pass_time(pilot, int(UNREACHABLE_SECONDS) + 5)
    if order == "delete":
        assert pilot.run("rb") is None
    else:
        assert (pilot.status("rb").phase, pilot.status("rb").attempt) == ("Suspended", 1)
    assert {pilot.status(name).attempt for name in ("ra", "rc")} == {1}


async def test_a_deletion_before_the_silence_is_long_enough_still_waits_for_it(pilot: Pilot) -> None:
    """A node that was silent for a few seconds may still save."""
    await dark(pilot, ["ra", "rb", "rc"], nodes=1)
    await pilot.server.delete(RUNS, "rb", "team")
    await pass_time(pilot, 30)
    assert pilot.run("rb") is not None
    await pass_time(pilot, 30)
    assert pilot.run("rb") is None
