"""`piton retry` with a kubectl that answers what it is told: what it asks for, and what it says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from piton.api.status_base import Phase
from piton.cli.main import cli
from support.builders import NOW, a_status

KUBECTL = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
case "$*" in *" get "*|get*) cat {answer};; esac
exit {code}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "asked"


def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, *, code: int = 0) -> None:
    """A kubectl that says this."""
    (tmp_path / "answer").write_text(answer)
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(log=tmp_path / "asked", answer=tmp_path / "answer", code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def a_run(**conditions: str) -> str:
    status: dict[str, Any] = a_status(phase=Phase.FAILED).to_wire()
    moment = NOW.isoformat()
    status["conditions"] = [
        {"type": kind, "status": value, "reason": "NoProgress", "lastTransitionTime": moment}
        for kind, value in conditions.items()
    ]
    status["checkpoint"] = {"step": 400, "time": moment, "attempt": 2}
    return json.dumps({"metadata": {"name": "ragcun", "resourceVersion": "77"}, "status": status})


@pytest.mark.parametrize("condition", ["Failed", "Stalled"])
def test_a_run_that_has_failed_or_is_stalled_is_annotated(
    condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    kubectl(tmp_path, monkeypatch, a_run(**{condition: "True"}))
    ran = CliRunner().invoke(cli, ["retry", "ragcun", "-n", "team"])
    assert ran.exit_code == 0, ran.output
    assert "ragcun is taken up again from step 400; failures count anew" in ran.output
    get, annotate = log.read_text().splitlines()
    assert get == "-n team get trainingruns ragcun -o json"
    assert annotate.startswith("-n team annotate trainingruns ragcun piton.dev/retry=20")
    assert annotate.endswith("Z --overwrite --resource-version=77")


@pytest.mark.parametrize(("reason", "goes_on"), [("left by break", True), ("all steps are done", False)])
def test_a_run_that_its_script_has_left_by_break_is_annotated(
    reason: str, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    run = json.loads(a_run(Succeeded="True"))
    run["status"]["result"] = {"step": 400, "reason": reason}
    kubectl(tmp_path, monkeypatch, json.dumps(run))
    ran = CliRunner().invoke(cli, ["retry", "ragcun"])
    assert ("annotate" in log.read_text(), ran.exit_code == 0) == (goes_on, goes_on)


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [
        (a_run(Failed="False", Stalled="False"), 0, "only what has Failed or is Stalled is retried"),
        (a_run(Succeeded="True"), 0, "a run that is to train on is a new one"),
        ("", 1, "kubectl failed without a word"),
    ],
)
def test_whatever_needs_no_other_chance_is_left_alone(
    answer: str, code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    kubectl(tmp_path, monkeypatch, answer, code=code)
    ran = CliRunner().invoke(cli, ["retry", "ragcun"])
    assert isinstance(ran.exception, ValueError)
    assert sentence in str(ran.exception)
    assert "annotate" not in log.read_text()


def test_without_kubectl_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = CliRunner().invoke(cli, ["retry", "ragcun"])
    assert "there is no kubectl on this machine" in str(ran.exception)
