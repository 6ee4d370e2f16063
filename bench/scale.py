"""Costs of the operator by the number of runs, on a real API server with nodes and pods that kwok plays.

The box's control plane is brought up with one cordoned node. Piton's operator runs as a process of its own, with the
bundled PyTorchJob controller. Each run has one pod. The floor is the time of as many raw PATCHes as a bring-up needs
writes, sent to the same API server in the same run.

    make bench-operator RUNS=100        root only; prints a table, and one JSON object as its last line
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from hack.cluster import api, box, processes
from hack.cluster.layout import KUBECONFIG, LOGS
from hack.neighbours import kwok
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists, NotFound
from piton.kube.resources import CLAIMS, JOBS, NODES, PODS, RUNS, Body, Resource

ROOT = Path(__file__).parents[1]
NAMESPACE = "bench"
PODS_PER_NODE = 100
METRICS_PORT = 18081
IDLE_SECONDS = 60.0
"""One period of the operator's resync: a shorter time would see all of it, or nothing."""
FLOOR_OBJECTS = 200
"""ConfigMaps of the floor, which are patched twice each."""
CAUSED = ("events", "endpoints", "endpointslices", "persistentvolumes")
"""Resources whose writes follow from the necessary ones, by other controllers."""
SETTLE_SECONDS = 10.0
"""Time after a scenario in which its last writes are done."""
PHASE = re.compile(r'^piton_runs\{phase="(\w+)"\} ([\d.]+)$', re.MULTILINE)
REQUESTS = re.compile(r"^apiserver_request_total\{([^}]*)\} ([\d.e+]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
TICKS = os.sysconf("SC_CLK_TCK")

CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps")
NAMESPACES = Resource(group="", version="v1", plural="namespaces", namespaced=False)
DEFINITIONS = Resource(group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions", namespaced=False)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counters at one moment."""

    time: float
    operator_cpu: float
    """Seconds of CPU."""
    server_cpu: float
    requests: Counter[str]
    """By verb and resource, of all clients, without watches and leases."""


class Operator:
    """Piton's operator as a process of this machine."""

    NAME = "bench-operator"

    def start(self) -> None:
        """Start it."""
        environment = {
            "KUBECONFIG": str(KUBECONFIG),
            "PITON_OPERATOR_ENGINE": "bundled",
            "PITON_OPERATOR_METRICS_PORT": str(METRICS_PORT),
            "PITON_OPERATOR_PROBE_PORT": "0",
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        processes.start(self.NAME, ["env", *variables, sys.executable, "-m", "piton.cli", "operator"])

    def stop(self) -> None:
        """Stop it with SIGTERM."""
        processes.stop(self.NAME, seconds=30)

    def cpu_seconds(self) -> float:
        """Return the CPU time of its process so far; 0 if it does not run."""
        return _cpu_seconds(processes.running(self.NAME))

    def memory_bytes(self) -> int:
        """Return its resident memory."""
        pid = processes.running(self.NAME)
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) if pid else None
        return int(found[1]) * 1024 if found else 0

    def phases(self) -> dict[str, int]:
        """Return the number of runs by phase, from its metrics; empty while it does not answer."""
        with suppress(OSError, HTTPException), urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
            return {phase: int(float(number)) for phase, number in PHASE.findall(answer.read().decode())}
        return {}


class Bench:
    """The scenarios, one after the other."""

    def __init__(self, client: Client, runs: int) -> None:
        self.client = client
        self.runs = runs
        self.operator = Operator()
        self.results: dict[str, Any] = {"runs": runs}

    async def sample(self) -> Sample:
        """Read all counters."""
        return Sample(
            time=time.monotonic(),
            operator_cpu=self.operator.cpu_seconds(),
            server_cpu=_cpu_seconds(processes.running("kube-apiserver")),
            requests=await self._requests(),
        )

    async def run(self) -> None:
        """Run all scenarios."""
        self.results["floor"] = await self.floor()
        self.operator.start()
        await until(lambda: "Pending" in self.operator.phases() or bool(self.operator.phases()), seconds=60)
        empty = self.operator.memory_bytes()
        self.results["bring_up"] = await self.bring_up()
        grown = self.operator.memory_bytes() - empty
        self.results["memory_bytes_per_run"] = round(grown / self.runs)
        self.results["idle"] = await self.idle()
        self.results["new_run"] = await self.new_runs()
        self.operator.stop()
        self.results["without_operator"] = await self.idle()
        self.results["restart"] = await self.restart()
        self.results["deletion"] = await self.deletion()
        self.operator.stop()

    async def floor(self) -> dict[str, float]:
        """Return the time of raw PATCHes, one object per run, 16 at once."""
        await gather(self._create_map(f"floor-{n}") for n in range(FLOOR_OBJECTS))
        began = time.monotonic()
        for version in range(2):
            body = {"metadata": {"annotations": {"bench": str(version)}}}
            await gather(
                self.client.patch(CONFIG_MAPS, f"floor-{n}", body, namespace=NAMESPACE) for n in range(FLOOR_OBJECTS)
            )
        seconds = (time.monotonic() - began) / (2 * FLOOR_OBJECTS)
        await gather(self._delete(CONFIG_MAPS, f"floor-{n}") for n in range(FLOOR_OBJECTS))
        return {"seconds_per_patch": seconds}

    async def bring_up(self) -> dict[str, Any]:
        """Create all runs, and wait until all are training."""
        before = await self.sample()
        await gather(self.client.create(RUNS, a_run(f"run-{number}")) for number in range(self.runs))
        created = time.monotonic() - before.time
        await until(lambda: self.operator.phases().get("Training", 0) >= self.runs, seconds=1800)
        seconds = time.monotonic() - before.time
        after = await self.sample()
        await asyncio.sleep(SETTLE_SECONDS)
        return {
            "create_seconds": created,
            "seconds": seconds,
            "operator_cpu_ms_per_run": 1000 * (after.operator_cpu - before.operator_cpu) / self.runs,
            "server_cpu_ms_per_run": 1000 * (after.server_cpu - before.server_cpu) / self.runs,
            "requests_per_run": {
                kind: round(count / self.runs, 2) for kind, count in difference(after, before) if count >= self.runs / 2
            },
        }

    async def idle(self) -> dict[str, Any]:
        """Measure while nothing happens."""
        before = await self.sample()
        await asyncio.sleep(IDLE_SECONDS)
        after = await self.sample()
        seconds = after.time - before.time
        found = dict(difference(after, before))
        return {
            "requests_per_second": sum(found.values()) / seconds,
            "operator_percent_of_core": 100 * (after.operator_cpu - before.operator_cpu) / seconds,
            "server_percent_of_core": 100 * (after.server_cpu - before.server_cpu) / seconds,
            "most": {kind: round(count / seconds, 2) for kind, count in list(found.items())[:6]},
        }

    async def new_runs(self) -> dict[str, float]:
        """Create a run each second beside the others; measure the time until its first status."""
        delays = []
        for number in range(10):
            name = f"late-{number}"
            began = time.monotonic()
            await self.client.create(RUNS, a_run(name))
            await self._poll(lambda name=name: self._has_status(name), every=0.02)  # type: ignore[misc]
            delays.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, 1.0 - delays[-1]))
        await until(lambda: self.operator.phases().get("Training", 0) >= self.runs + 10, seconds=120)
        await asyncio.sleep(SETTLE_SECONDS)
        return {"median_seconds": statistics.median(delays), "worst_seconds": max(delays)}

    async def restart(self) -> dict[str, float]:
        """Start the operator with all runs there; measure until it has looked at all."""
        began = time.monotonic()
        self.operator.start()
        await until(lambda: bool(self.operator.phases()), seconds=60)
        first = time.monotonic() - began
        await until(lambda: self.operator.phases().get("Training", 0) >= self.runs + 10, seconds=600)
        return {"serves_after_seconds": first, "all_seen_after_seconds": time.monotonic() - began}

    async def deletion(self) -> dict[str, float]:
        """Delete all runs, and wait until none is left."""
        before = await self.sample()
        names = [run["metadata"]["name"] for run in await self.client.list(RUNS, namespace=NAMESPACE)]
        await gather(self._delete(RUNS, name) for name in names)
        await self._poll(self._has_no_run, every=0.5)
        after = await self.sample()
        return {
            "seconds": after.time - before.time,
            "operator_cpu_ms_per_run": 1000 * (after.operator_cpu - before.operator_cpu) / len(names),
        }

    async def _has_status(self, name: str) -> bool:
        run = await self.client.get(RUNS, name, namespace=NAMESPACE)
        return bool(run and run.get("status"))

    async def _has_no_run(self) -> bool:
        return not await self.client.list(RUNS, namespace=NAMESPACE, most=1)

    async def _poll(self, true: Callable[[], Awaitable[bool]], *, every: float) -> None:
        while not await true():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(every)

    async def _requests(self) -> Counter[str]:
        """Return the requests that the API server has answered, by verb and resource."""
        text = await self._metrics()
        found: Counter[str] = Counter()
        for labels, number in REQUESTS.findall(text):
            of = dict(LABEL.findall(labels))
            if of.get("verb") != "WATCH" and of.get("resource") not in ("leases", ""):
                resource = of["resource"] + (f"/{of['subresource']}" if of.get("subresource") else "")
                found[f"{of['verb']} {resource}"] += int(float(number))
        return found

    async def _metrics(self) -> str:
        answer = await asyncio.to_thread(api.call, "GET", "/metrics")
        return str(answer["text"])

    async def _create_map(self, name: str) -> None:
        metadata = {"name": name, "namespace": NAMESPACE}
        await self.client.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    async def _delete(self, resource: Resource, name: str) -> None:
        with suppress(NotFound):
            found = await self.client.get(resource, name, namespace=NAMESPACE)
            if found is not None:
                await self.client.delete(resource, name, uid=found["metadata"]["uid"], namespace=NAMESPACE)


