"""Scenarios in which runs come and stay: bring-up, nothing happens."""

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from bench.operator_scale import cluster, counters, process
from bench.operator_scale.harness import SETTLE_SECONDS, Harness, percentile
from piton.kube.resources import EVENTS, PODS, Body

IDLE_SECONDS = 60.0
"""One period of the operator's resync: a shorter time would see all of it, or nothing."""
UNHEARD_SECONDS = 180.0
"""Limit: the operator says it 60 s after a program began."""
_SECONDS_PER_RUN = 0.9
"""Limit for a bring-up, beside what a few runs take."""
_COLLECTOR_SECONDS = 45.0
"""Time in which the garbage collector has found new kinds, for which it looks every 30 s, and watches them. Until then
it asks for the owner of each new object, which in a cluster that is older it does not."""
_OWN_EVENTS = "source=piton-operator"


async def warm_up(bench: Harness) -> None:
    """Bring up one run and delete it, so that what happens once in a process is not counted for the first run."""
    await cluster.create_runs(bench.client, ["warm-up"])
    await bench.until_training("warm-up", 1, seconds=60)
    await bench.delete("warm-up")
    await bench.until_gone("warm-up", "warm-up", seconds=60)
    await asyncio.sleep(bench.connected_at + _COLLECTOR_SECONDS - time.monotonic())


async def bring_up(bench: Harness) -> dict[str, Any]:
    """Create all runs, and wait until all are training."""
    changes, empty = bench.runs.changes, process.memory_bytes(process.OPERATOR)
    limit = 120 + _SECONDS_PER_RUN * bench.count
    async with bench.measured() as measured:
        await cluster.create_runs(bench.client, bench.names("run"))
        await bench.until_training("bring-up", bench.count, seconds=limit)
        seconds = max(run.training_at or 0.0 for run in bench.runs.seen.values()) - measured.began
    async with bench.measured() as settling:
        await asyncio.sleep(SETTLE_SECONDS)
    assert measured.cost is not None
    assert settling.cost is not None
    requests = measured.cost.requests + settling.cost.requests
    changed = bench.runs.changes - changes
    status_writes = counters.writes(requests, "trainingruns")
    events = await _own_events(bench)
    return measured.as_json(per=bench.count) | {
        "seconds": seconds,
        "operator_cpu_ms_per_run": 1000 * measured.cost.operator_cpu / bench.count,
        "server_cpu_ms_per_run": 1000 * measured.cost.server_cpu / bench.count,
        "requests_per_run": sum(requests.values()) / bench.count,
        "phase_changes": changed,
        "run_writes": status_writes,
        "events": events,
        "writes_per_state_change": (status_writes + events) / changed,
        "memory_bytes_per_run": (process.memory_bytes(process.OPERATOR) - empty) / bench.count,
        "pods_waited": waits(await bench.client.list(PODS, namespace=cluster.NAMESPACE)),
    }


async def idle(bench: Harness) -> dict[str, Any]:
    """Measure while nothing happens, and the operator has said of each run that it hears nothing from kwok's pods."""

    def unheard() -> int:
        return sum(run.is_unheard for run in bench.runs.seen.values())

    state = lambda: f"{unheard():,} of {len(bench.runs.seen):,} with Reporting=False"  # noqa: E731
    await bench.until("idle", lambda: unheard() >= len(bench.runs.seen), state, seconds=UNHEARD_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)  # the operator looks again at what it has written last
    return await rest(bench)


async def rest(bench: Harness, *, seconds: float = IDLE_SECONDS) -> dict[str, Any]:
    """Change nothing for so long; return what that costs."""
    bench.say(f"idle: {bench.runs.phases['Training']:,} of {len(bench.runs.seen):,} training, for {seconds:.0f} s")
    async with bench.measured() as measured:
        await asyncio.sleep(seconds)
    return measured.as_json()


def waits(pods: Iterable[Body]) -> dict[str, float]:
    """Return how long pods waited for the scheduler and for kwok, by times of the API, which are whole seconds."""
    scheduler, kubelet = [], []
    for pod in pods:
        bound = next((c for c in pod["status"].get("conditions") or () if c["type"] == "PodScheduled"), None)
        ran = pod["status"].get("startTime")
        if bound and ran and bound["status"] == "True":
            scheduler.append(_seconds(pod["metadata"]["creationTimestamp"], bound["lastTransitionTime"]))
            kubelet.append(_seconds(bound["lastTransitionTime"], ran))
    if not scheduler:
        return {}
    return {
        "scheduler_mean_seconds": sum(scheduler) / len(scheduler),
        "scheduler_p99_seconds": percentile(scheduler, 99),
        "kwok_mean_seconds": sum(kubelet) / len(kubelet),
        "kwok_p99_seconds": percentile(kubelet, 99),
    }


async def _own_events(bench: Harness) -> int:
    """Return how often the operator has posted an Event or counted one once more."""
    found = await bench.client.list(EVENTS, namespace=cluster.NAMESPACE, fields=_OWN_EVENTS)
    about = [event for event in found if event["involvedObject"]["name"].startswith("run-")]
    return sum(int(event.get("count") or 1) for event in about if event["involvedObject"]["kind"] == "TrainingRun")


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
