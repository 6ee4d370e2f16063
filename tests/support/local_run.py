"""A manifest as a user runs it on this machine: `piton run … --json`, at full size, in a folder of its own.

undisturbed = undisturbed_run(MANIFEST)                            a fixture of a module: once for all of its tests
found = piton_run(MANIFEST, tmp_path / "run", "preempt@50%")       the same run, drilled
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
NEEDED = {"phase", "finalStep", "lostSteps", "preemptions", "attempts", "bestMetric", "weightsDigest", "checkpoint"}
Found = dict[str, Any]


def piton_run(manifest: str, folder: Path, *drills: str) -> Found:
    """Train what a file below `manifests` describes, to its end; exactly one JSON object is on stdout."""
    command = [sys.executable, "-m", "piton.cli", "run", str(MANIFESTS / manifest), "--json", "--dir", str(folder)]
    command += [argument for drill in drills for argument in ("--drill", drill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Found = json.loads(done.stdout)
    assert set(found) >= NEEDED, sorted(found)
    assert found["phase"] == "Succeeded", found
    return found


def undisturbed_run(manifest: str) -> Any:
    """A fixture: the run that nothing happens to. Assign it to `undisturbed` in the module that needs it."""

    @pytest.fixture(scope="module")
    def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Found:
        return piton_run(manifest, tmp_path_factory.mktemp("undisturbed"))

    return undisturbed


def assert_it_lost_no_step(found: Found, undisturbed: Found) -> None:
    """After one preemption with notice: every step was trained once, and the weights are the same to the bit."""
    counts = found["preemptions"], found["lostSteps"], found["attempts"]
    assert counts == (1, 0, undisturbed["attempts"] + 1), f"preemptions, lost steps, attempts: {counts}"
    for name in ("weightsDigest", "finalStep"):
        assert found[name] == undisturbed[name], f"{name}: {found[name]}, undisturbed {undisturbed[name]}"


def checkpoints_of(found: Found) -> Path:
    """The run's checkpoint directory."""
    return Path(found["checkpoint"]).parent


def results_of(found: Found) -> Any:
    """What the recipe has written beside its checkpoints."""
    return json.loads((checkpoints_of(found) / "results.json").read_text())
