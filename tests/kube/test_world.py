"""The port `World` over the API: each effect alone, repeated, overtaken, and aimed at what is not ours."""

from dataclasses import replace
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from piton.core.effects import (
    AddFinalizer,
    CreateVolume,
    Effect,
    RemoveFinalizer,
    RemoveReplica,
    StartAttempt,
    StopAttempt,
)
from piton.kube.run_world import KubeWorld
from piton.ports import Conflict, Refused, Unavailable
from support.apiserver import CLAIMS, JOBS, PODS, RUNS, refusal
from support.builders import a_manifest
from support.cluster import Runs
from support.pilot import Pilot

START = StartAttempt(number=1, reason=Reason.FIRST_ATTEMPT)
STOP = StopAttempt(number=1, reason=Reason.SUSPENDED)
HOLD = AddFinalizer(reason=Reason.ACCEPTED)
VOLUME = CreateVolume(reason=Reason.FIRST_ATTEMPT)


async def _world(pilot: Pilot) -> KubeWorld:
    """A world that has looked."""
    if pilot.run() is None:
        await pilot.cluster.apply(a_manifest())
    world = KubeWorld(pilot.client, pilot.clock, "team", "ragcun")
    assert await world.observe() is not None
    return world


async def _training(pilot: Pilot) -> KubeWorld:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    return await _world(pilot)


async def _touch(pilot: Pilot, **metadata: Any) -> None:
    run = pilot.run()
    assert run is not None
    run["metadata"] |= metadata
    await pilot.server.put(RUNS, run)


def _uid(pilot: Pilot, name: str, kind: Any = JOBS) -> str:
    found = pilot.server.find(kind, name, "team")
    assert found is not None
    return str(found["metadata"]["uid"])


async def test_a_job_is_told_to_save_without_a_second_copy_in_memory(pilot: Pilot) -> None:
    world = await _world(pilot)
    await world.apply(replace(START, blocking_saves=True))
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    assert {"name": "PITON_SAVES", "value": "blocking"} in container["env"]


