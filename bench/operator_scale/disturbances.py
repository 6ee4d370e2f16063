"""Scenarios in which something happens beside all runs: new runs, notices, lost nodes, a restart, the end of all."""

import asyncio
import time
from collections import Counter
from typing import Any

from bench.operator_scale import cluster, process
from bench.operator_scale.harness import SETTLE_SECONDS, START_SECONDS, Harness, following, spread
from bench.operator_scale.run_watch import LateError
from hack.cluster import processes
from piton.contract import names
from piton.kube.resources import JOBS, NODES, PODS, RUNS

NOTICES = 20
_NOTICE = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
_NOTICE_EVERY_SECONDS = 0.5
_ASK_SECONDS = 0.5
_LATE_SECONDS = 180.0
"""Limit for a scenario, beside what each run takes."""
_SECONDS_PER_RUN = 0.6


def new_run_count(runs: int) -> int:
    """Return how many runs are added, one a second: enough for a 99th percentile where that is a goal."""
    return 100 if runs >= 1000 else 60 if runs >= 300 else 30


async def new_runs(bench: Harness) -> dict[str, Any]:
    """Create a run each second beside the others; measure the time until its first status, and until it trains."""
    late, created = bench.names("late", new_run_count(bench.count)), {}
    before = bench.runs.phases["Training"]
    began = time.monotonic()
    async with bench.measured() as measured:
        for number, name in enumerate(late):
            await asyncio.sleep(max(0.0, began + number - time.monotonic()))
            await bench.client.create(RUNS, cluster.a_run(name))
            created[name] = time.monotonic()
        await bench.until_training("new runs", before + len(late), seconds=_LATE_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)
    seen = [(bench.runs.seen[name], created[name]) for name in late]
    first = [max(0.0, (run.first_status_at or 0.0) - since) for run, since in seen]
    training = [max(0.0, (run.training_at or 0.0) - since) for run, since in seen]
    return measured.as_json() | {"first_status": spread(first), "training": spread(training)}


async def notices(bench: Harness) -> dict[str, Any]:
    """Taint nodes that have one run each; measure the time until its status says so, and until its job is deleted."""
    noticed, deleted_at = bench.names("noticed", NOTICES), dict[str, float]()
    before = bench.runs.phases["Training"]

    def job_event(kind: str, job: dict[str, Any], now: float) -> None:
        if kind == "DELETED" or job["metadata"].get("deletionTimestamp"):
            deleted_at.setdefault(job["metadata"]["labels"][names.LABEL_RUN], now)

    for name in noticed:
        await cluster.create_node(bench.client, name, noticed=True)
        await bench.client.create(RUNS, cluster.a_run(name, node=name))
    await bench.until_training("notices", before + NOTICES, seconds=START_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)
    async with following(bench, job_event, resource=JOBS, labels=f"{names.LABEL_RUN} in ({','.join(noticed)})"):
        tainted_at = await _taint(bench, noticed)
        state = lambda: f"{len(deleted_at)} of {NOTICES} jobs deleted"  # noqa: E731
        await bench.until("notices", lambda: len(deleted_at) == NOTICES, state, seconds=_LATE_SECONDS)
    seen = {name: bench.runs.seen[name] for name in noticed}
    answered = {name: min(run.stopping_at or deleted_at[name], deleted_at[name]) for name, run in seen.items()}
    await bench.delete("noticed-")
    await bench.until_gone("notices", "noticed-", seconds=_LATE_SECONDS)
    return {
        "stopping": spread([max(0.0, answered[name] - tainted_at[name]) for name in noticed]),
        "job_deleted": spread([max(0.0, deleted_at[name] - tainted_at[name]) for name in noticed]),
    }


