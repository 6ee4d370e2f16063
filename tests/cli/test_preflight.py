"""`piton preflight`: what it finds good, what it finds bad, and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton, Result
from cli.test_bad_input import CPU, assert_one_sentence, charlm
from local.helpers import fake_parts, write_manifest
from local.test_charlm import ONE_THREAD, TINY


def preflight(piton: Piton, folder: Path, parts: dict[str, Any], *options: object) -> Result:
    file = write_manifest(folder / "run.yaml", **parts)
    return piton("preflight", file, "--dir", folder / "runs", "--quiet", *options)


def findings(result: Result) -> Any:
    (found,) = json.loads(result.out)["runs"].values()
    return found


def checks(result: Result) -> dict[str, Any]:
    return {check["name"]: check for check in findings(result)["checks"]}


def test_a_good_run_is_rehearsed_from_its_first_step_to_its_last_dollar(tmp_path: Path, piton: Piton) -> None:
    trainer = {"image": "none", "recipe": "charlm", "config": {**TINY, "steps": 9_000_000}, "env": [ONE_THREAD]}
    parts: dict[str, Any] = {
        "trainer": trainer,
        "workers": CPU,
        "checkpoint": {"volume": {"size": "1Gi"}, "every": {"steps": 100}},
        "objective": {"metric": "val_loss"},
        "limits": {"deadline": "20m"},
    }
    result = preflight(piton, tmp_path, parts, "--json", "--price-per-hour", "10.50", "--steps", "2")
    found = checks(result)

    assert {name: check["state"] for name, check in found.items()} == {
        "machine": "ok",
        "steps": "ok",
        "resume": "ok",
        "checkpoints": "ok",
        "memory": "ok",
        "time": "failed",  # it does not fit into its deadline
        "cost": "ok",
        "disk": "ok",
    }
    assert result.code == 1
    assert found["steps"]["text"].startswith("4 taken, loss ")
    assert found["resume"]["text"] == "stopped and resumed at step 2"
    assert found["checkpoints"]["text"].startswith("2 saved, ")
    assert found["time"]["text"].startswith("9,000,000 steps x ")
    assert "180,000 evaluations x " in found["time"]["text"]
    assert "90,000 saves x " in found["time"]["text"]
    assert "limits.deadline ends it after 20m" in found["time"]["text"]
    assert found["cost"]["value"] == pytest.approx(found["time"]["value"] / 3600 * 10.5, abs=0.01)
    assert 100e6 < found["memory"]["value"] < 10e9
    kept = Path(findings(result)["kept"])
    assert (kept / "logs").is_dir(), "something failed, so its folder can be looked at"


def test_a_program_that_cannot_resume_is_told_so_in_a_table(tmp_path: Path, piton: Piton) -> None:
    result = preflight(piton, tmp_path, fake_parts())

    assert result.code == 1
    lines = {
        line.split()[0]: line.split()[1]
        for line in result.out.splitlines()
        if len(line.split()) > 1 and line[:1].isalpha()
    }
    assert lines["CHECK"] == "RESULT"
    assert (lines["machine"], lines["steps"], lines["resume"], lines["checkpoints"]) == ("ok", "ok", "failed", "failed")
    assert "-> docs/bring-your-own-loop.md says how" in result.out
    assert "step-000000020: the manifest is not of format" in result.out


def test_a_run_that_fails_shows_where_its_log_is(tmp_path: Path, piton: Piton) -> None:
    result = preflight(piton, tmp_path, fake_parts("--crash-at", "2"), "--json")

    assert result.code == 1
    (machine, steps) = checks(result).values()
    assert machine["state"] == "ok"
    assert steps["state"] == "failed"
    assert "1 failures of the program" in steps["text"]
    log = Path(steps["fix"].removeprefix("the log is "))
    assert "the fake hit its bug" in log.read_text()


@pytest.mark.parametrize(
    ("parts", "text", "fix"),
    [
        (charlm(data="no-such-file.txt"), "there is no file or directory no-such-file.txt", "give one"),
        ({**fake_parts(), "workers": {"gpusPerNode": 64}}, "64 GPUs are asked for", "write gpusPerNode: 0"),
        ({**fake_parts(), "trainer": {"image": "none", "command": ["trane"]}}, "no program trane here", "install it"),
    ],
    ids=["data", "GPUs", "program"],
)
def test_what_this_machine_lacks_is_said_before_anything_starts(
    parts: dict[str, Any], text: str, fix: str, tmp_path: Path, piton: Piton
) -> None:
    result = preflight(piton, tmp_path, parts, "--json")

    (check,) = findings(result)["checks"]
    assert (result.code, check["name"], check["state"]) == (1, "machine", "failed")
    assert text in check["text"]
    assert check["fix"].startswith(fix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (charlm(depth=0), "spec.trainer.config.depth: has to be at least 1"),
        (charlm(steps=None), "spec.trainer.config.steps: missing, and so is limits.trainingTime"),
        (charlm(totalBatchTokens=8193), "spec.trainer.config.totalBatchTokens"),
        (fake_parts(worker={}), "spec.worker: unknown field"),
    ],
    ids=["config", "no end", "batch", "field"],
)
def test_a_run_that_is_written_wrongly_is_bad_input(
    parts: dict[str, Any], words: str, tmp_path: Path, piton: Piton
) -> None:
    assert_one_sentence(preflight(piton, tmp_path, parts), words)
