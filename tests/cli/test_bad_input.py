"""Bad input of every kind: exit code 2, one sentence that names the fix, no trace, and nothing left behind."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli.conftest import Piton, Result
from local.helpers import fake_parts, write_manifest
from piton.api.spec import Spec
from piton.cli import files
from piton.cli.main import cli

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


HEAD = "apiVersion: piton.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: x}\nspec:\n"
BOMB = "".join(f"  {one}: &{one} [{', '.join([f'*{other}'] * 9)}]\n" for other, one in pairwise("abcdefghi"))
NO_JSON = [
    ("  a: !!binary /w==", "spec.a: \"b'\\\\xff'\" is no text in UTF-8; put binary data into a file"),
    ("  !!binary /w==: a", "is no name of a field"),
    ('  a: ["\\ud800"]', 'spec.a[0]: "\\ud800" is no text in UTF-8'),
    ('  "\\udfff": a', 'spec: "\\udfff" is no text in UTF-8'),
    ('  a: "x\\0"', 'spec.a: "x\\u0000" holds a NUL'),
    ("  a: &a [*a]", "spec.a[0][0]: nested without end, or too deeply"),
    ("  a: &a {b: {c: *a}}", "spec.a.b.c: nested without end, or too deeply"),
    ("  a: &a [*a, *a, *a]", "spec.a[0][0]: nested without end, or too deeply"),
    (f"  a: &a [1, 2]\n{BOMB}", "the file holds more than 1000000 values"),
    ("  a: !!set {b}", "spec.a: \"{'b'}\" is nothing that JSON has"),
    ("  a: !!pairs [b: c]", 'spec.a[0]: ["b", "c"] is nothing that JSON has'),
    ("  objective: {metric: loss, target: .nan}", "spec.objective.target: NaN is nothing that JSON has"),
    ("  a: [1, -.inf]", "spec.a[1]: -Infinity is nothing that JSON has"),
    ("  ~: a", "line 5: null is no name of a field"),
    ("  [a, b]: c", 'line 5: ["a", "b"] is no name of a field'),
    ("  a: {1: b, 0x1: c}", "line 5: the key 1 stands twice"),
    ("  a: {true: b, yes: c}", "line 5: the key true stands twice"),
    ('  a: {1: b, "1": c}', "line 5: the key 1 stands twice"),
]
METADATA = [
    ("labels: [a]", 'metadata.labels: ["a"] is of the wrong type; write a mapping'),
    ("labels: foo", 'metadata.labels: "foo" is of the wrong type; write a mapping'),
    ("annotations: 5", "metadata.annotations: 5 is of the wrong type; write a mapping"),
    ("finalizers: 5", "metadata.finalizers: 5 is of the wrong type; write a list"),
    ("finalizers: {a: b}", 'metadata.finalizers: {"a": "b"} is of the wrong type; write a list'),
    ("uid: 5", "metadata.uid: 5 is of the wrong type; write text (quote it)"),
    ("generation: foo", 'metadata.generation: "foo" is of the wrong type; write a whole number'),
    ("namespace: My Team", "metadata.namespace: 'My Team' is no namespace"),
    (f"namespace: {'x' * 64}", "is no namespace; write lower-case letters, digits and dashes"),
    ('labels: {team: "a b"}', "metadata.labels.team: 'a b' is no value of a label; write at most 63 letters"),
    ("labels: {team: -x}", "metadata.labels.team: '-x' is no value of a label"),
    ("labels: {a b: x}", "metadata.labels: 'a b' is no name of a label; write one such as example.com/pool"),
    ("labels: {a: 1}", "metadata.labels.a: 1 is of the wrong type; write text (quote it)"),
    ("labels: {a: yes}", "metadata.labels.a: true is of the wrong type; write text (quote it)"),
    ("annotations: {a: 1e3}", "metadata.annotations.a: 1000 is of the wrong type; write text (quote it)"),
    ("annotations: {a/b/c: x}", "metadata.annotations: 'a/b/c' is no name of an annotation"),
    ("generation: 1.5", "metadata.generation: 1.5 is of the wrong type; write a whole number"),
]


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


@pytest.mark.parametrize(("text", "words"), NO_JSON)
def test_what_json_cannot_hold_is_bad_input(text: str, words: str, tmp_path: Path, piton: Piton) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{HEAD}{text}", encoding="utf-8")

    for command in ("run", "plan", "validate"):
        assert_one_sentence(piton(command, file), words)


@pytest.mark.parametrize(("metadata", "words"), METADATA)
def test_metadata_of_the_wrong_type_is_bad_input(metadata: str, words: str, tmp_path: Path, piton: Piton) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts())
    document = {**yaml.safe_load(file.read_text()), "metadata": {"name": "x"}}
    file.write_text(yaml.safe_dump(document).replace("  name: x\n", f"  name: x\n  {metadata}\n"))

    assert_one_sentence(piton("run", file), words)
    assert piton("validate", file).code == 2


def test_keys_and_texts_are_what_kubectl_makes_of_them(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    trainer = (
        "trainer: {image: !!binary aW1hZ2U=, recipe: charlm, config: &c {1: 2, true: [3], 1.5: .5, 2020-01-01: ~}}"
    )
    file.write_text(f"{HEAD}  {trainer}\n  checkpoint: {{volume: {{size: 1Gi}}}}\n")
    with file.open("a") as rest:
        rest.write("  stages: {evaluate: {config: {<<: *c, 1: 9}}}\n")

    spec = files.read_any(file).spec
    assert isinstance(spec, Spec)
    assert spec is not None
    assert spec.trainer.image == "image"
    assert spec.trainer.config == {"1": 2, "true": [3], "1.5": 0.5, "2020-01-01": None}
    assert spec.stages.evaluate is not None
    assert spec.stages.evaluate.config == {**spec.trainer.config, "1": 9}


@pytest.mark.parametrize("levels", [10, 100, 180, 195, 196, 197, 198, 199, 200, 201, 400, 5000])
def test_a_spec_of_any_depth_is_read_or_refused(levels: int, tmp_path: Path, piton: Piton) -> None:
    file = tmp_path / "run.yaml"
    trainer = f"trainer: {{image: i, recipe: charlm, config: {{a: {'[' * levels}{']' * levels}}}}}"
    file.write_text(f"{HEAD}  {trainer}\n  checkpoint: {{volume: {{size: 1Gi}}}}\n")
    found = piton("plan", file)

    words = ("nested", "recursion") if levels > 197 else ("charlm has no such setting",)
    assert found.code == 2
    assert any(word in found.err for word in words)
    assert "Invalid JSON" not in found.err


@pytest.mark.parametrize("command", ["run", "validate", "plan", "preflight", "results", "retry", "checkpoint ls"])
def test_a_nul_in_an_argument_is_bad_input(command: str, piton: Piton) -> None:
    assert_one_sentence(piton(*command.split(), "a\0b"), "'a\\x00b' holds a NUL; remove it")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"5", b"{}", b"", b"{"])
def test_results_of_a_file_that_is_no_sweep_are_bad_input(content: bytes, tmp_path: Path, piton: Piton) -> None:
    (tmp_path / "sweep.json").write_bytes(content)

    assert_one_sentence(piton("results", tmp_path / "sweep.json"), "that is no TrainingSweep with a status")


@pytest.mark.parametrize("content", [b"\xff", b"\xff\xfe{\x00}\x00"])
def test_results_of_a_file_that_is_no_text_are_bad_input(content: bytes, tmp_path: Path, piton: Piton) -> None:
    (tmp_path / "sweep.json").write_bytes(content)

    assert_one_sentence(piton("results", tmp_path / "sweep.json"), "is no text (byte 0 is not UTF-8)")


@pytest.mark.parametrize("price", ["1" * 400, "0", "0.00", "1e3", "-1", "nan", "\u00b2", ""])
def test_a_price_that_nobody_pays_is_bad_input(price: str, tmp_path: Path, piton: Piton) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts())

    assert_one_sentence(piton("plan", file, "--price-per-hour", price), "is no amount of dollars; write it like 10.50")


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


def _commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *names, name)
        else:
            yield (*names, name), command


_PLACES = {"file", "folder", "place", "directory", "out", "config"}
"""Names of all arguments and options that are files or folders."""


COMMANDS = [pytest.param(names, command, id=" ".join(names)) for names, command in _commands(cli)]


@pytest.mark.parametrize(("names", "command"), COMMANDS)
def test_an_empty_text_is_no_file_and_no_folder(names: tuple[str, ...], command: click.Command, piton: Piton) -> None:
    """`piton checkpoint prune "$DIR" --keep-last 1` with a variable that is not set is not about this folder."""
    places = [each for each in command.params if each.name in _PLACES]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    for empty in places:
        given = ["" if each is empty else "there" for each in arguments]
        options = [f"{empty.opts[0]}="] if isinstance(empty, click.Option) else []
        required = [] if empty.name == "out" else _REQUIRED.get(" ".join(names), [])
        answer = piton(*names, *given, *options, *required)
        assert_one_sentence(answer, "it is empty; name the file or folder")
    assert places or not arguments or names == ("retry",)


_REQUIRED = {
    "export": ["--out", "there"],
    "checkpoint export": ["--format", "torch"],
    "checkpoint prune": ["--keep-last", "1"],
}


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


@pytest.mark.parametrize(
    "command",
    [
        "checkpoint ls .",
        "checkpoint ls s3://bucket/run",
        "checkpoint verify .",
        "checkpoint verify s3://bucket/run",
        "checkpoint prune . --keep-last 2",
        "checkpoint export . out --format torch",
        "checkpoint restore s3://bucket/run out",
        "export . --out out",
        "serve .",
    ],
)
def test_a_trainer_that_is_not_installed_is_said_to_be_missing(
    command: str, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("piton_trainer", *(name for name in sys.modules if name.startswith("piton_trainer."))):
        monkeypatch.setitem(sys.modules, module, None)
    found = piton(*command.split())

    assert_one_sentence(found, "the trainer is not installed here (")
    assert found.err.endswith("; say pip install 'piton-operator[trainer]'\n")


@pytest.mark.parametrize(
    ("command", "library", "part"),
    [
        ("checkpoint ls .", "blake3", "trainer"),
        ("checkpoint ls s3://bucket/run", "boto3", "trainer"),
        ("operator", "kopf", "operator"),
    ],
)
def test_a_library_that_is_not_installed_is_named(command: str, library: str, part: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from piton.cli.main import main; main()"
    found = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, timeout=60)

    assert found.returncode == 2
    assert found.stderr.startswith(f"piton: the {part} is not installed here (import of {library} halted")


def test_a_module_of_pitons_own_that_is_missing_is_its_mistake(
    piton: Piton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(monkeypatch, ModuleNotFoundError("No module named 'piton.x'", name="piton.x"))

    assert piton("validate", str(tmp_path / "run.yaml")).code == 70


@pytest.mark.parametrize("command", ["./train.py", "scripts/train.py", "{}/train.py"])
def test_a_script_that_is_not_executable_is_said_to_be_that(
    command: str, tmp_path: Path, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = command.format(tmp_path)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("#!/usr/bin/env python\n")
    parts = {**fake_parts(), "trainer": {"image": "none", "command": [path]}}

    words = f"spec.trainer.command: {path} is not executable; chmod +x it"
    assert_one_sentence(piton("run", write_manifest(tmp_path / "run.yaml", **parts)), words)


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
