"""The floor: the time of writes alone, sent to the same API server, by this process, before the operator is started.

patches     raw PATCHes of ConfigMaps
necessary   for each run the ten writes without which it cannot train: the run, its finalizer, two statuses;
            the job and two statuses; the pod, its binding and its status
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from bench.operator_scale import counters
from bench.operator_scale.cluster import CONFIG_MAPS, FLOOR_NAMESPACE, a_run, gather
from bench.operator_scale.counters import Cost
from piton.kube.client import Client
from piton.kube.errors import NotFound
from piton.kube.resources import JOBS, PODS, RUNS, Body, Resource

NECESSARY_WRITES = 10
_MAPS = 200
"""ConfigMaps, which are patched twice each."""
_RUNS = 200
_WARM_UP_RUNS = 50
"""Sent first, and not measured: a control plane that has just started is slower."""
_NOBODY = "nobody"
"""The scheduler of the pods, and the node that they are bound to: neither exists."""
_TIME = "2026-01-01T00:00:00Z"


async def measure(client: Client) -> dict[str, Any]:
    """Return seconds and the API server's CPU time for each PATCH, and for the necessary writes of a run."""
    await gather(_run(client, f"floor-warm-{n}") for n in range(_WARM_UP_RUNS))
    await gather(client.create(CONFIG_MAPS, _object("v1", "ConfigMap", f"floor-{n}")) for n in range(_MAPS))
    patches = await _timed(lambda: _patches(client))
    necessary = await _timed(lambda: gather(_run(client, f"floor-{n}") for n in range(_RUNS)))
    for resource in (CONFIG_MAPS, RUNS, JOBS, PODS):
        await _clear(client, resource)
    return {
        "seconds_per_patch": patches.seconds / (2 * _MAPS),
        "server_cpu_ms_per_patch": 1000 * patches.server_cpu / (2 * _MAPS),
        "necessary_seconds_per_run": necessary.seconds / _RUNS,
        "necessary_server_cpu_ms_per_run": 1000 * necessary.server_cpu / _RUNS,
        "necessary_writes_per_run": NECESSARY_WRITES,
    }


async def _timed(send: Callable[[], Awaitable[None]]) -> Cost:
    before = await counters.sample()
    began = time.monotonic()
    await send()
    seconds = time.monotonic() - began
    spent = Cost.between(before, await counters.sample())
    return Cost(seconds=seconds, cpu_seconds=spent.cpu_seconds, requests=spent.requests)


async def _patches(client: Client) -> None:
    for version in range(2):
        body = {"metadata": {"annotations": {"bench": str(version)}}}
        await gather(client.patch(CONFIG_MAPS, f"floor-{n}", body, namespace=FLOOR_NAMESPACE) for n in range(_MAPS))


async def _run(client: Client, name: str) -> None:
    """Send the necessary writes of one run, one after the other, as each depends on the one before."""
    run = await client.create(RUNS, a_run(name, namespace=FLOOR_NAMESPACE))
    annotation = {"metadata": {"annotations": {"bench": "as large as a finalizer"}}}
    run = await client.patch(RUNS, name, annotation, namespace=FLOOR_NAMESPACE)
    job = await client.create(JOBS, _job(name))
    run = await client.replace_status(RUNS, {**run, "status": _run_status("Starting")})
    await client.create(PODS, {**_object("v1", "Pod", name), "spec": _pod_spec()})
    job = await client.replace_status(JOBS, {**job, "status": _job_status("Created")})
    binding = {**_object("v1", "Binding", name), "target": {"apiVersion": "v1", "kind": "Node", "name": _NOBODY}}
    await client.request("POST", PODS.path(FLOOR_NAMESPACE, name, "binding"), body=binding)
    await client.request("PATCH", PODS.path(FLOOR_NAMESPACE, name, "status"), body={"status": _pod_status()})
    await client.replace_status(JOBS, {**job, "status": _job_status("Running")})
    await client.replace_status(RUNS, {**run, "status": _run_status("Training")})


async def _clear(client: Client, resource: Resource) -> None:
    async def delete(found: Body) -> None:
        meta = found["metadata"]
        with suppress(NotFound):
            await client.delete(resource, meta["name"], uid=meta["uid"], namespace=FLOOR_NAMESPACE, grace_seconds=0)

    found = await client.list(resource, namespace=FLOOR_NAMESPACE)
    await gather(delete(body) for body in found if body["metadata"]["name"].startswith("floor-"))


def _object(version: str, kind: str, name: str) -> Body:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": FLOOR_NAMESPACE}}


def _pod_spec() -> Body:
    resources = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    environment = [{"name": f"VARIABLE_{number}", "value": "of a trainer's environment"} for number in range(16)]
    container = {"name": "pytorch", "image": "none", "command": ["train"], "resources": resources, "env": environment}
    return {"schedulerName": _NOBODY, "restartPolicy": "Never", "containers": [container]}


def _pod_status() -> Body:
    conditions = [_condition(kind) for kind in ("Initialized", "Ready", "ContainersReady")]
    state = {"name": "pytorch", "image": "none", "imageID": "", "ready": True, "restartCount": 0}
    running = {**state, "state": {"running": {"startedAt": _TIME}}}
    return {"phase": "Running", "startTime": _TIME, "conditions": conditions, "containerStatuses": [running]}


def _job(name: str) -> Body:
    replicas = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": _pod_spec()}}
    return {**_object("kubeflow.org/v1", "PyTorchJob", name), "spec": {"pytorchReplicaSpecs": {"Master": replicas}}}


def _job_status(kind: str) -> Body:
    return {"conditions": [_condition(kind)], "replicaStatuses": {"Master": {"active": 1}}, "startTime": _TIME}


def _run_status(phase: str) -> Body:
    attempt = {"number": 1, "state": "Starting", "stage": "Train", "createdTime": _TIME, "message": ""}
    conditions = [_condition(kind) for kind in ("Ready", "Training", "Waiting")]
    return {"observedGeneration": 1, "phase": phase, "attempt": 1, "attempts": [attempt], "conditions": conditions}


def _condition(kind: str) -> Body:
    message = "A sentence as long as those that are shown to people about a run."
    return {"type": kind, "status": "True", "reason": "Bench", "message": message, "lastTransitionTime": _TIME}
