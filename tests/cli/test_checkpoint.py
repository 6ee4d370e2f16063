"""`piton checkpoint`, on the checkpoints of a real run of the tiny model."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import state_dict_loader

from cli.conftest import Piton
from cli.test_bad_input import assert_one_sentence
from piton.contract import InputError, names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.checkpoint import export as exporter
from piton_trainer.checkpoint.format import layout
from piton_trainer.state.weights_digest import weights_digest
from support import tiny
from support.checkpoints import flip

STEPS = (4, 8, 12, 15)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished, with four checkpoints."""
    directory = tmp_path_factory.mktemp("trained") / "checkpoints"
    orders = Assignment(save=SavePolicy(every_steps=4, keep_last=9), objective=Objective(metric="loss"))
    assert tiny.train(directory, assignment=orders).code == 0
    return directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


def folder(run: Path, step: int) -> Path:
    return run / names.step_folder(step)


def losses(run: Path) -> dict[int, float]:
    return {step: layout.read_manifest(folder(run, step)).metrics["loss"] for step in STEPS}


def test_people_see_what_is_there(run: Path, piton: Piton) -> None:
    (folder(run, 8) / layout.STATE_FILE).write_text("{")

    result = piton("checkpoint", "ls", run)

    lines = result.out.splitlines()
    assert result.code == 0
    assert lines[0].split() == ["STEP", "AGE", "SIZE", "ATTEMPT", "RANKS", "METRICS", "SIZES"]
    assert [line.split()[0] for line in lines[1:5]] == ["15", "12", "8", "4"]
    assert "newest" in lines[1]
    assert "state.json has 1 bytes instead of" in lines[3]
    assert "fence: held by attempt 1" in lines[5]
    assert "complete: all steps are done at step 15; weights sha256:" in lines[6]


def test_machines_see_the_same(run: Path, piton: Piton) -> None:
    (folder(run, 8) / names.MANIFEST_FILE).unlink()

    found = json.loads(piton("checkpoint", "ls", run, "--json").out)

    rows = {row["step"]: row for row in found["checkpoints"]}
    assert list(rows) == [15, 12, 8, 4]
    assert rows[8]["problem"] == "it has no manifest"
    assert [step for step, row in rows.items() if row["newest"]] == [15]
    assert rows[15]["bytes"] == layout.read_manifest(folder(run, 15)).size
    assert (rows[15]["attempt"], rows[15]["worldSize"], found["fence"]) == (1, 1, 1)
    assert rows[15]["metrics"]["loss"] == layout.read_manifest(folder(run, 15)).metrics["loss"]
    assert found["complete"]["step"] == 15


def test_the_best_checkpoint_is_marked(run: Path, piton: Piton) -> None:
    found = json.loads(piton("checkpoint", "ls", run, "--json").out)

    best = min(losses(run).items(), key=lambda item: item[1])[0]
    assert [row["step"] for row in found["checkpoints"] if row["best"]] == [best]


def test_named_trainings_of_a_script_are_listed_below(run: Path, piton: Piton) -> None:
    for name, step in (("fold-0", 15), ("fold-1", 12)):
        (run / names.SESSIONS_FOLDER / name).mkdir(parents=True)
        shutil.copytree(folder(run, step), folder(run / names.SESSIONS_FOLDER / name, step))
    shutil.copy(run / names.COMPLETE_FILE, run / names.SESSIONS_FOLDER / "fold-0")

    lines = piton("checkpoint", "ls", run).out.splitlines()
    places = [lines.index(title) for title in ("session fold-0", "session fold-1")]
    assert [lines[place + 2].split()[0] for place in places] == ["15", "12"]
    assert lines[places[0] + 4].startswith("complete: all steps are done at step 15")
    assert lines[places[1] + 4] == "complete: no, the run has not finished here"

    found = json.loads(piton("checkpoint", "ls", run, "--json").out)
    assert [(each["session"], len(each["checkpoints"])) for each in found["sessions"]] == [("fold-0", 1), ("fold-1", 1)]


def test_an_empty_directory_has_no_checkpoints(tmp_path: Path, piton: Piton) -> None:
    assert piton("checkpoint", "ls", tmp_path).out.startswith("no checkpoints\nfence: nobody")
    assert piton("checkpoint", "verify", tmp_path).code == 1


