"""Random PyTorchJobs, and what may happen to their pods next. Pure: the same seed gives the same job and choices."""

import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from piton.contract import names
from piton.engine.job import MASTER, PORT, PORT_NAME, WORKER

Body = dict[str, Any]

NODE = "differential"
"""A node without a kubelet; the test plays it. Pods name it, so no scheduler looks at them."""
GRACE_SECONDS = 600
"""Longer than any test: a pod that is deleted stays until the test says that it is gone."""
LONG_SECONDS = 3600
"""A deadline or a time to live that no test sees the end of, unless it moves it."""
SHORT_SECONDS = 4
_POLICIES = ("Never", "Never", "OnFailure", "OnFailure", "Always", "ExitCode", None)
_EXIT_CODES = (1, 2, 127, 128, 137, 143)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that happens, on both sides."""

    kind: str
    replica: str | None = None
    value: Any = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.kind, self.replica, self.value) if part is not None)


def a_random_job(seed: int) -> Body:
    """A job; most can be, some break a rule of the resource."""
    rng = random.Random(f"job {seed}")
    replicas: Body = {}
    elastic = rng.random() < 0.2
    if rng.random() < (0.2 if elastic else 0.7):
        replicas[MASTER] = _replicas(rng, 1)
    if elastic or not replicas or rng.random() < 0.6:
        replicas[WORKER] = _replicas(rng, rng.choice((1, 2, 2, 3)))
    spec: Body = {"pytorchReplicaSpecs": replicas}
    policy = _run_policy(rng)
    spec |= {"runPolicy": policy} if policy or rng.random() < 0.5 else {}
    spec |= {"nprocPerNode": rng.choice(("auto", "2", "8", "gpu"))} if rng.random() < 0.4 else {}
    spec |= {"elasticPolicy": _elastic(rng, "nprocPerNode" in spec)} if elastic else {}
    name = f"job-{seed}" if rng.random() < 0.9 else f"job-{seed}-{'x' * rng.randint(1, 30)}"
    job = {
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": {names.LABEL_RUN: "differential"}},
        "spec": spec,
    }  # fmt: skip
    return _broken(rng, job) if rng.random() < 0.06 else job


def _replicas(rng: random.Random, count: int) -> Body:
    found: Body = {"replicas": count, "template": _template(rng)}
    policy = rng.choice(_POLICIES)
    return found | ({"restartPolicy": policy} if policy else {})


def _template(rng: random.Random) -> Body:
    trainer: Body = {"name": names.CONTAINER, "image": "trainer:1", "command": ["python", "train.py"]}
    trainer |= {"env": [{"name": "RANK", "value": "7"}, {"name": "A", "value": "1"}]} if rng.random() < 0.4 else {}
    if rng.random() < 0.3:
        port = rng.choice(({"name": PORT_NAME, "containerPort": 2222}, {"name": "http", "containerPort": 8080}))
        trainer["ports"] = [port]
    spec: Body = {
        "containers": [trainer],
        "nodeName": NODE,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }
    if rng.random() < 0.2:
        spec["containers"] = rng.sample([trainer, {"name": "side", "image": "side:1"}], 2)
    if rng.random() < 0.2:
        spec["initContainers"] = [{"name": "prepare", "image": "prepare:1"}]
    metadata: Body = {"labels": {"team": "a"}} if rng.random() < 0.5 else {}
    metadata |= {"annotations": {"note": "b"}} if rng.random() < 0.3 else {}
    return {"spec": spec} | ({"metadata": metadata} if metadata else {})


def _run_policy(rng: random.Random) -> Body:
    policy: Body = {}
    if clean := rng.choice(("None", "Running", "All", "All", None)):
        policy["cleanPodPolicy"] = clean
    if (limit := rng.choice((None, None, None, None, 0, 0, 1, 2, 3))) is not None:
        policy["backoffLimit"] = limit
    if (deadline := rng.choice((None, None, None, None, SHORT_SECONDS, LONG_SECONDS, LONG_SECONDS))) is not None:
        policy["activeDeadlineSeconds"] = deadline
    if (ttl := rng.choice((None, None, None, None, 0, SHORT_SECONDS, LONG_SECONDS))) is not None:
        policy["ttlSecondsAfterFinished"] = ttl
    if (suspend := rng.choice((None, None, None, None, False, True))) is not None:
        policy["suspend"] = suspend
    return policy


def _elastic(rng: random.Random, processes: bool) -> Body:
    found: Body = {}
    fields: tuple[tuple[str, Any], ...] = (
        ("minReplicas", 1),
        ("maxReplicas", rng.choice((3, 4))),
        ("maxRestarts", 5),
        ("rdzvBackend", rng.choice(("c10d", "etcd"))),
        ("rdzvId", "id-1"),
        ("rdzvHost", "host"),
        ("rdzvPort", PORT + 1),
        ("rdzvConf", [{"key": "timeout", "value": "60"}, {"key": "retries", "value": "3"}]),
        ("standalone", True),
    )
    found |= {name: value for name, value in fields if rng.random() < 0.35}
    return found | ({"nProcPerNode": 4} if not processes and rng.random() < 0.2 else {})


def _broken(rng: random.Random, job: Body) -> Body:
    """The job with one thing that its resource does not allow."""
    job = deepcopy(job)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    kind = rng.choice(sorted(replicas))
    containers = replicas[kind]["template"]["spec"]["containers"]
    way = rng.choice(("name", "kind", "container", "image", "count", "elastic", "processes"))
    if way == "name":
        job["metadata"]["name"] = f"0{job['metadata']['name']}"
    elif way == "kind":
        replicas["Evaluator"] = replicas.pop(kind)
    elif way == "container":
        containers[0]["name"] = containers[-1]["name"] = "trainer"
        del containers[1:]
    elif way == "image":
        containers[-1]["image"] = ""
    elif way == "count":
        replicas[kind]["replicas"] = 2 if kind == MASTER else 0
    elif way == "elastic":
        job["spec"]["elasticPolicy"] = {}
        job["spec"]["pytorchReplicaSpecs"] = {MASTER: {**replicas[kind], "replicas": 1}}
    else:
        job["spec"] |= {"nprocPerNode": "2", "elasticPolicy": {"nProcPerNode": 2}}
    return job


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a choice depends on: the job as it was made last, and the pods that are there on both sides."""

    spec: Mapping[str, Any]
    finished: bool
    gone: bool
    pods: Mapping[str, tuple[str, bool]]
    """Name: phase, whether it is being deleted."""
    services: tuple[str, ...]

    @property
    def policy(self) -> Mapping[str, Any]:
        """The job's runPolicy."""
        return self.spec.get("runPolicy") or {}


