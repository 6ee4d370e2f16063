"""`piton export` and `piton serve`: which checkpoint is taken, and what comes out, by the command line."""

import json
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cli.conftest import Piton
from cli.test_bad_input import assert_one_sentence
from local.helpers import a_command
from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import inspect
from support import charlm
from support.checkpoints import flip

LAST = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, as `piton run` leaves it: its best step is not its last one."""
    folder = tmp_path_factory.mktemp("runs") / "letters"
    save = SavePolicy(every_steps=4, keep_last=9)
    charlm.attempt(folder / "checkpoints", charlm.changed(steps=4, eval_every=4), save=save)
    spoilt = charlm.changed(steps=LAST, eval_every=4, matrix_learning_rate=9.0, warmdown_fraction=0.0)
    charlm.attempt(folder / "checkpoints", spoilt, save=save)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "letters"))


def exported(out: Path) -> int:
    step: int = json.loads((out / "config.json").read_text())["step"]
    return step


def test_the_best_is_taken_of_a_run_that_has_one(run: Path, tmp_path: Path, piton: Piton) -> None:
    newest = inspect.survey(run / "checkpoints")[0]
    assert (newest.step, inspect.best_step(newest)) == (LAST, 4)

    result = piton("export", run, "--out", tmp_path / "out")

    assert (result.code, result.out) == (0, f"step 4 of charlm (ema) is in {tmp_path / 'out'}\n")
    assert exported(tmp_path / "out") == 4
    assert "wte.weight" in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("place", "options", "step"),
    [
        ("", ("--step", "latest"), LAST),
        ("", ("--step", LAST), LAST),
        ("checkpoints", ("--step", "best", "--weights", "model"), 4),
        (f"checkpoints/{names.step_folder(LAST)}", (), LAST),
    ],
)
def test_another_one_is_taken_where_it_is_named(
    place: str, options: tuple[object, ...], step: int, run: Path, tmp_path: Path, piton: Piton
) -> None:
    assert piton("export", run / place, "--out", tmp_path / "out", *options).code == 0
    assert exported(tmp_path / "out") == step


def test_without_an_objective_the_newest_good_one_is_taken(tmp_path: Path, piton: Piton) -> None:
    save = SavePolicy(every_steps=1, keep_last=3)
    charlm.attempt(tmp_path / "run", charlm.changed(steps=3, ema=None), judged=False, save=save)
    flip(tmp_path / "run" / names.step_folder(3) / "state.json")
    older = inspect.survey(tmp_path / "run")[1].step

    result = piton("export", tmp_path / "run", "--out", tmp_path / "out")

    assert result.out.startswith(f"step {older} of charlm (model) ")
    best = piton("export", tmp_path / "run", "--out", tmp_path / "best", "--step", "best")
    assert_one_sentence(best, "does not say which step is the best: no objective was judged there")


def test_a_best_one_that_is_damaged_is_not_replaced_in_silence(run: Path, tmp_path: Path, piton: Piton) -> None:
    flip(run / "checkpoints" / names.step_folder(4) / "state.json")

    result = piton("export", run, "--out", tmp_path / "out")

    assert_one_sentence(result, "no good checkpoint of step 4; --step latest takes the newest that is")
    assert not (tmp_path / "out").exists()


def test_what_makes_no_sense_is_refused_in_a_sentence(run: Path, tmp_path: Path, piton: Piton) -> None:
    out = ("--out", tmp_path / "out")
    one = run / "checkpoints" / names.step_folder(LAST)
    assert_one_sentence(piton("export", run, *out, "--step", "first"), "'first' is no step; write a number, best or")
    assert_one_sentence(piton("export", run, *out, "--step", 5), "has no checkpoint of step 5; it has 8, 4")
    assert_one_sentence(piton("export", one, *out, "--step", 4), "is one checkpoint; name its directory")
    assert_one_sentence(piton("export", "s3://bucket/run", *out), "fetch it with piton checkpoint restore")
    assert_one_sentence(piton("export", tmp_path / "nowhere", *out), "cannot be listed (No such file or directory)")
    assert_one_sentence(piton("export", run, "--out", tmp_path), f"{tmp_path} is there already")


def test_only_what_can_go_on_with_a_text_is_served(tmp_path: Path, piton: Piton) -> None:
    out = tmp_path / "model"
    out.mkdir()
    shutil.copy(__file__, out / "model.safetensors")
    (out / "config.json").write_text("{}")
    assert_one_sentence(piton("serve", out, "--step", "best"), "is one model already; --step and --weights choose")
    assert_one_sentence(piton("serve", out), "is no model that piton export has written")


def test_an_exported_model_is_served_until_it_is_told_to_stop(run: Path, tmp_path: Path, piton: Piton) -> None:
    out = tmp_path / "model"
    piton("export", run, "--out", out)
    with a_command("serve", str(out), "--port", "0", cwd=tmp_path) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("step 4 of charlm answers at http://127.0.0.1:"), line + process.stderr.read()
        url = line.split()[-1]
        body = json.dumps({"prompt": "The ", "maxTokens": 12, "seed": 1}).encode()
        request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            heard = [json.loads(line.removeprefix(b"data: ")) for line in answer if line.strip()]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)

    assert all(len(event["token"]) == 1 for event in heard[:-1])
    assert heard[-1] == {"done": True, "tokens": 12, "seed": 1}
    assert (process.returncode, err) == (0, "")
