"""The quickstart as a user runs it: full size, real text, two processes, machines that go away. About six minutes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "quickstart.yaml"
NEEDED = {"phase", "finalStep", "lostSteps", "preemptions", "attempts", "bestMetric", "weightsDigest", "checkpoint"}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def piton_run(folder: Path, *drills: str) -> dict[str, Any]:
    """`piton run … --json` in a folder of its own; exactly one JSON object on stdout."""
    command = [sys.executable, "-m", "piton.cli", "run", str(MANIFEST), "--json", "--dir", str(folder)]
    command += [argument for drill in drills for argument in ("--drill", drill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) >= NEEDED
    assert found["phase"] == "Succeeded"
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return piton_run(tmp_path_factory.mktemp("undisturbed"))


def test_undisturbed_it_learns(undisturbed: dict[str, Any]) -> None:
    assert (undisturbed["preemptions"], undisturbed["lostSteps"], undisturbed["attempts"]) == (0, 0, 1)
    assert undisturbed["bestMetric"] < 2.5  # nats per character; guessing evenly costs more than 4


def test_a_noticed_preemption_loses_no_step(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    found = piton_run(tmp_path / "run", "preempt@50%")

    assert (found["preemptions"], found["lostSteps"], found["attempts"]) == (1, 0, 2)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert found["finalStep"] == undisturbed["finalStep"]


def test_two_unannounced_kills_end_in_the_same_weights(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    found = piton_run(tmp_path / "run", "kill@30%", "kill@60%")

    assert (found["preemptions"], found["attempts"]) == (2, 3)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert Path(found["checkpoint"]).is_dir()
