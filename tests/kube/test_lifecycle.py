"""Whole lives of runs, from apply to the end, against an API server over HTTP."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from kmock import resource

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import Verdict
from piton.api.status_base import ConditionStatus, Phase
from piton.contract import names
from piton.contract.termination import Outcome
from piton.kube import resources
from piton.kube.resources import Resource
from support.apiserver import CLAIMS, EVENTS, JOBS, NODE_POOLS, NODES, PODS, QUOTAS, RUNS, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Disrupted, Ends, Initializes, Runs, Vanishes, Waits, a_node
from support.pilot import Pilot, a_pilot

FINALIZER = names.FINALIZER


async def test_a_run_is_applied_and_succeeds(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.failures) == (1, 0, 0)
    assert status.result is not None
    assert (status.result.step, status.result.weights_digest) == (100, "sha256:5eed")
    assert pilot.creates() == {"persistentvolumeclaims": 1, "pytorchjobs": 1}


async def test_jobs_belong_to_the_run(pilot: Pilot) -> None:
    run = await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    owner = job["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["kind"], owner["controller"]) == (run["metadata"]["uid"], "TrainingRun", True)


async def test_a_disrupted_pod_leads_to_a_second_attempt_and_not_to_a_failure(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Disrupted()
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.failures) == (2, 1, 0)
    assert status.attempts[0].verdict is Verdict.PREEMPTED
    assert "EvictionByEvictionAPI" in status.attempts[0].message
    assert pilot.creates() == {"persistentvolumeclaims": 1, "pytorchjobs": 2}


async def test_a_run_with_stages_asks_for_no_gpu_before_it_is_prepared_and_is_evaluated_at_the_end(
    pilot: Pilot,
) -> None:
    pilot.cluster.script[1] = Disrupted()
    pilot.cluster.script[3] = Disrupted()
    pilot.cluster.script[5] = Ends(metrics={"ndcg_10": 0.42})
    await pilot.cluster.apply(a_manifest(stages={"prepare": {}, "evaluate": {}}))
    status = await pilot.until_phase(Phase.SUCCEEDED)

    assert [record.stage for record in status.attempts] == [
        Stage.PREPARE,
        Stage.PREPARE,
        Stage.TRAIN,
        Stage.TRAIN,
        Stage.EVALUATE,
    ]
    assert (status.preemptions, status.failures) == (2, 0)
    assert status.result is not None
    assert status.result.evaluation is not None
    assert [(m.name, m.value) for m in status.result.evaluation.metrics] == [("ndcg_10", "0.42")]
    jobs = {job["metadata"]["name"]: job for job in pilot.server.all(JOBS)}
    gpus = {name: "nvidia.com/gpu" in str(job["spec"]) for name, job in jobs.items()}
    assert gpus == {"ragcun-2": False, "ragcun-4": True, "ragcun-5": False}
    env = jobs["ragcun-5"]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PITON_CHECKPOINT", "value": "/checkpoints/ragcun/step-000000100"} in env


async def test_an_operator_that_lost_the_status_goes_on_with_the_stage_that_runs(pilot: Pilot) -> None:
    pilot.cluster.script[2] = Runs()
    await pilot.cluster.apply(a_manifest(stages={"prepare": {}}))
    await pilot.until_phase(Phase.TRAINING)
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": {}})
    status = await pilot.until_phase(Phase.TRAINING)

    ended = {stage.name: stage.end_time is not None for stage in status.stages}
    assert (status.attempt, ended) == (2, {Stage.PREPARE: True, Stage.TRAIN: False})
    pilot.cluster.script[2] = Disrupted()
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert [record.stage for record in status.attempts] == [Stage.TRAIN, Stage.TRAIN]


@pytest.mark.parametrize("cluster_is_ahead", [False, True])
async def test_a_command_on_two_nodes_whose_master_ends_first_runs_once(pilot: Pilot, cluster_is_ahead: bool) -> None:
    """The job succeeds with its master and its worker is deleted, also while the operator reads one after the other."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(trainer={"image": "x", "command": ["./train"]}, workers={"nodes": 2}))
    await pilot.until_phase(Phase.TRAINING)
    await pilot.cluster.step()
    master = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert master is not None
    ended = {"exitCode": 0, "finishedAt": "2026-11-21T12:01:00Z", "reason": "Completed"}
    master["status"] |= {"phase": "Succeeded"}
    master["status"]["containerStatuses"] = [{"name": names.CONTAINER, "state": {"terminated": ended}}]
    await pilot.server.put(PODS, master)

    if cluster_is_ahead:
        await _settle_with_steps_between_reads(pilot)
    status = await pilot.until_phase(Phase.SUCCEEDED)

    assert (status.attempt, status.infrastructure_failures) == (1, 0), status.attempts
    assert status.attempts[0].reason is Reason.EXITED_ZERO


