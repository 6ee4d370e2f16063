"""Defaults, names, labels, ownership: rows A.1 to A.3 of the conformance table."""

from typing import Any

import pytest

from piton.engine import render
from piton.engine.job import Job, Replicas
from piton.engine.rules import problem
from support.jobs import a_job, a_template, an_elastic_job, replicas

SELECTOR = {
    "training.kubeflow.org/operator-name": "pytorchjob-controller",
    "training.kubeflow.org/job-name": "ragcun-1",
}


def _of(job: Job, kind: str) -> Replicas:
    found = job.of(kind)
    assert found is not None
    return found


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_what_is_not_said_has_the_defaults_of_v1() -> None:
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(None, None), "Worker": replicas(None, None)}))
    assert [(r.kind, r.count, r.restart_policy) for r in job.replicas] == [
        ("Master", 1, "OnFailure"),
        ("Worker", 1, "OnFailure"),
    ]
    assert (job.policy.clean_pods, job.policy.suspend, job.processes_per_node) == ("None", False, "auto")


@pytest.mark.parametrize("spelling", ["master", "MASTER", "Master"])
def test_replica_types_are_spelt_in_any_case(spelling: str) -> None:
    assert Job.read(a_job(pytorchReplicaSpecs={spelling: replicas()})).of("Master") is not None


@pytest.mark.parametrize(
    ("containers", "ports"),
    [
        ([{"name": "pytorch"}], {"pytorch": [("pytorchjob-port", 23456)]}),
        ([{"name": "mesh"}, {"name": "pytorch"}], {"mesh": [], "pytorch": [("pytorchjob-port", 23456)]}),
        ([{"name": "other"}], {"other": [("pytorchjob-port", 23456)]}),
        (
            [{"name": "pytorch", "ports": [{"name": "pytorchjob-port", "containerPort": 1234}]}],
            {"pytorch": [("pytorchjob-port", 1234)]},
        ),
        (
            [{"name": "pytorch", "ports": [{"name": "http", "containerPort": 80}]}],
            {"pytorch": [("http", 80), ("pytorchjob-port", 23456)]},
        ),
    ],
    ids=["none", "beside a sidecar", "no container named pytorch", "its own", "another"],
)
def test_the_port_is_added_where_it_is_missing(
    containers: list[dict[str, Any]], ports: dict[str, list[tuple[str, int]]]
) -> None:
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(template={"spec": {"containers": containers}})}))
    found = _of(job, "Master").template["spec"]["containers"]
    assert {c["name"]: [(p["name"], p["containerPort"]) for p in c.get("ports", [])] for c in found} == ports


def test_defaults_are_not_written_into_the_manifest() -> None:
    manifest = a_job(pytorchReplicaSpecs={"Master": replicas(None, None)})
    before = str(manifest)
    Job.read(manifest)
    assert str(manifest) == before


@pytest.mark.parametrize(
    ("policy", "nodes"),
    [
        ({}, (4, 4)),
        ({"minReplicas": 2}, (2, 2)),
        ({"maxReplicas": 3}, (3, 3)),
        ({"minReplicas": 1, "maxReplicas": 8}, (1, 8)),
    ],
)
def test_the_bounds_of_an_elastic_job_come_from_each_other_or_from_the_workers(
    policy: dict[str, int], nodes: tuple[int, int]
) -> None:
    job = Job.read(a_job(pytorchReplicaSpecs={"Worker": replicas(4)}, elasticPolicy=policy))
    assert job.elastic is not None
    assert (job.elastic.min_replicas, job.elastic.max_replicas) == nodes


def test_the_deprecated_number_of_processes_takes_the_place_of_auto() -> None:
    assert Job.read(an_elastic_job(elastic={"nProcPerNode": 4})).processes_per_node is None


# --- whose job it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("managed_by", "served"),
    [(None, True), ("kubeflow.org/training-operator", True), ("kueue.x-k8s.io/multikueue", False)],
)
def test_a_job_that_somebody_else_manages_is_not_served(managed_by: str | None, served: bool) -> None:
    policy = {"managedBy": managed_by} if managed_by else {}
    assert Job.read(a_job(runPolicy=policy)).served is served


def test_a_job_without_pitons_label_is_not_served() -> None:
    manifest = a_job()
    manifest["metadata"]["labels"] = {"training.kubeflow.org/job-name": "ragcun-1"}
    assert not Job.read(manifest).served


def test_a_job_that_is_being_deleted_is_not_served() -> None:
    manifest = a_job()
    manifest["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    assert not Job.read(manifest).served


# --- pods and services ------------------------------------------------------------------------------------------------


def test_a_pod_has_kubeflows_name_labels_and_owner() -> None:
    job = Job.read(a_job(workers=4))
    meta = render.pod(job, _of(job, "Worker"), 3)["metadata"]
    assert (meta["name"], meta["namespace"]) == ("ragcun-1-worker-3", "team")
    assert meta["labels"] == {
        **SELECTOR,
        "training.kubeflow.org/replica-type": "worker",
        "training.kubeflow.org/replica-index": "3",
        "piton.dev/run": "ragcun",
    }
    assert meta["ownerReferences"] == [
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "name": "ragcun-1",
            "uid": "uid-of-the-job",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


@pytest.mark.parametrize(
    ("manifest", "kind", "index", "role"),
    [
        (a_job(workers=2), "Master", 0, "master"),
        (a_job(workers=2), "Worker", 0, None),
        (an_elastic_job(), "Worker", 0, "master"),
        (an_elastic_job(), "Worker", 1, None),
    ],
)
def test_the_first_replica_alone_has_the_role_of_the_master(
    manifest: dict[str, Any], kind: str, index: int, role: str | None
) -> None:
    job = Job.read(manifest)
    labels = render.pod(job, _of(job, kind), index)["metadata"]["labels"]
    assert labels.get("training.kubeflow.org/job-role") == role


def test_labels_annotations_and_finalizers_of_the_template_are_all_that_is_taken_over() -> None:
    template = a_template()
    template["metadata"] = {
        "labels": {"team": "a", "training.kubeflow.org/job-name": "wrong"},
        "annotations": {"b": "c"},
        "finalizers": ["d.example/e"],
        "name": "f",
        "namespace": "g",
    }
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(template=template)}))
    meta = render.pod(job, _of(job, "Master"), 0)["metadata"]
    assert set(meta) == {"name", "namespace", "labels", "annotations", "finalizers", "ownerReferences"}
    assert (meta["annotations"], meta["finalizers"]) == ({"b": "c"}, ["d.example/e"])
    assert (meta["labels"]["team"], meta["labels"]["training.kubeflow.org/job-name"]) == ("a", "ragcun-1")
    assert (meta["name"], meta["namespace"]) == ("ragcun-1-master-0", "team")


