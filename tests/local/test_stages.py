"""The stages of a run on this machine, with real processes that need nothing but Python."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from local.helpers import fake_parts, spec_of, train
from piton.api.spec import Spec
from piton.api.status_base import Phase
from piton.local import preflight

EVALUATE = """
import json, os, pathlib
folder = pathlib.Path(os.environ["PITON_CHECKPOINT"])
assert (folder / "MANIFEST.json").exists()
words = {"outcome": "finished", "metrics": {"accuracy": 0.75, "step": int(folder.name[5:])}, "detail": "accuracy 0.75"}
pathlib.Path(os.environ["PITON_TERMINATION_LOG"]).write_text(json.dumps(words))
"""
PREPARE = """
import os, pathlib
folder = pathlib.Path(os.environ["PITON_CHECKPOINT_DIR"])
assert not list(folder.glob("step-*")), "training began before the data was there"
assert os.environ["WORLD_SIZE"] == "1"
(folder / "data").write_text("made in attempt " + os.environ["PITON_ATTEMPT"])
"""
WAITS_ONCE = """
import os, time
if os.environ["PITON_ATTEMPT"] == "1":
    time.sleep(600)
"""


def program(text: str) -> dict[str, Any]:
    return {"command": ["python", "-c", text]}


def with_stages(*arguments: str, nodes: int = 1, **stages: Any) -> Spec:
    return spec_of(fake_parts(*arguments, nodes=nodes, stages=stages, checkpoint={"volume": {"claimName": "mine"}}))


def test_a_run_prepares_trains_and_evaluates_its_best_checkpoint(tmp_path: Path) -> None:
    spec = with_stages("--hold-at", "7", nodes=2, prepare=program(PREPARE), evaluate=program(EVALUATE))
    ending, listener = train(tmp_path / "run", spec=spec, drills=("preempt@step7",))

    summary = ending.summary
    assert (summary.phase, summary.attempts, summary.preemptions, summary.lost_steps) == (Phase.SUCCEEDED, 4, 1, 0)
    assert summary.evaluation == {"accuracy": 0.75, "step": 20}
    assert (summary.final_step, summary.message) == (20, "finished at step 20: all steps done; accuracy 0.75")
    assert [(name, stage["attempts"]) for name, stage in summary.stages.items()] == [
        ("Prepare", 1),
        ("Train", 2),
        ("Evaluate", 1),
    ]
    assert (tmp_path / "run/checkpoints/data").read_text() == "made in attempt 1"
    ways = dict.fromkeys(view.status.phase for view in listener.views)
    assert [phase for phase in ways if phase in (Phase.PREPARING, Phase.TRAINING, Phase.EVALUATING)] == [
        Phase.PREPARING,
        Phase.TRAINING,
        Phase.EVALUATING,
    ]
    assert json.loads(json.dumps(summary.to_wire()))["stages"]["Train"]["preemptions"] == 1


def test_a_drill_hits_the_training_unless_it_names_another_stage(tmp_path: Path) -> None:
    spec = with_stages(prepare=program(WAITS_ONCE), evaluate=program("import time; time.sleep(0.3)"))
    ending, listener = train(tmp_path / "run", spec=spec, drills=("kill@0s", "prepare:preempt@1s"))

    stages = ending.summary.stages
    assert ending.summary.phase == Phase.SUCCEEDED
    assert {name: stage["preemptions"] for name, stage in stages.items()} == {"Prepare": 1, "Train": 1, "Evaluate": 0}
    assert ending.summary.failures == 0
    assert [said.split(":")[0] for said in listener.said if said.startswith("Drill")] == [
        "Drill prepare",
        "Drill kill@0s",
    ]


def test_what_cannot_be_prepared_never_trains(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", spec=with_stages(prepare={**program("raise SystemExit(1)"), "failures": 2}))

    assert (ending.summary.phase, ending.summary.failures, ending.summary.attempts) == (Phase.FAILED, 2, 2)
    assert "stages.prepare.failures is 2" in ending.summary.message
    assert ending.summary.final_step is None


def test_an_evaluation_that_was_mended_goes_on_from_the_trained_model(tmp_path: Path) -> None:
    broken = {**program("raise SystemExit(1)"), "failures": 1}
    failed, _ = train(tmp_path / "run", spec=with_stages(prepare=program(PREPARE), evaluate=broken))
    mended, _ = train(tmp_path / "run", spec=with_stages(prepare=program(PREPARE), evaluate=program(EVALUATE)))

    assert failed.summary.phase == Phase.FAILED
    assert failed.summary.message.startswith("finished at step 20: all steps done, and not evaluated: ")
    assert failed.summary.weights_digest is not None
    assert (mended.summary.phase, mended.summary.attempts) == (Phase.SUCCEEDED, 4)
    assert mended.summary.weights_digest == failed.summary.weights_digest
    assert mended.summary.evaluation["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            {"prepare": {"command": ["no-such-program"]}},
            "spec.stages.prepare.command: there is no program no-such-prog",
        ),
        (
            {"evaluate": {**program("pass"), "gpus": 1}},
            "spec.stages.evaluate.gpus: 1 are asked for and this machine has 0",
        ),
    ],
)
def test_what_this_machine_cannot_do_is_told_beforehand(
    stages: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        preflight.check(with_stages(**stages))


def test_data_that_a_stage_makes_need_not_be_there_yet(tmp_path: Path) -> None:
    trainer = {"image": "none", "recipe": "charlm", "config": {"data": str(tmp_path / "later.txt"), "steps": 1}}
    parts = {"trainer": trainer, "workers": {"gpusPerNode": 0}}
    with pytest.raises(ValueError, match="there is no file or directory"):
        preflight.check(spec_of(parts))
    preflight.check(spec_of({**parts, "stages": {"prepare": program("pass")}}))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            {"evaluate": {"config": {"evalToken": 1}}},
            "spec.stages.evaluate.config.evalToken: charlm has no such setting; did you mean evalTokens?",
        ),
        ({"evaluate": {"recipe": "charml"}}, "spec.stages.evaluate.recipe: there is no recipe charml; did you mean"),
        ({"prepare": {}}, "spec.stages.prepare: charlm has nothing to prepare; remove it, or give it a command"),
    ],
)
def test_what_a_recipe_cannot_do_in_a_stage_is_told_beforehand(stages: dict[str, Any], sentence: str) -> None:
    parts = {"trainer": {"image": "none", "recipe": "charlm", "config": {"steps": 1}}, "workers": {"gpusPerNode": 0}}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        preflight.check(spec_of({**parts, "stages": stages}))
