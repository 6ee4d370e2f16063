"""One candidate and its Lease, call by call: whose it is, when it is free, and what a race comes to."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from kmock import Request

from piton.kube.client import Client
from piton.kube.errors import NoAnswer
from piton.kube.lease import Lease
from support.apiserver import LEASES
from support.cluster import Cluster
from support.election import NAME, NAMESPACE, holder, lease_settings, the_lease
from support.pilot import FakeTimer, configuration

NewLease = Callable[[str], Lease]


@pytest.fixture
def timer() -> FakeTimer:
    return FakeTimer()


@pytest.fixture
async def candidate(cluster: Cluster, timer: FakeTimer) -> AsyncIterator[NewLease]:
    async with AsyncExitStack() as clients:
        client = await clients.enter_async_context(Client(configuration(cluster.server), timer=timer))
        yield lambda pod: Lease(client, cluster.clock, timer, lease_settings(pod))


async def _edit(cluster: Cluster, **spec: Any) -> None:
    """Somebody else writes the Lease."""
    found = cluster.server.find(LEASES, NAME, NAMESPACE) or {"metadata": {"name": NAME, "namespace": NAMESPACE}}
    await cluster.server.put(LEASES, {**found, "spec": {**found.get("spec", {}), **spec}})


def _once(cluster: Cluster, **spec: Any) -> None:
    """Somebody else writes the Lease just before the next write arrives."""

    async def before(_: Request) -> None:
        cluster.server.before_write = None
        await _edit(cluster, **spec)

    cluster.server.before_write = before


async def test_the_first_one_gets_it(cluster: Cluster, candidate: NewLease) -> None:
    first, second = candidate("a"), candidate("b")

    assert await first.acquire_or_renew()
    assert not await second.acquire_or_renew()

    spec = the_lease(cluster)
    assert spec["holderIdentity"] == first.identity == second.holder
    assert first.identity.startswith("a_")
    assert (spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (15, 0)
    assert spec["acquireTime"] == spec["renewTime"] == cluster.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def test_of_two_that_create_it_one_fails(cluster: Cluster, candidate: NewLease) -> None:
    _once(cluster, holderIdentity="b_1", leaseDurationSeconds=15)

    assert not await candidate("a").acquire_or_renew()
    assert holder(cluster) == "b"


async def test_of_two_that_take_it_one_fails(cluster: Cluster, candidate: NewLease) -> None:
    await _edit(cluster, holderIdentity="", leaseDurationSeconds=1)
    _once(cluster, holderIdentity="b_1", leaseDurationSeconds=15)

    assert not await candidate("a").acquire_or_renew()
    assert holder(cluster) == "b"


async def test_a_renewal_moves_nothing_but_its_time(cluster: Cluster, candidate: NewLease, timer: FakeTimer) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    before = the_lease(cluster)
    cluster.clock.advance(2)
    timer.advance(2)

    assert await lease.acquire_or_renew()

    after = the_lease(cluster)
    assert {name for name in after if after[name] != before[name]} == {"renewTime"}
    assert lease.renewed_at == 2
    assert [write.method for write in cluster.server.writes] == ["POST", "PATCH"]
    assert len(cluster.server.asked) == 3, "a renewal that meets nobody is one call"


async def test_a_renewal_whose_answer_is_lost_is_made_again(cluster: Cluster, candidate: NewLease) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    cluster.server.lose_answers_of = {2}
    cluster.clock.advance(2)
    with pytest.raises(NoAnswer):
        await lease.acquire_or_renew()
    cluster.clock.advance(2)

    assert await lease.acquire_or_renew()
    assert holder(cluster) == "a"


async def test_an_acquisition_whose_answer_is_lost_is_seen_at_the_next_look(
    cluster: Cluster, candidate: NewLease
) -> None:
    lease = candidate("a")
    cluster.server.lose_answers_of = {1}
    with pytest.raises(NoAnswer):
        await lease.acquire_or_renew()
    assert not lease.held

    assert await lease.acquire_or_renew()


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"])
async def test_the_clock_of_the_holder_does_not_matter(
    renewed: str, cluster: Cluster, candidate: NewLease, timer: FakeTimer
) -> None:
    await _edit(cluster, holderIdentity="b_1", leaseDurationSeconds=15, renewTime=renewed)
    lease = candidate("a")

    assert not await lease.acquire_or_renew()
    timer.advance(14.9)
    assert not await lease.acquire_or_renew()
    timer.advance(0.1)
    assert await lease.acquire_or_renew()
    assert the_lease(cluster)["leaseTransitions"] == 1


async def test_the_holders_own_duration_counts(cluster: Cluster, candidate: NewLease, timer: FakeTimer) -> None:
    await _edit(cluster, holderIdentity="b_1", leaseDurationSeconds=60)
    lease = candidate("a")
    await lease.acquire_or_renew()

    timer.advance(59)
    assert not await lease.acquire_or_renew()
    timer.advance(1)
    assert await lease.acquire_or_renew()


async def test_only_a_renewal_extends_it_and_no_label_of_somebodys(
    cluster: Cluster, candidate: NewLease, timer: FakeTimer
) -> None:
    await _edit(cluster, holderIdentity="b_1", leaseDurationSeconds=15, renewTime="1")
    lease = candidate("a")
    await lease.acquire_or_renew()
    timer.advance(10)
    found = cluster.server.find(LEASES, NAME, NAMESPACE)
    assert found is not None
    found["metadata"]["labels"] = {"seen": "yes"}
    await cluster.server.put(LEASES, found)
    await lease.acquire_or_renew()
    assert lease.free_at == 15

    await _edit(cluster, renewTime="2")
    await lease.acquire_or_renew()
    assert lease.free_at == 25


async def test_the_next_process_of_the_same_pod_need_not_wait(cluster: Cluster, candidate: NewLease) -> None:
    await candidate("a").acquire_or_renew()

    assert await candidate("a").acquire_or_renew()
    assert not await candidate("b").acquire_or_renew()


async def test_a_released_lease_is_free_at_once(cluster: Cluster, candidate: NewLease) -> None:
    first, second = candidate("a"), candidate("b")
    await first.acquire_or_renew()
    await first.release()
    assert (the_lease(cluster)["holderIdentity"], the_lease(cluster)["leaseDurationSeconds"]) == ("", 1)

    assert await second.acquire_or_renew()
    assert (the_lease(cluster)["leaseDurationSeconds"], the_lease(cluster)["leaseTransitions"]) == (15, 1)


async def test_a_release_finds_out_what_became_of_a_renewal(cluster: Cluster, candidate: NewLease) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    cluster.server.lose_answers_of = {2}
    cluster.clock.advance(2)
    with pytest.raises(NoAnswer):
        await lease.acquire_or_renew()

    await lease.release()

    assert holder(cluster) == ""


async def test_nobody_releases_what_somebody_else_holds(cluster: Cluster, candidate: NewLease) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    await _edit(cluster, holderIdentity="b_1")

    await lease.release()

    assert holder(cluster) == "b"
    assert not lease.held


async def test_who_finds_another_holder_has_lost_it_even_if_that_one_is_gone(
    cluster: Cluster, candidate: NewLease, timer: FakeTimer
) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    await _edit(cluster, holderIdentity="b_1", leaseDurationSeconds=0)
    timer.advance(100)

    assert not await lease.acquire_or_renew()
    assert holder(cluster) == "b"


async def test_a_lease_that_was_deleted_is_created_again(cluster: Cluster, candidate: NewLease) -> None:
    lease = candidate("a")
    await lease.acquire_or_renew()
    await cluster.server.remove(LEASES, NAME, NAMESPACE)

    assert await lease.acquire_or_renew()
    assert holder(cluster) == "a"
