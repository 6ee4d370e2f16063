import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.conftest import Piton
from local.helpers import fake_parts, write_manifest


def test_validate_says_ok_to_a_good_run(tmp_path: Path, piton: Piton) -> None:
    result = piton("validate", write_manifest(tmp_path / "run.yaml", **fake_parts()))

    assert (result.code, result.err) == (0, "")
    assert "run.yaml: ok, fake is a TrainingRun" in result.out


def test_validate_tells_every_problem_on_a_line_of_its_own(tmp_path: Path, piton: Piton) -> None:
    parts = fake_parts(worker={}, limits={"failures": 0, "deadline": "soon"})
    result = piton("validate", write_manifest(tmp_path / "run.yaml", **parts))

    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == 3
    for words in ("spec.worker: unknown field", "spec.limits.failures: 0 is out of range", "spec.limits.deadline"):
        assert any(words in line for line in lines)


def test_validate_warns_and_says_ok_all_the_same(tmp_path: Path, piton: Piton) -> None:
    template = {"tolerations": [{"operator": "Exists"}]}
    parts = fake_parts(workers={"gpusPerNode": 0, "template": template})
    result = piton("validate", write_manifest(tmp_path / "run.yaml", **parts))

    assert result.code == 0
    assert result.err.startswith("piton: warning: spec.workers.template.tolerations[0]: also tolerates Karpenter's")
    assert "ok, fake is a TrainingRun" in result.out


def test_validate_asks_the_recipe(tmp_path: Path, piton: Piton) -> None:
    trainer = {"image": "none", "recipe": "charlm", "config": {"depths": 3}}
    result = piton("validate", write_manifest(tmp_path / "run.yaml", trainer=trainer))

    assert result.code == 2
    assert "spec.trainer.config.depths: charlm has no such setting" in result.err


def test_plan_shows_the_rules_and_everything_that_would_run(tmp_path: Path, piton: Piton) -> None:
    result = piton("plan", write_manifest(tmp_path / "run.yaml", **fake_parts()))

    assert result.code == 0
    assert "start: attempt 1 was created" in result.out
    assert "-> StartAttempt number 1 stage Train (reason: FirstAttempt)" in result.out
    assert "It saves as often as pays" in result.out
    documents = [document for document in yaml.safe_load_all(result.out.split("---\n", 1)[1]) if document]
    assert [document.get("kind", "AppDef") for document in documents] == [
        "AppDef",
        "PyTorchJob",
        "PersistentVolumeClaim",
    ]
    assert "&id" not in result.out


def test_plan_as_json_is_one_object(tmp_path: Path, piton: Piton) -> None:
    volume: dict[str, Any] = {"volume": {"claimName": "mine"}}
    result = piton("plan", write_manifest(tmp_path / "run.yaml", **fake_parts(checkpoint=volume)), "--json")
    found = json.loads(result.out)

    assert [decision["rule"] for decision in found["decisions"]] == ["add_finalizer", "start"]
    effects = [effect["effect"] for decision in found["decisions"] for effect in decision["effects"]]
    assert effects == ["AddFinalizer", "StartAttempt"], "a claim that exists is not made"
    assert found["saves"].endswith("(auto)")
    assert found["appDef"]["command"][0] == "python"
    assert found["pyTorchJob"]["metadata"]["name"] == "fake-1"
    assert found["volumeClaim"] is None


def test_plan_shows_every_stage_with_the_number_that_it_would_have(tmp_path: Path, piton: Piton) -> None:
    stages = {"prepare": {"command": ["python", "get.py"]}, "evaluate": {"command": ["python", "judge.py"]}}
    result = piton("plan", write_manifest(tmp_path / "run.yaml", **fake_parts(stages=stages)), "--json")
    found = json.loads(result.out)

    (start,) = [e for d in found["decisions"] for e in d["effects"] if e["effect"] == "StartAttempt"]
    assert (start["number"], start["stage"]) == (1, "Prepare")
    jobs = {"Train": found["pyTorchJob"], **found["stages"]}
    assert {stage: job["metadata"]["name"] for stage, job in jobs.items()} == {
        "Prepare": "fake-1",
        "Train": "fake-2",
        "Evaluate": "fake-3",
    }


def test_plan_of_a_suspended_run_starts_nothing(tmp_path: Path, piton: Piton) -> None:
    result = piton("plan", write_manifest(tmp_path / "run.yaml", **fake_parts(suspend=True)), "--json")
    decisions = json.loads(result.out)["decisions"]

    assert decisions[-1]["phase"] == "Suspended"
    assert all(effect["effect"] == "AddFinalizer" for decision in decisions for effect in decision["effects"])


SEEDS = sorted((Path(__file__).parents[2] / "manifests" / "seeds").glob("*.yaml"))


@pytest.mark.parametrize("manifest", SEEDS, ids=lambda path: path.stem)
def test_plan_says_of_each_system_what_it_takes(manifest: Path, piton: Piton) -> None:
    result = piton("plan", manifest, "--price-per-hour", "10.50")

    lines = result.out.splitlines()
    takes = [place for place, line in enumerate(lines) if line.startswith("What ") and line.endswith(" takes:")]
    assert takes
    for place in takes:
        figures = [line.split()[0] for line in lines[place + 1 : place + 6] if line.startswith("  ")]
        assert [name for name in figures if name != "!"][:3] == ["time", "cost", "disk"]
    assert "x $10.50/h (--price-per-hour)" in result.out


@pytest.mark.parametrize("manifest", SEEDS, ids=lambda path: path.stem)
def test_nothing_in_the_manifest_of_a_system_is_refused(manifest: Path, piton: Piton) -> None:
    """What is missing on this machine, data or GPUs, is another matter."""
    result = piton("validate", manifest)

    assert result.code == 0 or " is not on this machine" in result.err or "not installed" in result.err, result.err


def test_plan_shows_what_a_later_version_would_do_and_says_that_this_one_refuses_it(
    tmp_path: Path, piton: Piton
) -> None:
    capacity = {"maxPricePerHour": "12.00", "patience": "30m"}
    parts = fake_parts(capacity=capacity, limits={"trainingTime": "10h"})
    file = write_manifest(tmp_path / "run.yaml", **parts)
    result = piton("plan", file, "--json")

    found = json.loads(result.out)
    assert result.code == 2
    assert "spec.capacity.patience: this version of Piton does not act on it yet" in result.err
    assert found["refused"] == [result.err.removeprefix("piton: ").rstrip("\n")]
    assert found["estimate"]["cost"]["value"] == 120.0
    assert found["pyTorchJob"]["metadata"]["name"] == "fake-1"
    assert piton("plan", write_manifest(file, **parts, suspend="yes")).out == ""


def test_a_price_that_is_none_is_refused(tmp_path: Path, piton: Piton) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts())
    for price in ("$10", "0", "-1"):
        result = piton("plan", file, "--price-per-hour", price)
        assert result.code == 2
        assert f"'{price}' is no amount of dollars; write it like 10.50" in result.err
