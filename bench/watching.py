"""Costs of watching: kopf with its index beside the reflector of the operator, on the same events.

An emulated API server serves pods of 8 KB, changes each of them some times, and takes some away. Each client runs in a
process of its own and reports its CPU time and its memory; the server's are not counted.

    PYTHONPATH=tests python -m bench.watching --pods 500 --changes 4
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kmock
import kopf
from kubernetes.aio.client import Configuration

from piton.contract import names
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.resources import PODS as WATCHED
from support.apiserver import PODS, ApiServer, Body
from support.cluster import FakeClock

PAD = "x" * 400
"""An environment variable of each pod; twenty of them."""


def a_pod(number: int, change: int = 0) -> Body:
    """Return a pod of about 8 KB; each change is one of its status."""
    env = [{"name": f"VARIABLE_{index}", "value": PAD} for index in range(20)]
    container = {"name": "pytorch", "image": "trainer:1", "env": env}
    return {
        "metadata": {
            "name": f"pod-{number}",
            "namespace": "team",
            "labels": {names.LABEL_RUN: f"run-{number}", names.LABEL_ATTEMPT: "1"},
        },
        "spec": {"nodeName": f"node-{number}", "containers": [container]},
        "status": {"phase": "Running", "message": str(change)},
    }


# --- the clients ------------------------------------------------------------------------------------------------------


def report(**facts: object) -> None:
    """Print one line for the parent."""
    print(json.dumps(facts), flush=True)


def usage() -> dict[str, float]:
    """Return the CPU seconds and the memory of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    rss = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "megabytes": int(rss.split()[1]) / 1000}


class Counting:
    """Reports when all pods are known, and when all have changed for the last time."""

    def __init__(self, pods: int, changes: int) -> None:
        self._pods, self._last = pods, str(changes)
        self._known: set[str] = set()
        self._done: set[str] = set()

    def see(self, name: str, status: Mapping[str, Any]) -> None:
        """Count one state."""
        if name not in self._known:
            self._known.add(name)
            if len(self._known) == self._pods:
                report(event="listed", **usage())
        if status.get("message") == self._last and name not in self._done:
            self._done.add(name)
            if len(self._done) == self._pods:
                report(event="done", **usage())


async def watch_by_reflector(url: str, counting: Counting) -> None:
    """Watch pods as the operator does."""
    configuration = Configuration(host=url)
    configuration.retries = None
    configuration.client_session_kwargs = {"trust_env": False}
    async with Client(configuration) as client:
        kinds = [kind for kind in watched_kinds(engine=False) if kind.resource == WATCHED]
        cache = ClusterCache(client, asyncio.get_running_loop(), kinds)
        cache.subscribe(
            WATCHED, lambda change: counting.see(str(change.body["metadata"]["name"]), change.body["status"])
        )
        report(event="started", **usage())
        await cache.run()


async def watch_by_kopf(url: str, counting: Counting) -> None:
    """Watch pods with an event handler and an index of kopf's."""
    registry = kopf.OperatorRegistry()
    kind = (WATCHED.group, WATCHED.version, WATCHED.plural)

    @kopf.index(*kind, registry=registry)
    async def by_run(namespace: str | None, labels: Mapping[str, str], body: kopf.Body, **_: Any) -> Any:
        return {(namespace, labels[names.LABEL_RUN]): dict(body)}

    @kopf.on.event(*kind, registry=registry)
    async def changed(name: str, status: Mapping[str, Any], **_: Any) -> None:
        counting.see(name, status)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=url)

    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    report(event="started", **usage())
    identity: Any = "bench"
    await kopf.operator(registry=registry, settings=settings, standalone=True, clusterwide=True, identity=identity)


CLIENTS: dict[str, Callable[[str, Counting], Any]] = {"reflector": watch_by_reflector, "kopf": watch_by_kopf}


# --- the parent -------------------------------------------------------------------------------------------------------


async def measure(name: str, pods: int, changes: int) -> dict[str, float]:
    """Return what one client used for the list, per pod, and for the changes, per event."""
    async with ApiServer(now=FakeClock().now) as server, kmock.Server(server):
        for number in range(pods):
            await server.put(PODS, a_pod(number))
        url = str(server.servers[0].url).rstrip("/")
        command = [sys.executable, "-m", "bench.watching", "--client", name, "--url", url]
        process = await asyncio.create_subprocess_exec(
            *command, "--pods", str(pods), "--changes", str(changes), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            started, listed = await _line(process.stdout), await _line(process.stdout)
            began = time.monotonic()
            for change in range(1, changes + 1):
                for number in range(pods):
                    await server.put(PODS, {**(server.find(PODS, f"pod-{number}", "team") or {}), **_status(change)})
            done = await _line(process.stdout)
        finally:
            process.kill()
            await process.wait()
    return {
        "list_cpu_us_per_pod": 1e6 * (listed["cpu_seconds"] - started["cpu_seconds"]) / pods,
        "event_cpu_us": 1e6 * (done["cpu_seconds"] - listed["cpu_seconds"]) / (pods * changes),
        "kilobytes_per_pod": 1000 * (done["megabytes"] - started["megabytes"]) / pods,
        "seconds": time.monotonic() - began,
    }


def _status(change: int) -> Body:
    return {"status": {"phase": "Running", "message": str(change)}}


async def _line(stream: asyncio.StreamReader) -> dict[str, Any]:
    text = await asyncio.wait_for(stream.readline(), 120)
    found: dict[str, Any] = json.loads(text)
    return found


def main() -> None:
    """Measure each client, by turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--changes", type=int, default=4)
    parser.add_argument("--client", choices=CLIENTS)
    parser.add_argument("--url")
    given = parser.parse_args()
    if given.client:
        asyncio.run(CLIENTS[given.client](given.url, Counting(given.pods, given.changes)))
        return
    found = {name: [asyncio.run(measure(name, given.pods, given.changes)) for _ in range(2)] for name in CLIENTS}
    for name, rounds in found.items():
        for figures in rounds:
            print(f"{name:<12}" + "  ".join(f"{key} {value:8.1f}" for key, value in figures.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
