"""An operator process in virtual time: the real controller and client over HTTP, with watches replaced by a resync."""

import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Self

import certifi
import kmock
from kubernetes.aio.client import Configuration

from piton.api.parse import parse
from piton.api.status import RunStatus
from piton.kube.client import Client
from piton.kube.controller_base import Worker
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.run_controller import Controller
from piton.kube.settings import PitonSettings
from piton.kube.sweep_controller import SweepController
from piton.timing import Timing
from support.apiserver import RUNS, ApiServer, Body
from support.cluster import Cluster, FakeClock
from support.feed import Feed

PASSES_MAX = 200
"""A run that is not settled after so many passes never will be."""


class Death(BaseException):
    """The operator's process ends here. No Exception: nothing in the operator may catch it."""


class MortalClient(Client):
    """A client whose process dies right after a certain write has taken effect."""

    def __init__(
        self, configuration: Configuration, *, dies_after: int | None = None, timer: "FakeTimer | None" = None
    ) -> None:
        super().__init__(configuration, timer=timer)
        self._left = dies_after

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Body:
        answer = await super().request(method, path, query=query, body=body)
        if method != "GET" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Death
        return answer


class FakeTimer:
    """The loop's clock, moved by hand."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._calls: list[tuple[float, int, _Call]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> "_Call":
        call = _Call(callback, args)
        heapq.heappush(self._calls, (when, next(self._order), call))
        return call

    def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while self._calls and self._calls[0][0] <= end:
            self._now, _, call = heapq.heappop(self._calls)
            call.run()
        self._now = end


class _Call:
    def __init__(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        if self._callback:
            self._callback(*self._args)


class Pilot:
    """Moves the operator and the cluster in turns."""

    def __init__(
        self, cluster: Cluster, client: Client, *, timing: Timing | None = None, timer: FakeTimer | None = None
    ) -> None:
        self.cluster = cluster
        self.server = cluster.server
        self.clock: FakeClock = cluster.clock
        self.timer = timer or FakeTimer()
        self.client = client
        settings = PitonSettings(timing=timing or Timing())
        self.meter = OperatorMetrics(Registry())
        self.feed = Feed(cluster.server, client, self.timer)
        cache = self.feed.cache
        self.controller = Controller(client, self.clock, self.timer, settings, self.meter, cache=cache)
        self.sweeps = SweepController(client, self.clock, self.timer, settings, self.meter, cache=cache)
        self.controller.subscribe(cache)
        self.sweeps.subscribe(cache)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.feed.close()
        await self.client.close()

    async def settle(self, *, resync: bool = True) -> None:
        """Let the operator do all that it wants to do now."""
        self.feed.deliver()
        if resync:
            await self.controller.resync()
        await self._work_off(self.controller)

    async def settle_sweeps(self, *, resync: bool = True) -> None:
        """Let the other half do all that it wants to do now, for the sweeps and then for their runs."""
        self.feed.deliver()
        if resync:
            await self.sweeps.resync()
        await self._work_off(self.sweeps)
        await self.settle(resync=resync)

    async def _work_off(self, worker: Worker) -> None:
        for _ in range(PASSES_MAX):
            self.feed.deliver()
            if not len(worker.queue):
                return
            await worker.handle(await worker.queue.get())
        raise AssertionError(f"still busy after {PASSES_MAX} passes: {self.server.writes[-10:]}")

    async def turn(self, seconds: float = 5.0) -> None:
        """The operator, the cluster, and some time."""
        await self.settle()
        await self.cluster.step()
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass for everybody."""
        self.clock.advance(seconds)
        self.timer.advance(seconds)

    async def until(self, true: Callable[[], bool], *, turns: int = 80) -> None:
        """Take turns until something is so."""
        for _ in range(turns):
            await self.settle()
            if true():
                return
            await self.cluster.step()
            self.advance(5.0)
        raise AssertionError(f"not so after {turns} turns; the run says {self.run()}")

    async def until_phase(self, phase: str) -> RunStatus:
        """Take turns until the run is in that phase."""
        await self.until(lambda: self.run() is not None and self.status().phase == phase)
        return self.status()

    def run(self, name: str = "ragcun") -> Body | None:
        return self.server.find(RUNS, name, "team")

    def status(self, name: str = "ragcun") -> RunStatus:
        found = self.run(name)
        assert found is not None, "the run is gone"
        return parse(found).status

    async def annotate(self, key: str, text: str) -> None:
        """Annotate the run as `kubectl annotate` does."""
        run = self.run()
        assert run is not None
        run["metadata"].setdefault("annotations", {})[key] = text
        await self.server.put(RUNS, run)

    def creates(self) -> dict[str, int]:
        """How many objects of each kind were created over HTTP; events aside."""
        return self.count("POST")

    def count(self, method: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for write in self.server.writes:
            if write.method == method and write.done and write.resource.plural != "events":
                counts[str(write.resource.plural)] = counts.get(str(write.resource.plural), 0) + 1
        return counts


@asynccontextmanager
async def a_cluster() -> AsyncIterator[Cluster]:
    """A fresh cluster that listens on a port of its own."""
    clock = FakeClock()
    async with ApiServer(now=clock.now) as server, kmock.Server(server):
        yield Cluster(server, clock)


def configuration(server: ApiServer) -> Configuration:
    """How to reach it."""
    found = Configuration(host=url(server))
    found.retries = None
    found.ca_cert_data = _one_authority()
    found.client_session_kwargs = {"trust_env": False}  # else two threads look for a proxy and a .netrc, per request
    return found


@cache
def _one_authority() -> str:
    """Any certificate. Without one the client reads all of the system's, which takes longer than most tests."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + certifi.contents().partition(begin)[2].partition(end)[0] + end


def url(server: ApiServer) -> str:
    return str(server.servers[0].url).rstrip("/")


def a_pilot(cluster: Cluster, **options: Any) -> Pilot:
    """A new operator process."""
    dies_after, timer = options.pop("dies_after", None), FakeTimer()
    client = MortalClient(configuration(cluster.server), dies_after=dies_after, timer=timer)
    return Pilot(cluster, client, timer=timer, **options)
