"""The objects of one replica: its pod, and the headless service by which the others find the pod."""

from typing import Any

from piton.contract import names
from piton.engine.environment import environment
from piton.engine.job import LABEL_ROLE, MASTER, Body, Job, Replicas

ROLE_MASTER = "master"


def pod(job: Job, replicas: Replicas, index: int) -> Body:
    """The pod: the template, the labels that find it, and the environment that finds the others.

    Of the template's metadata only labels, annotations and finalizers count. There is no init container that waits for
    the master's name: the rendezvous itself asks until it is there.
    """
    meta: Body = replicas.template.get("metadata") or {}
    spec: Body = dict(replicas.template["spec"])
    env = environment(job, replicas.kind, index)
    spec["containers"] = [{**found, "env": [*(found.get("env") or ()), *env]} for found in spec["containers"]]
    spec["restartPolicy"] = "Never" if replicas.restart_policy == "ExitCode" else replicas.restart_policy
    labels = {**(meta.get("labels") or {}), **_labels(job, replicas, index)}
    if replicas.kind == MASTER or (job.of(MASTER) is None and index == 0):
        labels[LABEL_ROLE] = ROLE_MASTER
    metadata = _metadata(job, replicas, index, labels)
    metadata |= {field: meta[field] for field in ("annotations", "finalizers") if meta.get(field)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def service(job: Job, replicas: Replicas, index: int) -> Body:
    """The service; like Kubeflow's it knows the pod once it is ready, and not before."""
    ports: list[dict[str, Any]] = []
    for port in replicas.container.get("ports") or ():
        named = {"name": port["name"]} if port.get("name") else {}
        ports.append({**named, "port": port["containerPort"]})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, replicas, index, _labels(job, replicas, index)),
        "spec": {"clusterIP": "None", "selector": job.labels(replicas.kind, index), "ports": ports},
    }


def _labels(job: Job, replicas: Replicas, index: int) -> dict[str, str]:
    """Kubeflow's, and the run's, by which Piton's watches know their own."""
    assert job.run is not None, "only Piton's jobs are served"
    return {**job.labels(replicas.kind, index), names.LABEL_RUN: job.run}


def _metadata(job: Job, replicas: Replicas, index: int, labels: dict[str, str]) -> Body:
    return {
        "name": job.replica_name(replicas.kind, index),
        "namespace": job.namespace,
        "labels": labels,
        "ownerReferences": [job.owner()],
    }
