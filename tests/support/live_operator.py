"""Piton's operator on a real cluster: there, not there, or as processes of this machine that may be killed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hack.cluster import processes
from hack.cluster.layout import KUBECONFIG
from hack.install.chart import DEPLOYMENT, NAMESPACE
from support.live import LiveCluster, wait_for

LEASE = "piton-replicas"
"""Not that of the chart: its operators are away meanwhile, and their lease may be held still."""


@contextmanager
def without_operator(cluster: LiveCluster) -> Iterator[None]:
    """No operator runs while this lasts."""
    scale = ("-n", NAMESPACE, "scale", "deployment", DEPLOYMENT)
    replicas = cluster.kubectl("-n", NAMESPACE, "get", "deployment", DEPLOYMENT, "-o", "jsonpath={.spec.replicas}")
    try:
        cluster.kubectl(*scale, "--replicas=0")
        # A kubelet that fails to end a pod, because it has ended, tries again a minute later.
        cluster.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pods", "--all", "--timeout=150s")
        yield
    finally:
        cluster.kubectl(*scale, f"--replicas={replicas}")
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=150s")


def holder(cluster: LiveCluster, lease: str = DEPLOYMENT) -> str:
    """The pod that holds the lease; nothing where nobody does."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{lease}"
    spec = (cluster.get(path) or {}).get("spec") or {}
    return str(spec.get("holderIdentity") or "").rpartition("_")[0]


class Replicas:
    """Two operators as processes, since a kubelet would start what it finds dead before anybody takes over."""

    def __init__(self, cluster: LiveCluster) -> None:
        self._cluster = cluster
        self._started: list[str] = []

    def start(self) -> str:
        """Start one more, and wait until it watches; its name."""
        name = f"replica-{len(self._started)}"
        environment = {
            "KUBECONFIG": str(KUBECONFIG),
            "PITON_OPERATOR_ENGINE": "bundled",
            "PITON_OPERATOR_METRICS_PORT": "0",
            "PITON_OPERATOR_PROBE_PORT": "0",
            "PITON_OPERATOR_LEASE": LEASE,
            "PITON_OPERATOR_POD_NAME": name,
            "PITON_OPERATOR_POD_NAMESPACE": NAMESPACE,
        }
        variables = [f"{key}={value}" for key, value in environment.items()]
        log = processes.log_of(name)
        earlier = len(log.read_text()) if log.exists() else 0  # of an earlier test
        processes.start(name, ["env", *variables, sys.executable, "-m", "piton.cli", "operator"])
        self._started.append(name)

        def stands() -> bool:
            said = log.read_text()[earlier:]
            return any(f'"message": "{role}"' in said for role in ("leader", "standby"))

        wait_for(stands, f"{name} watches", seconds=60)
        return name

    def leader(self) -> str:
        """The one that holds the lease."""
        return wait_for(lambda: holder(self._cluster, LEASE), "a leader", seconds=60)

    def take_over_seconds(self, kill: signal.Signals, then: Callable[[], None]) -> float:
        """Seconds until another one leads after the leader got this signal. A new one takes the standby's place."""
        leader = self.leader()
        pid = processes.running(leader)
        assert pid is not None, f"{leader} holds the lease, and does not run; see {processes.log_of(leader)}"
        began = time.monotonic()
        os.kill(pid, kill)
        then()
        wait_for(
            lambda: holder(self._cluster, LEASE) not in ("", leader), f"nobody takes over from {leader}", seconds=60
        )
        seconds = time.monotonic() - began
        self.start()
        return seconds

    def stop(self) -> None:
        """Stop those that run."""
        for name in self._started:
            processes.stop(name, seconds=10)


@contextmanager
def two_replicas(cluster: LiveCluster) -> Iterator[Replicas]:
    """In the place of the chart's."""
    replicas = Replicas(cluster)
    with without_operator(cluster):
        try:
            for _ in range(2):
                replicas.start()
            replicas.leader()
            yield replicas
        finally:
            replicas.stop()
            cluster.kubectl("-n", NAMESPACE, "delete", "lease", LEASE, "--ignore-not-found")
