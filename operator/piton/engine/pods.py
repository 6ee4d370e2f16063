"""Pods of a job: the replica that each is, the state that it counts as, and the action for it.

         Pending, Unknown  ->  in no count
         Running           ->  active;     being deleted: failed, from the first moment of its grace period
         Succeeded         ->  succeeded;  being deleted: failed, if it may not be repeated (restartPolicy Never) and
                                           the job still wants it, and had not counted it as succeeded before
         Failed            ->  failed; succeeded if it may not be repeated, its trainer exited 0, and neither its
                                           kubelet nor an eviction ended it: a container beside it failed
         gone              ->  failed, if it had begun and may not be repeated; succeeded, if it was counted so before

The rules on Never differ from Kubeflow's. Kubeflow takes the exit code 0 of a trainer that was told to stop for the
end of the training, and restarts a single replica without notice while the other replicas continue without it. A
replica past the last index stopped because the job was made smaller; it counts as in Kubeflow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piton.contract import names
from piton.engine.job import LABEL_INDEX, LABEL_TYPE, Body, Job, Replicas
from piton.engine.status import Tally

RETRYABLE_FROM = 128
"""First exit code that stands for a signal; the policy `ExitCode` restarts such replicas."""
EXIT_UNKNOWN = 0xBEEF
"""Exit code of a container that never ended."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of the job."""

    name: str
    uid: str
    kind: str
    """Type of the replica as in its label: lower case."""
    index: int
    phase: str
    deleting: bool
    exit_code: int
    restarts: int

    @property
    def unfinished(self) -> bool:
        """True if it still holds a machine, or will."""
        return self.phase in ("Running", "Pending")


def read(job: Job, manifests: Sequence[Mapping[str, Any]]) -> tuple[Pod, ...]:
    """Return the pods that are replicas of this job. Orphans and the pods of an earlier job are not adopted."""
    found = (_read(job, manifest) for manifest in manifests if job.owns(manifest))
    return tuple(sorted(filter(None, found), key=lambda pod: pod.name))


def _read(job: Job, manifest: Mapping[str, Any]) -> Pod | None:
    meta, status = manifest["metadata"], manifest.get("status") or {}
    labels = meta.get("labels") or {}
    kind, digits = labels.get(LABEL_TYPE, ""), labels.get(LABEL_INDEX, "")
    if not (digits.isascii() and digits.isdigit()) or meta["name"] != job.replica_name(kind, int(digits)):
        return None
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        kind=kind,
        index=int(digits),
        phase=_phase(job, kind, status),
        deleting=bool(meta.get("deletionTimestamp")),
        exit_code=_exit_code(status),
        restarts=_restarts(status),
    )


def _phase(job: Job, kind: str, status: Mapping[str, Any]) -> str:
    """Return the pod's phase; with restartPolicy Never, that of its trainer where only what ran beside it failed."""
    phase = str(status.get("phase") or "Pending")
    is_once = any(each.restart_policy == "Never" for each in job.replicas if each.kind.lower() == kind)
    if phase != "Failed" or not is_once or _exit_code(status) != 0:
        return phase
    targets = [each for each in status.get("conditions") or () if each.get("type") == "DisruptionTarget"]
    was_ended = bool(status.get("reason")) or any(each.get("status") == "True" for each in targets)
    return phase if was_ended else "Succeeded"


def _exit_code(status: Mapping[str, Any]) -> int:
    containers = status.get("containerStatuses") or []
    trainer: Body = next((c for c in containers if c.get("name") == names.CONTAINER), {})
    ended = (trainer.get("state") or {}).get("terminated") or {}
    return int(ended.get("exitCode", EXIT_UNKNOWN))


def _restarts(status: Mapping[str, Any]) -> int:
    fields = ("initContainerStatuses", "containerStatuses")
    return sum(int(c.get("restartCount") or 0) for field in fields for c in status.get(field) or ())


def of_kind(pods: Sequence[Pod], replicas: Replicas) -> tuple[Pod, ...]:
    """Return the pods of that type, including those past the last index."""
    return tuple(pod for pod in pods if pod.kind == replicas.kind.lower())


def tally(job: Job, replicas: Replicas, pods: Sequence[Pod]) -> Tally:
    """Count the replicas of that type by state."""
    mine = of_kind(pods, replicas)
    failed = [pod for pod in mine if _failed(replicas, pod)]
    rest = [pod for pod in mine if pod not in failed]
    known, succeeded, gone, done = job.status.tally(replicas.kind), sum(pod.phase == "Succeeded" for pod in rest), 0, 0
    if replicas.restart_policy == "Never":
        there = sum(pod.phase != "Pending" for pod in mine)
        gone = max(0, min(known.begun, replicas.count) - there)
        taken = gone + sum(pod.phase == "Succeeded" for pod in failed)
        done = min(taken, max(0, known.succeeded - succeeded))
    return Tally(
        active=sum(pod.phase == "Running" for pod in rest),
        succeeded=succeeded + done,
        failed=len(failed) + gone - done,
        selector=job.selector(replicas.kind),
    )


def is_done_without_pods(replicas: Replicas, pods: Sequence[Pod], tally: Tally) -> bool:
    """True if replicas of that type had succeeded before their pods went, with their nodes say: nobody needs others."""
    there = sum(pod.phase == "Succeeded" for pod in of_kind(pods, replicas))
    return replicas.restart_policy == "Never" and tally.succeeded > there


def _failed(replicas: Replicas, pod: Pod) -> bool:
    missed = replicas.restart_policy == "Never" and pod.index < replicas.count
    leaving_phases = ("Running", "Succeeded") if missed else ("Running",)
    return pod.phase == "Failed" or (pod.deleting and pod.phase in leaving_phases)


def permanent(replicas: Replicas, pod: Pod) -> bool:
    """True if the policy `ExitCode` treats the pod's end as permanent: its exit code is known, and not a signal's."""
    return replicas.restart_policy == "ExitCode" and pod.phase == "Failed" and pod.exit_code < RETRYABLE_FROM


def comes_again(replicas: Replicas, pod: Pod) -> bool:
    """True if the pod has failed and a new pod replaces it."""
    return pod.phase == "Failed" and replicas.restart_policy != "Never" and not permanent(replicas, pod)