def test_looking_at_checkpoints_needs_no_torch(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from piton.cli import checkpoints as c; d = Path(sys.argv[1]);"
        "c.ls(d, as_json=False); c.verify(d, step=None, as_json=False);"
        "c.prune(d, c.RetentionRule(keep_last=1, keep_best=1, metric=None, goal='Minimize'), dry_run=True);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True).returncode == 0


def test_good_checkpoints_are_good(run: Path, piton: Piton) -> None:
    result = piton("checkpoint", "verify", run)

    assert (result.code, result.out) == (0, "4 of 4 checkpoints are good\n")


def test_a_flipped_bit_in_any_file_is_found(run: Path, piton: Piton) -> None:
    whole = folder(run, 12)
    for path in sorted(whole.iterdir()):
        size = path.stat().st_size
        for place in (0, size // 3, size // 2, size - 1):
            flip(path, place, bit=place % 8)

            result = piton("checkpoint", "verify", run)

            assert result.code == 1, (path.name, place)
            assert result.out.startswith(f"{whole.name}: "), (path.name, place)
            assert result.out.endswith("3 of 4 checkpoints are good\n")
            flip(path, place, bit=place % 8)
    assert piton("checkpoint", "verify", run).code == 0


def test_one_checkpoint_can_be_verified_alone(run: Path, piton: Piton) -> None:
    flip(folder(run, 8) / layout.STATE_FILE)

    found = json.loads(piton("checkpoint", "verify", run, "--step", 8, "--json").out)

    assert found["problems"] == [
        {"folder": "step-000000008", "problem": "state.json has flipped bits: its digest is another"}
    ]
    assert piton("checkpoint", "verify", run, "--step", 12).code == 0


def steps_left(run: Path) -> list[int]:
    return sorted(step for step, _ in layout.step_folders(run))


def test_pruning_keeps_the_last_and_the_best(run: Path, piton: Piton) -> None:
    arguments = ("checkpoint", "prune", run, "--keep-last", 1, "--keep-best", 2, "--metric", "loss")
    wanted = sorted(step for _, step in sorted((value, step) for step, value in losses(run).items())[:2])

    dry = piton(*arguments, "--dry-run")
    assert steps_left(run) == list(STEPS)
    assert dry.out.count("would be deleted") == 4 - len({15, *wanted})

    assert piton(*arguments).code == 0
    assert steps_left(run) == sorted({15, *wanted})


def test_pruning_keeps_the_runs_own_best_without_being_told_a_metric(run: Path, piton: Piton) -> None:
    best = min(losses(run).items(), key=lambda item: item[1])[0]

    piton("checkpoint", "prune", run, "--keep-last", 1)

    assert steps_left(run) == sorted({15, best})


def test_pruning_never_takes_the_newest_good_one_nor_what_is_newer(run: Path, piton: Piton) -> None:
    flip(folder(run, 15) / layout.STATE_FILE)
    flip(folder(run, 12) / layout.STATE_FILE)

    piton("checkpoint", "prune", run, "--keep-last", 1, "--keep-best", 0)

    assert steps_left(run) == [8, 12, 15]


def test_nothing_is_pruned_where_nothing_is_good(run: Path, piton: Piton) -> None:
    for step in STEPS:
        flip(folder(run, step) / layout.STATE_FILE)

    assert piton("checkpoint", "prune", run, "--keep-last", 1).code == 1
    assert steps_left(run) == list(STEPS)


def weights_of(run: Path, state: dict[str, Any]) -> str:
    model = tiny.build()
    model.load_state_dict(state)
    digest = weights_digest({"model": model})
    assert digest is not None
    return digest


@pytest.fixture(scope="module")
def digest(trained: Path) -> str:
    """Of the model alone, as plain DCP reads it from the checkpoint as it is."""
    state = {f"model/{name}": tensor for name, tensor in tiny.build().state_dict().items()}
    state_dict_loader.load(state, checkpoint_id=folder(trained, 15), no_dist=True)
    return weights_of(trained, {name.removeprefix("model/"): tensor for name, tensor in state.items()})


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def test_exported_safetensors_are_the_weights(run: Path, tmp_path: Path, piton: Piton, digest: str) -> None:
    out = tmp_path / "model.safetensors"

    result = piton("checkpoint", "export", run, out, "--format", "safetensors", "--weights-only")

    assert (result.code, result.out) == (0, f"step 15 is in {out}: 4 tensors as safetensors\n")
    assert weights_of(run, load_file(out)) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model.safetensors"]


def test_exported_dcp_is_read_by_plain_torch(run: Path, tmp_path: Path, piton: Piton, digest: str) -> None:
    assert piton("checkpoint", "export", run, tmp_path / "dcp", "--format", "dcp").code == 0

    model = tiny.build()
    steps = {name: {"step": torch.zeros(()), "exp_avg": p.detach().clone()} for name, p in model.named_parameters()}
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": {"state": steps}}
    state_dict_loader.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert weights_of(run, state["model"]) == digest
    assert {float(part["step"]) for part in steps.values()} == {15.0}


def test_exported_torch_files_are_read_without_unpickling(run: Path, tmp_path: Path, piton: Piton, digest: str) -> None:
    assert piton("checkpoint", "export", run, tmp_path / "all.pt", "--format", "torch").code == 0
    assert piton("checkpoint", "export", run, tmp_path / "ema.pt", "--format", "torch", "--weights-only",
                 "--weights", "ema", "--step", 12).code == 0  # fmt: skip

    found = torch.load(tmp_path / "all.pt", weights_only=True)
    assert found.keys() == {"model", "optimizer", "scheduler", "ema"}
    assert weights_of(run, found["model"]) == digest
    assert int(torch.load(tmp_path / "ema.pt", weights_only=True)["n_averaged"]) == 12


def test_an_export_takes_the_newest_good_one(run: Path, tmp_path: Path, piton: Piton) -> None:
    flip(folder(run, 15) / "__0_0.distcp")

    assert piton("checkpoint", "export", run, tmp_path / "m.pt", "--format", "torch").out.startswith("step 12 ")


BAD: dict[str, tuple[list[str], str]] = {
    "no directory": (["ls", "nowhere"], "nowhere cannot be listed (No such file or directory); name a checkpoint"),
    "a file": (["verify", "file"], "file cannot be listed (Not a directory)"),
    "no such step": (["verify", "checkpoints", "--step", "5"], "has no checkpoint of step 5; it has 15, 12, 8, 4"),
    "no number to keep": (["prune", "checkpoints"], "Missing option '--keep-last'"),
    "nothing to keep": (["prune", "checkpoints", "--keep-last", "0"], "0 is not in the range x>=1"),
    "best of what": (["prune", "checkpoints", "--keep-last", "1", "--keep-best", "2"], "name it with --metric"),
    "unknown metric": (["prune", "checkpoints", "--keep-last", "1", "--metric", "f1"], "no checkpoint has a metric f1"),
    "unknown format": (["export", "checkpoints", "out", "--format", "hdf5"], "'hdf5' is not one of"),
    "all as safetensors": (["export", "checkpoints", "out", "--format", "safetensors"], "say --weights-only"),
    "a bucket": (["prune", "s3://bucket/run", "--keep-last", "1"], "s3://bucket/run is in a bucket; name a file"),
    "a bucket in capitals": (["export", "S3://bucket/run", "out", "--format", "dcp"], "S3://bucket/run is in a bucket"),
    "a bucket for a folder": (["restore", "s3://bucket/run", "s3://bucket/too"], "s3://bucket/too is in a bucket"),
    "a bucket with one slash": (
        ["ls", "S3:/bucket/run"],
        "s3:/bucket/run is no place in a bucket; write it like s3://",
    ),
    "out is there": (["export", "checkpoints", "file", "--format", "dcp"], "file is there already"),
    "no such weights": (
        ["export", "checkpoints", "out", "--format", "torch", "--weights-only", "--weights", "gan"],
        "has no gan; it has ema, model, optimizer, scheduler",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "words"), [pytest.param(*case, id=name.replace(" ", "-")) for name, case in BAD.items()]
)
def test_bad_input_is_one_sentence(
    arguments: list[str], words: str, run: Path, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    Path("file").write_text("")

    assert_one_sentence(piton("checkpoint", *arguments), words)
    assert steps_left(run) == list(STEPS)
    assert not Path("out").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_export_to_a_folder_that_takes_no_files_says_why(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(exporter, "TemporaryFile", refuse)

    with pytest.raises(InputError, match=rf"out cannot be written: {os.strerror(number)}; name another place"):
        exporter.check_place(tmp_path / "out")
