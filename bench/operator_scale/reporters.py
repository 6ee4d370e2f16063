"""The scenario in which the trainers of running runs report: over kept TLS connections, each with its pod's token."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.operator_scale import cluster, process, report_load
from bench.operator_scale.harness import SETTLE_SECONDS, Harness, percentile
from bench.operator_scale.run_watch import LateError
from hack.cluster import processes
from piton.contract import names
from piton.kube.resources import PODS, Body
from piton.kube.tls import AUTHORITY

REPORTERS_MAX = 1000
"""So many of the runs report: that is what is promised, and the trainers share the machine with what they report to."""
EVERY_SECONDS = 5.0
WARM_SECONDS = 30.0
"""Time in which all have connected, and the passes that their first reports have caused are over."""
SECONDS = 60.0
LOOK_SECONDS = 1.0
"""Time between two looks at all statuses, as the watch has shown them."""
_CHECKPOINT_SECONDS = 60.0
"""Each trainer has a new checkpoint a minute after the last: all of them once, in the middle of `SECONDS`."""
_END_SECONDS = 30.0
"""Time that the trainers have to write their results."""
_TOKEN_SECONDS = 3600


async def reporters(bench: Harness) -> dict[str, Any]:
    """Let the trainers of the first runs report for a minute; measure answers, operator, and how old statuses are."""
    memory = process.memory_bytes(process.OPERATOR)
    orders = await _orders(bench)
    count = len(orders["tokens"])
    async with _trainers(orders) as file:
        await _until_written(bench, file, seconds=WARM_SECONDS + _END_SECONDS)
        async with bench.measured() as measured:
            loop = process.reconcile_loop_cpu_seconds()
            shown = await _ages(bench, list(orders["tokens"]), orders["zero"])
            loop = process.reconcile_loop_cpu_seconds() - loop
        grown = process.memory_bytes(process.OPERATOR) - memory
        seen = await _until_written(bench, file, complete=True, seconds=_END_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)
    assert measured.cost is not None
    return measured.as_json() | {
        "reporters": count,
        "reconcile_loop_percent_of_core": 100 * loop / measured.cost.seconds,
        "memory_bytes_per_reporter": grown / count,
        "age_seconds": distribution(shown),
        **answers(seen),
    }


def answers(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the trainers have seen, for the results.

    Raises:
        LateError: no report was taken.
    """
    if not seen["answer_seconds"] or not seen["first_seconds"]:
        raise LateError(f"no report was taken: {seen['answers']}; see {processes.log_of(process.OPERATOR)}")
    return {
        "answer_ms": distribution(seen["answer_seconds"], per_unit=1000),
        "first_answer_seconds": distribution(seen["first_seconds"]),
        "trainers_late_ms": distribution(seen["late_seconds"], per_unit=1000),
        "answers": seen["answers"],
        "not_taken": sum(count for status, count in seen["answers"].items() if status != "200"),
        "first_not_taken": seen["first_not_taken"],
        "connections": seen["connections"],
    }


def distribution(values: Sequence[float], *, per_unit: float = 1.0) -> dict[str, float]:
    """Return median, 99th percentile and worst of the values, times `per_unit`."""
    found = {"p50": percentile(values, 50), "p99": percentile(values, 99), "worst": max(values)}
    return {name: value * per_unit for name, value in found.items()} | {"of": len(values)}


def chosen(pods: Sequence[Body]) -> list[Body]:
    """Return the pods that report: one for each of the first runs of the bring-up whose pod runs."""
    running = {
        pod["metadata"]["labels"][names.LABEL_RUN]: pod
        for pod in pods
        if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    }
    runs = [run for run in running if run.startswith("run-")]
    return [running[run] for run in sorted(runs, key=lambda run: int(run.removeprefix("run-")))[:REPORTERS_MAX]]


async def _orders(bench: Harness) -> dict[str, Any]:
    """Have tokens made, and return the orders of the trainers' process."""
    pods = chosen(await bench.client.list(PODS, namespace=cluster.NAMESPACE, labels=names.LABEL_RUN))
    tokens: dict[str, str] = {}

    async def token(pod: Body) -> None:
        tokens[pod["metadata"]["labels"][names.LABEL_RUN]] = await _token(bench, pod)

    await cluster.gather(token(pod) for pod in pods)
    if not tokens:
        raise LateError("no pod of a run is there to report")
    bench.say(f"reporters: {len(tokens):,} trainers report every {EVERY_SECONDS:.0f} s, for {SECONDS:.0f} s")
    return {
        "url": process.PROGRESS_URL,
        "ca": str(process.TLS_DIR / AUTHORITY),
        "namespace": cluster.NAMESPACE,
        "zero": time.time() - _CHECKPOINT_SECONDS,
        "every_seconds": EVERY_SECONDS,
        "checkpoint_seconds": _CHECKPOINT_SECONDS,
        "warm_seconds": WARM_SECONDS,
        "seconds": SECONDS,
        "tokens": tokens,
    }


async def _token(bench: Harness, pod: Body) -> str:
    """Have a token made for the pod, as the kubelet does."""
    meta = pod["metadata"]
    reference = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    spec = {"audiences": [names.TOKEN_AUDIENCE], "boundObjectRef": reference, "expirationSeconds": _TOKEN_SECONDS}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = cluster.ACCOUNTS.path(meta["namespace"], "default", "token")
    answer = await bench.client.request("POST", path, body=body)
    return str(answer["status"]["token"])


@asynccontextmanager
async def _trainers(orders: Mapping[str, Any]) -> AsyncIterator[Path]:
    """Have the trainers' process meanwhile; yield the file of its results."""
    file, results = process.TLS_DIR / "orders.json", process.TLS_DIR / "results.json"
    results.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(json.dumps(orders))
    command: list[str | Path] = [
        "env",
        f"PYTHONPATH={cluster.ROOT}",
        sys.executable,
        "-m",
        report_load.__name__,
        file,
        results,
    ]
    processes.start(process.TRAINERS, command)
    try:
        yield results
    finally:
        processes.stop(process.TRAINERS)


async def _until_written(bench: Harness, file: Path, *, seconds: float, complete: bool = False) -> dict[str, Any]:
    """Wait for the results: the empty ones of trainers that have begun, or the complete ones.

    Raises:
        LateError: they are not written in time, or the process has ended without them.
    """
    began = time.monotonic()
    while True:
        lives = processes.running(process.TRAINERS) is not None
        found = _written(file)
        if found is not None and (found or not complete):
            return found
        bench.check()
        if not lives or time.monotonic() - began > seconds:
            raise LateError(f"the trainers do not report; see {processes.log_of(process.TRAINERS)}")
        await asyncio.sleep(0.1)


def _written(file: Path) -> dict[str, Any] | None:
    return dict(json.loads(file.read_text())) if file.exists() else None


async def _ages(bench: Harness, runs: Sequence[str], zero: float) -> list[float]:
    """Look at all statuses now and then; return the ages of the reports that they show, in seconds."""
    found: list[float] = []
    end = time.monotonic() + SECONDS - 1
    while time.monotonic() < end:
        bench.check()
        now = time.time() - zero
        found += [now - bench.runs.seen[run].step / 1000 for run in runs]
        await asyncio.sleep(LOOK_SECONDS)
    return found
