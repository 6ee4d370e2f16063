"""Replicas of the operator that elect a leader in virtual time, over HTTP."""

import asyncio
from collections.abc import Mapping
from typing import Any

from kubernetes.aio.client import Configuration

from piton.kube.client import Client
from piton.kube.leader_election import RELEASE_SECONDS, LeaderElection
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.settings import LeaseSettings
from support.apiserver import LEASES, Body
from support.cluster import Cluster
from support.pilot import FakeTimer, configuration

NAMESPACE, NAME = "piton-system", "piton-operator"
_IDLE_ROUNDS = 20
"""Rounds of the event loop without a call in flight after which everybody waits for time to pass."""


def lease_settings(pod: str) -> LeaseSettings:
    return LeaseSettings(name=NAME, namespace=NAMESPACE, pod=pod)


def the_lease(cluster: Cluster) -> Body:
    found = cluster.server.find(LEASES, NAME, NAMESPACE)
    assert found is not None
    spec: Body = found["spec"]
    return spec


class SilentClient(Client):
    """A client whose calls may get no answer, for as long as a test wants."""

    def __init__(self, configuration: Configuration, timer: FakeTimer) -> None:
        super().__init__(configuration, timer=timer)
        self.silent = False
        self.in_flight = 0
        """Calls that the server will answer."""

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Body:
        if self.silent:
            await asyncio.Event().wait()
        self.in_flight += 1
        try:
            return await super().request(method, path, query=query, body=body)
        finally:
            self.in_flight -= 1


class Replica:
    """One replica of the operator; its work is to note from when to when it works."""

    def __init__(self, cluster: Cluster, timer: FakeTimer, pod: str) -> None:
        self.pod = pod
        self.client = SilentClient(configuration(cluster.server), timer)
        self.meter = OperatorMetrics(Registry())
        self.election = LeaderElection(self.client, cluster.clock, timer, lease_settings(pod), self.meter)
        self.worked: list[tuple[float, float | None]] = []
        """From when to when."""
        self.fail = asyncio.Event()
        """Has the work fail."""
        self.last_pass = asyncio.Event()
        """The work ends only when this is set, as a pass that still runs."""
        self.last_pass.set()
        self._timer = timer
        self.task = asyncio.create_task(self.election.run(self._work))

    @property
    def works(self) -> bool:
        return bool(self.worked) and self.worked[-1][1] is None

    @property
    def began_at(self) -> float:
        return self.worked[-1][0]

    @property
    def ended_at(self) -> float:
        found = self.worked[-1][1]
        assert found is not None
        return found

    @property
    def metric(self) -> float:
        found = self.meter.registry.get_sample_value("piton_leader")
        assert found is not None
        return found

    async def _work(self) -> None:
        self.worked.append((self._timer.time(), None))
        try:
            await self.fail.wait()
            raise OSError("the port is taken")
        finally:
            await self.last_pass.wait()
            self.worked[-1] = (self.began_at, self._timer.time())


class Election:
    """Replicas of one operator."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.timer = FakeTimer()
        self.replicas: list[Replica] = []

    async def join(self, pod: str) -> Replica:
        """Start a replica."""
        self.replicas.append(Replica(self.cluster, self.timer, pod))
        await self.settle()
        return self.replicas[-1]

    async def settle(self) -> None:
        """Let everybody do all that there is to do now."""
        idle = 0
        while idle < _IDLE_ROUNDS:
            await asyncio.sleep(0)
            idle = 0 if any(replica.client.in_flight for replica in self.replicas) else idle + 1

    async def pass_seconds(self, seconds: float, *, step: float = 0.25) -> None:
        for _ in range(round(seconds / step)):
            self.timer.advance(step)
            self.cluster.clock.advance(step)
            await self.settle()

    async def close(self) -> None:
        for replica in self.replicas:
            replica.last_pass.set()
            replica.task.cancel()
        await self.settle()
        self.timer.advance(RELEASE_SECONDS)  # of those that get no answer
        await asyncio.gather(*(replica.task for replica in self.replicas), return_exceptions=True)
        for replica in self.replicas:
            await replica.client.close()


def holder(cluster: Cluster) -> Any:
    """The pod that holds the lease; nothing after a release."""
    return the_lease(cluster)["holderIdentity"].rpartition("_")[0]