async def lost_nodes(bench: Harness) -> dict[str, Any]:
    """Delete a tenth of the nodes with their pods at once; wait until all runs on them train in a later attempt."""
    nodes = cluster.node_names(bench.count)
    lost = set(nodes[: max(1, len(nodes) // 10)])
    pods = [p for p in await bench.client.list(PODS, namespace=cluster.NAMESPACE) if p["spec"].get("nodeName") in lost]
    hit = [pod["metadata"]["labels"][names.LABEL_RUN] for pod in pods]
    attempts = {name: bench.runs.seen[name].attempt for name in hit}
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}
    machines = {name: str((await bench.client.get(NODES, name) or {})["metadata"]["uid"]) for name in sorted(lost)}

    def back() -> int:
        runs = [(bench.runs.seen[name], attempts[name]) for name in hit]
        return sum(run.attempt > before and run.phase == "Training" for run, before in runs)

    async with bench.measured() as measured:
        await cluster.delete_all(bench.client, NODES, machines)
        await cluster.delete_all(bench.client, PODS, uids, grace_seconds=0)
        state = lambda: f"{back():,} of {len(hit):,} runs train again"  # noqa: E731
        await bench.until(
            "lost nodes", lambda: back() == len(hit), state, seconds=_LATE_SECONDS + _SECONDS_PER_RUN * bench.count
        )
        seconds = max(bench.runs.seen[name].phase_at for name in hit) - measured.began
    await asyncio.sleep(SETTLE_SECONDS)
    assert measured.cost is not None
    return measured.as_json(per=len(hit)) | {
        "seconds": seconds,
        "nodes": len(lost),
        "runs": len(hit),
        "verdicts": Counter(bench.runs.seen[name].ended for name in hit),
        "operator_cpu_ms_per_run": 1000 * measured.cost.operator_cpu / len(hit),
        "requests_per_run": sum(measured.cost.requests.values()) / len(hit),
    }


async def restart(bench: Harness) -> dict[str, Any]:
    """Start the operator with all runs there and one that is new; measure until it decides, and until it knows all."""
    await cluster.create_runs(bench.client, ["first"])
    count = len(bench.runs.seen | {"first": None})
    async with bench.measured() as measured:
        serves = await bench.start_operator()
        all_known = await _seconds_until_known(bench, count)
    await bench.until_training("restart", count, seconds=_LATE_SECONDS)
    first = (bench.runs.seen["first"].first_status_at or 0.0) - measured.began
    times = {"serves_seconds": serves, "first_decision_seconds": first, "all_known_seconds": serves + all_known}
    return measured.as_json() | times


async def deletion(bench: Harness) -> dict[str, Any]:
    """Delete all runs, and wait until none is left."""
    limit = _LATE_SECONDS + _SECONDS_PER_RUN * bench.count
    async with bench.measured() as measured:
        count = await bench.delete("")
        await bench.until_gone("deletion", "", seconds=limit)
    await bench.until_cleared(seconds=limit)
    assert measured.cost is not None
    return measured.as_json(per=count) | {"operator_cpu_ms_per_run": 1000 * measured.cost.operator_cpu / count}


async def _taint(bench: Harness, nodes: list[str]) -> dict[str, float]:
    """Taint one node after the other as Karpenter does; return when the API server had each."""
    tainted_at = {}
    for name in nodes:
        await bench.client.patch(NODES, name, {"spec": {"taints": [cluster.own_taint(), _NOTICE]}})
        tainted_at[name] = time.monotonic()
        await asyncio.sleep(_NOTICE_EVERY_SECONDS)
    return tainted_at


async def _seconds_until_known(bench: Harness, count: int) -> float:
    """Wait until the operator's metrics show all runs; asked twice a second, since that costs the operator CPU time."""
    began, known = time.monotonic(), 0
    while known < count:
        await asyncio.sleep(_ASK_SECONDS)
        answer = await asyncio.to_thread(process.known_runs)
        known = answer or known
        bench.say(f"restart: the operator knows {known:,} of {count:,} runs")
        if time.monotonic() - began > _LATE_SECONDS + _SECONDS_PER_RUN * bench.count:
            raise LateError(f"it knows {known:,} of {count:,} runs; see {processes.log_of(process.OPERATOR)}")
    return time.monotonic() - began
