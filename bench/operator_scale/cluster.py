"""Objects that the scenarios need: definitions, namespaces, a claim, nodes that kwok plays, and runs."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from hack.neighbours import kwok
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists, NotFound
from piton.kube.resources import CLAIMS, JOBS, NODES, RUNS, Body, Resource

ROOT = Path(__file__).parents[2]
NAMESPACE = "bench"
FLOOR_NAMESPACE = "bench-floor"
QUOTA_NAMESPACE = "bench-quota"
QUEUE_NAMESPACE = "bench-queue"
RUNS_PER_NODE = 25
NODES_LEAST = 20
"""So many that a tenth of them is more than one."""
NOTICED = "bench.local/noticed"
"""Label and taint of nodes that have one run each."""
_PODS_PER_NODE = 110

ACCOUNTS = Resource(group="", version="v1", plural="serviceaccounts")
CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps")
NAMESPACES = Resource(group="", version="v1", plural="namespaces", namespaced=False)
DEFINITIONS = Resource(group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions", namespaced=False)


async def prepare(client: Client, runs: int) -> None:
    """Create definitions, namespaces with a claim each, and nodes; cordon the real node."""
    for path in (*(ROOT / "crds").glob("*.yaml"), *(ROOT / "charts/piton/crds").glob("*.yaml")):
        with suppress(AlreadyExists):
            await client.create(DEFINITIONS, yaml.safe_load(path.read_text()))
    for name in (NAMESPACE, FLOOR_NAMESPACE, QUOTA_NAMESPACE, QUEUE_NAMESPACE):
        await _create_namespace(client, name)
    for node in await client.list(NODES):
        await client.patch(NODES, node["metadata"]["name"], {"spec": {"unschedulable": True}})
    for name in node_names(runs):
        await create_node(client, name)
    for resource in (RUNS, JOBS):
        await _served(client, resource)


def node_names(runs: int) -> list[str]:
    """Return the names of the nodes for so many runs."""
    return [f"played-{number:04}" for number in range(max(NODES_LEAST, -(-runs // RUNS_PER_NODE)))]


async def create_node(client: Client, name: str, *, noticed: bool = False) -> None:
    """Create a node that kwok plays; one that is to be noticed takes no other pods."""
    labels = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"} | ({NOTICED: name} if noticed else {})
    resources = {"cpu": "64", "memory": "256Gi", "pods": str(_PODS_PER_NODE)}
    node = dict(kwok.node(name, labels=labels, resources=resources))
    if noticed:
        node["spec"] = {"taints": [own_taint()]}
    with suppress(AlreadyExists):
        await client.create(NODES, node)


def own_taint() -> dict[str, str]:
    """Return the taint that keeps other pods off a node with one run."""
    return {"key": NOTICED, "value": "true", "effect": "NoSchedule"}


def a_run(
    name: str,
    *,
    namespace: str = NAMESPACE,
    gpus: int = 0,
    node: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Body:
    """Return a run of one pod, whose program does not exist: kwok plays it."""
    template: dict[str, Any] = {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
    if node is not None:
        template["nodeSelector"] = {NOTICED: node}
        template["tolerations"] = [{"key": NOTICED, "operator": "Exists"}]
    return {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {
            "trainer": {"image": "none", "command": ["train"]},
            "workers": {"gpusPerNode": gpus, "template": template},
            "checkpoint": {"volume": {"claimName": "shared"}},
        },
    }


async def create_runs(
    client: Client,
    names: Iterable[str],
    *,
    namespace: str = NAMESPACE,
    gpus: int = 0,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Create runs of one pod, 16 at once."""
    await gather(client.create(RUNS, a_run(name, namespace=namespace, gpus=gpus, labels=labels)) for name in names)


async def delete_all(
    client: Client,
    resource: Resource,
    uids: dict[str, str],
    *,
    namespace: str = NAMESPACE,
    grace_seconds: int | None = None,
) -> None:
    """Delete objects of a namespace by name and uid, 16 at once; what is gone already is fine."""

    async def delete(name: str, uid: str) -> None:
        with suppress(NotFound):
            await client.delete(resource, name, uid=uid, namespace=namespace, grace_seconds=grace_seconds)

    await gather(delete(name, uid) for name, uid in uids.items())


async def gather(calls: Iterable[Awaitable[object]]) -> None:
    """Await all; the client sends 16 at once."""
    await asyncio.gather(*calls)


async def _create_namespace(client: Client, name: str) -> None:
    with suppress(AlreadyExists):
        await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    await _has_account(client, name)
    with suppress(AlreadyExists):
        await client.create(CLAIMS, _claim(name))


def _claim(namespace: str) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "shared",
        },
    }


async def _has_account(client: Client, namespace: str) -> None:
    """Wait until the namespace has its service account: before that it takes no pods."""
    while await client.get(ACCOUNTS, "default", namespace=namespace) is None:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.1)


async def _served(client: Client, resource: Resource) -> None:
    """Wait until the API server serves this kind, which was defined a moment ago."""
    while True:
        with suppress(NotFound):
            await client.list(resource, namespace=NAMESPACE, most=1)
            return
        await asyncio.sleep(0.2)
