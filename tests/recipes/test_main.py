"""`python -m piton_trainer`: what it trains, and how it refuses."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment
from piton.contract.termination import ExitCode, Outcome, Termination
from piton_trainer.__main__ import import_all
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.recipes.catalog import build
from piton_trainer.training.loop import train

QUICKSTART = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"


def test_the_garbage_collector_is_back_when_everything_is_imported() -> None:
    gc.unfreeze()
    assert import_all() is train
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_told_to_stop_while_torch_is_imported_it_stops_at_once(tmp_path: Path) -> None:
    """Without a handler, SIGTERM would kill this process as well, but not the first one of a container."""
    fake = tmp_path / "torch"
    fake.mkdir()
    (fake / "__init__.py").write_text("import sys, time\nprint('here', flush=True)\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "piton_trainer"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.terminate()
        assert process.wait(30) == ExitCode.STOPPED


def refusal(tmp_path: Path, **assignment: Any) -> str:
    config = Config(checkpoint_dir=tmp_path, assignment=Assignment(**assignment))
    with pytest.raises(BadConfig) as caught, piton_trainer.session(config) as session:
        build(session)
    return caught.value.detail


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ({}, "trainer.recipe: missing, and there is no other program to run; name one, such as charlm"),
        ({"recipe": "charml"}, "trainer.recipe: there is no recipe charml; did you mean charlm?"),
        (
            {"recipe": "charlm", "config": {"steps": 1, "deph": 4}},
            "trainer.config.deph: charlm has no such setting; did you mean depth?",
        ),
        ({"recipe": "charlm"}, "trainer.config.steps: missing, and so is limits.trainingTime; set one of them"),
        (
            {"recipe": "charlm", "config": {"data": "/nowhere"}, "training_seconds": 60.0},
            "trainer.config.data: there is no file or directory /nowhere; give one, s3://bucket/prefix, or pydoc",
        ),
    ],
)
def test_an_assignment_that_cannot_work_is_refused_in_a_sentence(
    tmp_path: Path, assignment: dict[str, Any], sentence: str
) -> None:
    assert refusal(tmp_path, **assignment) == sentence


def run_main(tmp_path: Path, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (tmp_path / "config.json").write_text(Assignment(recipe="charlm", config=config).to_json())
    orders = {
        names.ENV_CONFIG: str(tmp_path / "config.json"),
        names.ENV_CHECKPOINT_DIR: str(tmp_path / "checkpoints"),
        names.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
    }
    command = [sys.executable, "-m", "piton_trainer"]
    return subprocess.run(command, env=os.environ | orders, capture_output=True, text=True, timeout=100)


def test_missing_data_ends_the_process_with_78_one_line_and_a_termination_message(tmp_path: Path) -> None:
    done = run_main(tmp_path, {"steps": 3, "data": str(tmp_path / "missing.txt")})
    assert done.returncode == ExitCode.BAD_CONFIG
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"trainer.config.data: there is no file or directory {tmp_path}/missing.txt" in done.stderr
    termination = Termination.from_json((tmp_path / "termination").read_text())
    assert termination is not None
    assert termination.outcome is Outcome.BAD_CONFIG
    assert termination.detail in done.stderr


def test_the_quickstart_is_a_config_that_its_two_ranks_can_train() -> None:
    spec = yaml.safe_load(QUICKSTART.read_text())["spec"]
    config = catalog.check(spec["trainer"]["recipe"], spec["trainer"]["config"])
    config.check_world(spec["workers"]["nodes"])
    config.check_length(None)
    config.check_data()


def test_a_recipe_trains_to_its_end_as_a_process(tmp_path: Path) -> None:
    tiny = {"depth": 1, "aspectRatio": 16, "headDim": 8, "sequenceLength": 32, "deviceBatchSize": 2}
    done = run_main(tmp_path, {**tiny, "totalBatchTokens": 128, "evalTokens": 256, "steps": 3})
    assert done.returncode == ExitCode.FINISHED, done.stderr
    assert "training windows of 32 characters" in done.stderr
    termination = Termination.from_json((tmp_path / "termination").read_text())
    assert termination is not None
    assert (termination.outcome, termination.step) == (Outcome.FINISHED, 3)
    folder = tmp_path / "checkpoints" / names.step_folder(3)
    assert json.loads((folder / names.MANIFEST_FILE).read_text())["metrics"].keys() >= {"loss", "val_loss"}