async def _settle_with_steps_between_reads(pilot: Pilot) -> None:
    """One settling, in which the job succeeds and its worker is taken away between two lists of a pass."""
    read = pilot.client.list

    async def slow(kind: Resource, **options: Any) -> Any:
        found = await read(kind, **options)
        if kind in (resources.JOBS, resources.PODS):
            for _ in range(3):
                await pilot.cluster.step()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pilot.client, "list", slow)
        await pilot.settle()


async def test_every_worker_of_a_preempted_attempt_is_gone_before_the_next_begins(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Disrupted()
    await pilot.cluster.apply(a_manifest(workers={"nodes": 3}))

    def second_exists() -> bool:
        return pilot.server.find(JOBS, "ragcun-2", "team") is not None

    await pilot.until(second_exists)
    alive = [p["metadata"]["name"] for p in pilot.server.all(PODS) if p["status"]["phase"] in ("Pending", "Running")]
    assert not [name for name in alive if name.startswith("ragcun-1-")]


async def test_three_failures_of_the_program_end_the_run(pilot: Pilot) -> None:
    pilot.cluster.script = {1: CRASHES, 2: CRASHES, 3: CRASHES}
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.FAILED)
    assert (status.attempt, status.failures, status.preemptions) == (3, 3, 0)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason is Reason.FAILURE_LIMIT
    assert pilot.creates()["pytorchjobs"] == 3


async def test_a_config_that_cannot_work_ends_the_run_at_once(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Ends(outcome=Outcome.BAD_CONFIG)
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.FAILED)
    assert (status.attempt, status.failures) == (1, 1)
    assert status.attempts[0].reason is Reason.BAD_CONFIG


async def test_exit_0_after_a_disruption_is_a_preemption_although_the_job_succeeded(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    pod["status"] |= {"phase": "Succeeded", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 0}}
    await pilot.server.put(PODS, pod)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions) == (2, 1)


async def test_pods_on_a_node_that_is_gone_are_force_deleted_and_the_next_attempt_follows(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Vanishes()
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.failures) == (2, 1, 0)
    assert status.attempts[0].reason is Reason.NODE_GONE
    assert pilot.server.find(PODS, "ragcun-1-master-0", "team") is None
    assert pilot.count("DELETE") == {"pytorchjobs": 1, "pods": 1}


async def _reach_training(pilot: Pilot) -> tuple[str, str]:
    """The names of the pod and of its node."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    return "ragcun-1-master-0", "node-of-ragcun-1-master-0"


async def _fail_the_job(pilot: Pilot) -> None:
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    await pilot.server.put(JOBS, {**job, "status": {"conditions": [{"type": "Failed", "status": "True"}]}})


async def _replace_the_pod(pilot: Pilot) -> None:
    """The job's controller puts a young pod in its place; it is on another node."""
    old = pilot.server.find(NODES, "node-of-ragcun-1-master-0", None)
    await pilot.cluster.step()
    young = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert young is not None
    if old is None:  # the scheduler has brought it back
        await pilot.server.remove(NODES, "node-of-ragcun-1-master-0", None)
    await pilot.server.put(NODES, a_node("another"))
    young["spec"]["nodeName"] = "another"
    await pilot.server.put(PODS, young)


@pytest.mark.parametrize("meanwhile", [_fail_the_job, _replace_the_pod], ids=lambda f: f.__name__.strip("_"))
async def test_a_pod_and_a_node_that_are_gone_before_anybody_looks_were_preempted(
    pilot: Pilot, meanwhile: Callable[[Pilot], Awaitable[None]]
) -> None:
    """`kubectl delete nodeclaim` takes both within seconds. The job's controller fails the job, or makes a new pod."""
    pod, node = await _reach_training(pilot)
    await pilot.server.remove(PODS, pod, "team")
    await pilot.server.remove(NODES, node, None)
    await meanwhile(pilot)
    async with a_pilot(pilot.cluster) as late:  # an operator that has seen nothing of it
        status = await late.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.infrastructure_failures) == (2, 1, 0)
    assert status.attempts[0].reason is Reason.NODE_GONE


