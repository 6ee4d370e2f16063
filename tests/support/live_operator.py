"""Piton's operator on a real cluster: there, and not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from hack.install.chart import DEPLOYMENT, NAMESPACE
from support.live import LiveCluster


@contextmanager
def without_operator(cluster: LiveCluster) -> Iterator[None]:
    """No operator runs while this lasts."""
    scale = ("-n", NAMESPACE, "scale", "deployment", DEPLOYMENT)
    cluster.kubectl(*scale, "--replicas=0")
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pods", "--all", "--timeout=60s")
    try:
        yield
    finally:
        cluster.kubectl(*scale, "--replicas=1")
