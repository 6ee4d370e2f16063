"""Kueue's part in a cluster of tests: one ClusterQueue with a quota of GPUs, preemption by priority, nothing more.

As the real one, it keeps a Workload's quota while it is evicted, until somebody takes the reservation off.
"""

from datetime import datetime
from typing import Any

from support.apiserver import FLAVORS, PRIORITY_CLASSES, VISIBLE_QUEUES, WORKLOADS, Body
from support.cluster import Cluster

FLAVOR = {"nodeLabels": {"pool": "spot-a"}, "tolerations": [{"key": "pool", "operator": "Exists"}]}


class Kueue:
    """Acts once per step of the cluster."""

    def __init__(self, cluster: Cluster, *, gpus: int = 8) -> None:
        self.server = cluster.server
        self.clock = cluster.clock
        self.gpus = gpus
        cluster.neighbours.append(self.step)

    async def install(self) -> None:
        """A flavor and two priority classes."""
        await self.server.put(FLAVORS, {"metadata": {"name": "spot"}, "spec": FLAVOR})
        for name, value in (("low", 1), ("high", 100)):
            await self.server.put(PRIORITY_CLASSES, {"metadata": {"name": name}, "value": value})

    async def step(self) -> None:
        """Admit whom there is quota for, and take it from less important ones."""
        for body in self._waiting():
            free = self.gpus - sum(_gpus(other) for other in self.server.all(WORKLOADS) if _is(other, "QuotaReserved"))
            if _gpus(body) <= free:
                await self._admit(body)
            else:
                await self._set(body, QuotaReserved=("False", "Pending", f"{_gpus(body) - free} more GPUs needed"))
                await self._preempt(body, _gpus(body) - free)
        await self._show()

    async def evict(self, body: Body, message: str, reason: str = "Preempted") -> None:
        await self._set(body, Evicted=("True", reason, message))

    def of(self, run: str) -> Body | None:
        """A run's Workload."""
        return self.server.find(WORKLOADS, f"trainingrun-{run}", "team")

    def _waiting(self) -> list[Body]:
        found = [w for w in self.server.all(WORKLOADS) if not _is(w, "QuotaReserved") and w["spec"].get("active", True)]
        return sorted(found, key=lambda w: (-w["spec"].get("priority", 0), w["metadata"]["creationTimestamp"]))

    async def _admit(self, body: Body) -> None:
        flavors = {"name": body["spec"]["podSets"][0]["name"], "flavors": {"nvidia.com/gpu": "spot"}}
        body.setdefault("status", {})["admission"] = {"clusterQueue": "gpus", "podSetAssignments": [flavors]}
        held, admitted = ("True", "QuotaReserved", "Quota reserved"), ("True", "Admitted", "The workload is admitted")
        await self._set(body, QuotaReserved=held, Admitted=admitted, Evicted=("False", "QuotaReserved", ""))

    async def _preempt(self, body: Body, needed: int) -> None:
        for other in self.server.all(WORKLOADS):
            less = other["spec"].get("priority", 0) < body["spec"].get("priority", 0)
            if needed > 0 and less and _is(other, "QuotaReserved"):
                needed -= _gpus(other)
                if not _is(other, "Evicted"):
                    await self.evict(other, f"Preempted to accommodate {body['metadata']['name']}")

    async def _show(self) -> None:
        items = [
            {"metadata": {"name": body["metadata"]["name"]}, "positionInClusterQueue": place}
            for place, body in enumerate(self._waiting())
        ]
        await self.server.put(VISIBLE_QUEUES, {"metadata": {"name": "gpus", "namespace": "team"}, "items": items})

    async def _set(self, body: Body, **conditions: tuple[str, str, str]) -> None:
        status: dict[str, Any] = body.setdefault("status", {})
        for kind, (value, reason, message) in conditions.items():
            old = next((c for c in status.get("conditions", []) if c["type"] == kind), None)
            since = old["lastTransitionTime"] if old and old["status"] == value else _text(self.clock.now())
            new = {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since}
            status["conditions"] = [*(c for c in status.get("conditions", []) if c["type"] != kind), new]
        await self.server.put(WORKLOADS, body)


def _gpus(body: Body) -> int:
    (pods,) = body["spec"]["podSets"]
    (container,) = pods["template"]["spec"]["containers"]
    return int(pods["count"]) * int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0))


def _is(body: Body, kind: str) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
