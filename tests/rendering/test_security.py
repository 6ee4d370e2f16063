"""As whom the pods run, and with which rights: what Pod Security asks for, and what an image of somebody else needs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from piton.api.spec import Stage
from piton.rendering.appdef import ReportEndpoint
from piton.rendering.pytorchjob import pytorchjob
from support.builders import a_spec, meta, problems_of
from support.pod_security import violations

ROOT = Path(__file__).parents[2]
RECIPE = {"image": "trainer:1", "recipe": "charlm"}
COMMAND = {"image": "mine:1", "command": ["python", "train.py"]}
TWO_NODES = {"nodes": 2, "gpusPerNode": 8}
FSX = {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
SERVER = ReportEndpoint(url="https://operator", ca_pem="PEM")
HARDENED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
STAGES = {
    "prepare": {"command": ["bash", "get.sh"]},
    "evaluate": {"command": ["python", "evaluate.py"]},
}


def pods(trainer: dict[str, Any], security: dict[str, Any] | None = None, **parts: Any) -> list[dict[str, Any]]:
    """The pods of every stage and role."""
    template = {} if security is None else {"securityContext": security}
    spec = a_spec(trainer=trainer, workers={**TWO_NODES, "template": template}, checkpoint=FSX, stages=STAGES, **parts)
    jobs = [pytorchjob(meta(), spec, 1, SERVER, stage=stage) for stage in Stage]
    return [role["template"]["spec"] for job in jobs for role in job["spec"]["pytorchReplicaSpecs"].values()]


def contexts(found: list[dict[str, Any]]) -> list[Any]:
    return [pod["containers"][0].get("securityContext") for pod in found]


def test_every_pod_of_a_recipe_is_let_into_a_restricted_namespace() -> None:
    found = pods(RECIPE)

    assert len(found) == 4
    assert [violations(pod) for pod in found] == [[]] * 4
    assert contexts(found) == [{**HARDENED, "readOnlyRootFilesystem": True}] * 4


def test_a_recipe_writes_nowhere_but_to_its_volume_and_to_tmp() -> None:
    for pod in pods(RECIPE):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}

        assert {"name": mounts["/tmp"], "emptyDir": {}} in pod["volumes"]


def test_a_command_keeps_the_rights_that_its_image_has() -> None:
    found = pods(COMMAND)

    assert contexts(found) == [None] * 4
    assert all("/tmp" not in str(pod["containers"][0]["volumeMounts"]) for pod in found)


def test_a_command_that_is_said_not_to_be_root_is_let_into_a_restricted_namespace() -> None:
    found = pods(COMMAND, {"runAsNonRoot": True, "runAsUser": 1000})

    assert [violations(pod) for pod in found] == [[]] * 4
    assert contexts(found) == [{**HARDENED, "runAsUser": 1000}] * 4


def test_a_command_with_a_read_only_root_has_a_tmp_to_write_to() -> None:
    (pod, *_) = pods(COMMAND, {"readOnlyRootFilesystem": True})

    assert contexts([pod]) == [{"readOnlyRootFilesystem": True}]
    assert {"name": "tmp", "mountPath": "/tmp"} in pod["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    "said",
    [
        {"allowPrivilegeEscalation": True},
        {"capabilities": {"drop": ["NET_RAW"]}},
        {"seccompProfile": {"type": "Unconfined"}},
        {"readOnlyRootFilesystem": False},
        {"runAsUser": 1000, "runAsGroup": 1000},
    ],
)
def test_what_the_spec_says_wins(said: dict[str, Any]) -> None:
    assert contexts(pods(RECIPE, said)) == [{**HARDENED, "readOnlyRootFilesystem": True, **said}] * 4


@pytest.mark.parametrize("said", [{"runAsNonRoot": False}, {"runAsUser": 0}])
def test_a_recipe_in_an_image_that_has_to_be_root_keeps_its_rights(said: dict[str, Any]) -> None:
    assert contexts(pods(RECIPE, said)) == [said] * 4


def test_the_evaluation_of_a_command_by_a_recipe_keeps_the_rights_of_the_commands_image() -> None:
    spec = a_spec(trainer=COMMAND, stages={"evaluate": {"recipe": "charlm"}})
    job = pytorchjob(meta(), spec, 1, stage=Stage.EVALUATE)

    assert "securityContext" not in job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]


def test_groups_are_the_pods() -> None:
    (pod, *_) = pods(COMMAND, {"fsGroup": 1000, "supplementalGroups": [5, 6]})

    assert pod["securityContext"] == {
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": [5, 6],
    }
    assert contexts([pod]) == [None]


def test_the_group_of_a_fresh_volume_is_the_trainers_unless_said_otherwise() -> None:
    for trainer in (RECIPE, COMMAND):
        assert [pod["securityContext"]["fsGroup"] for pod in pods(trainer)] == [65532] * 4


def test_root_that_is_not_root_is_refused() -> None:
    said = {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}

    assert problems_of(workers={"template": said}) == (
        "spec.workers.template.securityContext: runAsUser 0 is root, and runAsNonRoot forbids root; remove one of them",
    )


@pytest.mark.parametrize("field", ["privileged", "procMount", "seLinuxOptions", "sysctls"])
def test_rights_that_an_image_does_not_have_by_itself_cannot_be_asked_for(field: str) -> None:
    (problem,) = problems_of(workers={"template": {"securityContext": {field: True}}})

    assert f"spec.workers.template.securityContext.{field}: unknown field" in problem


def test_capabilities_can_only_be_dropped() -> None:
    said = {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}

    (problem,) = problems_of(workers={"template": said})
    assert "spec.workers.template.securityContext.capabilities.add: unknown field" in problem


def test_a_worker_with_kubeflows_init_container_is_let_into_a_restricted_namespace() -> None:
    """By the template that docs/pod-security.md names; the default of Kubeflow's is refused."""
    document = yaml.safe_load((ROOT / "manifests" / "kubeflow-init-container.yaml").read_text())
    values = {"InitContainerImage": "alpine:3.10", "MaxTries": "100", "MasterAddr": "ragcun-1-master-0"}
    text = document["data"]["initContainer.yaml"]
    for name, value in values.items():
        text = text.replace(f"{{{{.{name}}}}}", value)
    assert "{{" not in text
    containers = yaml.safe_load(text)

    for pod in pods(RECIPE):
        assert violations({**pod, "initContainers": containers}) == []
        assert violations({**pod, "initContainers": [{"name": "init-pytorch", "image": "alpine:3.10"}]}) != []