async def test_a_pod_that_is_just_being_force_deleted_from_a_gone_node_was_preempted(pilot: Pilot) -> None:
    """The API server deletes by force in two writes. Between them the pod is there, and its job may have failed."""
    name, node = await _reach_training(pilot)
    pod = pilot.server.find(PODS, name, "team")
    assert pod is not None
    pod["metadata"] |= {"finalizers": ["example.com/keep"], "deletionGracePeriodSeconds": 0}
    pod["metadata"]["deletionTimestamp"] = pilot.clock.now().isoformat()
    await pilot.server.put(PODS, pod)
    await pilot.server.remove(NODES, node, None)
    await _fail_the_job(pilot)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.infrastructure_failures) == (2, 1, 0)
    assert status.attempts[0].reason is Reason.NODE_GONE


async def test_a_younger_machine_under_the_same_name_does_not_hide_that_pod_and_node_went(pilot: Pilot) -> None:
    pod, node = await _reach_training(pilot)
    await pilot.server.remove(PODS, pod, "team")
    await pilot.server.remove(NODES, node, None)
    young = a_node(node)
    young["metadata"]["creationTimestamp"] = (pilot.clock.now() + timedelta(seconds=1)).isoformat()
    await pilot.server.put(NODES, young)
    await _fail_the_job(pilot)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.preemptions, status.infrastructure_failures) == (1, 0)


@pytest.mark.parametrize("meanwhile", [_fail_the_job, _replace_the_pod], ids=lambda f: f.__name__.strip("_"))
async def test_a_pod_that_is_gone_from_a_node_that_is_there_was_deleted_and_not_preempted(
    pilot: Pilot, meanwhile: Callable[[Pilot], Awaitable[None]]
) -> None:
    pod, _ = await _reach_training(pilot)
    await pilot.server.remove(PODS, pod, "team")
    await meanwhile(pilot)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.infrastructure_failures) == (2, 0, 1)
    assert status.attempts[0].reason is Reason.POD_DELETED


async def test_a_job_that_another_client_suspends_ends_its_attempt_and_counts_as_nothing(pilot: Pilot) -> None:
    pod, _ = await _reach_training(pilot)
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    await pilot.server.put(JOBS, {**job, "spec": {**job["spec"], "runPolicy": {"suspend": True}}})
    await pilot.server.remove(PODS, pod, "team")
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.infrastructure_failures, status.failures) == (2, 0, 0, 0)
    assert (status.attempts[0].verdict, status.attempts[0].reason) == (Verdict.STOPPED, Reason.JOB_SUSPENDED)
    assert "spec.suspend" in status.attempts[0].message


async def test_a_suspended_run_whose_node_goes_with_its_pod_was_not_preempted(pilot: Pilot) -> None:
    _, node = await _reach_training(pilot)
    await pilot.cluster.apply(a_manifest(suspend=True))
    await pilot.settle()
    await pilot.cluster.step()
    await pilot.cluster.step()
    await pilot.server.remove(NODES, node, None)
    status = await pilot.until_phase(Phase.SUSPENDED)
    assert (status.preemptions, status.attempts[0].verdict) == (0, Verdict.STOPPED)


async def test_what_the_deletion_of_the_pod_showed_is_the_reason(pilot: Pilot) -> None:
    name, node = await _reach_training(pilot)
    pod = pilot.server.find(PODS, name, "team")
    assert pod is not None
    pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    await pilot.server.put(PODS, pod)
    await pilot.server.remove(PODS, name, "team")
    await pilot.server.remove(NODES, node, None)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.preemptions, status.attempts[0].reason) == (1, Reason.DISRUPTED)
    assert "EvictionByEvictionAPI" in status.attempts[0].message


async def test_the_taint_that_the_node_had_is_the_reason(pilot: Pilot) -> None:
    name, node = await _reach_training(pilot)
    await pilot.server.put(NODES, a_node(node, taints=[{"key": "karpenter.sh/disrupted"}]))
    await pilot.server.remove(PODS, name, "team")
    await pilot.server.remove(NODES, node, None)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.preemptions, status.attempts[0].reason) == (1, Reason.NODE_RECLAIMED)
    assert "karpenter.sh/disrupted" in status.attempts[0].message