async def test_a_job_is_kept_from_zones_where_its_run_loses_machines(pilot: Pilot) -> None:
    world = await _world(pilot)
    await world.apply(replace(START, avoid_zones=("us-east-1a",)))
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    (term,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (wanted,) = term["preference"]["matchExpressions"]
    assert (wanted["operator"], wanted["values"]) == ("NotIn", ["us-east-1a"])


async def test_a_run_that_does_not_exist_is_none(pilot: Pilot) -> None:
    assert await KubeWorld(pilot.client, pilot.clock, "team", "ragcun").observe() is None


@pytest.mark.parametrize("kind", [RUNS, JOBS, PODS, CLAIMS])
async def test_nothing_is_observed_on_half_of_the_facts(pilot: Pilot, kind: Any) -> None:
    await _training(pilot)
    pilot.server.refuse = lambda request: refusal(403, "Forbidden", "no list") if request.resource == kind else None
    with pytest.raises(Unavailable, match="no list"):
        await KubeWorld(pilot.client, pilot.clock, "team", "ragcun").observe()


@pytest.mark.parametrize("effect", [VOLUME, START, STOP], ids=lambda effect: type(effect).__name__)
async def test_an_effect_that_is_repeated_is_done_once(pilot: Pilot, effect: Effect) -> None:
    world = await _world(pilot) if effect is not STOP else await _training(pilot)
    await world.apply(effect)
    before = [pilot.server.all(kind) for kind in (CLAIMS, JOBS)]
    await world.apply(effect)
    assert [pilot.server.all(kind) for kind in (CLAIMS, JOBS)] == before


async def test_the_finalizer_goes_on_and_off_again(pilot: Pilot) -> None:
    world = await _world(pilot)
    await world.apply(HOLD)
    assert (pilot.run() or {})["metadata"]["finalizers"] == [names.FINALIZER]
    await world.apply(RemoveFinalizer(reason=Reason.FINISHED))
    assert (pilot.run() or {})["metadata"]["finalizers"] == []


async def test_a_finalizer_that_somebody_added_meanwhile_is_not_lost(pilot: Pilot) -> None:
    world = await _world(pilot)
    await _touch(pilot, finalizers=["example.com/audit"])
    with pytest.raises(Conflict):
        await world.apply(HOLD)
    assert (pilot.run() or {})["metadata"]["finalizers"] == ["example.com/audit"]


async def test_the_status_can_be_written_after_the_finalizer_in_one_pass(pilot: Pilot) -> None:
    world = await _world(pilot)
    await world.apply(HOLD)
    await world.write_status(pilot.status().model_copy(update={"attempt": 4}))
    assert pilot.status().attempt == 4
    assert (pilot.run() or {})["metadata"]["finalizers"] == [names.FINALIZER]


async def test_a_status_is_not_written_over_a_newer_run(pilot: Pilot) -> None:
    world = await _world(pilot)
    await _touch(pilot, labels={"changed": "yes"})
    with pytest.raises(Conflict):
        await world.write_status(pilot.status().model_copy(update={"attempt": 4}))
    assert pilot.status().attempt == 0


async def test_a_status_of_a_run_that_is_gone_is_a_conflict(pilot: Pilot) -> None:
    world = await _world(pilot)
    status = pilot.status()
    await pilot.server.remove(RUNS, "ragcun", "team")
    with pytest.raises(Conflict):
        await world.write_status(status)


async def test_a_status_replaces_what_was_there(pilot: Pilot) -> None:
    world = await _training(pilot)
    await world.write_status(pilot.status().model_copy(update={"attempts": ()}))
    assert pilot.status().attempts == ()


@pytest.mark.parametrize(
    "change",
    [
        {"ownerReferences": [{"kind": "TrainingRun", "name": "ragcun", "uid": "uid-of-another", "controller": True}]},
        {"ownerReferences": [], "annotations": {}},
        {"labels": {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: "2"}},
    ],
    ids=["owned by another", "owned by nobody", "another attempt"],
)
async def test_a_job_that_is_there_already_is_only_taken_for_ours_if_it_is(pilot: Pilot, change: Any) -> None:
    """Somebody was quicker than the operator, after it looked."""
    world = await _world(pilot)
    await world.apply(START)
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    await world.apply(START)
    job["metadata"] |= change
    await pilot.server.put(JOBS, job)
    with pytest.raises(Refused, match="does not belong to this run"):
        await world.apply(START)


async def test_a_claim_that_is_there_already_is_only_taken_for_ours_if_it_is(pilot: Pilot) -> None:
    world = await _world(pilot)
    await pilot.server.put(CLAIMS, {"metadata": {"name": "ragcun-checkpoints", "namespace": "team"}})
    with pytest.raises(Refused, match="does not belong to this run"):
        await world.apply(VOLUME)


async def test_only_the_job_that_was_observed_is_stopped(pilot: Pilot) -> None:
    """The name has a new bearer since."""
    world = await _training(pilot)
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    await pilot.server.remove(JOBS, "ragcun-1", "team")
    await pilot.server.put(JOBS, {**job, "metadata": {**job["metadata"], "ownerReferences": []}})
    newcomer = _uid(pilot, "ragcun-1")
    await world.apply(STOP)
    assert _uid(pilot, "ragcun-1") == newcomer


async def test_only_the_replica_that_was_observed_is_removed_and_at_once(pilot: Pilot) -> None:
    world = await _training(pilot)
    pod = "ragcun-1-master-0"
    other = RemoveReplica(number=1, name=pod, uid="uid-of-another", reason=Reason.NODE_GONE)
    await world.apply(other)
    right = RemoveReplica(number=1, name=pod, uid=_uid(pilot, pod, PODS), reason=Reason.NODE_GONE)
    await world.apply(right)
    assert pilot.server.find(PODS, pod, "team") is None
    await world.apply(right)


async def test_a_stop_leaves_the_pods_their_grace_period(pilot: Pilot) -> None:
    world = await _training(pilot)
    await world.apply(STOP)
    await pilot.cluster.step()
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 100


async def test_a_force_deleted_pod_that_a_finalizer_keeps_is_not_shown_again(pilot: Pilot) -> None:
    """Nothing that Piton can do would change it, so it must not be waited for."""
    await _training(pilot)
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    pod["metadata"]["finalizers"] = ["example.com/keep"]
    pod["spec"]["nodeName"] = "no-such-node"
    await pilot.server.put(PODS, pod)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.attempt == 2
    kept = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert kept is not None
    assert kept["metadata"]["deletionGracePeriodSeconds"] == 0
