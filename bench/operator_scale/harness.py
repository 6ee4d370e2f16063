"""Everything that the scenarios of one number of runs share: client, watch, counters, and words on how far they are."""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from bench.operator_scale import cluster, counters, process, run_watch
from bench.operator_scale.counters import Cost, Sample
from bench.operator_scale.run_watch import LateError, Runs
from hack.cluster import processes
from hack.cluster.layout import KUBECONFIG
from piton.kube.client import Client
from piton.kube.resources import JOBS, PODS, RUNS, SERVICES, Resource

SETTLE_SECONDS = 10.0
"""Time after a scenario in which its last writes are done."""
START_SECONDS = 120.0
"""Limit for what takes seconds: the start of the operator, of a few runs."""
_ASK_SECONDS = 0.5


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Measured:
    """A part of a scenario; its cost is there when it is over."""

    before: Sample
    began: float = field(default_factory=time.monotonic)
    cost: Cost | None = None

    def as_json(self, per: int | None = None) -> dict[str, Any]:
        """Return its cost for the results."""
        assert self.cost is not None, "it is not over"
        return self.cost.as_json(per)


@dataclass
class Harness:
    """The API server with `count` runs in one namespace, as one client and one watch see it."""

    client: Client
    configuration: Configuration
    count: int
    namespace: str = cluster.NAMESPACE
    runs: Runs = field(default_factory=Runs)
    watches: set[asyncio.Task[None]] = field(default_factory=set)
    connected_at: float = field(default_factory=time.monotonic)
    """When all kinds were defined, in monotonic seconds."""

    def say(self, text: str) -> None:
        """Print a line of progress."""
        say(text)

    def names(self, prefix: str, count: int | None = None) -> list[str]:
        """Return names for runs."""
        return [f"{prefix}-{number}" for number in range(self.count if count is None else count)]

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[Measured]:
        """Measure what happens meanwhile."""
        found = Measured(before=await counters.sample())
        yield found
        found.cost = Cost.between(found.before, await counters.sample())

    def check(self) -> None:
        """See that the watches and the operator go on.

        Raises:
            LateError: the operator has ended.
        """
        for watch in self.watches:
            if watch.done():
                watch.result()
        if processes.running(process.OPERATOR) is None:
            raise LateError(f"the operator does not run any more; see {processes.log_of(process.OPERATOR)}")

    async def until(self, what: str, true: Callable[[], bool], state: Callable[[], str], *, seconds: float) -> None:
        """Wait until it is true, or too long."""

        def checked() -> bool:
            self.check()
            return true()

        described = lambda: f"{what}: {state()}"  # noqa: E731 - it is read nowhere else
        await run_watch.until(checked, seconds=seconds, state=described, say=self.say, log=process.OPERATOR)

    async def until_training(self, what: str, count: int, *, seconds: float) -> None:
        """Wait until so many runs train, of all that there are."""
        state = lambda: f"{self.runs.phases['Training']:,} of {count:,} training"  # noqa: E731
        await self.until(what, lambda: self.runs.phases["Training"] >= count, state, seconds=seconds)

    async def until_gone(self, what: str, prefix: str, *, seconds: float) -> None:
        """Wait until no run has a name that begins so."""

        def left() -> int:
            return sum(name.startswith(prefix) for name in self.runs.seen) if prefix else len(self.runs.seen)

        await self.until(what, lambda: not left(), lambda: f"{left():,} runs left", seconds=seconds)

    async def until_cleared(self, *, seconds: float) -> None:
        """Wait until nothing of deleted runs is left: other controllers delete it, which must not be measured later.

        Raises:
            LateError: something is left, for too long.
        """
        began = time.monotonic()
        for resource in (JOBS, PODS, SERVICES):
            while await self.client.list(resource, namespace=self.namespace, most=1):
                if time.monotonic() - began > seconds:
                    raise LateError(f"{resource.plural} of deleted runs are left after {seconds:.0f} s")
                await asyncio.sleep(_ASK_SECONDS)

    async def delete(self, prefix: str) -> int:
        """Delete the runs whose names begin so; return their number."""
        uids = {name: run.uid for name, run in self.runs.seen.items() if name.startswith(prefix)}
        await cluster.delete_all(self.client, RUNS, uids, namespace=self.namespace)
        return len(uids)

    async def start_operator(self) -> float:
        """Start the operator; return the seconds until it serves its metrics."""
        began = time.monotonic()
        process.start_operator()
        while await asyncio.to_thread(process.known_runs) is None:
            if processes.running(process.OPERATOR) is None or time.monotonic() - began > START_SECONDS:
                raise LateError(f"the operator does not start; see {processes.log_of(process.OPERATOR)}")
            await asyncio.sleep(0.05)
        return time.monotonic() - began


@asynccontextmanager
async def connected(count: int) -> AsyncIterator[Harness]:
    """Connect to the box, and follow its runs meanwhile."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(KUBECONFIG), client_configuration=configuration)
    configuration.retries = None
    async with Client(configuration) as client:
        await cluster.prepare(client, count)
        harness = Harness(client, configuration, count)
        async with following(harness, harness.runs.take):
            yield harness


@asynccontextmanager
async def inside(harness: Harness, namespace: str) -> AsyncIterator[Harness]:
    """Follow the runs of another namespace meanwhile."""
    there = replace(harness, namespace=namespace, runs=Runs())
    async with following(there, there.runs.take):
        yield there


@asynccontextmanager
async def following(
    harness: Harness, take: run_watch.Take, *, resource: Resource = RUNS, labels: str = ""
) -> AsyncIterator[None]:
    """Follow a kind of objects meanwhile."""
    watch = run_watch.follow(harness.configuration, resource, harness.namespace, take, labels=labels)
    task = asyncio.create_task(watch, name=f"watch of {resource.plural}")
    harness.watches.add(task)
    try:
        yield
    finally:
        harness.watches.discard(task)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent do not exceed, by nearest rank.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no percentile of no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and worst, for the results."""
    return {
        "median_seconds": percentile(values, 50),
        "p99_seconds": percentile(values, 99),
        "worst_seconds": max(values),
        "of": len(values),
    }
