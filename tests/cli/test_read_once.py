"""A file is read once, so that a pipe will do; empty documents are passed over; what is no text is one sentence."""

import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.conftest import Piton
from cli.test_bad_input import assert_one_sentence
from cli.test_sweep_command import write
from local.helpers import fake_parts, write_manifest


@contextmanager
def piped(text: str) -> Iterator[str]:
    """As `<(...)` of a shell."""
    reader, writer = os.pipe()

    def write_all() -> None:
        with os.fdopen(writer, "w") as stream:
            stream.write(text)

    thread = threading.Thread(target=write_all)
    thread.start()
    try:
        yield f"/dev/fd/{reader}"
    finally:
        thread.join()
        os.close(reader)


@pytest.fixture(params=["run", "sweep"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    file = tmp_path / "one.yaml"
    if request.param == "run":
        return write_manifest(file, **fake_parts("--steps", "2")).read_text()
    return write(file, {"a": ("--steps", "2")}).read_text()


@pytest.mark.parametrize("command", [("validate",), ("plan", "--json"), ("run", "--quiet", "--dir", "r")])
def test_a_pipe_is_as_good_as_a_file(
    command: tuple[str, ...], text: str, piton: Piton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with piped(text) as file:
        result = piton(command[0], file, *command[1:])
    assert result.code == 0, result.err


def test_a_pipe_with_a_name_and_stdin_are_as_good(text: str, piton: Piton, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=lambda: fifo.write_text(text))
    thread.start()
    assert piton("validate", fifo).code == 0
    thread.join()


def test_a_dash_is_stdin(text: str, piton: Piton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert piton("validate", "-").code == 0


@pytest.mark.parametrize("parts", ["{}---\n", "---\n{}", "---\n---\n{}---\n# nothing\n---\n", "\ufeff{}", "{}...\n"])
def test_empty_documents_are_passed_over(parts: str, text: str, piton: Piton, tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text(parts.replace("{}", text), encoding="utf-8")
    result = piton("validate", file)
    assert result.code == 0, result.err


@pytest.mark.parametrize("parts", ["", "---\n", "# nothing\n---\n---\n"])
def test_nothing_but_empty_documents_is_no_run(parts: str, piton: Piton) -> None:
    with piped(parts) as file:
        result = piton("validate", file)
    assert result.code == 2
    assert "holds no TrainingRun" in result.err


def test_results_are_read_from_a_pipe(piton: Piton) -> None:
    with piped(json.dumps({"kind": "TrainingSweep", "status": {}})) as file:
        assert piton("results", file).code == 0


READERS = [("validate",), ("plan", "--json"), ("run", "--quiet"), ("preflight", "--quiet"), ("results",)]


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("kind", ["closed", "not open for reading", "a folder", "no text"])
def test_stdin_that_cannot_be_read_is_one_sentence(
    kind: str, command: tuple[str, ...], piton: Piton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"{\xff\xfe")
    flags = os.O_WRONLY | os.O_CREAT if kind == "not open for reading" else os.O_RDONLY
    number = os.open({"a folder": ".", "no text": "binary"}.get(kind, "file"), flags | os.O_CREAT * (kind == "closed"))
    stdin = None if kind == "closed" else SimpleNamespace(buffer=SimpleNamespace(read=lambda: os.read(number, 99)))
    monkeypatch.setattr("sys.stdin", stdin)
    words = {"closed": "stdin is closed", "no text": "- is no text"}.get(kind, "- cannot be read")
    try:
        assert_one_sentence(piton(command[0], "-", *command[1:]), words)
    finally:
        os.close(number)


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize(
    "name", ["folder.yaml", "socket", "socket.json", "binary", "binary.json", "nothing", "/dev/fd/999999"]
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    name: str, command: tuple[str, ...], piton: Piton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    for binary in ("binary", "binary.json"):
        (tmp_path / binary).write_bytes(b"{\xff\xfe")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind("socket")
        two.bind("socket.json")
        result = piton(command[0], name, *command[1:])
    of_sweep = command[0] == "results" and name == "folder.yaml"
    assert_one_sentence(result, "holds no sweep" if of_sweep else "no text" if "binary" in name else "cannot be read")