def a_run(name: str) -> Body:
    """Return a run of one pod, whose program does not exist: kwok plays it."""
    return {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "trainer": {"image": "none", "command": ["train"]},
            "workers": {"gpusPerNode": 0, "template": {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}},
            "checkpoint": {"volume": {"claimName": "shared"}},
        },
    }


async def gather(calls: Iterable[Awaitable[object]]) -> None:
    """Await all; the client sends 16 at once."""
    await asyncio.gather(*calls)


async def until(true: Callable[[], bool], *, seconds: float) -> None:
    """Wait until it is true.

    Raises:
        TimeoutError: it is not, for too long.
    """
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {seconds:.0f} s; see {LOGS}/{Operator.NAME}.log")
        await asyncio.sleep(0.2)


def difference(after: Sample, before: Sample) -> list[tuple[str, int]]:
    """Return the requests between two samples, the most frequent first."""
    return (after.requests - before.requests).most_common()


def _cpu_seconds(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def prepare(client: Client, runs: int) -> None:
    """Create definitions, namespace, claim and nodes; cordon the real node."""
    for path in (*(ROOT / "crds").glob("*.yaml"), *(ROOT / "charts/piton/crds").glob("*.yaml")):
        with suppress(AlreadyExists):
            await client.create(DEFINITIONS, yaml.safe_load(path.read_text()))
    with suppress(AlreadyExists):
        await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "shared",
        },
    }
    with suppress(AlreadyExists):
        await client.create(CLAIMS, claim)
    for node in await client.list(NODES):
        await client.patch(NODES, node["metadata"]["name"], {"spec": {"unschedulable": True}})
    resources = {"cpu": "64", "memory": "256Gi", "pods": str(PODS_PER_NODE + 10)}
    labels = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    for number in range(runs // PODS_PER_NODE + 2):
        node = kwok.node(f"played-{number}", labels=labels, resources=resources)
        with suppress(AlreadyExists):
            await client.create(NODES, dict(node))
    for resource in (RUNS, JOBS):
        while True:
            with suppress(NotFound):
                await client.list(resource, namespace=NAMESPACE)
                break
            await asyncio.sleep(0.2)


async def measure(runs: int) -> dict[str, Any]:
    """Bring up what is needed, run the scenarios, and stop the operator."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(KUBECONFIG), client_configuration=configuration)
    configuration.retries = None
    async with Client(configuration) as client:
        await prepare(client, runs)
        bench = Bench(client, runs)
        try:
            await bench.run()
        finally:
            bench.operator.stop()
        left = await client.list(PODS, namespace=NAMESPACE)
        bench.results["pods_left"] = len(left)
        return bench.results


def table(results: dict[str, Any]) -> str:
    """Return the figures that are compared, in lines."""
    bring, idle, without = results["bring_up"], results["idle"], results["without_operator"]
    kinds = {tuple(kind.split()): number for kind, number in bring["requests_per_run"].items()}
    writes = sum(
        number for (verb, resource), number in kinds.items() if verb not in ("GET", "LIST") and resource not in CAUSED
    )
    floor = results["floor"]["seconds_per_patch"] * writes * results["runs"]
    added = idle["server_percent_of_core"] - without["server_percent_of_core"]
    lines = {
        "bring-up of all, s": bring["seconds"],
        "  over as many raw PATCHes": bring["seconds"] / floor,
        "operator CPU per run, ms": bring["operator_cpu_ms_per_run"],
        "API server CPU per run, ms": bring["server_cpu_ms_per_run"],
        "idle: requests per second": idle["requests_per_second"] - without["requests_per_second"],
        "idle: operator, % of a core": idle["operator_percent_of_core"],
        "idle: API server above none, % of a core": added,
        "new run to first status, median s": results["new_run"]["median_seconds"],
        "new run to first status, worst s": results["new_run"]["worst_seconds"],
        "restart until all are seen, s": results["restart"]["all_seen_after_seconds"],
        "deletion of all, s": results["deletion"]["seconds"],
        "memory per run, KB": results["memory_bytes_per_run"] / 1000,
    }
    return "\n".join(f"{name:<44}{value:10.2f}" for name, value in lines.items())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    began = time.monotonic()
    box.up(spot_nodes=0, say=lambda text: print(f"bench: {text}", file=sys.stderr))
    try:
        kwok.start()
        results = asyncio.run(measure(given.runs))
    finally:
        kwok.stop()
        box.down()
    print(table(results))
    print(json.dumps(results | {"wall_seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
