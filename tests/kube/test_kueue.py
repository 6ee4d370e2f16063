"""Runs in a queue of Kueue's, from apply to the end, against an API server over HTTP and Kueue's part played."""

from typing import Any

import pytest
from kmock import KubernetesError, Request

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, QueueStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract import names
from support.apiserver import CRDS, JOBS, PODS, RUNS, SWEEPS, VISIBLE_QUEUES, WORKLOADS, Body, refusal
from support.builders import a_manifest
from support.cluster import Disrupted, Runs
from support.kueue import FLAVOR, Kueue
from support.pilot import Pilot
from support.sweeps import a_sweep


@pytest.fixture
async def kueue(pilot: Pilot) -> Kueue:
    found = Kueue(pilot.cluster)
    await found.install()
    return found


async def _train(pilot: Pilot) -> None:
    """A run that trains until something happens to it."""
    pilot.cluster.fates["ragcun-1"] = Runs()
    await _apply(pilot)
    await _until(pilot, Phase.TRAINING)


async def _apply(pilot: Pilot, name: str = "ragcun", priority: str | None = None, **spec: Any) -> None:
    manifest = a_manifest(name, **spec)
    manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
    if priority:
        manifest["metadata"]["labels"][names.LABEL_PRIORITY_CLASS] = priority
    await pilot.cluster.apply(manifest)


async def _until(pilot: Pilot, phase: Phase, name: str = "ragcun") -> RunStatus:
    await pilot.until(lambda: pilot.status(name).phase is phase)
    return pilot.status(name)


def _pods(pilot: Pilot) -> list[str]:
    return [pod["metadata"]["name"] for pod in pilot.server.all(PODS) if pod["status"]["phase"] == "Running"]


def _message(status: RunStatus) -> str:
    found = status.condition("Training")
    assert found is not None
    return found.message


async def test_a_run_waits_for_quota_and_says_where_it_stands(pilot: Pilot, kueue: Kueue) -> None:
    pilot.cluster.fates["first-1"] = Runs()
    await _apply(pilot, "first")
    await _until(pilot, Phase.TRAINING, "first")
    for name in ("second", "third"):
        await _apply(pilot, name)
        await _until(pilot, Phase.QUEUED, name)
        await pilot.turn(20)
    third = pilot.status("third")
    await pilot.until(lambda: pilot.status("third").queue == QueueStatus(name="gpus", position=2))
    third = pilot.status("third")
    assert _message(third).startswith("waits for quota in the queue gpus, number 2 in line: 8 more GPUs needed")
    assert third.attempt == 0
    assert [job["metadata"]["name"] for job in pilot.server.all(JOBS)] == ["first-1"]


async def test_a_gang_is_admitted_as_a_whole_or_not_at_all(pilot: Pilot, kueue: Kueue) -> None:
    await _apply(pilot, workers={"nodes": 2})
    await _until(pilot, Phase.QUEUED)
    for _ in range(4):
        await pilot.turn()
    assert not pilot.server.all(JOBS)
    body = kueue.of("ragcun")
    assert body is not None
    assert body["spec"]["podSets"][0]["count"] == 2
    assert "minCount" not in body["spec"]["podSets"][0]
    kueue.gpus = 16
    assert (await _until(pilot, Phase.SUCCEEDED)).attempt == 1


