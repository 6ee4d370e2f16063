"""Kinds that the cluster does not serve, or that Piton may not read, for a while: what runs goes on, nothing begins."""

from typing import Any

import pytest
from kmock import KubernetesError, Request

from piton.api.conditions import WAITING
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from piton.kube.errors import NotFound
from piton.ports import PortError, Refused, Unavailable
from support.apiserver import EVENTS, FLAVORS, JOBS, NODES, PODS, RUNS, WORKLOADS, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Disrupted, Ends, Runs
from support.kueue import Kueue
from support.pilot import Pilot

NOT_SERVED = refusal(404, "NotFound", "the server could not find the requested resource")
PLAIN = refusal(404, "", "404 page not found")
FORBIDDEN = refusal(403, "Forbidden", 'workloads.kueue.x-k8s.io "trainingrun-ragcun" is forbidden: User cannot get')
BROKEN = refusal(500, "InternalError", "conversion webhook for kueue.x-k8s.io/v1beta2 failed: connection refused")
TROUBLES: dict[str, tuple[KubernetesError, PortError]] = {
    "not served": (NOT_SERVED, NotFound("not served")),
    "another version": (PLAIN, NotFound("not served")),
    "no rights": (FORBIDDEN, Refused("forbidden")),
    "a webhook that is down": (BROKEN, Unavailable("failed")),
}


def refuse(pilot: Pilot, plural: str, answer: KubernetesError, known: PortError) -> None:
    """Refuse all requests about a kind, and have its watch know that."""

    def refused(request: Request) -> KubernetesError | None:
        return answer if request.resource is not None and request.resource.plural == plural else None

    pilot.server.refuse = refused
    for each in _watches(pilot, plural):
        each.unusable = known


def mend(pilot: Pilot, plural: str) -> None:
    pilot.server.refuse = lambda _: None
    for each in _watches(pilot, plural):
        each.unusable = None


def _watches(pilot: Pilot, plural: str) -> list[Any]:
    return [each for each in pilot.feed.cache._all() if each.resource.plural == plural]


async def in_queue(pilot: Pilot, name: str = "ragcun", **spec: Any) -> None:
    manifest = a_manifest(name, **spec)
    manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
    await pilot.cluster.apply(manifest)


async def trains_in_queue(pilot: Pilot) -> Kueue:
    kueue = Kueue(pilot.cluster)
    await kueue.install()
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await in_queue(pilot)
    await pilot.until_phase(Phase.TRAINING)
    return kueue


async def turns(pilot: Pilot, number: int, seconds: float = 5.0) -> None:
    for _ in range(number):
        await pilot.turn(seconds)


def waiting(pilot: Pilot, name: str = "ragcun") -> tuple[bool, Reason | None, str]:
    found = pilot.status(name).condition(WAITING)
    assert found is not None
    return pilot.status(name).is_true(WAITING), found.reason, found.message


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_was_admitted_trains_on_while_kueue_cannot_be_read_and_says_so(pilot: Pilot, trouble: str) -> None:
    await trains_in_queue(pilot)
    refuse(pilot, "workloads", *TROUBLES[trouble])
    await turns(pilot, 20)

    status = pilot.status()
    assert (status.phase, [(a.number, a.verdict) for a in status.attempts]) == (Phase.TRAINING, [(1, None)])
    assert waiting(pilot)[:2] == (True, Reason.QUEUE_UNREADABLE)
    assert "the run in the queue gpus" in waiting(pilot)[2]
    assert status.queue is not None
    told = [event for event in pilot.server.all(EVENTS) if event["reason"] == "QueueUnreadable"]
    assert len(told) == 1
    writes = len(pilot.server.writes)
    await turns(pilot, 5)
    assert len(pilot.server.writes) == writes

    mend(pilot, "workloads")
    await turns(pilot, 30)
    assert not waiting(pilot)[0]
    assert pilot.status().attempt == 1


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_nothing_begins_while_kueue_cannot_be_read(pilot: Pilot, trouble: str) -> None:
    """Neither the next attempt of a run that had quota, nor a run that is new; both go on when it can."""
    await trains_in_queue(pilot)
    refuse(pilot, "workloads", *TROUBLES[trouble])
    pilot.cluster.fates["ragcun-1"] = Disrupted()
    await in_queue(pilot, "new")
    await turns(pilot, 20)

    assert [pilot.status(name).phase for name in ("ragcun", "new")] == [Phase.QUEUED] * 2
    assert [pilot.status(name).attempt for name in ("ragcun", "new")] == [1, 0]
    assert {waiting(pilot, name)[1] for name in ("ragcun", "new")} == {Reason.QUEUE_UNREADABLE}
    assert pilot.server.find(WORKLOADS, "trainingrun-ragcun", "team") is not None

    mend(pilot, "workloads")
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_run_whose_label_is_removed_waits_for_no_queue(pilot: Pilot, trouble: str) -> None:
    """As the condition advises. Its Workload is returned once it can be seen again."""
    kueue = await trains_in_queue(pilot)
    refuse(pilot, "workloads", *TROUBLES[trouble])
    await turns(pilot, 4)
    assert waiting(pilot)[1] is Reason.QUEUE_UNREADABLE
    run = pilot.run()
    assert run is not None
    del run["metadata"]["labels"][names.LABEL_QUEUE]
    await pilot.server.put(RUNS, run)
    await turns(pilot, 4)
    assert (waiting(pilot)[0], pilot.status().phase) == (False, Phase.TRAINING)

    await pilot.cluster.disrupt("ragcun-1-master-0", "EvictionByEvictionAPI", "team")
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    assert not waiting(pilot)[0]
    assert kueue.of("ragcun") is not None
    pilot.cluster.fates["ragcun-2"] = Ends()
    await pilot.until_phase(Phase.SUCCEEDED)
    mend(pilot, "workloads")
    await turns(pilot, 30)
    assert kueue.of("ragcun") is None


