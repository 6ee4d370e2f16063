"""Several trainings in one script, on a real cluster: a notice in the second fold trains no step of the first again."""

import pytest

from hack.cluster import drills
from hack.cluster.layout import Node
from piton.contract import names
from piton.contract.manifest import Manifest
from support.live import LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS, FOLDS = 30, 2
PROGRAM = f"""
import os, sys, time
from pathlib import Path
import torch
import piton_trainer

steps, seconds = int(sys.argv[1]), float(sys.argv[2])
hurry = Path(os.environ["PITON_CHECKPOINT_DIR"]) / "hurry"
for fold in range({FOLDS}):
    torch.manual_seed(fold)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with piton_trainer.session(name=f"fold-{{fold}}") as session:
        session.restore(model=model, optimizer=optimizer)
        for x in session.steps([torch.ones(2, 4)], total=steps):
            time.sleep(seconds if fold and not hurry.exists() else 0)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
"""


def _session(run: Training) -> str:
    return str(run.status.get("progress", {}).get("session", ""))


def _commits(run: Training, fold: int) -> dict[int, int]:
    """The committed checkpoints of a fold: which attempt committed which step."""
    assert run.folder is not None
    paths = (run.folder / "sessions" / f"fold-{fold}").glob(f"{names.STEP_PREFIX}*/{names.MANIFEST_FILE}")
    manifests = [Manifest.from_json(path.read_text()) for path in paths]
    return {manifest.step: manifest.attempt for manifest in manifests}


def test_a_notice_in_the_second_fold_trains_nothing_of_the_first_again(
    cluster: LiveCluster, drilled: None, training: NewTraining
) -> None:
    run, spec = training(), paced(STEPS, 1.0, save_every=5)
    spec["trainer"]["command"][2] = PROGRAM
    run.apply(spec)
    first = Node.named(run.wait_for_node(1))
    seen = f"fold-1 step {{}}/{STEPS}"
    wait_for(
        lambda: _session(run) in [seen.format(step) for step in range(6, STEPS)],
        "the second fold is under way",
        seconds=240,
        say=run.say,
    )
    assert _commits(run, 0)[STEPS] == 1
    drills.reclaim(first, notice_seconds=10)
    assert run.folder is not None
    (run.folder / "hurry").touch()
    status = run.wait_for_phase("Succeeded", seconds=300)

    assert [(a["number"], a["verdict"]) for a in status["attempts"]] == [(1, "Preempted"), (2, "Finished")], status
    assert [_commits(run, fold)[STEPS] for fold in range(FOLDS)] == [1, 2]
    assert not (run.folder / names.COMPLETE_FILE).exists(), "the end of a fold is not the run's"
