"""A sweep of the real trainer on this machine: two variants, two seeds, two at once, and one that loses its machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TINY = {
    "depth": 1,
    "aspectRatio": 32,
    "headDim": 16,
    "sequenceLength": 32,
    "deviceBatchSize": 2,
    "totalBatchTokens": 128,
    "referenceBatchTokens": None,
    "steps": 40,
    "evalEvery": 20,
    "evalTokens": 256,
}
SWEEP = {
    "apiVersion": "piton.dev/v1alpha1",
    "kind": "TrainingSweep",
    "metadata": {"name": "tiny"},
    "spec": {
        "template": {
            "spec": {
                "trainer": {
                    "image": "none",
                    "recipe": "charlm",
                    "config": TINY,
                    "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                },
                "workers": {"gpusPerNode": 0},
                "checkpoint": {"volume": {"size": "1Gi"}, "every": {"steps": 10}},
                "objective": {"metric": "val_loss"},
            }
        },
        "variants": [{"name": "plain"}, {"name": "wide", "patch": {"trainer": {"config": {"aspectRatio": 64}}}}],
        "seeds": [0, 1],
        "metrics": ["loss"],
        "parallelism": 2,
        "limits": {"deadline": "20m"},
    },
}


def piton_run(folder: Path, *drills: str) -> dict[str, Any]:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(SWEEP))
    command = [sys.executable, "-m", "piton.cli", "run", str(file), "--json", "--dir", str(folder)]
    command += [word for drill in drills for word in ("--drill", drill)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_drill_hits_one_run_and_the_table_stays_the_same(tmp_path: Path) -> None:
    undisturbed = piton_run(tmp_path / "undisturbed")
    drilled = piton_run(tmp_path / "drilled", "wide-s1:preempt@50%")

    assert (undisturbed["done"], drilled["done"]) == ("4/4", "4/4")
    preemptions = {run["name"]: (run["preemptions"], run["lostSteps"]) for run in drilled["runs"]}
    assert preemptions == {
        "tiny-plain-s0": (0, 0),
        "tiny-wide-s0": (0, 0),
        "tiny-plain-s1": (0, 0),
        "tiny-wide-s1": (1, 0),
    }
    digests = [[run["weightsDigest"] for run in found["runs"]] for found in (undisturbed, drilled)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4
    best = [[result["metrics"][0] for result in found["results"]] for found in (undisturbed, drilled)]
    assert best[0] == best[1]
    for metric in best[0]:
        assert metric["name"] == "val_loss"
        assert float(metric["value"]["low"]) < float(metric["value"]["mean"]) < float(metric["value"]["high"])
    assert "difference" in best[0][1]
