"""What `checkpoint.every: auto` costs, beside the best interval that one could have named in hindsight.

Runs of 60 hours of work are simulated with the trainer's own rule, under interruptions at random moments: the same
moments for every interval. Whatever time goes into saves, or into what was lost and is done again, is overhead. Prints
a table, and as its last line one JSON object with the overheads in percent.
"""

import json
import random
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint.save_interval import Interval, IntervalEvidence

HOURS, SEEDS = 60.0, range(8)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
COSTS = ((0.06, 0.4), (1.5, 1.5), (1.5, 60.0), (20.0, 20.0), (60.0, 60.0))
"""Stall, and time until durable: a GB in the background, and in the foreground; 100 GB likewise; a slow volume."""
WEATHER = ((10 * MINUTE, 0.0), (HOUR, 0.0), (8 * HOUR, 0.0), (10 * MINUTE, 54 * HOUR))
"""Mean time between two interruptions, and how long it is calm before."""
GRID = tuple(6 * 1.3**n for n in range(23))
"""Intervals to choose from in hindsight: 6 seconds to 32 minutes; also such as are never chosen without it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run's circumstances, in seconds."""

    stall: float
    durable: float
    between: float
    """Mean time between two interruptions."""
    calm: float = 0.0
    """For so long it is a day instead: a quiet weekend before a busy week."""

    def __str__(self) -> str:
        calm = f", after {self.calm / HOUR:g} h of calm" if self.calm else ""
        return f"{self.stall:g} s, {self.durable:g} s, {self.between / MINUTE:g} min{calm}"


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """An interval that somebody named, and how long training took with it."""

    seconds: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the next attempt would resume from."""

    work: float = 0.0
    attempt: int = 0
    evidence: IntervalEvidence = field(default_factory=IntervalEvidence)


def moments(case: Case, seed: int) -> Iterator[float]:
    """When training is interrupted."""
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(1 / case.between)
        if now >= case.calm or rng.random() < case.between / DAY:
            yield now


def train(case: Case, policy: SavePolicy, *, work: float, seed: int) -> float:
    """Seconds that the work takes. An interruption costs what was lost, and no time besides."""
    now, newest = 0.0, Point()
    for attempt, end in enumerate(moments(case, seed), start=1):
        now, newest, done = _attempt(case, policy, newest, attempt, now=now, end=end, work=work)
        if done:
            return now
    raise AssertionError("there is always another interruption")


def _attempt(
    case: Case, policy: SavePolicy, newest: Point, attempt: int, *, now: float, end: float, work: float
) -> tuple[float, Point, bool]:
    """One attempt: the time at its end, what the next one would resume from, and whether all is done."""
    interval = Interval(policy)
    interval.begin(newest.evidence.interrupted(attempt - max(1, newest.attempt)), now=now)
    while True:
        seconds = policy.every_seconds if interval.choice is None else interval.choice.seconds
        assert seconds is not None
        # One save at a time: the one before is durable first.
        seconds = max(seconds, case.durable - case.stall)
        if newest.work + seconds >= work and now + work - newest.work <= end:
            return now + work - newest.work, newest, True
        began, now = now + seconds, now + seconds + case.stall
        if began + case.durable > end:
            return end, newest, False
        if interval.choice is None:
            newest = Point(work=newest.work + seconds, attempt=attempt)
            continue
        newest = Point(work=newest.work + seconds, attempt=attempt, evidence=interval.evidence(now=began))
        interval.saved(0, began=began, ended=now, waited=False)
        interval.durable(0, now=began + case.durable)


def hours_of(case: Case, policy: SavePolicy, *, hours: float, seeds: Iterable[int]) -> float:
    """Mean time of runs with so many hours of work."""
    return statistics.fmean(train(case, policy, work=hours * HOUR, seed=seed) for seed in seeds) / HOUR


def chosen_by_itself(case: Case, *, hours: float, seeds: Iterable[int]) -> float:
    """Hours with `auto`."""
    return hours_of(case, SavePolicy(auto=True), hours=hours, seeds=seeds)


def best_fixed(case: Case, *, hours: float, seeds: Iterable[int]) -> Fixed:
    """The interval that would have been best for these very interruptions."""
    tried = (
        Fixed(seconds=seconds, hours=hours_of(case, SavePolicy(every_seconds=seconds), hours=hours, seeds=seeds))
        for seconds in GRID
        if seconds >= case.durable - case.stall
    )
    return min(tried, key=lambda fixed: fixed.hours)


def overheads(case: Case) -> dict[str, float]:
    """What saves and interruptions add to a run, in percent of its work."""
    best = best_fixed(case, hours=HOURS, seeds=SEEDS)
    quarter = hours_of(case, SavePolicy(every_seconds=900), hours=HOURS, seeds=SEEDS)
    auto = chosen_by_itself(case, hours=HOURS, seeds=SEEDS)
    return {
        "bestSeconds": best.seconds,
        **{
            name: 100 * (hours / HOURS - 1)
            for name, hours in (("best", best.hours), ("quarter", quarter), ("auto", auto))
        },
    }


def main() -> None:
    """Print the table."""
    found = {}
    print(f"{'stall, durable, between':42} {'best':>6} {'overhead':>9} {'15 min':>8} {'auto':>8}")
    for (stall, durable), (between, calm) in product(COSTS, WEATHER):
        case = Case(stall=stall, durable=durable, between=between, calm=calm)
        over = found[str(case)] = overheads(case)
        percent = f"{over['best']:>8.2f}% {over['quarter']:>7.2f}% {over['auto']:>7.2f}%"
        print(f"{case!s:42} {over['bestSeconds']:>5.0f}s {percent}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
