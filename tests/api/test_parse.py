"""What a user may write, and what is said to them when they may not."""

import json
from typing import Any

import pytest
import yaml

from piton.api.parse import SpecError, parse, parse_file
from piton.api.status import Result
from piton.api.status_base import Phase
from piton.api.validation import ZONES_FOR_PREPARE
from piton.crd import KINDS, Kind, crd
from support.builders import NOW, a_manifest, a_spec, a_status, an_ended, problems_of

VOLUME = {"size": "1Gi"}


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"wokers": {}}, "spec.wokers: unknown field; did you mean workers?"),
        ({"workers": {"gpuPerNode": 1}}, "spec.workers.gpuPerNode: unknown field; did you mean gpusPerNode?"),
        ({"workers": {"nodes": "two"}}, 'spec.workers.nodes: "two" is of the wrong type; write a whole number'),
        ({"workers": {"nodes": 1.5}}, "spec.workers.nodes: 1.5 is of the wrong type; write a whole number"),
        ({"workers": {"nodes": 0}}, "spec.workers.nodes: 0 is out of range; write at least 1"),
        ({"suspend": "yes"}, 'spec.suspend: "yes" is of the wrong type; write true or false'),
        (
            {"limits": {"budget": {"usd": "-5"}}},
            'spec.limits.budget.usd: "-5" is not allowed; write an amount of dollars, not below zero, in quotes',
        ),
        (
            {"limits": {"budget": {"usd": 250}}},
            "spec.limits.budget.usd: 250 is of the wrong type; write text (quote it)",
        ),
        ({"limits": {"deadline": "5 hours"}}, "a duration such as 90s, 15m, 24h or 1h30m"),
        ({"limits": {"deadline": "0h"}}, "spec.limits.deadline: '0h' is no time at all"),
        ({"checkpoint": {"volume": VOLUME, "patience": "0m"}}, "spec.checkpoint.patience: '0m' is no time at all"),
        ({"objective": {"metric": "val_loss", "goal": "Min"}}, "write 'Minimize' or 'Maximize'"),
        ({"trainer": {"image": "i"}}, "spec.trainer: exactly one of recipe and command is needed, neither is given"),
        (
            {"trainer": {"image": "i", "recipe": "charlm", "command": ["python"]}},
            "spec.trainer: exactly one of recipe and command is needed, both are given",
        ),
        ({"trainer": {"recipe": "charlm"}}, "spec.trainer.image: missing; it is required"),
        ({"checkpoint": {"volume": {}}}, "spec.checkpoint.volume: exactly one of claimName and size is needed"),
        *(
            (
                {"checkpoint": {"volume": VOLUME, "every": every}},
                f"spec.checkpoint.every: {shown} is not known; write 'auto', {{minutes: 15}}, {{steps: 500}}, or both",
            )
            for every, shown in [("often", '"often"'), ("15m", '"15m"'), (15, "15"), ([15], "[15]"), (True, "true")]
        ),
        (
            {"checkpoint": {"volume": VOLUME, "every": {"minutes": "15m"}}},
            'spec.checkpoint.every.minutes: "15m" is of the wrong type; write a whole number',
        ),
        ({"checkpoint": {"volume": VOLUME, "every": {"hours": 1}}}, "spec.checkpoint.every.hours: unknown field"),
        ({"checkpoint": {"volume": VOLUME, "every": {}}}, "spec.checkpoint.every: neither minutes nor steps is given"),
        (
            {"objective": {"metric": "loss", "patience": 5}},
            "spec.objective.patience: loss is judged whenever a save is due, and checkpoint.every: auto changes how",
        ),
        (
            {"checkpoint": {"volume": VOLUME, "keep": {"last": 1}}},
            "spec.checkpoint.keep.last: 1 is out of range; write at least 2",
        ),
        (
            {"checkpoint": {"volume": VOLUME}, "workers": {"nodes": 2}},
            "spec.checkpoint.volume.accessModes: several nodes share the volume, which takes ReadWriteMany",
        ),
        (
            {"workers": {"template": {"tolerations": [{"effect": "NoExecute", "tolerationSeconds": 2**63}]}}},
            "spec.workers.template.tolerations[0].tolerationSeconds: more than 64 bits can hold",
        ),
        (
            {"workers": {"template": {"resources": {"limits": {"cpu": 0.5}}}}},
            "spec.workers.template.resources.limits.cpu: 0.5 is of the wrong type; write text (quote it)",
        ),
        *(
            (
                {"workers": {"template": {"resources": {"limits": {"cpu": amount}}}}},
                f"limits.cpu: {shown} is of the wrong type; write an amount such as 4, ",
            )
            for amount, shown in ((None, "null"), (True, "true"))
        ),
        *(
            (
                {"limits": {"hangTimeout": value}},
                f"spec.limits.hangTimeout: {shown} is not known; write 'auto' or 'off', or a duration such as 90s, 15m",
            )
            for value, shown in (("never", '"never"'), (5, "5"), (None, "null"), ("5 min", '"5 min"'))
        ),
        ({"trainer": {"image": None, "recipe": "c"}}, "spec.trainer.image: null is of the wrong type; write text"),
        *(
            (
                {"workers": {"template": {"resources": {"limits": {"cpu": amount}}}}},
                'is not allowed; write an amount such as 4, "1.5", 500m or 16Gi',
            )
            for amount in ("-1", -1, "1e3m", "1K", "half", "")
        ),
        (
            {"workers": {"template": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}},
            "spec.workers.template.resources.limits: nvidia.com/gpu is set by spec.workers.gpusPerNode",
        ),
    ],
)
def test_a_bad_spec_gets_a_sentence_with_path_value_and_fix(parts: dict[str, Any], problem: str) -> None:
    found = problems_of(**parts)

    assert any(problem in sentence for sentence in found), found
    assert all("\n" not in sentence and "literal[" not in sentence for sentence in found)


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ({"name": "HF_TOKEN", "value": "hf_1"}, "looks like a secret"),
        ({"name": "RANK", "value": "0"}, "is set by Piton"),
        ({"name": "PITON_ATTEMPT", "value": "0"}, "is set by Piton"),
        ({"name": "A"}, "exactly one of value and valueFrom"),
        ({"name": "A", "valueFrom": {}}, "exactly one of secretKeyRef and configMapKeyRef"),
    ],
)
def test_the_environment_is_checked(variable: dict[str, Any], problem: str) -> None:
    found = problems_of(trainer={"image": "i", "recipe": "charlm", "env": [variable]})

    assert any(problem in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({"workers": {"minNodes": 1}}, "workers.minNodes"),
        ({"capacity": {"tiers": ["Spot", "OnDemand"]}}, "capacity.tiers"),
        ({"capacity": {"patience": "30m"}}, "capacity.patience"),
    ],
)
def test_what_has_no_behaviour_yet_is_refused_and_not_ignored(parts: dict[str, Any], path: str) -> None:
    assert any(f"spec.{path}: this version" in sentence for sentence in problems_of(**parts))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ({"prepare": {}}, "spec.stages.prepare.command: missing; only a recipe has a program for this stage"),
        ({"evaluate": {}}, "spec.stages.evaluate.command: missing; only a recipe has a program for this stage"),
        (
            {"evaluate": {"command": ["x"], "config": {"k": 1}}},
            "spec.stages.evaluate.config: only a recipe has a config; pass your program its settings in the command",
        ),
        (
            {"evaluate": {"command": ["x"], "recipe": "charlm"}},
            "spec.stages.evaluate: at most one of recipe and command is needed, both are given; remove one",
        ),
        (
            {"prepare": {"command": ["x"], "resources": {"limits": {"nvidia.com/gpu": "1"}}}},
            "spec.stages.prepare.resources.limits: nvidia.com/gpu is not for this stage; remove it",
        ),
        (
            {"evaluate": {"command": ["x"], "resources": {"limits": {"nvidia.com/gpu": "1"}}}},
            "spec.stages.evaluate.resources.limits: nvidia.com/gpu is set by spec.stages.evaluate.gpus; remove it",
        ),
        (
            {"prepare": {"command": ["x"], "deadline": "0s"}},
            "spec.stages.prepare.deadline: '0s' is no time at all; write a duration such as 6h",
        ),
    ],
)
def test_a_stage_that_cannot_work_is_refused(stages: dict[str, Any], sentence: str) -> None:
    assert problems_of(trainer={"image": "i", "command": ["train"]}, stages=stages) == (sentence,)


