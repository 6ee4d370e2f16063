"""A file is read once, so that a pipe will do; and empty documents are passed over."""

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.conftest import Piton
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
