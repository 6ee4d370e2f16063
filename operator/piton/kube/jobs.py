"""Evidence on a PyTorchJob: its stage, its state, its size, and what keeps it from going."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from piton.api.spec import Stage
from piton.contract import names
from piton.kube.nodes import condition, moment
from piton.kube.resources import Body
from piton.observed import JobState, LeavingPod, ReplicaSeen, ReplicaState

_MASTER = "-master-0"
_GARBAGE_COLLECTORS = ("foregroundDeletion", "orphan")
"""Finalizers of the garbage collector, which takes them off by itself."""


def stage_of(thing: Body) -> Stage:
    """Return the stage of a job or pod; one without a label is for training."""
    label = (thing["metadata"].get("labels") or {}).get(names.LABEL_STAGE)
    return next((stage for stage in Stage if stage == label), Stage.TRAIN)


def evaluated_step(job: Body) -> int | None:
    """Return the step of the checkpoint that the job evaluates; None if its containers name none.

    A job that another client has created under this name may have any shape.
    """
    for spec in ((job.get("spec") or {}).get("pytorchReplicaSpecs") or {}).values():
        pod = ((spec or {}).get("template") or {}).get("spec") or {}
        for container in pod.get("containers") or ():
            for variable in container.get("env") or ():
                if variable.get("name") == names.ENV_CHECKPOINT:
                    return names.parse_step_folder(PurePosixPath(variable.get("value") or "").name)
    return None


def state_of(job: Body) -> tuple[JobState, str]:
    """Return the state of the job, and the message of its condition."""
    for kind, state in (("Failed", JobState.FAILED), ("Succeeded", JobState.SUCCEEDED)):
        found = condition(job, kind)
        if found.get("status") == "True":
            return state, str(found.get("message") or "")
    return JobState.ACTIVE, ""


def by_its_trainers(state: JobState, replicas: Sequence[ReplicaSeen], *, is_complete: bool) -> JobState:
    """Return the state of a job that has failed for nothing but a container beside its master: it has succeeded.

    Kubeflow's controller goes by the pod's phase, and clears the workers away as after a success.

    Args:
        state: the state by the job's conditions.
        replicas: the replicas that are there.
        is_complete: True if none is missing that was there before.
    """
    if state is not JobState.FAILED or not is_complete:
        return state
    failed = any(each.state is ReplicaState.FAILED and not each.is_told_to_end for each in replicas)
    done = any(each.name.endswith(_MASTER) and each.failed_beside and not each.is_told_to_end for each in replicas)
    return JobState.SUCCEEDED if done and not failed else state


def expected_replicas(job: Body) -> int:
    """Return how many pods the job is to have."""
    specs = (job.get("spec") or {}).get("pytorchReplicaSpecs") or {}
    return sum(int((spec or {}).get("replicas") or 1) for spec in specs.values())


def kept_job(job: Mapping[str, Any], pods: Sequence[LeavingPod]) -> list[LeavingPod]:
    """Return the job, in the way of a pod, if it is being deleted and somebody's finalizer keeps it.

    It is to be gone when its pods are, since a finalizer may wait for them.
    """
    meta = job["metadata"]
    deleted_at = moment(meta.get("deletionTimestamp"))
    finalizers = tuple(each for each in meta.get("finalizers") or () if each not in _GARBAGE_COLLECTORS)
    if deleted_at is None or not finalizers:
        return []
    leaves_by = max([deleted_at, *(pod.leaves_by for pod in pods)])
    name, uid = f"the job {meta['name']}", str(meta.get("uid", ""))
    return [
        LeavingPod(
            name=name,
            uid=uid,
            node=None,
            leaves_by=leaves_by,
            finalizers=finalizers,
            has_ended=True,
            unshared_claims=(),
            is_node_closed=False,
        )
    ]