@pytest.mark.parametrize("name", ["x" * 47, "Upper", "1st", "a_b", "a.b", "-a", ""])
def test_a_name_that_does_not_fit_its_pods_is_refused(name: str) -> None:
    assert any("metadata.name" in sentence for sentence in problems_of(name))


def test_the_longest_good_name_is_accepted() -> None:
    assert problems_of("x" * 46) == ()


@pytest.mark.parametrize("field", ["instanceTypes", "zones"])
@pytest.mark.parametrize(
    "value",
    [
        "p4d.24xlarge",
        "a2-highgpu-8g",
        "Standard_NC24ads_A100_v4",
        "Standard_ND96isr_H100_v5",
        "BM.GPU.A100-v2.8",
        "g2.4xlarge_v3.B",
        "PHX-AD-1",
        "0",
        "x" * 63,
    ],
)
def test_a_machine_is_named_as_its_cloud_spells_the_label(field: str, value: str) -> None:
    assert problems_of(workers={field: [value], "gpusPerNode": 8}) == ()


@pytest.mark.parametrize("field", ["instanceTypes", "zones"])
@pytest.mark.parametrize("value", ["", "x" * 64, "_v4", "Standard_", "a b", "a/b", "a\n"])
def test_what_can_be_no_value_of_a_label_names_no_machine(field: str, value: str) -> None:
    assert any(f"spec.workers.{field}[0]" in sentence for sentence in problems_of(workers={field: [value]}))


