"""Validation of PyTorchJobs: the rules of v1.9's admission webhook, which is not there when Piton serves the jobs.

Each rule yields its problem as a sentence; a job with a problem fails before any object is created for it.
"""

import re
from collections.abc import Callable, Iterator

from piton.contract import names
from piton.engine.job import KINDS, MASTER, WORKER, Job

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""DNS-1035 label, which names of services must be."""
NAME_MAX = 63
RESTART_POLICIES = ("Always", "OnFailure", "Never", "ExitCode")
CLEAN_POD_POLICIES = ("None", "Running", "All")


def problem(job: Job) -> str | None:
    """Return the objection to the job; None if it is valid."""
    return next((sentence for rule in RULES for sentence in rule(job)), None)


def _name(job: Job) -> Iterator[str]:
    longest = max(job.replica_names(), key=len, default=job.name)
    if not NAME.fullmatch(job.name):
        yield f"the name {job.name!r} is no DNS-1035 label"
    if len(longest) > NAME_MAX:
        yield f"the name {longest!r} has {len(longest)} characters; a host name has at most {NAME_MAX}"


def _kinds(job: Job) -> Iterator[str]:
    if job.strange_kinds:
        yield f"replica type {job.strange_kinds[0]!r}: has to be one of {', '.join(KINDS)}"
    if not job.replicas:
        yield "pytorchReplicaSpecs is empty"


def _containers(job: Job) -> Iterator[str]:
    for replicas in job.replicas:
        containers = (replicas.template.get("spec") or {}).get("containers") or []
        if not containers:
            yield f"{replicas.kind}: no containers"
        elif not all(container.get("image") for container in containers):
            yield f"{replicas.kind}: a container without an image"
        elif not replicas.container:
            yield f"{replicas.kind}: no container is named {names.CONTAINER!r}"


def _counts(job: Job) -> Iterator[str]:
    master, worker = job.of(MASTER), job.of(WORKER)
    if master is not None and master.count != 1:
        yield f"Master.replicas is {master.count}; has to be 1"
    if worker is not None and worker.count < 1:
        yield f"Worker.replicas is {worker.count}; has to be at least 1"


def _elastic(job: Job) -> Iterator[str]:
    if job.elastic is None:
        return
    if job.of(WORKER) is None:
        yield "elasticPolicy needs a Worker"
    if job.elastic.processes_per_node is not None and job.processes_per_node is not None:
        yield "elasticPolicy.nProcPerNode and nprocPerNode exclude each other"
    if job.elastic.metrics:
        yield "elasticPolicy.metrics: this controller makes no HorizontalPodAutoscaler"


def _words(job: Job) -> Iterator[str]:
    for replicas in job.replicas:
        if replicas.restart_policy not in RESTART_POLICIES:
            yield f"{replicas.kind}.restartPolicy {replicas.restart_policy!r}: one of {', '.join(RESTART_POLICIES)}"
    if job.policy.clean_pods not in CLEAN_POD_POLICIES:
        yield f"cleanPodPolicy {job.policy.clean_pods!r}: one of {', '.join(CLEAN_POD_POLICIES)}"


RULES: tuple[Callable[[Job], Iterator[str]], ...] = (_name, _kinds, _containers, _counts, _elastic, _words)