def next_step(rng: random.Random, now: Situation) -> Step | None:
    """What happens next; None when nothing more can be told apart."""
    if now.gone:
        return None
    ttl = now.policy.get("ttlSecondsAfterFinished")
    if now.finished and ttl is not None and ttl <= SHORT_SECONDS and not now.policy.get("suspend"):
        return Step(kind="live out")
    deadline = now.policy.get("activeDeadlineSeconds", LONG_SECONDS)
    if deadline <= SHORT_SECONDS and not now.finished and not now.policy.get("suspend"):
        return Step(kind="outlive the deadline", value=deadline)
    options = [*_pod_steps(rng, now), *_job_steps(rng, now)]
    steps, weights = [step for step, _ in options], [weight for _, weight in options]
    return rng.choices(steps, weights)[0]


def _pod_steps(rng: random.Random, now: Situation) -> list[tuple[Step, int]]:
    found: list[tuple[Step, int]] = []
    waiting = [name for name, (phase, deleting) in now.pods.items() if phase == "Pending" and not deleting]
    if waiting:
        found.append((Step(kind="run all"), 12))
    for name, (phase, deleting) in sorted(now.pods.items()):
        code = rng.choice(_EXIT_CODES)
        if deleting:
            found += [] if phase in ("Succeeded", "Failed") else [(Step(kind="end", replica=name, value=0), 2)]
            found += [] if phase in ("Succeeded", "Failed") else [(Step(kind="end", replica=name, value=code), 2)]
            found.append((Step(kind="vanish", replica=name), 6))
            continue
        if phase == "Pending":
            found += [(Step(kind="run", replica=name), 4), (Step(kind="evict", replica=name), 1)]
        if phase == "Running":
            found += [(Step(kind="end", replica=name, value=0), 4), (Step(kind="end", replica=name, value=code), 4)]
            found += [(Step(kind="evict", replica=name), 1), (Step(kind="restart", replica=name), 2)]
        found += [(Step(kind="delete", replica=name), 2), (Step(kind="vanish", replica=name), 1)]
    return found


def _job_steps(rng: random.Random, now: Situation) -> list[tuple[Step, int]]:
    suspended = bool(now.policy.get("suspend"))
    leaving = any(deleting for _, deleting in now.pods.values())
    found = [(Step(kind="suspend", value=not suspended), (2 if leaving else 12) if suspended else 2)]
    found += [(Step(kind="lose service", replica=name), 1) for name in now.services[:1]]
    workers = (now.spec["pytorchReplicaSpecs"].get(WORKER) or {}).get("replicas")
    if workers is not None:
        found.append((Step(kind="scale", value=rng.choice([n for n in (1, 2, 3) if n != workers])), 1))
    if now.policy.get("activeDeadlineSeconds") == LONG_SECONDS:
        found.append((Step(kind="shorten the deadline"), 2))
    return found