@pytest.mark.parametrize(
    ("policy", "of_the_pod"),
    [("Never", "Never"), ("OnFailure", "OnFailure"), ("Always", "Always"), ("ExitCode", "Never")],
)
def test_the_pods_restart_policy_is_the_replicas(policy: str, of_the_pod: str) -> None:
    template = a_template()
    template["spec"]["restartPolicy"] = "Always"
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(1, policy, template)}))
    assert render.pod(job, _of(job, "Master"), 0)["spec"]["restartPolicy"] == of_the_pod


def test_a_service_is_headless_and_selects_its_replica() -> None:
    template = a_template(ports=[{"name": "http", "containerPort": 80}])
    job = Job.read(a_job(pytorchReplicaSpecs={"Master": replicas(template=template)}))
    service = render.service(job, _of(job, "Master"), 0)
    selector = {
        **SELECTOR,
        "training.kubeflow.org/replica-type": "master",
        "training.kubeflow.org/replica-index": "0",
    }
    assert service["metadata"]["name"] == "ragcun-1-master-0"
    assert service["metadata"]["labels"] == {**selector, "piton.dev/run": "ragcun"}
    assert service["metadata"]["ownerReferences"] == [job.owner()]
    assert service["spec"] == {
        "clusterIP": "None",
        "selector": selector,
        "ports": [{"name": "http", "port": 80}, {"name": "pytorchjob-port", "port": 23456}],
    }


def test_init_containers_are_the_templates_own_and_get_no_environment() -> None:
    template = a_template()
    template["spec"]["initContainers"] = [{"name": "mine", "image": "mine:1"}]
    kinds = {"Master": replicas(), "Worker": replicas(template=template)}
    job = Job.read(a_job(pytorchReplicaSpecs=kinds))
    assert render.pod(job, _of(job, "Worker"), 0)["spec"]["initContainers"] == [{"name": "mine", "image": "mine:1"}]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"pytorchReplicaSpecs": {}}, "pytorchReplicaSpecs is empty"),
        ({"pytorchReplicaSpecs": {"Chief": replicas()}}, "replica type 'Chief': has to be one of Master, Worker"),
        ({"pytorchReplicaSpecs": {"Master": replicas(2)}}, "Master.replicas is 2; has to be 1"),
        ({"pytorchReplicaSpecs": {"Worker": replicas(0)}}, "Worker.replicas is 0; has to be at least 1"),
        ({"pytorchReplicaSpecs": {"Master": {"template": {}}}}, "Master: no containers"),
        (
            {"pytorchReplicaSpecs": {"Master": replicas(template=a_template(name="other"))}},
            "Master: no container is named 'pytorch'",
        ),
        (
            {"pytorchReplicaSpecs": {"Master": replicas(template=a_template(image=""))}},
            "Master: a container without an image",
        ),
        ({"elasticPolicy": {}}, "elasticPolicy needs a Worker"),
        ({"runPolicy": {"cleanPodPolicy": "Some"}}, "cleanPodPolicy 'Some': one of None, Running, All"),
        (
            {"pytorchReplicaSpecs": {"Master": replicas(1, "Sometimes")}},
            "Master.restartPolicy 'Sometimes': one of Always, OnFailure, Never, ExitCode",
        ),
    ],
)
def test_what_the_webhook_refuses_is_refused_with_a_sentence(spec: dict[str, Any], sentence: str) -> None:
    assert problem(Job.read(a_job(**spec))) == sentence


@pytest.mark.parametrize("manifest", [a_job(), a_job(workers=99), an_elastic_job()])
def test_what_the_webhook_accepts_is_accepted(manifest: dict[str, Any]) -> None:
    assert problem(Job.read(manifest)) is None


@pytest.mark.parametrize(("length", "fits"), [(54, True), (55, False)])
def test_a_name_leaves_room_for_the_replicas(length: int, fits: bool) -> None:
    manifest = a_job(workers=9)
    manifest["metadata"]["name"] = "a" * length
    assert (problem(Job.read(manifest)) is None) is fits


def test_a_horizontal_autoscaler_is_not_made() -> None:
    sentence = problem(Job.read(an_elastic_job(elastic={"metrics": [{"type": "Resource"}]})))
    assert sentence == "elasticPolicy.metrics: this controller makes no HorizontalPodAutoscaler"


def test_two_numbers_of_processes_exclude_each_other() -> None:
    manifest = an_elastic_job(elastic={"nProcPerNode": 4})
    manifest["spec"]["nprocPerNode"] = "4"
    assert problem(Job.read(manifest)) == "elasticPolicy.nProcPerNode and nprocPerNode exclude each other"
