"""Reports of many trainers to one operator, on a real API server with nodes and pods that kwok plays.

Each run has one pod, and each pod a token of its own that the API server has made and reviews. The trainers are a
process of their own on the same machine (bench/report_load.py): kept connections over TLS, a report every 5 s each.

    make bench-reporters RUNS=100        root only; prints a table, and one JSON object as its last line
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from bench.operator_scale.cluster import NAMESPACE, create_runs, prepare
from bench.operator_scale.harness import SETTLE_SECONDS
from bench.operator_scale.process import OPERATOR, memory_bytes, phases, start_operator, stop_operator
from bench.report_load import distribution
from hack.cluster import box, pki, processes
from hack.cluster.layout import KUBECONFIG
from hack.neighbours import kwok
from piton.contract import names
from piton.kube.client import Client
from piton.kube.resources import PODS, RUNS, Body
from piton.kube.tls import AUTHORITY, CERTIFICATE, KEY

PORT = 18443
EVERY_SECONDS = 5.0
WARM_SECONDS = 30.0
"""Time in which all have connected, and the passes that their first reports have caused are over."""
IDLE_SECONDS = 20.0
LOOK_SECONDS = 7.0
"""Time between two looks at all statuses; no divisor of the 10 s between two writes of one status."""


class Receiver:
    """Piton's operator as a process of this machine, with its progress server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pki.issue("bench-operator", "/CN=piton-operator", names=("IP:127.0.0.1",))
        shutil.copyfile(pki.certificate("bench-operator"), folder / CERTIFICATE)
        shutil.copyfile(pki.key("bench-operator"), folder / KEY)
        shutil.copyfile(pki.CA, folder / AUTHORITY)

    def start(self) -> None:
        """Start it."""
        os.environ["PITON_OPERATOR_PROGRESS_URL"] = f"https://127.0.0.1:{PORT}"
        os.environ["PITON_OPERATOR_PROGRESS_PORT"] = str(PORT)
        os.environ["PITON_OPERATOR_TLS_DIR"] = str(self.folder)
        start_operator()

    def memory_bytes(self) -> int:
        """Return its resident memory."""
        return memory_bytes(OPERATOR)

    def threads(self) -> tuple[float, float]:
        """Return the CPU seconds of its first thread, the reconcile loop, and of all others."""
        pid = processes.running(OPERATOR)
        found = {0: 0.0, 1: 0.0}
        for path in Path(f"/proc/{pid}/task").glob("*/stat"):
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name != str(pid))] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found[0], found[1]


