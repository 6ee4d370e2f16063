"""Scenarios in which all runs wait: for a GPU that no node has, for a ResourceQuota, in a queue of Kueue's.

Each is measured alike: with an operator that has just started, until all runs show why they wait, then while nothing
happens, then the same without the operator. At its end its runs are deleted, and an operator runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bench.operator_scale import cluster, counters, harness, process, steady
from bench.operator_scale.harness import SETTLE_SECONDS, START_SECONDS, Harness
from bench.operator_scale.run_watch import LateError, Runs
from hack.cluster import processes
from hack.neighbours import kueue
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists
from piton.kube.kueue import FLAVORS, GROUP, VERSION
from piton.kube.resources import Body, Resource
from piton.timing import Timing

QUEUE = "bench"
"""Name of the ResourceFlavor, the ClusterQueue and the LocalQueue."""
_REASONS_LATE_SECONDS = 0.4
"""Limit, for each run, for all to show why they wait."""
_DELETED_LATE_SECONDS = 0.6
_LATE_SECONDS = 180.0
_POSITIONS_SECONDS = 3 * Timing().queue_seconds
"""Time in which each run has asked for its position in the queue, and shows it."""
_QUOTAS = Resource(group="", version="v1", plural="resourcequotas")
_CLUSTER_QUEUES = Resource(group=GROUP, version=VERSION, plural="clusterqueues", namespaced=False)
_LOCAL_QUEUES = Resource(group=GROUP, version=VERSION, plural="localqueues")


async def _nothing(_: Client) -> None:
    """Prepare nothing."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause for which runs wait."""

    shown: Callable[[Runs], int]
    """The number of runs that show it."""
    namespace: str = cluster.NAMESPACE
    prepare: Callable[[Client], Awaitable[None]] = _nothing
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    settle_seconds: float = SETTLE_SECONDS


async def for_gpus(bench: Harness) -> dict[str, Any]:
    """Create runs that ask for a GPU that no node has."""
    return await _wait(bench, Cause(shown=lambda runs: runs.reasons[Reason.UNSCHEDULABLE], gpus=1))


async def for_quota(bench: Harness) -> dict[str, Any]:
    """Create runs in a namespace whose ResourceQuota allows no pods."""
    shown = lambda runs: runs.reasons[Reason.QUOTA_EXCEEDED]  # noqa: E731
    return await _wait(bench, Cause(shown=shown, namespace=cluster.QUOTA_NAMESPACE, prepare=_forbid_pods))


async def in_queue(bench: Harness) -> dict[str, Any]:
    """Create runs in a queue of Kueue's that has no quota."""
    cause = Cause(
        shown=lambda runs: runs.phases[Phase.QUEUED],
        namespace=cluster.QUEUE_NAMESPACE,
        prepare=_start_kueue,
        labels={names.LABEL_QUEUE: QUEUE},
        settle_seconds=_POSITIONS_SECONDS,
    )
    return await _wait(bench, cause)


def stop_kueue() -> None:
    """Stop Kueue, if it runs."""
    if processes.running(kueue.PROCESS):
        kueue.stop()


async def _wait(bench: Harness, cause: Cause) -> dict[str, Any]:
    """Create the runs, and measure until they wait, while they wait, and while they wait without an operator."""
    await cause.prepare(bench.client)
    process.stop_operator()
    await bench.start_operator()
    async with harness.inside(bench, cause.namespace) as there:
        shown = await _until_shown(there, cause)
        await asyncio.sleep(cause.settle_seconds)
        positions = await asyncio.to_thread(counters.position_requests)
        meanwhile = await steady.rest(there)
        positions = await asyncio.to_thread(counters.position_requests) - positions
        process.stop_operator()
        without = await steady.rest(there, seconds=steady.IDLE_SECONDS / 2)
        await bench.start_operator()
        await there.delete("")
        limit = _LATE_SECONDS + _DELETED_LATE_SECONDS * there.count
        await there.until_gone("waiting", "", seconds=limit)
        await there.until_cleared(seconds=limit)
    meanwhile["position_requests_per_second"] = positions / meanwhile["seconds"]
    return {"all_show_reasons": shown, "wait": meanwhile, "without_operator": without}


async def _until_shown(there: Harness, cause: Cause) -> dict[str, Any]:
    """Create the runs; return the cost until all show the cause."""
    limit = 60 + _REASONS_LATE_SECONDS * there.count
    async with there.measured() as measured:
        labels = cause.labels
        runs = there.names("waits")
        await cluster.create_runs(there.client, runs, namespace=there.namespace, gpus=cause.gpus, labels=labels)
        state = lambda: f"{cause.shown(there.runs):,} of {there.count:,} show why they wait"  # noqa: E731
        await there.until("waiting", lambda: cause.shown(there.runs) >= there.count, state, seconds=limit)
    return measured.as_json(per=there.count)


async def _forbid_pods(client: Client) -> None:
    """Have a quota of no pods, which counts as soon as it has a status: before that, pods are refused without it."""
    meta = {"name": "none", "namespace": cluster.QUOTA_NAMESPACE}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}}
    with suppress(AlreadyExists):
        await client.create(_QUOTAS, quota)
    await _until_there(client, _QUOTAS, meta, lambda found: bool((found.get("status") or {}).get("hard")))


async def _start_kueue(client: Client) -> None:
    """Start it, and have a queue that gives out nothing of all that runs ask for."""
    await asyncio.to_thread(kueue.start, say=harness.say)
    quotas = [{"name": name, "nominalQuota": 0} for name in ("cpu", "memory")]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": QUEUE, "resources": quotas}]}
    local = {"name": QUEUE, "namespace": cluster.QUEUE_NAMESPACE}
    for resource, kind, meta, spec in (
        (FLAVORS, "ResourceFlavor", {"name": QUEUE}, {}),
        (_CLUSTER_QUEUES, "ClusterQueue", {"name": QUEUE}, {"namespaceSelector": {}, "resourceGroups": [group]}),
        (_LOCAL_QUEUES, "LocalQueue", local, {"clusterQueue": QUEUE}),
    ):
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": meta, "spec": spec}
        with suppress(AlreadyExists):
            await client.create(resource, body)
    await _until_there(client, _LOCAL_QUEUES, local, _is_active)


def _is_active(queue: Body) -> bool:
    conditions = (queue.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Active" and c["status"] == "True" for c in conditions)


async def _until_there(
    client: Client, resource: Resource, meta: Mapping[str, str], true: Callable[[Body], bool]
) -> None:
    """Wait until another controller has taken up the object.

    Raises:
        LateError: it has not, for too long.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            while not true(await client.get(resource, meta["name"], namespace=meta.get("namespace")) or {}):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise LateError(f"{resource.plural} {meta['name']} is not taken up after {START_SECONDS:.0f} s") from None
