"""Piton's operator on a real cluster: there, and not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from hack.install.chart import DEPLOYMENT, NAMESPACE
from support.live import LiveCluster


@contextmanager
def without_operator(cluster: LiveCluster) -> Iterator[None]:
    """No operator runs while this lasts."""
    scale = ("-n", NAMESPACE, "scale", "deployment", DEPLOYMENT)
    try:
        cluster.kubectl(*scale, "--replicas=0")
        # A kubelet that fails to end a pod, because it has ended, tries again a minute later.
        cluster.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pods", "--all", "--timeout=150s")
        yield
    finally:
        cluster.kubectl(*scale, "--replicas=1")