class Bench:
    """One load, and what it does to the operator."""

    def __init__(self, client: Client, operator: Receiver, runs: int, seconds: float) -> None:
        self.client = client
        self.operator = operator
        self.runs = runs
        self.seconds = seconds
        self.zero = time.time()

    async def run(self) -> dict[str, Any]:
        """Bring up the runs, and let their trainers report."""
        self.operator.start()
        await _until(lambda: bool(phases()), seconds=60)
        await create_runs(self.client, [f"run-{number}" for number in range(self.runs)])
        await _until(lambda: phases().get("Training", 0) >= self.runs, seconds=1800)
        await asyncio.sleep(SETTLE_SECONDS)
        file = self.operator.folder / "load.json"
        file.write_text(json.dumps(await self.load()))
        idle = await self.percent(IDLE_SECONDS)
        memory = self.operator.memory_bytes()
        child = await asyncio.create_subprocess_exec(
            sys.executable, Path(__file__).with_name("report_load.py"), file, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            assert (await child.stdout.readline()).strip() == b"steady", "the trainers have failed"
            looking = asyncio.create_task(self.ages())
            busy = await self.percent(self.seconds - 1)
            looking.cancel()
            ages = await looking
            seen = json.loads((await child.stdout.read()).decode())
            last = seen.pop("last")
            lags = [last[name] / 1000 - step for name, step in (await self.shown()).items() if name in last]
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
        grown = self.operator.memory_bytes() - memory
        return {"runs": self.runs, "operator": busy, "idle": idle, "memory_bytes_per_run": grown // self.runs} | {
            "age_seconds": ages,
            "lag_seconds": distribution(lags),
            **seen,
        }

    async def load(self) -> dict[str, Any]:
        """Return the orders of the trainers' process."""
        pods = await self.client.list(PODS, namespace=NAMESPACE, labels=names.LABEL_RUN)
        tokens = await asyncio.gather(*(self.token(pod) for pod in pods))
        runs = [pod["metadata"]["labels"][names.LABEL_RUN] for pod in pods]
        return {
            "url": f"https://127.0.0.1:{PORT}",
            "ca": str(self.operator.folder / AUTHORITY),
            "namespace": NAMESPACE,
            "zero": self.zero,
            "every_seconds": EVERY_SECONDS,
            "warm_seconds": WARM_SECONDS,
            "seconds": self.seconds,
            "tokens": dict(zip(runs, tokens, strict=True)),
        }

    async def token(self, pod: Body) -> str:
        """Have a token made for the pod, as the kubelet does."""
        reference = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        spec = {"audiences": [names.TOKEN_AUDIENCE], "boundObjectRef": reference, "expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"
        answer = await self.client.request("POST", path, body=body)
        return str(answer["status"]["token"])

    async def percent(self, seconds: float) -> dict[str, float]:
        """Return the operator's CPU for so long, in percent of a core."""
        began, before = time.monotonic(), self.operator.threads()
        await asyncio.sleep(seconds)
        passed, after = time.monotonic() - began, self.operator.threads()
        loop, others = (100 * (now - then) / passed for now, then in zip(after, before, strict=True))
        return {"percent_of_core": round(loop + others, 1), "of_reconcile_loop": round(loop, 1)}

    async def ages(self) -> dict[str, float]:
        """Look at all statuses now and then; return the ages of the reports that they show, until cancelled."""
        found: list[float] = []
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                shown = await self.shown()
                found += [time.time() - self.zero - step for step in shown.values()]
        except asyncio.CancelledError:
            return distribution(found)

    async def shown(self) -> dict[str, float]:
        """Return when the report was sent that each run's status shows, in seconds since `zero`."""
        runs = await self.client.list(RUNS, namespace=NAMESPACE)
        progress = {run["metadata"]["name"]: (run.get("status") or {}).get("progress") or {} for run in runs}
        return {name: found.get("step", 0) / 1000 for name, found in progress.items()}


def table(results: dict[str, Any]) -> str:
    """Return the figures that are compared, in lines."""
    answers = results["answers"]
    lines = {
        "answer, p50, ms": results["answer_ms"]["p50"],
        "answer, p99, ms": results["answer_ms"]["p99"],
        "  trainers late by, p99, ms": results["late_ms"]["p99"],
        "first answer, p99, ms": results["first_ms"]["p99"],
        "operator, % of a core": results["operator"]["percent_of_core"],
        "  of it the reconcile loop": results["operator"]["of_reconcile_loop"],
        "  without reports": results["idle"]["percent_of_core"],
        "age of the report in the status, p50, s": results["age_seconds"]["p50"],
        "age of the report in the status, p99, s": results["age_seconds"]["p99"],
        "last report ahead of the status, p99, s": results["lag_seconds"]["p99"],
        "reports that were not taken": sum(count for status, count in answers.items() if status != "200"),
        "connections per trainer": results["connections"] / results["runs"],
        "memory per trainer, KB": results["memory_bytes_per_run"] / 1000,
    }
    return "\n".join(f"{name:<44}{value:10.2f}" for name, value in lines.items())


async def measure(runs: int, seconds: float) -> dict[str, Any]:
    """Bring up what is needed, measure, and stop the operator."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(KUBECONFIG), client_configuration=configuration)
    configuration.retries = None
    with tempfile.TemporaryDirectory() as folder:
        operator = Receiver(Path(folder))
        async with Client(configuration) as client:
            await prepare(client, runs)
            try:
                return await Bench(client, operator, runs, seconds).run()
            finally:
                stop_operator()


async def _until(true: Callable[[], bool], *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.2)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    box.up(spot_nodes=0, say=lambda text: print(f"bench: {text}", file=sys.stderr))
    try:
        kwok.start()
        results = asyncio.run(measure(given.runs, given.seconds))
    finally:
        kwok.stop()
        box.down()
    print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
