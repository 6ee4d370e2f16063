"""The manifests that Piton creates, and the statuses that its engine writes, against both definitions of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.neighbours.definition import without_prose
from piton.api.spec import Meta
from piton.engine.decide import decide
from piton.engine.job import Job
from piton.rendering.pytorchjob import pytorchjob
from support.builders import NOW, a_spec, meta
from support.jobs import a_job, a_pod, an_elastic_job
from support.schema import objections

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "crds" / "bundled" / "kubeflow.org_pytorchjobs.yaml"
KUBEFLOW = ROOT.parent / "shared" / "data" / "kubeflow.org_pytorchjobs.yaml"


@pytest.fixture(scope="module", params=[BUNDLED, KUBEFLOW], ids=["bundled", "kubeflow"])
def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    if not request.param.exists():
        pytest.skip(f"Kubeflow's CRD (training operator v1.9.4) is not at {request.param}")
    (version,) = _read(request.param)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]  # type: ignore[no-any-return]


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(), loader)  # type: ignore[no-any-return]


ANNOTATIONS_MAX_BYTES = 256 * 1024

A_LONG_SPEC: dict[str, Any] = {
    "trainer": {
        "image": "trainer:1",
        "command": ["python", "train.py"],
        "env": [
            {"name": "A", "value": "1"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
        ],
    },
    "workers": {
        "nodes": 4,
        "gpusPerNode": 8,
        "instanceTypes": ["p4d.24xlarge"],
        "zones": ["eu-west-1a"],
        "template": {
            "nodeSelector": {"team": "a"},
            "serviceAccountName": "trainer",
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        },
    },
}


@pytest.mark.parametrize("parts", [{}, A_LONG_SPEC], ids=["small", "long"])
def test_what_piton_creates_is_accepted_as_it_is(schema: dict[str, Any], parts: dict[str, Any]) -> None:
    run: Meta = meta()
    assert list(objections(schema, pytorchjob(run, a_spec(**parts), 1))) == []


@pytest.mark.parametrize("manifest", [a_job(), an_elastic_job()], ids=["master", "elastic"])
def test_what_the_engine_writes_is_accepted_as_it_is(schema: dict[str, Any], manifest: dict[str, Any]) -> None:
    job = Job.read(manifest)
    name, kind = next((name, kind) for name, (kind, _) in job.replica_names().items())
    pod = a_pod(job, name, kind, phase="Failed")
    status = decide(job, [pod], [], now=NOW).status.to_body()
    assert status["conditions"]
    assert list(objections(schema, {**manifest, "status": status})) == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("nprocPerNode", 8, ".spec.nprocPerNode: 8 is no string"),
        ("runPolicy", {"suspend": "yes"}, ".spec.runPolicy.suspend: 'yes' is no boolean"),
        ("runPolicy", {"cleanPods": "All"}, ".spec.runPolicy.cleanPods: is unknown and would be dropped"),
    ],
)
def test_what_is_wrong_is_seen(schema: dict[str, Any], field: str, value: Any, sentence: str) -> None:
    manifest = a_job()
    manifest["spec"][field] = value
    assert list(objections(schema, manifest)) == [sentence]


def test_a_job_without_replicas_is_no_job(schema: dict[str, Any]) -> None:
    manifest = a_job()
    del manifest["spec"]["pytorchReplicaSpecs"]
    assert list(objections(schema, manifest)) == [".spec.pytorchReplicaSpecs: is missing"]


def test_the_bundled_definition_is_kubeflows_without_its_prose() -> None:
    if not KUBEFLOW.exists():
        pytest.skip(f"Kubeflow's CRD (training operator v1.9.4) is not at {KUBEFLOW}")
    assert _read(BUNDLED)["spec"] == without_prose(_read(KUBEFLOW))["spec"]


def test_a_field_that_is_called_description_is_no_prose() -> None:
    schema = {"description": "prose", "properties": {"description": {"type": "string", "description": "prose"}}}
    assert without_prose(schema) == {"properties": {"description": {"type": "string"}}}


def test_kubectl_apply_can_hold_the_bundled_definition() -> None:
    assert len(json.dumps(_read(BUNDLED))) < ANNOTATIONS_MAX_BYTES