async def test_workers_that_are_cleaned_away_after_a_success_do_not_start_it_again(pilot: Pilot) -> None:
    command = {"image": "trainer:1", "command": ["python", "train.py"]}
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(trainer=command, workers={"nodes": 2}))
    await pilot.until_phase(Phase.TRAINING)
    master = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert master is not None
    master["status"] |= {"phase": "Succeeded"}
    master["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 0}}
    await pilot.server.put(PODS, master)
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.infrastructure_failures) == (1, 0)


async def test_a_taint_that_says_that_the_machine_goes_makes_the_attempt_save_and_stop(pilot: Pilot) -> None:
    """Nobody evicts a pod that asks not to be disrupted: if Piton does not stop it, it goes with its machine."""
    _, node = await _reach_training(pilot)
    await pilot.server.put(NODES, a_node(node, taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]))
    await pilot.settle()
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pilot.server.find(JOBS, "ragcun-1", "team") is None, "one look is enough"
    assert pod is not None
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions) == (2, 1)
    assert (status.attempts[0].reason, status.attempts[0].checkpoint_step) == (Reason.NODE_RECLAIMED, 10)


async def test_a_cordon_and_a_recommendation_take_nothing_away(pilot: Pilot) -> None:
    _, node = await _reach_training(pilot)
    taint = {"key": "aws-node-termination-handler/rebalance-recommendation", "effect": "NoSchedule"}
    await pilot.server.put(NODES, a_node(node, taints=[taint], unschedulable=True))
    await pilot.turn(300)
    await pilot.settle()
    assert (pilot.status().phase, pilot.status().attempt) == (Phase.TRAINING, 1)


async def _on_a_node_pool(pilot: Pilot, **spec: str) -> str:
    """What the condition says of a run on a node of Karpenter's."""
    pilot.cluster.node_labels = {"karpenter.sh/nodepool": "train-spot", "karpenter.sh/capacity-type": "spot"}
    pool = {"metadata": {"name": "train-spot"}, "spec": {"template": {"spec": spec}}}
    await pilot.server.put(NODE_POOLS, pool)
    await _reach_training(pilot)
    training = pilot.status().condition("Training")
    assert training is not None
    return training.message


async def test_a_run_names_the_node_pool_that_would_let_its_machines_go_without_a_word(pilot: Pilot) -> None:
    assert "NodePool train-spot has no terminationGracePeriod" in await _on_a_node_pool(pilot)
    told = [event for event in pilot.server.all(EVENTS) if event["reason"] == "NodePoolWarning"]
    assert len(told) == 1
    for _ in range(5):
        await pilot.turn(30)
    assert _reads(pilot, NODE_POOLS) == 1, "it is read seldom"
    pilot.advance(600)
    await pilot.settle()
    assert _reads(pilot, NODE_POOLS) == 2


async def test_a_node_pool_that_drains_in_time_needs_no_words(pilot: Pilot) -> None:
    assert await _on_a_node_pool(pilot, terminationGracePeriod="110s") == "attempt 1 is running"


@pytest.mark.parametrize("status", [403, 404, 503])
async def test_where_no_node_pool_can_be_read_nothing_is_said_of_it(pilot: Pilot, status: int) -> None:
    pilot.server.refuse = lambda request: (
        refusal(status, "No", "not for you") if request.resource == NODE_POOLS else None
    )
    assert await _on_a_node_pool(pilot) == "attempt 1 is running"
    assert _reads(pilot, NODE_POOLS) == 1


def _reads(pilot: Pilot, kind: resource) -> int:
    return sum(request.resource == kind for request in pilot.server.asked)


async def test_a_node_that_falls_silent_counts_as_gone_after_a_while_and_not_before(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    silent = a_node("node-of-ragcun-1-master-0", ready="Unknown", since=pilot.clock.now().isoformat())
    await pilot.server.put(NODES, silent)
    await pilot.settle()
    pilot.advance(34)
    await pilot.settle(resync=False)
    assert pilot.status().phase is Phase.TRAINING
    pilot.advance(1)  # nothing happens in the cluster: the operator itself has set its alarm for now
    await pilot.settle(resync=False)
    assert pilot.status().attempts[0].reason is Reason.NODE_GONE


async def test_an_image_that_cannot_be_pulled_is_shown_first_and_judged_later(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Waits()
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: "ImagePullBackOff" in str(pilot.status().condition("Training")))
    assert pilot.status().phase is Phase.STARTING
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.failures, status.attempts[0].reason) == (1, Reason.CANNOT_START)


