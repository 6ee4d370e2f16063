"""Events of a job or pod that waits. They are read only for those that wait, a few at a time.

The API server keeps no index of events: a list of one object's goes through all events of the namespace. So they are
read from the cache, where there is one, and a pass asks for those of a few pods, however many wait; in a gang most wait
for the same thing.
"""

from collections.abc import Iterable

from piton.contract import names
from piton.core.start_words import tells_no_cause
from piton.kube.client import Reads
from piton.kube.clocks import of_event
from piton.kube.resources import EVENTS, Body
from piton.observed import ClusterMessage, ReplicaSeen, ReplicaState

ASKED_MAX = 2
"""Pods whose events one pass reads: so many without a machine, and so many that have one."""


async def of_job(reads: Reads, job: Body) -> tuple[ClusterMessage, ...]:
    """Return the reasons why the job's controller creates no pods. Only warnings: it also reports each creation."""
    meta = job["metadata"]
    if is_suspended(job):
        return (ClusterMessage(reason="Suspended", message="the job is suspended"),)
    events = await _about(reads, meta["namespace"], meta["uid"], "Warning")
    return tuple(map(_word, events))


def is_suspended(job: Body) -> bool:
    """True if the job is to have no pods for now."""
    return bool(((job.get("spec") or {}).get("runPolicy") or {}).get("suspend"))


async def of_pod(reads: Reads, namespace: str, replica: ReplicaSeen) -> tuple[ClusterMessage, ...]:
    """Return the messages of the scheduler, the autoscaler, the attach controller and the kubelet about the pod.

    What is said of a container beside the trainer is left out: the trainer does not wait for it.
    """
    events = await _about(reads, namespace, replica.uid)
    return tuple(_word(event) for event in events if not _is_of_sidecar(event))


def with_unread_events(replicas: Iterable[ReplicaSeen]) -> list[ReplicaSeen]:
    """The replicas whose events are worth a read: they wait, and do not say for what themselves."""
    waiting = [r for r in replicas if r.state is ReplicaState.WAITING and not r.deleting and not _tells_why(r)]
    unplaced = [replica for replica in waiting if replica.node is None]
    placed = sorted((r for r in waiting if r.node), key=lambda r: str(r.placed_at))
    return [*unplaced[:ASKED_MAX], *placed[:ASKED_MAX]]


def _tells_why(replica: ReplicaSeen) -> bool:
    """True if the replica's own state says why it cannot start; kubelets before 1.32 leave that to an event."""
    return replica.cannot_start and not tells_no_cause(replica.waiting or "")


async def _about(reads: Reads, namespace: str, uid: str, severity: str | None = None) -> list[Body]:
    fields = f"involvedObject.uid={uid}" + (f",type={severity}" if severity else "")
    return await reads.list(EVENTS, namespace=namespace, fields=fields)


def _is_of_sidecar(event: Body) -> bool:
    path = str((event.get("involvedObject") or {}).get("fieldPath") or "")
    return path.startswith("spec.containers{") and path != f"spec.containers{{{names.CONTAINER}}}"


def _word(event: Body) -> ClusterMessage:
    first, last = of_event(event)
    source = event.get("source") or {}
    return ClusterMessage(
        reason=str(event.get("reason") or ""),
        message=str(event.get("message") or ""),
        is_warning=event.get("type") == "Warning",
        source=str(source.get("component") or event.get("reportingComponent") or ""),
        host=str(source.get("host") or event.get("reportingInstance") or ""),
        first_time=first,
        last_time=last,
    )
