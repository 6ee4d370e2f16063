"""Simulated trainers that report to one operator: each with its own token, address and kept connection over TLS.

A process of its own, started by `reporters.py` with the names of two files: its orders, and its results, both JSON. It
writes the results when the first reports are over, with nothing in them, and again in the end. The step of a report is
its time in milliseconds, so a status tells how old the report is that it shows.
"""

import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from piton.kube.report_connections import allow_files

TIMEOUT_SECONDS = 5.0
"""As the trainer has it."""
ADDRESSES = 250
"""Loopback addresses per network of them: each trainer has its own, as a pod has."""


@dataclass(kw_only=True)
class Results:
    """Times of the answers in seconds, and the answers that were none."""

    first: list[float] = field(default_factory=list)
    """First reports: with the handshake, the review of the token, and the way from the pod to its run."""
    steady: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """By how much this process itself was late with a report: the machine's part in the times above."""
    statuses: Counter[str] = field(default_factory=Counter)
    connections: int = 0


class Reporter:
    """One trainer."""

    def __init__(self, number: int, run: str, token: str, load: dict[str, Any], results: Results) -> None:
        self._address = f"127.7.{number // ADDRESSES}.{number % ADDRESSES + 1}"
        self._url = f"{load['url']}/namespaces/{load['namespace']}/trainingruns/{run}/status"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._load = load
        self._results = results
        self._trust = ssl.create_default_context(cafile=load["ca"])

    async def run(self) -> None:
        """Report until cancelled, the first time within one interval."""
        every = float(self._load["every_seconds"])
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._count)
        connector = aiohttp.TCPConnector(
            limit=1, ssl=self._trust, local_addr=(self._address, 0), keepalive_timeout=10 * every
        )
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace]) as session:
            due = time.monotonic() + random.uniform(0, every)
            times = self._results.first
            while True:
                await asyncio.sleep(due - time.monotonic())
                self._results.late.append(time.monotonic() - due)
                due += every
                seconds = await self._report(session)
                if seconds is not None:
                    times.append(seconds)
                    times = self._results.steady

    async def _report(self, session: aiohttp.ClientSession) -> float | None:
        """Return the seconds until the answer; None: it was not taken."""
        step = int((time.time() - self._load["zero"]) * 1000)
        metrics = [{"name": "step", "value": str(step)}, {"name": "loss", "value": str(random.random())}]
        each = int(1000 * self._load["checkpoint_seconds"])
        metrics.append({"name": "checkpoint_step", "value": str(step // each * each)})
        body = {"trainerStatus": {"lastUpdatedTime": "2026-11-21T10:30:45+00:00", "metrics": metrics}}
        began = time.perf_counter()
        try:
            async with session.post(self._url, data=json.dumps(body), headers=self._headers) as answer:
                await answer.read()
                self._results.statuses[str(answer.status)] += 1
                if answer.status != 200:
                    return None
                return time.perf_counter() - began
        except (aiohttp.ClientError, OSError) as error:
            self._results.statuses[type(error).__name__] += 1
            return None

    async def _count(self, *_: object) -> None:
        self._results.connections += 1


async def report(load: dict[str, Any], file: Path) -> None:
    """Report for so long, and write what was seen."""
    results = Results()
    tasks = [
        asyncio.create_task(Reporter(number, run, token, load, results).run())
        for number, (run, token) in enumerate(load["tokens"].items())
    ]
    await asyncio.sleep(load["warm_seconds"])
    results.steady.clear()
    results.late.clear()
    failed_first = sum(count for status, count in results.statuses.items() if status != "200")
    results.statuses.clear()
    write(file, {})
    await asyncio.sleep(load["seconds"])
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    found = {
        "first_seconds": results.first,
        "first_not_taken": failed_first,
        "answer_seconds": results.steady,
        "late_seconds": results.late,
        "answers": dict(results.statuses),
        "connections": results.connections,
    }
    write(file, found)


def write(file: Path, found: dict[str, Any]) -> None:
    """Write the results so that a reader finds all of them or those before."""
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(found))
    aside.rename(file)


def main() -> None:
    """Read the orders that the command line names, report, and write the results."""
    orders, results = (Path(name) for name in sys.argv[1:])
    load = json.loads(orders.read_text())
    allow_files(2 * len(load["tokens"]))
    asyncio.run(report(load, results))


if __name__ == "__main__":
    main()