async def test_a_suspended_run_saves_stops_and_goes_on_when_resumed(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.cluster.apply(a_manifest(suspend=True))
    status = await pilot.until_phase(Phase.SUSPENDED)
    assert not [pod for pod in pilot.server.all(PODS) if pod["status"]["phase"] == "Running"]
    assert (status.attempts[0].verdict, status.attempts[0].checkpoint_step) == (Verdict.STOPPED, 10)
    await pilot.cluster.apply(a_manifest(suspend=False))
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, status.preemptions, status.failures) == (2, 0, 0)


async def test_a_worker_that_is_still_in_its_init_container_stops_in_seconds(pilot: Pilot) -> None:
    """Its shell ignores SIGTERM, and nothing of it is worth the 100 seconds that a trainer has to save."""
    pilot.cluster.script[1] = Initializes()
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}))
    await pilot.until(lambda: "init-pytorch" in str(pilot.server.all(PODS)))
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}, suspend=True))
    began = pilot.clock.now()
    status = await pilot.until_phase(Phase.SUSPENDED)

    assert (pilot.clock.now() - began).total_seconds() <= 15
    assert status.attempts[0].verdict is Verdict.STOPPED
    assert pilot.count("DELETE") == {"pytorchjobs": 1, "pods": 2}


async def test_a_run_that_is_born_suspended_creates_nothing(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest(suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)
    assert pilot.creates() == {}


# --- deletion in every phase ------------------------------------------------------------------------------------------

DELETES: dict[str, Any] = {
    "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"], "reclaim": "Delete"}}
}


async def _pending(pilot: Pilot) -> None:
    pilot.server.refuse = lambda request: (
        refusal(403, "Forbidden", "exceeded quota") if request.resource == CLAIMS and request.method == "POST" else None
    )
    await pilot.until_phase(Phase.PENDING)


async def _starting(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Waits(reason="ContainerCreating")
    await pilot.until_phase(Phase.STARTING)
    await pilot.turn()


async def _training(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)


async def _stopping(pilot: Pilot) -> None:
    await _training(pilot)
    await pilot.cluster.apply(a_manifest(suspend=True, **DELETES))
    await pilot.settle()
    assert pilot.status().phase is Phase.STOPPING


async def _recovering(pilot: Pilot) -> None:
    pilot.cluster.script[1] = CRASHES
    await pilot.until_phase(Phase.RECOVERING)


async def _suspended(pilot: Pilot) -> None:
    await _stopping(pilot)
    await pilot.until_phase(Phase.SUSPENDED)


async def _refused(pilot: Pilot) -> None:
    await _training(pilot)
    await pilot.cluster.apply(a_manifest(trainer={"image": "trainer:1"}, **DELETES))
    await pilot.settle()


async def _succeeded(pilot: Pilot) -> None:
    await pilot.until_phase(Phase.SUCCEEDED)


async def _failed(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Ends(outcome=Outcome.DIVERGED)
    await pilot.until_phase(Phase.FAILED)


async def _on_a_dead_node(pilot: Pilot) -> None:
    await _training(pilot)
    await pilot.server.remove(NODES, "node-of-ragcun-1-master-0", None)


PHASES = (
    _pending,
    _starting,
    _training,
    _stopping,
    _recovering,
    _suspended,
    _refused,
    _succeeded,
    _failed,
    _on_a_dead_node,
)


@pytest.mark.parametrize("reach", PHASES, ids=lambda reach: reach.__name__.strip("_"))
async def test_a_deleted_run_goes_with_all_that_was_its_own(
    pilot: Pilot, reach: Callable[[Pilot], Awaitable[None]]
) -> None:
    await pilot.cluster.apply(a_manifest(**DELETES))
    await reach(pilot)
    created = pilot.creates()
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None)
    assert not [pod for pod in pilot.server.all(PODS) if pod["status"]["phase"] == "Running"]
    for _ in range(3):
        await pilot.turn()
    assert [pilot.server.all(kind) for kind in (JOBS, PODS, CLAIMS)] == [[], [], []]
    assert pilot.creates() == created, "nothing is created for a run that is being deleted"


async def test_a_deleted_run_does_not_wait_for_a_pod_that_ended_on_a_node_that_is_gone(pilot: Pilot) -> None:
    """Nobody is left who could take the pod's object off; the cluster's own collector comes after a minute."""
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    await pilot.server.remove(NODES, "node-of-ragcun-1-master-0", None)
    await pilot.server.delete(PODS, "ragcun-1-master-0", "team")
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None)
    assert pilot.server.all(PODS) == []


