"""Plain pods in the box, without Piton: for the tests of the box itself, and of the images."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import yaml

from hack.cluster.layout import KUBECONFIG, Node
from piton.rendering.affinity import ZONE
from support.live import LiveCluster, wait_for

Object = dict[str, Any]


@cache
def _box() -> LiveCluster:
    return LiveCluster(KUBECONFIG)


def kubectl(*words: str, stdin: str = "") -> str:
    """What kubectl prints."""
    return _box().kubectl(*words, stdin=stdin)


@contextmanager
def in_one_zone() -> Iterator[None]:
    """While it lasts, both spot nodes say that they are in the zone of the first: an attempt may have both."""
    first, second = Node(number=1), Node(number=2)
    label = ("label", "node", second.name, "--overwrite")
    kubectl(*label, f"{ZONE}={first.zone}")
    try:
        yield
    finally:
        kubectl(*label, f"{ZONE}={second.zone}")


def apply(namespace: str, *objects: Object) -> None:
    kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(objects))


def status(namespace: str, pod: str) -> Object:
    found: Object = json.loads(kubectl("get", "pod", pod, "-n", namespace, "-o", "json"))["status"]
    return found


def ended(namespace: str, pod: str) -> Object:
    """How its container ended."""
    final = ("Succeeded", "Failed")
    wait_for(
        lambda: status(namespace, pod)["phase"] in final,
        f"the end of {pod}",
        seconds=120,
        say=lambda: str(status(namespace, pod)),
    )
    found: Object = status(namespace, pod)["containerStatuses"][0]["state"]["terminated"]
    return found


def logs(namespace: str, pod: str) -> str:
    return kubectl("logs", pod, "-n", namespace)


def make_namespace(test: str) -> str:
    """One for a test of this name."""
    name = test.replace("_", "-")[:40].strip("-")
    kubectl("create", "namespace", name)
    return name


def remove_namespace(name: str) -> None:
    """With all pods, at once; nobody waits for the rest."""
    kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0")
    kubectl("delete", "namespace", name, "--wait=false")
