"""`nanochat-d64-small` as a user runs it: real text, two processes, a machine that goes away. A minute or two each."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "seeds" / "nanochat-d64-small.yaml"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def piton_run(folder: Path, *drills: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "piton.cli", "run", str(MANIFEST), "--json", "--dir", str(folder)]
    command += [argument for drill in drills for argument in ("--drill", drill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["phase"] == "Succeeded"
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return piton_run(tmp_path_factory.mktemp("undisturbed"))


def test_it_learns_to_write_documentation(undisturbed: dict[str, Any]) -> None:
    assert (undisturbed["preemptions"], undisturbed["attempts"]) == (0, 1)
    assert undisturbed["bestMetric"] / math.log(2) < 2.1  # bits per character; guessing evenly costs 6.6


def test_a_noticed_preemption_loses_no_step_and_changes_no_bit(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    found = piton_run(tmp_path / "run", "preempt@50%")

    assert (found["preemptions"], found["lostSteps"], found["attempts"]) == (1, 0, 2)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert (found["finalStep"], found["bestMetric"]) == (undisturbed["finalStep"], undisturbed["bestMetric"])