async def test_a_run_is_held_until_its_pods_have_stopped(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.settle()
    run = pilot.run()
    assert run is not None
    assert run["metadata"]["finalizers"] == [FINALIZER]
    assert pilot.count("DELETE") == {"pytorchjobs": 1}


async def test_other_finalizers_are_left_alone(pilot: Pilot) -> None:
    run = await pilot.cluster.apply(a_manifest())
    run["metadata"]["finalizers"] = ["example.com/audit"]
    await pilot.server.put(RUNS, run)
    await pilot.until_phase(Phase.TRAINING)
    held = pilot.run()
    assert held is not None
    assert held["metadata"]["finalizers"] == ["example.com/audit", FINALIZER]
    await pilot.until_phase(Phase.SUCCEEDED)
    released = pilot.run()
    assert released is not None
    assert released["metadata"]["finalizers"] == ["example.com/audit"]


# --- quiet, and trouble ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [_training, _suspended, _succeeded, _failed], ids=lambda r: r.__name__.strip("_"))
async def test_a_settled_run_causes_no_write(pilot: Pilot, reach: Callable[[Pilot], Awaitable[None]]) -> None:
    await pilot.cluster.apply(a_manifest())
    await reach(pilot)
    await pilot.turn()
    await pilot.settle()
    written = len(pilot.server.writes)
    for _ in range(3):
        pilot.advance(60)
        await pilot.settle()
    assert pilot.server.writes[written:] == []


async def test_an_invalid_spec_is_explained_and_starts_nothing_until_it_is_fixed(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest(limits={"failures": 0}))
    status = await pilot.until_phase(Phase.REFUSED)
    accepted = status.condition("Accepted")
    assert accepted is not None
    assert accepted.status is ConditionStatus.FALSE
    assert "spec.limits.failures" in accepted.message
    assert pilot.creates() == {}
    await pilot.cluster.apply(a_manifest(limits={"failures": 1}))
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.is_true("Accepted")


async def test_a_quota_shows_in_the_condition_and_is_tried_again(pilot: Pilot) -> None:
    sentence = 'pytorchjobs.kubeflow.org "ragcun-1" is forbidden: exceeded quota: team, limited: count/pytorchjobs=2'
    full = True
    pilot.server.refuse = lambda request: (
        refusal(403, "Forbidden", sentence) if full and request.resource == JOBS and request.method == "POST" else None
    )
    amounts = {"hard": {"count/pytorchjobs.kubeflow.org": "2"}, "used": {"count/pytorchjobs.kubeflow.org": "2"}}
    await pilot.server.put(QUOTAS, {"metadata": {"name": "team", "namespace": "team"}, "status": amounts})
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()
    training = pilot.status().condition("Training")
    assert training is not None
    assert training.reason is Reason.QUOTA_EXCEEDED
    assert training.message.startswith(f"{sentence}. Raise the ResourceQuota team")
    await pilot.turn(60)
    await pilot.settle()
    told = [event for event in pilot.server.all(EVENTS) if event["reason"] == "QuotaExceeded"]
    assert [event["type"] for event in told] == ["Warning"]
    full = False
    await pilot.server.remove(QUOTAS, "team", "team")
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert status.attempt == 1


async def test_a_quota_that_keeps_the_pods_from_being_made_shows_in_the_condition(pilot: Pilot) -> None:
    """The job exists and stays silent; only an event of its controller says what is wrong."""
    pilot.cluster.quota = 'pods "ragcun-1-master-0" is forbidden: exceeded quota: gpus'
    await pilot.cluster.apply(a_manifest())
    await pilot.turn()
    await pilot.settle()
    training = pilot.status().condition("Training")
    assert training is not None
    assert training.message.startswith(f"Error creating: {pilot.cluster.quota}. Raise the ResourceQuota gpus")
    pilot.cluster.quota = None
    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1


async def test_a_cluster_without_pytorchjobs_is_named_as_the_reason(pilot: Pilot) -> None:
    absent = True
    pilot.server.refuse = lambda request: (
        refusal(404, "NotFound", "the server could not find the requested resource")
        if absent and request.resource == JOBS
        else None
    )
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()
    assert "is their CRD installed?" in str(pilot.status().condition("Training"))
    absent = False
    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1
