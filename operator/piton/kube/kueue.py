"""Kueue's objects for a run: its Workload, the queue that it stands in, and what a flavor says of the nodes.

Kueue need not be installed: without a queue label on the run nothing of this is ever called.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from piton.api.conditions import settled
from piton.api.spec import Meta, Spec
from piton.api.status import RunStatus
from piton.contract import names
from piton.core.effects import LeaveQueue, QuotaEffect, ReportPodsReady, RequestQuota, ReturnQuota
from piton.kube.client import Client, Reads
from piton.kube.errors import NotFound
from piton.kube.ownership import create
from piton.kube.resources import Body, Resource
from piton.kube.workqueue import Timer
from piton.observed import ReservationSeen
from piton.ports import Conflict, PortError, Refused, Unavailable
from piton.rendering import workload
from piton.rendering.workload import Granted

GROUP = "kueue.x-k8s.io"
VERSION = workload.API_VERSION.partition("/")[2]
WORKLOADS = Resource(group=GROUP, version=VERSION, plural="workloads")
FLAVORS = Resource(group=GROUP, version=VERSION, plural="resourceflavors", namespaced=False)
PRIORITY_CLASSES = Resource(group=GROUP, version=VERSION, plural="workloadpriorityclasses", namespaced=False)
VISIBLE_QUEUES = Resource(group=f"visibility.{GROUP}", version=VERSION, plural="localqueues")
"""Served by Kueue itself, and by an administrator's leave: who is where in the queue."""
POSITION_SECONDS = 10.0
"""Seconds for which the positions in a queue are cached."""


@dataclass(frozen=True, kw_only=True)
class WorkloadRead:
    """A look at the run's Workload."""

    body: Body | None = None
    unreadable: str = ""
    """The reason why nobody can tell whether there is one, and what it says."""


async def find(reads: Reads, meta: Meta, status: RunStatus, trouble: PortError | None = None) -> WorkloadRead:
    """Look at the run's Workload, if it is or was in a queue; `trouble` keeps Workloads from being watched.

    Raises:
        Unavailable: the API server does not answer, and that is not a matter of Workloads.
    """
    if not (meta.queue and not settled(status)) and status.queue is None:
        return WorkloadRead()
    if isinstance(trouble, NotFound):
        return WorkloadRead(unreadable=_unreadable(trouble))
    try:
        body = await reads.get(WORKLOADS, workload.workload_name(meta.name), namespace=meta.namespace)
    except Refused as error:
        return WorkloadRead(unreadable=_unreadable(error))
    except Unavailable as error:
        if trouble is None:
            raise
        return WorkloadRead(unreadable=_unreadable(error))
    return WorkloadRead(body=body)


def _unreadable(error: PortError) -> str:
    match error:
        case NotFound():
            helps = f"the cluster serves no Workloads of {workload.API_VERSION}"
            helps += ": install Kueue 0.15 or newer, or remove the label"
        case Refused():
            helps = "Piton may not read Workloads; install or upgrade Piton's chart again"
        case _:
            helps = "Workloads cannot be read; look at Kueue's webhooks"
    return f"{helps} ({error})"


async def look(
    positions: "QueuePositions | None", meta: Meta, status: RunStatus, read: WorkloadRead
) -> ReservationSeen | None:
    """Return the reservation for the rules; None for a run that is in no queue."""
    if read.unreadable:
        return ReservationSeen(unreadable=read.unreadable)
    found = read.body
    if found is None and (settled(status) or not meta.queue) and status.queue is None:
        return None
    seen = workload.seen(found, meta.uid)
    if not seen.exists or seen.held or seen.finished:
        return seen
    return workload.seen(found, meta.uid, position=await positions.of(meta, seen.queue) if positions else None)


