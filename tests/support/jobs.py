"""PyTorchJobs and their pods, with good defaults for what a test does not care about."""

from collections.abc import Mapping
from typing import Any

from piton.contract import names
from piton.engine.job import LABEL_INDEX, LABEL_TYPE, Job

Body = dict[str, Any]


def a_template(**container: Any) -> Body:
    return {
        "metadata": {"labels": {names.LABEL_RUN: "ragcun"}},
        "spec": {"containers": [{"name": "pytorch", "image": "trainer:1", **container}]},
    }


def replicas(count: int | None = 1, policy: str | None = "Never", template: Body | None = None) -> Body:
    found = {"replicas": count, "restartPolicy": policy, "template": template or a_template()}
    return {field: value for field, value in found.items() if value is not None}


def a_job(*, workers: int = 0, policy: str | None = "Never", status: Body | None = None, **spec: Any) -> Body:
    """A job with a master; keyword arguments replace parts of its spec."""
    kinds = {"Master": replicas(1, policy)} | ({"Worker": replicas(workers, policy)} if workers else {})
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": "ragcun-1",
            "namespace": "team",
            "uid": "uid-of-the-job",
            "labels": {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: "1"},
        },
        "spec": {"pytorchReplicaSpecs": kinds, **spec},
        **({"status": status} if status else {}),
    }


def an_elastic_job(*, workers: int = 2, policy: str = "Never", elastic: Mapping[str, Any] | None = None) -> Body:
    """A job without a master."""
    return a_job(
        pytorchReplicaSpecs={"Worker": replicas(workers, policy)},
        elasticPolicy={"minReplicas": 1, "maxReplicas": workers, **(elastic or {})},
    )


def a_pod(
    job: Job, name: str, kind: str = "Master", phase: str = "Running", *, deleting: bool = False, **fields: Any
) -> Body:
    """A pod of the job; `exit_code` and `restarts` are those of its trainer."""
    container: Body = {"name": "pytorch", "restartCount": fields.get("restarts", 0)}
    if "exit_code" in fields:
        container["state"] = {"terminated": {"exitCode": fields["exit_code"]}}
    index = name.rpartition("-")[2]
    return {
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "uid": f"uid-of-{name}",
            "labels": {**job.labels(), LABEL_TYPE: kind.lower(), LABEL_INDEX: index},
            "ownerReferences": [job.owner()],
            **({"deletionTimestamp": "2026-11-21T12:01:00Z"} if deleting else {}),
        },
        "spec": {},
        "status": {"phase": phase, "containerStatuses": [container]},
    }


def a_service(job: Job, name: str) -> Body:
    """The service of that replica."""
    return {
        "metadata": {"name": name, "namespace": job.namespace, "uid": f"uid-of-service-{name}",
                     "ownerReferences": [job.owner()]},
    }  # fmt: skip
