"""Objects that carry our names and labels but are somebody else's, and other people's writes to our own."""

import re
from typing import Any

import pytest
import yaml

from piton.api.conditions import OPERATOR_ERROR
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from support.apiserver import CLAIMS, JOBS, NODES, PODS, RUNS, Body, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Ends, Runs
from support.pilot import Pilot


def _foreign(kind: str, name: str, *, owner: str | None = None, **labels: str) -> Body:
    meta: Body = {"name": name, "namespace": "team", "labels": labels}
    if owner:
        meta["ownerReferences"] = [{"kind": "TrainingRun", "name": "ragcun", "uid": owner, "controller": True}]
    return {"kind": kind, "metadata": meta, "spec": {"pytorchReplicaSpecs": {}}}


def _labels(attempt: int) -> dict[str, Any]:
    return {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: str(attempt)}


async def test_a_foreign_job_of_our_name_is_left_alone_and_its_number_skipped(pilot: Pilot) -> None:
    before = await pilot.server.put(JOBS, _foreign("PyTorchJob", "ragcun-1"))
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert [a.reason for a in status.attempts] == [Reason.NAME_TAKEN, Reason.FINISHED]
    assert pilot.server.find(JOBS, "ragcun-1", "team") == before


@pytest.mark.parametrize("specs", [{"Master": {}}, {"Master": {"template": {}}}, {"Master": None}, None])
async def test_a_foreign_job_of_our_name_may_have_any_shape(pilot: Pilot, specs: Body | None) -> None:
    job = _foreign("PyTorchJob", "ragcun-1")
    await pilot.server.put(JOBS, {**job, "spec": {"pytorchReplicaSpecs": specs}})
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.attempts[0].reason is Reason.NAME_TAKEN
    assert status.condition(OPERATOR_ERROR) is None


async def test_a_foreign_job_that_appears_between_looking_and_creating_is_not_adopted(pilot: Pilot) -> None:
    """The race: nothing was there when the operator looked."""

    async def squat(request: Any) -> None:
        if request.resource == JOBS and pilot.server.find(JOBS, "ragcun-1", "team") is None:
            await pilot.server.put(JOBS, _foreign("PyTorchJob", "ragcun-1", **_labels(1)))

    pilot.server.before_write = squat
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.attempts[0].reason is Reason.NAME_TAKEN
    squatter = pilot.server.find(JOBS, "ragcun-1", "team")
    assert squatter is not None
    assert "ownerReferences" not in squatter["metadata"]


async def test_a_foreign_claim_of_our_name_is_not_used(pilot: Pilot) -> None:
    await pilot.server.put(CLAIMS, _foreign("PersistentVolumeClaim", "ragcun-checkpoints"))
    await pilot.cluster.apply(a_manifest())
    for _ in range(3):
        await pilot.turn(20)
    assert "belongs to somebody else" in str(pilot.status().condition("Training"))
    assert pilot.creates() == {}
    await pilot.server.remove(CLAIMS, "ragcun-checkpoints", "team")
    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1


@pytest.mark.parametrize(
    "volume",
    [
        {"size": "1Gi"},
        {"size": "1Gi", "storageClassName": "fast", "accessModes": ["ReadWriteMany"]},
        {"size": "1Gi", "reclaim": "Delete"},
    ],
    ids=["size", "class and modes", "reclaim"],
)
@pytest.mark.parametrize("labels", [{}, {names.LABEL_RUN: "ragcun"}], ids=["somebody's", "an earlier run's"])
async def test_what_is_advised_for_a_foreign_claim_of_our_name_is_accepted_as_it_is_written(
    pilot: Pilot, volume: dict[str, Any], labels: dict[str, str]
) -> None:
    claim = _foreign("PersistentVolumeClaim", "ragcun-checkpoints")
    claim["metadata"] |= {"labels": labels, "annotations": {names.ANNOTATION_RUN_UID: "of-an-earlier-run"}}
    await pilot.server.put(CLAIMS, claim)
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": volume}))
    for _ in range(3):
        await pilot.turn(20)
    advised = re.search(r"spec\.checkpoint\.volume: (\{.*?\})", str(pilot.status().condition("Waiting")))
    assert advised is not None
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": yaml.safe_load(advised[1])}))

    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1