def test_everything_that_this_version_acts_on_is_accepted() -> None:
    spec = a_spec(
        suspend=True,
        trainer={
            "image": "i",
            "command": ["python", "train.py"],
            "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
        },
        workers={
            "nodes": 2,
            "gpusPerNode": 8,
            "instanceTypes": ["p4d.24xlarge"],
            "zones": ["us-east-1a"],
            "template": {"tolerations": [{"key": "a", "operator": "Exists"}], "serviceAccountName": "trainer"},
        },
        capacity={"tiers": ["Spot"]},
        checkpoint={
            "volume": {"claimName": "shared"},
            "every": "auto",
            "keep": {"last": 3, "best": 2, "weightsOnly": 10},
            "patience": "30m",
        },
        objective={"metric": "val_loss", "target": 0.24, "patience": 5},
        limits={"deadline": "24h", "trainingTime": "31h", "failures": 5},
    )

    assert spec.workers.nodes == 2


def test_patience_with_the_loss_of_a_batch_goes_with_saves_that_can_be_counted() -> None:
    counted = {"volume": VOLUME, "every": {"steps": 100}}

    assert problems_of(objective={"metric": "loss", "patience": 5}, checkpoint=counted) == ()
    assert problems_of(objective={"metric": "loss", "target": 0.1}) == ()
    assert problems_of(objective={"metric": "val_loss", "patience": 5}) == ()


def test_a_bad_spec_leaves_the_metadata_readable() -> None:
    parsed = parse(a_manifest(wokers={}))

    assert parsed.spec is None
    assert parsed.meta.name == "ragcun"


def test_a_status_survives_the_trip_without_blanks() -> None:
    """Kubernetes 1.20 refuses an empty string where a schema says string."""
    status = a_status(an_ended(checkpoint_step=0, message=""), phase=Phase.RECOVERING, result=Result(step=0))

    wire = status.to_wire()

    assert '""' not in json.dumps(wire)
    assert "null" not in json.dumps(wire)
    assert parse({**a_manifest(), "status": json.loads(json.dumps(wire))}).status == status


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (None, "holds no TrainingRun"),
        ([], "holds no TrainingRun"),
        ({"apiVersion": "v1", "kind": "Pod"}, "apiVersion: 'v1' is not known; write 'piton.dev/v1alpha1'"),
        ({"apiVersion": "piton.dev/v1alpha1", "kind": "Pod"}, "kind: 'Pod' is not known"),
        ({"apiVersion": "piton.dev/v1alpha1", "kind": "TrainingRun"}, "metadata.name: missing"),
        ({**a_manifest(), "metadata": {"name": 7}}, "metadata.name: 7 is of the wrong type; write text"),
        ({**a_manifest(), "metadata": {"name": "a", "namespace": 5}}, "metadata.namespace: 5 is of the wrong type"),
        ({**a_manifest(), "sepc": {}}, "sepc: unknown field; did you mean spec?"),
    ],
)
def test_a_file_that_is_no_run_is_refused(document: object, problem: str) -> None:
    with pytest.raises(SpecError) as refusal:
        parse_file(document, now=NOW)

    assert problem in str(refusal.value)


