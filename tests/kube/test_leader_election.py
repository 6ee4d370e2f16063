"""Several operators and one lease: one works at a time, another takes over, and nobody works without the lease."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from kmock import KubernetesError, Request

from piton.contract import names
from piton.kube import leader_election
from piton.kube.client import Client
from piton.kube.leader_election import LeaderElection, LeaseLost, LeaseSettings
from piton.kube.settings import PitonSettings
from piton.ports import Clock
from support.apiserver import LEASES, PODS, Body, refusal
from support.cluster import Cluster
from support.pilot import configuration


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the time; the duration is in whole seconds."""
    monkeypatch.setattr(leader_election, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(leader_election, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leader_election, "DURATION_SECONDS", 1)


class SlowClock(Clock):
    """The time of a machine whose clock is behind."""

    def __init__(self, seconds: float) -> None:
        self._behind = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return datetime.now(UTC) - self._behind


class Candidate:
    """One operator process, as far as the lease sees it."""

    def __init__(self, cluster: Cluster, name: str, *, slow_seconds: float = 0.0) -> None:
        self.name = name
        self.works = asyncio.Event()
        self.shown: list[bool] = []
        self.client = Client(configuration(cluster.server))
        clock = SlowClock(slow_seconds)
        settings = LeaseSettings(name="piton", namespace="piton-system", pod=name, identity=f"{name}_1")
        loop = asyncio.get_running_loop()
        election = LeaderElection(self.client, clock, loop, settings, show=self.shown.append)
        self.running = asyncio.create_task(election.lead(self._work))

    async def _work(self) -> None:
        self.works.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.works.clear()

    async def kill(self) -> None:
        """As SIGKILL: no request is sent any more."""
        await self.client.close()
        self.client.request = None  # type: ignore[method-assign, assignment]  # whatever is called fails
        await self.stop()

    async def stop(self) -> None:
        self.running.cancel()
        with suppress(asyncio.CancelledError, LeaseLost, TypeError):
            await self.running
        await self.client.close()


@asynccontextmanager
async def candidates(cluster: Cluster, *given: str, **options: float) -> AsyncIterator[list[Candidate]]:
    for name in given:
        await cluster.server.put(PODS, {"metadata": {"name": name, "namespace": "piton-system"}})
    found = [Candidate(cluster, name, **options) for name in given]
    try:
        yield found
    finally:
        for candidate in found:
            await candidate.stop()


def lease(cluster: Cluster) -> Body:
    found = cluster.server.find(LEASES, "piton", "piton-system")
    assert found is not None
    spec: Body = found["spec"]
    return spec


def labelled(cluster: Cluster) -> list[str]:
    pods = cluster.server.all(PODS)
    return [p["metadata"]["name"] for p in pods if (p["metadata"].get("labels") or {}).get(names.LABEL_LEADER)]


async def one_works(found: list[Candidate]) -> Candidate:
    async with asyncio.timeout(5):
        waiting = {asyncio.create_task(candidate.works.wait()): candidate for candidate in found}
        done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return waiting[done.pop()]


async def test_of_many_that_start_together_one_works(cluster: Cluster) -> None:
    async with candidates(cluster, "a", "b", "c", "d") as found:
        leader = await one_works(found)
        await asyncio.sleep(0.3)  # many renewals
        assert [candidate.works.is_set() for candidate in found] == [candidate is leader for candidate in found]
        assert lease(cluster)["holderIdentity"] == f"{leader.name}_1"
        assert labelled(cluster) == [leader.name]


async def test_a_leader_that_is_stopped_hands_over_at_once(cluster: Cluster) -> None:
    async with candidates(cluster, "a", "b") as found:
        leader = await one_works(found)
        other = next(candidate for candidate in found if candidate is not leader)
        await leader.stop()
        assert leader.shown == [True, False]
        async with asyncio.timeout(0.5):  # half of the lease's duration
            await other.works.wait()
        await cluster.server.until(lambda: labelled(cluster) == [other.name])
        assert lease(cluster)["leaseTransitions"] == 1


async def test_a_leader_that_is_killed_is_replaced_when_its_lease_has_expired(cluster: Cluster) -> None:
    async with candidates(cluster, "a", "b") as found:
        leader = await one_works(found)
        other = next(candidate for candidate in found if candidate is not leader)
        await leader.kill()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await other.works.wait()
        assert asyncio.get_running_loop().time() - began > 0.8
        await cluster.server.until(lambda: labelled(cluster) == [other.name])


async def test_a_clock_that_is_hours_behind_changes_nothing(cluster: Cluster) -> None:
    async with candidates(cluster, "a") as first, candidates(cluster, "b", slow_seconds=7200) as second:
        leader = await one_works([*first, *second])
        await asyncio.sleep(1.3)
        assert [candidate.works.is_set() for candidate in (*first, *second)].count(True) == 1
        assert leader.works.is_set()


async def test_a_leader_that_cannot_renew_ends_its_work_before_the_lease_expires(cluster: Cluster) -> None:
    async with candidates(cluster, "a") as (leader,):
        await leader.works.wait()
        began = asyncio.get_running_loop().time()
        cluster.server.refuse = lambda request: refusal(503, "ServiceUnavailable", "down")
        with pytest.raises(LeaseLost, match="was not renewed"):
            await leader.running
        assert asyncio.get_running_loop().time() - began < 0.5
        assert not leader.works.is_set()
        assert leader.shown == [True, False]


async def test_an_answer_that_never_comes_is_not_waited_for(cluster: Cluster) -> None:
    """The client waits for 30 s, and the lease would be another's by then."""
    blocked = asyncio.Event()

    async def hang(request: Request) -> None:
        if request.resource == LEASES:
            await blocked.wait()

    async with candidates(cluster, "a") as (leader,):
        await leader.works.wait()
        cluster.server.before_write = hang
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(leader.running, 0.6)
        blocked.set()


async def test_some_refusals_are_survived(cluster: Cluster) -> None:
    failing = 2

    def refuse(request: Request) -> KubernetesError | None:
        nonlocal failing
        failing -= request.resource == LEASES
        return refusal(500, "InternalError", "etcdserver: leader changed") if failing >= 0 else None

    async with candidates(cluster, "a") as (leader,):
        await leader.works.wait()
        cluster.server.refuse = refuse
        await asyncio.sleep(0.3)
        assert leader.works.is_set()


async def test_an_error_of_the_work_ends_the_leader_and_frees_the_lease(cluster: Cluster) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a bug")

    async with Client(configuration(cluster.server)) as client:
        settings = LeaseSettings(name="piton", namespace="piton-system", pod="a", identity="a_1")
        loop = asyncio.get_running_loop()
        election = LeaderElection(client, cluster.clock, loop, settings, show=lambda _: None)
        with pytest.raises(ZeroDivisionError):
            await election.lead(fail)
    assert lease(cluster)["holderIdentity"] == ""


def test_each_process_has_an_identity_of_its_own() -> None:
    env = {"PITON_OPERATOR_LEASE": "l", "PITON_OPERATOR_POD_NAME": "p", "PITON_OPERATOR_POD_NAMESPACE": "n"}
    first, second = PitonSettings.from_env(env).lease, PitonSettings.from_env(env).lease
    assert first is not None
    assert second is not None
    assert (first.name, first.namespace, first.pod) == ("l", "n", "p")
    assert first.identity != second.identity
    with pytest.raises(ValueError, match="PITON_OPERATOR_POD_NAME"):
        PitonSettings.from_env({"PITON_OPERATOR_LEASE": "l"})
