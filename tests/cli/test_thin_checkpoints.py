"""`piton checkpoint`, on checkpoints of which some are thin."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from cli.conftest import Piton
from piton.contract import names
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.retention import make_thin
from piton_trainer.state.weights_digest import weights_digest
from support import tiny, weights
from support.checkpoints import flip
from support.weights import checkpoint, digest_of, thin, whole

pristine, run = weights.pristine, weights.run


def test_people_see_which_are_thin_and_whether_they_are_good(run: Path, piton: Piton) -> None:
    make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    lines = piton("checkpoint", "ls", run).out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["15", "12", "9", "6", "3"]
    assert ["weights only" in line for line in lines[1:6]] == [False, False, True, False, False]
    assert piton("checkpoint", "verify", run).out == "5 of 5 checkpoints are good\n"
    for path in sorted((run / names.weights_folder(9)).iterdir()):
        flip(path)
        assert piton("checkpoint", "verify", run, "--step", 9).code == 1, path.name
        flip(path)
    found = json.loads(piton("checkpoint", "ls", run, "--json").out)["checkpoints"]
    assert [row["step"] for row in found if row["weightsOnly"]] == [9]


def test_the_weights_of_a_thin_one_can_be_exported(run: Path, tmp_path: Path, piton: Piton) -> None:
    wanted = digest_of(checkpoint(run, names.step_folder(9)))
    make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    out = tmp_path / "m.safetensors"
    export = partial(piton, "checkpoint", "export", run)
    assert export(out, "--format", "safetensors", "--weights-only", "--step", 9).code == 0
    model = tiny.build()
    model.load_state_dict(load_file(out))
    assert weights_digest({"model": model}) == wanted
    assert export(tmp_path / "ema.pt", "--format", "torch", "--weights-only", "--weights", "ema", "--step", 9).code == 0
    refused = export(tmp_path / "all", "--format", "dcp", "--step", 9)
    assert "of weights-000000009 the weights are all that is left; say --weights-only" in refused.err


def test_pruning_by_hand_makes_thin_only_when_it_is_told_to(run: Path, piton: Piton) -> None:
    make_thin(checkpoint(run, names.step_folder(3)), layout.Disk())
    prune = partial(piton, "checkpoint", "prune", run, "--keep-best", 0)
    assert prune("--keep-last", 3).out == "step-000000006: deleted\n1 of 5 checkpoints are gone\n"
    assert (whole(run), thin(run)) == ([15, 12, 9], [3])
    dry = prune("--keep-last", 1, "--keep-weights", 1, "--dry-run")
    assert dry.out.splitlines()[:2] == ["step-000000012: would be made thin", "step-000000009: would be deleted"]
    assert (whole(run), thin(run)) == ([15, 12, 9], [3])
    assert prune("--keep-last", 1, "--keep-weights", 1).code == 0
    assert (whole(run), thin(run)) == ([15], [12])