class QueuePositions:
    """Positions in Kueue's queues. One list of a queue serves all runs that wait in it."""

    def __init__(self, client: Client, timer: Timer) -> None:
        self._client = client
        self._timer = timer
        self._reading = asyncio.Lock()
        self._read: dict[tuple[str, str], tuple[float, dict[str, int]]] = {}

    async def of(self, meta: Meta, queue: str | None) -> int | None:
        """Return the run's position, from 1; None: Kueue does not say it."""
        key = (meta.namespace, queue or "")
        async with self._reading:
            at, positions = self._read.get(key, (float("-inf"), {}))
            if self._timer.time() - at >= POSITION_SECONDS:
                positions = await self._list(*key)
                self._read[key] = self._timer.time(), positions
        return positions.get(workload.workload_name(meta.name))

    async def _list(self, namespace: str, queue: str) -> dict[str, int]:
        path = VISIBLE_QUEUES.path(namespace, queue, "pendingworkloads")
        try:
            pending = await self._client.request("GET", path, query={"limit": "1000"})
        except PortError:  # not served, or not for us: nothing depends on it
            return {}
        items = pending.get("items") or ()
        return {item["metadata"]["name"]: int(item["positionInClusterQueue"]) + 1 for item in items}


async def apply(
    client: Client, effect: QuotaEffect, meta: Meta, spec: Spec | None, found: Body | None, now: datetime
) -> None:
    """Carry out one effect on the Workload that was seen."""
    match effect:
        case RequestQuota():
            assert spec is not None, "nothing is asked for a run without an accepted spec"
            await _request_quota(client, effect, meta, spec)
        case ReturnQuota() if found is not None:
            await _write_status(client, found, workload.returned(found, now=now))
        case ReportPodsReady(ready=ready) if found is not None:
            await _write_status(client, found, workload.with_readiness(found, ready=ready, now=now))
        case LeaveQueue() if found is not None:
            await _delete(client, found)


async def _request_quota(client: Client, effect: RequestQuota, meta: Meta, spec: Spec) -> None:
    priority = await _priority(client, meta)
    body = workload.workload(meta, spec, effect.stage, priority=priority)
    try:
        await create(client, WORKLOADS, body, meta, owner="run")
    except NotFound as error:
        raise Refused(
            f"metadata.labels[{names.LABEL_QUEUE}]: the run is to wait in the queue {meta.queue}, and the cluster knows"
            f" no Workloads of {workload.API_VERSION} ({error}); install Kueue 0.15 or newer, or remove the label"
        ) from error


async def _priority(client: Client, meta: Meta) -> int:
    """The value of its priority class, which whoever makes a Workload writes into it; without a class 0, as Kueue."""
    if not meta.priority_class:
        return 0
    found = await client.get(PRIORITY_CLASSES, meta.priority_class)
    if found is None:
        raise Refused(
            f"metadata.labels[{names.LABEL_PRIORITY_CLASS}]: there is no WorkloadPriorityClass {meta.priority_class!r};"
            " create it, or remove the label"
        )
    return int(found["value"])


async def _write_status(client: Client, found: Body, status: Body) -> None:
    try:
        await client.replace_status(WORKLOADS, {**found, "status": status})
    except NotFound as error:
        raise Conflict(f"the Workload is gone: {error}") from error


async def _delete(client: Client, found: Body) -> None:
    meta = found["metadata"]
    try:
        await client.delete(WORKLOADS, meta["name"], uid=meta["uid"], namespace=meta["namespace"])
    except NotFound:
        return


async def granted(client: Client, found: Body | None) -> Granted:
    """Return the node labels and tolerations of the admission: of each flavor, and of the admission checks.

    Raises:
        Refused: a flavor does not exist any more.
    """
    status = (found or {}).get("status") or {}
    assignments = (status.get("admission") or {}).get("podSetAssignments") or []
    flavors = dict.fromkeys(name for assignment in assignments for name in (assignment.get("flavors") or {}).values())
    parts = [await _flavor(client, name) for name in flavors]
    for check in status.get("admissionChecks") or ():
        parts += [update for update in check.get("podSetUpdates") or () if update["name"] == workload.POD_SET]
    return Granted(
        node_selector={key: value for part in parts for key, value in (part.get("nodeSelector") or {}).items()},
        tolerations=tuple(toleration for part in parts for toleration in part.get("tolerations") or ()),
        labels={key: value for part in parts for key, value in (part.get("labels") or {}).items()},
        annotations={key: value for part in parts for key, value in (part.get("annotations") or {}).items()},
    )


async def _flavor(client: Client, name: str) -> Body:
    flavor = await client.get(FLAVORS, name)
    if flavor is None:
        raise Refused(f"Kueue admitted the run on the ResourceFlavor {name!r}, which does not exist; create it again")
    spec = flavor.get("spec") or {}
    return {"nodeSelector": spec.get("nodeLabels"), "tolerations": spec.get("tolerations")}
