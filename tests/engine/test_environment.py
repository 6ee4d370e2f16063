"""The environment, in the order in which it is injected: row A.4 of the conformance table."""

from typing import Any

import pytest

from piton.engine import render
from piton.engine.environment import environment
from piton.engine.job import Job
from support.jobs import a_job, a_template, an_elastic_job, replicas


def _pairs(manifest: dict[str, Any], kind: str, index: int) -> list[tuple[str, str]]:
    return [(pair["name"], pair["value"]) for pair in environment(Job.read(manifest), kind, index)]


def _master(*, world: str, rank: str, port: str = "23456") -> list[tuple[str, str]]:
    return [
        ("PYTHONUNBUFFERED", "1"),
        ("MASTER_PORT", port),
        ("PET_MASTER_PORT", port),
        ("MASTER_ADDR", "ragcun-1-master-0"),
        ("PET_MASTER_ADDR", "ragcun-1-master-0"),
        ("WORLD_SIZE", world),
        ("RANK", rank),
        ("PET_NODE_RANK", rank),
    ]


@pytest.mark.parametrize(
    ("manifest", "kind", "index", "expected"),
    [
        (
            a_job(nprocPerNode="8"),
            "Master",
            0,
            [*_master(world="8", rank="0"), ("PET_NPROC_PER_NODE", "8"), ("PET_NNODES", "1")],
        ),
        (
            a_job(workers=3, nprocPerNode="8"),
            "Worker",
            2,
            [*_master(world="32", rank="3"), ("PET_NPROC_PER_NODE", "8"), ("PET_NNODES", "4")],
        ),
        (
            a_job(workers=3),
            "Worker",
            0,
            [*_master(world="4", rank="1"), ("PET_NPROC_PER_NODE", "auto"), ("PET_NNODES", "4")],
        ),
        (
            a_job(nprocPerNode="gpu"),
            "Master",
            0,
            [*_master(world="1", rank="0"), ("PET_NPROC_PER_NODE", "gpu"), ("PET_NNODES", "1")],
        ),
        (
            a_job(pytorchReplicaSpecs={"Worker": replicas(3)}),
            "Worker",
            1,
            [("PYTHONUNBUFFERED", "1"), ("PET_NPROC_PER_NODE", "auto"), ("PET_NNODES", "3")],
        ),
        (
            an_elastic_job(workers=4),
            "Worker",
            1,
            [
                ("PYTHONUNBUFFERED", "1"),
                ("PET_NPROC_PER_NODE", "auto"),
                ("PET_RDZV_ENDPOINT", "ragcun-1-worker-0:23456"),
                ("PET_RDZV_BACKEND", "c10d"),
                ("PET_NNODES", "1:4"),
            ],
        ),
        (
            an_elastic_job(
                elastic={
                    "nProcPerNode": 2,
                    "rdzvHost": "etcd",
                    "rdzvPort": 2379,
                    "rdzvBackend": "etcd-v2",
                    "rdzvId": "7",
                    "rdzvConf": [{"key": "timeout", "value": "900"}, {"key": "read_timeout", "value": "60"}],
                    "maxRestarts": 0,
                    "standalone": True,
                }
            ),
            "Worker",
            0,
            [
                ("PYTHONUNBUFFERED", "1"),
                ("PET_RDZV_ENDPOINT", "etcd:2379"),
                ("PET_RDZV_BACKEND", "etcd-v2"),
                ("PET_NNODES", "1:2"),
                ("PET_MAX_RESTARTS", "0"),
                ("PET_NPROC_PER_NODE", "2"),
                ("PET_RDZV_ID", "7"),
                ("PET_RDZV_CONF", "timeout=900,read_timeout=60"),
                ("PET_STANDALONE", ""),
            ],
        ),
    ],
    ids=[
        "a master alone",
        "a worker beside a master",
        "auto counts as one",
        "gpu counts as one",
        "workers alone get no rank",
        "elastic",
        "elastic with everything",
    ],
)
def test_a_replica_is_told(manifest: dict[str, Any], kind: str, index: int, expected: list[tuple[str, str]]) -> None:
    assert _pairs(manifest, kind, index) == expected


def test_an_elastic_job_with_a_master_is_told_both() -> None:
    manifest = a_job(workers=2, elasticPolicy={"minReplicas": 1})
    pairs = _pairs(manifest, "Worker", 0)
    assert pairs[:8] == _master(world="3", rank="1")
    assert dict(pairs)["PET_NNODES"] == "1:1"


def test_the_masters_own_port_is_the_one_that_counts() -> None:
    template = a_template(ports=[{"name": "pytorchjob-port", "containerPort": 29500}])
    kinds = {"Master": replicas(template=template), "Worker": replicas()}
    assert _pairs(a_job(pytorchReplicaSpecs=kinds), "Worker", 0)[:8] == _master(world="2", rank="1", port="29500")


def test_it_comes_after_the_users_own_and_into_every_container() -> None:
    template = a_template(env=[{"name": "RANK", "value": "mine"}])
    template["spec"]["containers"].append({"name": "mesh", "image": "mesh:1"})
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(template=template)}))
    trainer, mesh = render.pod(job, job.replicas[0], 0)["spec"]["containers"]
    assert trainer["env"] == [{"name": "RANK", "value": "mine"}, *environment(job, "Master", 0)]
    assert mesh["env"] == environment(job, "Master", 0)