async def test_a_claim_that_the_user_brings_is_used_and_never_created_or_deleted(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": {"claimName": "shared"}}))
    await pilot.turn()
    assert "there is no claim 'shared'" in str(pilot.status().condition("Training"))
    await pilot.server.put(CLAIMS, _foreign("PersistentVolumeClaim", "shared"))
    await pilot.until_phase(Phase.SUCCEEDED)
    assert pilot.creates() == {"pytorchjobs": 1}
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.turn()
    await pilot.turn()
    assert pilot.server.find(CLAIMS, "shared", "team") is not None


async def test_a_deleted_run_does_not_wait_for_a_foreign_job(pilot: Pilot) -> None:
    """The number is taken and nothing could be created for it yet; then its name is, and the run is deleted."""
    pilot.server.refuse = lambda request: (
        refusal(403, "Forbidden", "exceeded quota") if request.resource == CLAIMS and request.method == "POST" else None
    )
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()
    assert pilot.status().attempt == 1
    await pilot.server.put(JOBS, _foreign("PyTorchJob", "ragcun-1"))
    await pilot.server.delete(RUNS, "ragcun", "team")
    pilot.advance(1)
    await pilot.settle()
    assert pilot.run() is None
    assert pilot.server.find(JOBS, "ragcun-1", "team") is not None


async def test_jobs_and_pods_of_an_earlier_run_of_the_name_are_not_taken_for_ours(pilot: Pilot) -> None:
    await pilot.server.put(JOBS, _foreign("PyTorchJob", "ragcun-7", owner="uid-of-the-old-run", **_labels(7)))
    old = _foreign("Pod", "ragcun-6-master-0", **_labels(6))
    old["metadata"] |= {"creationTimestamp": "2026-11-20T12:00:00Z", "ownerReferences": []}
    old |= {"status": {"phase": "Running"}, "spec": {"nodeName": "old"}}
    await pilot.server.put(PODS, old)
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.attempt == 1
    assert pilot.server.find(PODS, "ragcun-6-master-0", "team") is not None


async def _orphaned(pilot: Pilot) -> None:
    """`kubectl delete pytorchjob --cascade=orphan`: the job is gone, its pods run on and are paid for."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.server.remove(JOBS, "ragcun-1", "team")
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    pod["metadata"]["ownerReferences"] = []
    await pilot.server.put(PODS, pod)


async def test_orphaned_pods_train_on_and_no_second_attempt_joins_them(pilot: Pilot) -> None:
    await _orphaned(pilot)
    for _ in range(5):
        await pilot.turn(60)
    assert (pilot.status().phase, pilot.status().attempt) == (Phase.TRAINING, 1)
    pilot.cluster.script[1] = Ends()
    await pilot.until_phase(Phase.SUCCEEDED)


async def test_orphaned_pods_are_stopped_by_piton_itself(pilot: Pilot) -> None:
    await _orphaned(pilot)
    await pilot.cluster.apply(a_manifest(suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)
    await pilot.turn()
    assert pilot.server.all(PODS) == []


async def test_a_job_that_somebody_deleted_is_replaced(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.server.delete(JOBS, "ragcun-1", "team")
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.failures) == (2, 0)


async def test_a_status_that_was_written_in_between_is_looked_at_again(pilot: Pilot) -> None:
    """Every write of ours meets somebody's write that came first, once."""
    await pilot.cluster.apply(a_manifest())
    disturbed: set[str] = set()

    async def interfere(request: Any) -> None:
        version = ((request.data or {}).get("metadata") or {}).get("resourceVersion")
        run = pilot.run()
        if request.resource == RUNS and version and run is not None and version not in disturbed:
            run["metadata"].setdefault("annotations", {})["touched"] = version
            disturbed.update((version, (await pilot.server.put(RUNS, run))["metadata"]["resourceVersion"]))

    pilot.server.before_write = interfere
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, pilot.creates()) == (1, {"persistentvolumeclaims": 1, "pytorchjobs": 1})
    refused = [w for w in pilot.server.writes if w.resource == RUNS and not w.done]
    assert len(refused) >= 4
    run = pilot.run()
    assert run is not None
    assert "touched" in run["metadata"]["annotations"], "what others wrote stays"


async def test_a_status_that_was_wiped_is_rebuilt_from_the_jobs(pilot: Pilot) -> None:
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    run = pilot.run()
    assert run is not None
    del run["status"]
    await pilot.server.put(RUNS, run)
    await pilot.settle()
    assert (pilot.status().attempt, pilot.status().phase) == (2, Phase.TRAINING)
    assert pilot.creates()["pytorchjobs"] == 2


async def test_a_node_of_the_same_name_that_is_younger_than_the_pod_is_another_machine(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    node = pilot.server.find(NODES, "node-of-ragcun-1-master-0", None)
    assert node is not None
    node["metadata"]["creationTimestamp"] = "2026-11-21T18:00:00Z"
    await pilot.server.put(NODES, node)
    await pilot.settle()
    assert pilot.status().attempts[0].reason is Reason.NODE_GONE