def nodes_of(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    children = [(f"{path}.{name}", child) for name, child in schema.get("properties", {}).items()]
    children += [(f"{path}[]", schema[key]) for key in ("items", "additionalProperties") if key in schema]
    return [(path, schema), *(node for name, child in children for node in nodes_of(child, name))]


def schema_of(kind: Kind) -> dict[str, Any]:
    schema: dict[str, Any] = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


of_each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


@of_each_kind
def test_the_crd_is_structural(kind: Kind) -> None:
    for path, node in nodes_of(schema_of(kind)):
        is_open = node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
        assert "type" in node or is_open is True, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "title", "const"} & set(node), path
        assert not ("properties" in node and "additionalProperties" in node), path


@of_each_kind
def test_every_field_is_explained(kind: Kind) -> None:
    for path, node in nodes_of(schema_of(kind)):
        if path.startswith((".spec", ".status")):
            assert path.endswith("[]") or node.get("description"), path


@of_each_kind
def test_every_cel_rule_is_placed_in_the_crd(kind: Kind) -> None:
    nodes = nodes_of(schema_of(kind))
    placed = {rule["rule"] for _, node in nodes for rule in node.get("x-kubernetes-validations", [])}

    assert placed == {rule.to_schema()["rule"] for group in kind.cel.values() for rule in group}


@of_each_kind
def test_nothing_of_a_newer_status_is_refused_or_pruned_beside_an_older_crd(kind: Kind) -> None:
    limits = {"enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
    nodes = [(path, node) for path, node in nodes_of(schema_of(kind)) if path.startswith(".status")]

    assert not [path for path, node in nodes if limits & set(node)]
    kept = [node.get("x-kubernetes-preserve-unknown-fields") for _, node in nodes if node["type"] == "object"]
    assert len(kept) > 5
    assert all(kept)


def test_the_template_of_a_sweep_is_explained_and_gets_no_defaults() -> None:
    """What a newer version would fill in would not be what the sweep began with."""
    (sweep,) = [kind for kind in KINDS if kind.embedded]
    nodes = dict(nodes_of(schema_of(sweep)))

    assert nodes[".spec.template.spec.workers.nodes"]["maximum"] == 512
    assert not [path for path, node in nodes.items() if path.startswith(".spec.template") and "default" in node]
    assert nodes[".spec.parallelism"]["default"] == 1


def test_the_design_example_is_understood_up_to_what_is_not_built_yet() -> None:
    document = yaml.safe_load(
        """
        apiVersion: piton.dev/v1alpha1
        kind: TrainingRun
        metadata: {name: ragcun-isotropy}
        spec:
          trainer: {image: "example/piton-trainer:0.1.0", recipe: retrieval, config: {epochs: 3, lambdaIsotropy: 1.0}}
          workers: {nodes: 1, gpusPerNode: 8, instanceTypes: [p4d.24xlarge, p4de.24xlarge], zones: []}
          capacity: {tiers: [Spot, OnDemand], patience: 30m, maxPricePerHour: "15.00"}
          checkpoint:
            volume: {size: 500Gi, storageClassName: fsx, accessModes: [ReadWriteMany]}
            every: {minutes: 15}
            keep: {last: 2, best: 1, weightsOnly: 10}
            mirror: {uri: s3://bucket/prefix}
          objective: {metric: val_loss, goal: Minimize, target: 0.24, patience: 5}
          limits: {budget: {usd: "250", warnAt: 80, onExceeded: Pause}, deadline: 24h, trainingTime: 31h, failures: 3}
          stages: {prepare: {command: [python, prepare.py], resources: {requests: {cpu: "4"}}}}
        """
    )
    with pytest.raises(SpecError) as refusal:
        parse_file(document, now=NOW)

    assert all("this version of Piton does not act on it yet" in problem for problem in refusal.value.problems)


def test_a_run_that_began_before_a_volume_needed_zones_goes_on() -> None:
    parts: dict[str, Any] = {"stages": {"prepare": {}}, "checkpoint": {"volume": {"size": "1Gi"}}}
    assert problems_of(**parts) == (ZONES_FOR_PREPARE,)
    began = a_manifest(**parts) | {"status": {"attempt": 1}}
    assert parse(began).problems == ()
