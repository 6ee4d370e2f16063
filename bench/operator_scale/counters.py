"""Counters of the API server and of processes, read at two moments, and the costs between the two."""

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.operator_scale import process
from bench.operator_scale.process import BENCH, OPERATOR, SERVER, TRAINERS
from hack.cluster import api
from hack.cluster.controlplane import AUDIT_LOG

CAUSED = ("events", "endpoints", "endpointslices", "persistentvolumes")
"""Resources whose writes follow from the necessary ones, by other controllers."""
_NOT_COUNTED = ("leases", "")
_REQUESTS = re.compile(r"^apiserver_request_total\{([^}]*)\} ([\d.e+]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_POSITIONS = b'"subresource":"pendingworkloads"'
_MOST = 12
"""Kinds of requests that a result names."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counters at one moment."""

    time: float
    cpu_seconds: dict[str, float]
    """By process."""
    requests: Counter[str]
    """By verb and resource, of all clients, without watches and leases."""
    operator_bytes: int = 0
    server_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The difference of two samples."""

    seconds: float
    cpu_seconds: dict[str, float]
    requests: Counter[str]
    operator_bytes: int = 0
    """At the end."""
    server_bytes: int = 0
    """At the end."""

    @classmethod
    def between(cls, before: Sample, after: Sample) -> "Cost":
        """Return what was spent; of a process that was started meanwhile all of its time."""
        spent = {name: cpu - before.cpu_seconds.get(name, 0.0) for name, cpu in after.cpu_seconds.items()}
        return cls(
            seconds=after.time - before.time,
            cpu_seconds={name: max(0.0, cpu) for name, cpu in spent.items()},
            requests=after.requests - before.requests,
            operator_bytes=after.operator_bytes,
            server_bytes=after.server_bytes,
        )

    @property
    def operator_cpu(self) -> float:
        """Seconds of the operator's CPU time."""
        return self.cpu_seconds.get(OPERATOR, 0.0)

    @property
    def server_cpu(self) -> float:
        """Seconds of the API server's CPU time."""
        return self.cpu_seconds.get(SERVER, 0.0)

    def as_json(self, per: int | None = None) -> dict[str, Any]:
        """Return it for the results, with requests per second, or per run if there is a number of those."""
        unit = self.seconds if per is None else per
        most = {kind: round(count / unit, 2) for kind, count in self.requests.most_common(_MOST)}
        return {
            "seconds": self.seconds,
            "operator_cpu_seconds": self.operator_cpu,
            "server_cpu_seconds": self.server_cpu,
            "operator_percent_of_core": 100 * self.operator_cpu / self.seconds,
            "server_percent_of_core": 100 * self.server_cpu / self.seconds,
            "operator_megabytes": self.operator_bytes / 1e6,
            "server_megabytes": self.server_bytes / 1e6,
            "cores_busy": {name: round(cpu / self.seconds, 3) for name, cpu in self.cpu_seconds.items()},
            "requests": sum(self.requests.values()),
            "requests_per_second": sum(self.requests.values()) / self.seconds,
            "most_per_second" if per is None else "most_per_run": most,
        }


def requests_in_metrics(text: str) -> Counter[str]:
    """Return the requests that the API server has answered, by verb and resource, from its metrics."""
    found: Counter[str] = Counter()
    for labels, number in _REQUESTS.findall(text):
        of = dict(_LABEL.findall(labels))
        resource = of.get("resource", "")
        if of.get("verb") != "WATCH" and resource not in _NOT_COUNTED:
            name = f"{resource}/{of['subresource']}" if of.get("subresource") else resource
            found[f"{of['verb']} {name}"] += int(float(number))
    return found


def writes(requests: Counter[str], *resources: str) -> int:
    """Return the number of PATCH and PUT requests on these resources and their status."""
    kinds = [f"{verb} {name}{part}" for verb in ("PATCH", "PUT") for name in resources for part in ("", "/status")]
    return sum(requests[kind] for kind in kinds)


def position_requests() -> int:
    """Return how often positions in Kueue's queues were asked for: the API server hands these on, and counts none."""
    logs = AUDIT_LOG.parent.glob(f"{AUDIT_LOG.stem}*{AUDIT_LOG.suffix}")  # it begins another one after 100 MB
    return sum(log.read_bytes().count(_POSITIONS) for log in logs)


async def sample() -> Sample:
    """Read all counters."""
    answer = await asyncio.to_thread(api.call, "GET", "/metrics")
    return Sample(
        time=time.monotonic(),
        cpu_seconds=process.cpu_seconds(),
        requests=requests_in_metrics(str(answer["text"])),
        operator_bytes=process.memory_bytes(OPERATOR),
        server_bytes=process.memory_bytes(SERVER),
    )


def busiest(cost: dict[str, Any], cores: int) -> str:
    """Return a sentence on which processes had the CPU: with all cores busy, nothing but less work is quicker."""
    busy = sorted(cost["cores_busy"].items(), key=lambda item: -item[1])
    names = {OPERATOR: "operator", SERVER: "API server", BENCH: "this bench", TRAINERS: "trainers"}
    parts = ", ".join(f"{names.get(name, name)} {cpu:.2f}" for name, cpu in busy if cpu >= 0.01)
    return f"{sum(cpu for _, cpu in busy):.2f} of {cores} cores busy: {parts}"
