"""Plain pods in the box, without Piton: for the tests of the box itself, and of the images."""

import json
from functools import cache
from typing import Any

import yaml

from hack.cluster.layout import KUBECONFIG
from support.live import LiveCluster, wait_for

Object = dict[str, Any]


@cache
def _box() -> LiveCluster:
    return LiveCluster(KUBECONFIG)


def kubectl(*words: str, stdin: str = "") -> str:
    """What kubectl prints."""
    return _box().kubectl(*words, stdin=stdin)


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
