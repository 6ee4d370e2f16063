"""Bad input of every kind: exit code 2, one sentence that names the fix, no trace, and nothing left behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton, Result
from local.helpers import fake_parts, write_manifest

CPU = {"nodes": 1, "gpusPerNode": 0}


def charlm(recipe: str = "charlm", **config: object) -> dict[str, Any]:
    return {"trainer": {"image": "none", "recipe": recipe, "config": {"steps": 10, **config}}, "workers": CPU}


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": (fake_parts(worker={}), "spec.worker: unknown field; did you mean workers?"),
    "wrong type": ({**fake_parts(), "workers": {"nodes": "two"}}, 'spec.workers.nodes: "two" is of the wrong type'),
    "negative budget": (fake_parts(limits={"budget": {"usd": "-5"}}), "not below zero"),
    "unknown recipe": (charlm("charml"), "did you mean charlm?"),
    "unknown config key": (charlm(dept=4), "spec.trainer.config.dept: charlm has no such setting; did you mean depth?"),
    "bad config value": (charlm(depth=0), "spec.trainer.config.depth: has to be at least 1"),
    "no end": (charlm(steps=None), "limits.trainingTime; set one of them"),
    "missing data": (charlm(data="no-such-file.txt"), "there is no file or directory no-such-file.txt"),
    "no such program": ({**fake_parts(), "trainer": {"image": "none", "command": ["trane"]}}, "no program trane here"),
    "no such GPUs": ({**fake_parts(), "workers": {"gpusPerNode": 64}}, "spec.workers: 64 GPUs are asked for"),
    "suspended": (fake_parts(suspend=True), "spec.suspend: the run is told to hold"),
    "name too long": ({"name": "x" * 47, **fake_parts()}, "write at most 46"),
    "name with capitals": ({"name": "Fake", **fake_parts()}, "is no DNS label"),
}

TEXTS = {
    "not YAML": ("metadata: [", "is not YAML: line 1"),
    "nothing": ("", "holds no TrainingRun"),
    "a list": ("- a\n- b", "holds no TrainingRun"),
    "another kind": ("apiVersion: v1\nkind: Pod", "write 'piton.dev/v1alpha1'"),
    "a key twice": ("apiVersion: piton.dev/v1alpha1\nkind: A\nkind: B", "the key kind stands twice"),
    "no name": ("apiVersion: piton.dev/v1alpha1\nkind: TrainingRun\nspec: {}", "metadata.name: missing"),
    "a number as namespace": (
        "apiVersion: piton.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: a, namespace: 5}\nspec: {}",
        "metadata.namespace: 5 is of the wrong type",
    ),
}

OPTIONS = {
    "drill": (["--drill", "preempt@half"], "'preempt@half' is no drill"),
    "notice": (["--notice", "soon"], "--notice: 'soon' is not a duration"),
    "unknown option": (["--fast"], "No such option '--fast'"),
}


def assert_one_sentence(result: Result, words: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith("piton: ")
    assert words in result.err


@pytest.mark.parametrize(
    ("parts", "words"), [pytest.param(*case, id=name.replace(" ", "-")) for name, case in MANIFESTS.items()]
)
def test_a_run_that_cannot_work_is_refused(
    parts: dict[str, Any], words: str, tmp_path: Path, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "run.yaml", **parts)

    assert_one_sentence(piton("run", "run.yaml", "--json"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("text", "words"), [pytest.param(*case, id=name.replace(" ", "-")) for name, case in TEXTS.items()]
)
def test_a_file_that_is_no_run_is_refused(text: str, words: str, tmp_path: Path, piton: Piton) -> None:
    (tmp_path / "run.yaml").write_text(text)

    assert_one_sentence(piton("run", tmp_path / "run.yaml"), words)
    assert_one_sentence(piton("plan", tmp_path / "run.yaml"), words)
    assert piton("validate", tmp_path / "run.yaml").code == 2


@pytest.mark.parametrize(
    ("options", "words"), [pytest.param(*case, id=name.replace(" ", "-")) for name, case in OPTIONS.items()]
)
def test_an_option_that_makes_no_sense_is_refused(options: list[str], words: str, tmp_path: Path, piton: Piton) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts())

    assert_one_sentence(piton("run", file, "--dir", tmp_path / "run", *options), words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, piton: Piton) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")

    assert_one_sentence(piton("run", tmp_path / "none.yaml"), "cannot be read (No such file or directory)")
    assert_one_sentence(piton("run", tmp_path), "cannot be read (Is a directory)")
    assert_one_sentence(piton("run", tmp_path / "run.yaml"), "is no text")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, piton: Piton) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts())

    for folder in (Path("/proc/run"), file, file / "run"):  # root may write anywhere else
        assert_one_sentence(piton("run", file, "--dir", folder), f"the run folder {folder} cannot be written")


def test_an_unknown_command_or_none_is_refused(piton: Piton) -> None:
    assert_one_sentence(piton("trane"), "No such command 'trane'")
    assert_one_sentence(piton("run"), "Missing argument 'FILE'")
    assert piton().code == 2


def test_no_trace_reaches_a_real_terminal(tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts(worker={}))
    command = [sys.executable, "-m", "piton.cli", "run", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert_one_sentence(Result(result.returncode, result.stdout, result.stderr), "unknown field")


# --- a mistake of Piton's ---------------------------------------------------------------------------------------------


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr("piton.cli.inspect.validate", fails)


@pytest.mark.parametrize("error", [KeyError("spec"), ValueError("no such thing"), AssertionError("never")])
def test_a_mistake_of_pitons_is_no_bad_input(
    piton: Piton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    broken(monkeypatch, error)
    found = piton("validate", str(tmp_path / "run.yaml"))
    assert (found.code, found.out) == (70, "")
    assert found.err.startswith(f"piton: internal error, {type(error).__name__}: {error}; ")
    assert "piton --debug" in found.err
    assert "Traceback" not in found.err


def test_with_debug_the_trace_of_a_mistake_is_shown(
    piton: Piton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(monkeypatch, KeyError("spec"))
    found = piton("--debug", "validate", str(tmp_path / "run.yaml"))
    assert found.code == 70
    assert "Traceback (most recent call last)" in found.err
    assert "in fails" in found.err


def test_with_debug_bad_input_is_still_bad_input(piton: Piton, tmp_path: Path) -> None:
    found = piton("--debug", "validate", str(tmp_path / "none.yaml"))
    assert found.code == 2
    assert "cannot be read" in found.err
