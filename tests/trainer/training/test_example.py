"""The bring-your-own example is what it says: a plain script that resumes, and a TrainingRun."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from piton.api.parse import parse_file
from piton.contract import names

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
SCRIPT = EXAMPLES / "byo_train.py"
WITH_TRANSFORMERS = EXAMPLES / "transformers_train.py"


def start(directory: Path, script: Path = SCRIPT) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", names.ENV_CHECKPOINT_DIR: str(directory / "checkpoints")}
    return subprocess.Popen([sys.executable, str(script)], cwd=directory, env=env, stderr=subprocess.PIPE, text=True)


def complete(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / "checkpoints" / names.COMPLETE_FILE).read_text())
    return found


def test_the_script_is_stopped_resumed_and_ends_with_the_weights_of_a_run_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    monkeypatch.setenv(names.ENV_CHECKPOINT_DIR, str(whole / "checkpoints"))
    runpy.run_path(str(SCRIPT))
    with start(parts) as stopped:
        try:
            wait_for(parts / "checkpoints" / names.FENCE_FILE)
            stopped.send_signal(signal.SIGTERM)
            stop_words = stopped.communicate(timeout=60)[1]
        finally:
            stopped.kill()
    with start(parts) as resumed:
        try:
            resume_words = resumed.communicate(timeout=60)[1]
        finally:
            resumed.kill()
    assert (stopped.returncode, resumed.returncode) == (143, 0)
    assert "piton: told to stop by SIGTERM; " in stop_words
    assert "Traceback" not in stop_words + resume_words
    assert complete(parts)["weightsDigest"] == complete(whole)["weightsDigest"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_the_script_is_about_30_lines_of_which_4_are_pitons() -> None:
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 32
    assert len([line for line in lines if "session" in line]) == 5


@pytest.mark.parametrize(("name", "script"), [("bring-your-own", SCRIPT), ("transformers", WITH_TRANSFORMERS)])
def test_the_manifest_is_a_training_run_of_its_script(name: str, script: Path) -> None:
    manifest = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    assert (EXAMPLES.parents[1] / manifest["spec"]["trainer"]["command"][1]) == script
    assert parse_file(manifest, now=datetime(2026, 1, 31, tzinfo=UTC)).meta.name == name


@pytest.mark.crash  # most of its time is the import
def test_the_example_with_transformers_finishes(tmp_path: Path) -> None:
    with start(tmp_path, WITH_TRANSFORMERS) as process:
        try:
            words = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 0, words
    assert complete(tmp_path)["step"] == 64