async def test_the_workload_asks_for_what_a_pod_requests_and_belongs_to_the_run(pilot: Pilot, kueue: Kueue) -> None:
    await _apply(pilot, priority="high", capacity={"tiers": ["Spot"]})
    await pilot.settle()
    body = kueue.of("ragcun")
    run = pilot.run()
    assert body is not None
    assert run is not None
    assert (body["spec"]["queueName"], body["spec"]["priority"]) == ("gpus", 100)
    assert body["spec"]["priorityClassRef"]["name"] == "high"
    (pods,) = body["spec"]["podSets"]
    (container,) = pods["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "8"
    assert "env" not in container
    terms = pods["template"]["spec"]["affinity"]["nodeAffinity"]
    assert "karpenter.sh/capacity-type" in str(terms)
    assert body["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]


async def test_a_workload_has_a_priority_also_without_a_class(pilot: Pilot, kueue: Kueue) -> None:
    """Kueue 0.18.3 tells nobody's place in a queue in which one Workload has none."""
    await _apply(pilot)
    await pilot.settle()
    body = kueue.of("ragcun")
    assert body is not None
    assert (body["spec"]["priority"], body["spec"].get("priorityClassRef")) == (0, None)


async def test_the_pods_go_where_the_flavor_says_and_carry_no_label_of_the_queue(pilot: Pilot, kueue: Kueue) -> None:
    pilot.cluster.script[1] = Runs()
    await _apply(pilot, workers={"template": {"nodeSelector": {"disk": "nvme"}}})
    await _until(pilot, Phase.TRAINING)
    (job,) = pilot.server.all(JOBS)
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert {"disk": "nvme", "pool": "spot-a"}.items() <= pod["nodeSelector"].items()
    assert FLAVOR["tolerations"][0] in pod["tolerations"]  # type: ignore[index]
    assert names.LABEL_QUEUE not in str(job)


async def test_a_run_that_is_preempted_saves_stops_and_goes_on_when_it_is_its_turn(pilot: Pilot, kueue: Kueue) -> None:
    pilot.cluster.fates["ragcun-1"] = Runs()
    pilot.cluster.fates["urgent-1"] = Runs()
    await _apply(pilot, priority="low")
    await _until(pilot, Phase.TRAINING)
    await _apply(pilot, "urgent", priority="high")
    status = await _until(pilot, Phase.QUEUED)
    record = status.attempts[0]
    assert (record.state, record.verdict, record.reason) == (
        AttemptState.ENDED,
        Verdict.STOPPED,
        Reason.QUOTA_TAKEN,
    )
    assert "Preempted to accommodate trainingrun-urgent" in record.message
    assert record.checkpoint_step == 10
    assert (status.failures, status.preemptions, status.infrastructure_failures) == (0, 0, 0)
    assert pilot.server.find(JOBS, "ragcun-1", "team") is None

    await _until(pilot, Phase.TRAINING, "urgent")
    assert _pods(pilot) == ["urgent-1-master-0"]
    pilot.cluster.fates.pop("urgent-1")
    status = await _until(pilot, Phase.SUCCEEDED)
    assert (status.attempt, status.failures) == (2, 0)
    assert [job["metadata"]["name"] for job in pilot.server.all(JOBS)] == ["urgent-1", "ragcun-2"]


async def test_quota_is_never_released_while_pods_run(pilot: Pilot, kueue: Kueue) -> None:
    await _train(pilot)
    body = kueue.of("ragcun")
    assert body is not None
    await kueue.evict(body, "The ClusterQueue is stopped", "ClusterQueueStopped")
    for _ in range(10):
        await pilot.settle()
        held = any(c["type"] == "QuotaReserved" and c["status"] == "True" for c in _conditions(kueue))
        assert held or not _pods(pilot)
        if not held:
            break
        await pilot.cluster.step()
        pilot.advance(1)
    assert not held
    requeued = next(c for c in _conditions(kueue) if c["type"] == "Requeued")
    assert (requeued["status"], requeued["reason"]) == ("False", "ClusterQueueStopped")


async def test_a_workload_that_is_deactivated_stops_the_run_and_is_not_in_the_queue(pilot: Pilot, kueue: Kueue) -> None:
    await _train(pilot)
    body = kueue.of("ragcun")
    assert body is not None
    body["spec"]["active"] = False
    await pilot.server.put(WORKLOADS, body)
    status = await _until(pilot, Phase.QUEUED)
    assert "its Workload is deactivated (spec.active is false)" in _message(status)
    requeued = next(c for c in _conditions(kueue) if c["type"] == "Requeued")
    assert (requeued["status"], requeued["reason"]) == ("False", "Deactivated")


def _conditions(kueue: Kueue) -> list[Body]:
    body = kueue.of("ragcun")
    assert body is not None
    found: list[Body] = body["status"]["conditions"]
    return found


async def test_after_a_spot_preemption_the_run_goes_on_before_one_that_waits(pilot: Pilot, kueue: Kueue) -> None:
    pilot.cluster.fates["ragcun-1"] = Runs()
    pilot.cluster.fates["ragcun-2"] = Runs()
    await _apply(pilot)
    await _until(pilot, Phase.TRAINING)
    await _apply(pilot, "second")
    await _until(pilot, Phase.QUEUED, "second")
    pilot.cluster.fates["ragcun-1"] = Disrupted()
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    assert (pilot.status().preemptions, pilot.status("second").phase) == (1, Phase.QUEUED)
    body = kueue.of("ragcun")
    assert body is not None
    ready = next(c for c in _conditions(kueue) if c["type"] == "PodsReady")
    assert (ready["status"], body["spec"]["queueName"]) == ("True", "gpus")


async def test_each_stage_has_its_own_quota_and_nothing_is_left_at_the_end(pilot: Pilot, kueue: Kueue) -> None:
    await _apply(pilot, stages={"prepare": {}, "evaluate": {}})
    status = await _until(pilot, Phase.SUCCEEDED)
    assert [record.stage for record in status.attempts] == [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE]
    await pilot.settle()
    assert pilot.creates()["workloads"] == 3
    assert not pilot.server.all(WORKLOADS)
    assert pilot.status().queue is None


async def test_a_suspended_run_gives_its_quota_to_others(pilot: Pilot, kueue: Kueue) -> None:
    await _train(pilot)
    await pilot.cluster.apply(a_manifest(suspend=True))
    await _until(pilot, Phase.SUSPENDED)
    assert not pilot.server.all(WORKLOADS)
    await pilot.cluster.apply(a_manifest())
    assert (await _until(pilot, Phase.SUCCEEDED)).attempt == 2


async def test_a_deleted_run_leaves_nothing_in_the_queue(pilot: Pilot, kueue: Kueue) -> None:
    await _train(pilot)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None)
    await pilot.turn()
    assert not pilot.server.all(WORKLOADS)


async def test_a_run_with_the_label_starts_nothing_without_kueue_and_says_so(pilot: Pilot) -> None:
    pilot.server.refuse = lambda request: (
        refusal(404, "NotFound", "the server could not find the requested resource")
        if request.resource == WORKLOADS
        else None
    )
    await _apply(pilot)
    for _ in range(3):
        await pilot.turn(15)
    status = pilot.status()
    assert "install Kueue 0.15 or newer, or remove the label" in _message(status)
    assert (status.attempt, pilot.server.all(JOBS), pilot.server.all(CRDS)) == (0, [], [])


async def test_a_priority_class_that_does_not_exist_is_said(pilot: Pilot, kueue: Kueue) -> None:
    await _apply(pilot, priority="urgent")
    await pilot.settle()
    assert "there is no WorkloadPriorityClass 'urgent'" in _message(pilot.status())
    assert not pilot.server.all(WORKLOADS)


async def test_a_workload_that_is_deleted_by_hand_stops_the_run_and_it_queues_again(pilot: Pilot, kueue: Kueue) -> None:
    await _train(pilot)
    await pilot.server.remove(WORKLOADS, "trainingrun-ragcun", "team")
    status = await _until(pilot, Phase.SUCCEEDED)
    assert status.attempts[0].reason is Reason.QUOTA_TAKEN
    assert (status.attempt, status.failures) == (2, 0)


async def test_a_run_without_the_label_asks_nothing_of_kueue(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    assert not [request for request in pilot.server.asked if request.resource == WORKLOADS]


async def test_a_settled_run_asks_nothing_of_kueue_any_more(pilot: Pilot, kueue: Kueue) -> None:
    await _apply(pilot)
    await _until(pilot, Phase.SUCCEEDED)
    await pilot.settle()
    pilot.server.asked.clear()
    await pilot.settle()
    assert not [request for request in pilot.server.asked if request.resource == WORKLOADS]


async def test_a_sweep_in_a_queue_puts_its_runs_there_and_says_that_they_wait(pilot: Pilot, kueue: Kueue) -> None:
    kueue.gpus = 0
    manifest = a_sweep()
    manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus", names.LABEL_PRIORITY_CLASS: "low"}
    await pilot.cluster.apply(manifest)
    for _ in range(3):
        await pilot.settle_sweeps()
        await pilot.cluster.step()
    bodies = pilot.server.all(WORKLOADS)
    assert [body["metadata"]["name"] for body in bodies] == [
        f"trainingrun-{run['metadata']['name']}" for run in pilot.server.all(RUNS)
    ]
    assert {(body["spec"]["queueName"], body["spec"]["priority"]) for body in bodies} == {("gpus", 1)}
    sweep = pilot.server.find(SWEEPS, "ragcun", "team")
    assert sweep is not None
    assert sweep["status"]["phase"] == "Queued"


async def test_one_request_gives_the_positions_of_all_runs_in_a_queue(pilot: Pilot, kueue: Kueue) -> None:
    kueue.gpus = 0
    names_of_runs = [f"r{number}" for number in range(10)]
    for name in names_of_runs:
        manifest = a_manifest(name)
        manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
        await pilot.cluster.apply(manifest)
    await pilot.until(lambda: all(pilot.status(name).phase is Phase.QUEUED for name in names_of_runs))
    pilot.advance(60)
    pilot.server.asked.clear()
    await pilot.settle()
    assert len([request for request in pilot.server.asked if request.resource == VISIBLE_QUEUES]) == 1


@pytest.mark.parametrize("answer", [(500, "InternalError", "failed calling webhook"), (403, "Forbidden", "no right")])
@pytest.mark.parametrize("nodes", [1, 2])
async def test_a_run_trains_and_shows_it_while_kueue_cannot_be_told(
    pilot: Pilot, kueue: Kueue, answer: tuple[int, str, str], nodes: int
) -> None:
    def refuse(request: Request) -> KubernetesError | None:
        return refusal(*answer) if request.resource == WORKLOADS and request.method == "PUT" else None

    kueue.gpus = 16
    pilot.server.refuse = refuse
    pilot.cluster.fates["ragcun-1"] = Runs()
    await _apply(pilot, workers={"nodes": nodes})
    await _until(pilot, Phase.TRAINING)
    for _ in range(30):
        await pilot.turn(10)
    status = pilot.status()
    assert (status.phase, status.attempts[0].state, status.attempt) == (Phase.TRAINING, AttemptState.RUNNING, 1)
    assert status.is_true("Waiting"), "it says what does not work"
    assert [c["status"] for c in _conditions(kueue) if c["type"] == "PodsReady"] == []

    pilot.server.refuse = lambda _: None
    for _ in range(15):
        await pilot.turn(30)
    assert [c["status"] for c in _conditions(kueue) if c["type"] == "PodsReady"] == ["True"]
    assert not pilot.status().is_true("Waiting")