async def test_a_new_operator_that_never_saw_a_workload_stops_nothing(pilot: Pilot) -> None:
    await trains_in_queue(pilot)
    refuse(pilot, "workloads", *TROUBLES["not served"])
    for each in _watches(pilot, "workloads"):
        each.store._entries.clear()
    await turns(pilot, 10)
    assert (pilot.status().phase, pilot.status().attempt) == (Phase.TRAINING, 1)


@pytest.mark.parametrize("end", ["delete", "suspend"])
async def test_people_are_obeyed_while_kueue_cannot_be_read(pilot: Pilot, end: str) -> None:
    kueue = await trains_in_queue(pilot)
    refuse(pilot, "workloads", *TROUBLES["no rights"])
    await turns(pilot, 3)
    if end == "delete":
        await pilot.server.delete(RUNS, "ragcun", "team")
        await pilot.until(lambda: pilot.run() is None)
        return
    manifest = a_manifest(suspend=True)
    manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
    await pilot.cluster.apply(manifest)
    await pilot.until_phase(Phase.SUSPENDED)
    assert kueue.of("ragcun") is not None
    mend(pilot, "workloads")
    await turns(pilot, 30)
    assert kueue.of("ragcun") is None


async def test_a_flavor_that_cannot_be_read_starts_no_attempt_without_its_labels(pilot: Pilot) -> None:
    await trains_in_queue(pilot)
    pilot.server.refuse = lambda request: NOT_SERVED if request.resource == FLAVORS else None
    pilot.cluster.fates["ragcun-1"] = Disrupted()
    await turns(pilot, 20)
    assert pilot.server.find(JOBS, "ragcun-2", "team") is None
    assert "does not serve resourceflavors" in waiting(pilot)[2]


async def test_an_attempt_whose_jobs_are_not_served_for_a_while_is_not_given_up(pilot: Pilot) -> None:
    """Not even when its pods are gone: nobody can tell what the job would say of that."""
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    refuse(pilot, "pytorchjobs", NOT_SERVED, NotFound("not served"))
    await pilot.server.remove(PODS, "ragcun-1-master-0", "team")
    for _ in range(10):
        await pilot.settle()
        pilot.advance(30)
    assert [(a.number, a.verdict) for a in pilot.status().attempts] == [(1, None)]
    assert waiting(pilot)[:2] == (True, Reason.ENGINE_MISSING)

    mend(pilot, "pytorchjobs")
    await pilot.until(lambda: pilot.status().phase is Phase.TRAINING and not waiting(pilot)[0])


@pytest.mark.parametrize("has_pods", [False, True])
async def test_a_deletion_waits_while_nobody_can_tell_which_jobs_there_are(pilot: Pilot, has_pods: bool) -> None:
    """Its job may have no pods yet. The condition says how to let the run go when the CRD is gone for good."""
    pilot.cluster.script = {1: Runs()}
    pilot.cluster.quota = None if has_pods else "exceeded quota: gpus"
    await pilot.cluster.apply(a_manifest())
    await turns(pilot, 4)
    refuse(pilot, "pytorchjobs", *TROUBLES["not served"])
    await pilot.server.delete(RUNS, "ragcun", "team")
    await turns(pilot, 30, 10)
    assert waiting(pilot)[:2] == (True, Reason.ENGINE_MISSING)
    assert "kubectl patch trainingrun ragcun -n team" in waiting(pilot)[2]
    assert not pilot.server.all(PODS) or not has_pods
    version = (pilot.run() or {})["metadata"]["resourceVersion"]
    await turns(pilot, 10, 60)
    assert (pilot.run() or {})["metadata"]["resourceVersion"] == version

    mend(pilot, "pytorchjobs")
    await pilot.until(lambda: pilot.run() is None)
    await pilot.turn()
    assert not pilot.server.all(JOBS)


@pytest.mark.parametrize("fate", [Ends(), CRASHES], ids=["finished", "between two attempts"])
async def test_a_run_without_an_attempt_in_flight_can_be_deleted_when_pytorchjobs_are_gone_for_good(
    pilot: Pilot, fate: Ends
) -> None:
    pilot.cluster.script = dict.fromkeys(range(1, 4), fate)
    await pilot.cluster.apply(a_manifest(limits={"failures": 9}))
    await pilot.until(lambda: any(record.ended_time for record in pilot.status().attempts))
    refuse(pilot, "pytorchjobs", *TROUBLES["not served"])
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None, turns=6)


@pytest.mark.parametrize("suspend", [True, False])
async def test_a_run_that_has_never_started_can_be_deleted_where_there_never_were_pytorchjobs(
    pilot: Pilot, suspend: bool
) -> None:
    refuse(pilot, "pytorchjobs", *TROUBLES["not served"])
    await pilot.cluster.apply(a_manifest(suspend=suspend))
    await pilot.settle()
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None, turns=6)


async def test_a_start_lists_no_nodes_live(pilot: Pilot) -> None:
    """Neither for their zones, nor for their prices after one that was too dear, nor after a pass that failed."""
    pilot.cluster.script = {1: Disrupted(), 2: Runs()}
    pilot.cluster.node_labels = {"topology.kubernetes.io/zone": "z"}
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}))
    pilot.controller._doubtful.add(("team", "ragcun"))
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    listed = [request for request in pilot.server.asked if request.resource == NODES and request.name is None]
    assert listed == []
