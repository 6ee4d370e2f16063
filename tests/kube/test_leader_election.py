"""Replicas of the operator over time: never two at work, and never none for longer than it has to be."""

import itertools
from collections.abc import AsyncIterator

import pytest
from kmock import KubernetesError, Request

from piton.contract import names
from piton.kube.leader_election import LeaseLost
from support.apiserver import LEASES, PODS, refusal
from support.cluster import Cluster
from support.election import NAME, NAMESPACE, Election, holder, the_lease


@pytest.fixture
async def election(cluster: Cluster) -> AsyncIterator[Election]:
    found = Election(cluster)
    yield found
    await found.close()


def _require(true: bool, why: str) -> None:
    """Assert it, without telling mypy that it stays so."""
    assert true, why


async def test_one_works_and_the_other_is_ready(cluster: Cluster, election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")

    await election.pass_seconds(60)

    assert leader.worked == [(0, None)]
    assert standby.worked == []
    assert (leader.metric, standby.metric) == (1, 0)
    patches = [write for write in cluster.server.writes if write.resource == LEASES and write.method == "PATCH"]
    assert len(patches) == 30, "one renewal in 2 s"
    assert all(write.done for write in patches)


async def test_after_the_leaders_death_the_lease_expires_and_the_other_works(election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    await election.pass_seconds(11)
    leader.client.silent = True  # it died; its last renewal was 10 s after the start

    await election.pass_seconds(20)

    assert standby.works
    assert 10 + 15 <= standby.began_at <= 10 + 15 + 1.25
    assert standby.began_at - 11 < 20


async def test_a_leader_that_stops_hands_over_within_a_second(cluster: Cluster, election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    await election.pass_seconds(11)

    leader.task.cancel()
    await election.settle()
    assert not leader.works
    assert holder(cluster) == ""
    await election.pass_seconds(1)

    assert standby.works
    assert (leader.metric, standby.metric) == (0, 1)
    assert leader.task.cancelled()


async def test_the_lease_is_released_after_the_last_pass_and_not_before(cluster: Cluster, election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    leader.last_pass.clear()

    for _ in range(3):  # whoever ends a process may cancel its tasks again and again
        leader.task.cancel()
        await election.settle()
    assert holder(cluster) == "a"
    leader.last_pass.set()
    await election.settle()

    assert holder(cluster) == ""
    assert not standby.works
    await election.pass_seconds(1)
    assert standby.began_at >= leader.ended_at


async def test_a_leader_without_an_answer_stops_before_another_begins(election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    await election.pass_seconds(11)
    leader.client.silent = True

    await election.pass_seconds(8.75)
    _require(leader.works, "a silence that is short is borne")
    await election.pass_seconds(3.25)
    assert leader.ended_at == 10 + 10
    assert not standby.works
    await election.pass_seconds(8)

    assert standby.began_at >= leader.ended_at + 5
    with pytest.raises(LeaseLost, match="not renewed for 10 s: the API server did not answer in time"):
        await leader.task


async def test_after_a_short_silence_the_leader_goes_on(cluster: Cluster, election: Election) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    await election.pass_seconds(11)
    leader.client.silent = True
    await election.pass_seconds(7)
    leader.client.silent = False

    await election.pass_seconds(60)

    assert leader.worked == [(0, None)]
    assert not standby.works
    assert the_lease(cluster)["leaseTransitions"] == 0


async def test_when_the_api_server_is_silent_for_all_nobody_works_and_somebody_does_afterwards(
    election: Election,
) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    for replica in (leader, standby):
        replica.client.silent = True
    await election.pass_seconds(12)
    assert not leader.works
    assert not standby.works

    standby.client.silent = False
    await election.pass_seconds(20)

    assert standby.works


async def test_a_server_that_refuses_renewals_is_a_server_that_is_silent(cluster: Cluster, election: Election) -> None:
    leader = await election.join("a")

    def refuse(request: Request) -> KubernetesError | None:
        return refusal(503, "ServiceUnavailable", "no leader in etcd") if request.resource == LEASES else None

    cluster.server.refuse = refuse
    await election.pass_seconds(9)
    assert leader.works
    await election.pass_seconds(2)

    assert leader.ended_at <= 10.25
    with pytest.raises(LeaseLost, match="no leader in etcd"):
        await leader.task


async def test_a_leader_that_finds_another_holder_ends_at_once(cluster: Cluster, election: Election) -> None:
    leader = await election.join("a")
    found = cluster.server.find(LEASES, NAME, NAMESPACE)
    assert found is not None
    found["spec"]["holderIdentity"] = "b_1"
    await cluster.server.put(LEASES, found)

    await election.pass_seconds(2)

    assert leader.ended_at == 2
    assert holder(cluster) == "b"
    with pytest.raises(LeaseLost, match="b_1 holds the lease piton-operator"):
        await leader.task


async def test_work_that_fails_ends_the_leader_with_its_error_and_another_works(
    cluster: Cluster, election: Election
) -> None:
    leader, standby = await election.join("a"), await election.join("b")
    leader.fail.set()
    await election.settle()
    assert holder(cluster) == ""

    await election.pass_seconds(1)

    assert standby.works
    with pytest.raises(OSError, match="the port is taken"):
        await leader.task


async def test_a_release_that_gets_no_answer_delays_nobody_for_long(election: Election) -> None:
    leader = await election.join("a")
    leader.client.silent = True
    leader.task.cancel()
    await election.settle()

    await election.pass_seconds(2)

    assert leader.task.done()


async def test_a_standby_tries_again_when_the_api_server_does(cluster: Cluster, election: Election) -> None:
    cluster.server.refuse = lambda request: refusal(503, "ServiceUnavailable", "starting")
    replica = await election.join("a")
    await election.pass_seconds(5)
    assert not replica.works
    cluster.server.refuse = lambda request: None

    await election.pass_seconds(1)

    assert replica.works


async def test_many_candidates_have_one_leader_at_any_time(election: Election) -> None:
    for number in range(4):
        await election.join(f"pod-{number}")
    for _ in range(6):
        (leader,) = [replica for replica in election.replicas if replica.works]
        leader.client.silent = True
        await election.pass_seconds(20)
        assert sum(replica.works for replica in election.replicas) == 1
        leader.client.silent = False
        await election.join(f"{leader.pod}-again")

    spans = sorted(span for replica in election.replicas for span in replica.worked)
    assert len(spans) == 7
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert end is not None
        assert end <= begin


# --- the label --------------------------------------------------------------------------------------------------------


async def _pods(cluster: Cluster, *pods: str) -> None:
    for pod in pods:
        await cluster.server.put(PODS, {"metadata": {"name": pod, "namespace": NAMESPACE, "labels": {"app": "piton"}}})


def _labelled(cluster: Cluster) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in cluster.server.all(PODS)
        if pod["metadata"]["labels"].get(names.LABEL_LEADER) == NAME
    ]


async def test_the_label_is_at_the_leaders_pod_and_moves_with_the_lease(cluster: Cluster, election: Election) -> None:
    await _pods(cluster, "a", "b")
    leader, standby = await election.join("a"), await election.join("b")
    assert _labelled(cluster) == ["a"]
    leader.client.silent = True  # its node is dead, and its pod is still there

    await election.pass_seconds(20)

    assert standby.works
    assert _labelled(cluster) == ["b"]
    assert {pod["metadata"]["labels"]["app"] for pod in cluster.server.all(PODS)} == {"piton"}


async def test_a_leader_that_may_not_label_its_pod_works_and_tries_again(cluster: Cluster, election: Election) -> None:
    await _pods(cluster, "a")
    forbidden = refusal(403, "Forbidden", "pods is forbidden")
    cluster.server.refuse = lambda request: forbidden if request.resource == PODS else None
    leader = await election.join("a")
    assert leader.works
    assert _labelled(cluster) == []

    cluster.server.refuse = lambda request: None
    await election.pass_seconds(2)

    assert _labelled(cluster) == ["a"]


async def test_outside_a_cluster_there_is_no_pod_to_label(election: Election) -> None:
    leader = await election.join("laptop")

    await election.pass_seconds(4)

    assert leader.works
    assert not leader.task.done()


async def test_a_label_that_somebody_else_moved_comes_back(cluster: Cluster, election: Election) -> None:
    await _pods(cluster, "a", "b")
    await election.join("a")
    for name, value in (("a", None), ("b", NAME)):
        pod = cluster.server.find(PODS, name, NAMESPACE)
        assert pod is not None
        pod["metadata"]["labels"] = {"app": "piton"} | ({names.LABEL_LEADER: value} if value else {})
        await cluster.server.put(PODS, pod)

    await election.pass_seconds(300, step=1)

    assert _labelled(cluster) == ["a"]
