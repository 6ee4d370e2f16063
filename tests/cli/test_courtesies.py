"""The curve, the summary and the words on a terminal are courtesies: no exit code and no other run depends on them."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton
from cli.test_sweep_command import write
from local.helpers import Listener, eventually, fake_parts, text_of, train, write_manifest
from piton.api.status_base import Phase
from piton.core.effects import Announcement
from piton.local import plot, runner
from piton.local.observers import Courteous, View
from piton.local.run_folder import RunFolder


class Broken(Listener):
    """A terminal that can show nothing."""

    async def announce(self, announcement: Announcement) -> None:
        raise RuntimeError("no terminal")

    def show(self, view: View) -> None:
        raise UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range")


def fail(*_: object, **__: object) -> bool:
    raise ValueError("Key backend: 'module://matplotlib_inline.backend_inline' is not a valid value for backend")


def command(*arguments: str, **env: str) -> Any:
    """`piton …` in a process of its own, where matplotlib is imported for the first time."""
    return subprocess.run(
        [sys.executable, "-m", "piton.cli", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "tkagg"])
def test_a_backend_of_a_notebook_costs_nothing(backend: str, tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts("--steps", "4"))
    done = command("run", str(file), "--dir", str(tmp_path / "run"), "--json", MPLBACKEND=backend)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["phase"] == Phase.SUCCEEDED
    assert summary["curve"] == str(tmp_path / "run/loss.png")
    assert "outcome  Succeeded" in done.stderr


def test_a_curve_that_cannot_be_drawn_is_said_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "draw", fail)
    ending, listener = train(tmp_path / "run")

    assert ending.summary.phase == Phase.SUCCEEDED
    assert ending.summary.curve is None
    assert [said for said in listener.said if said.startswith("loss.png is not drawn (ValueError: Key backend")]


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324, 1e301])
def test_a_value_near_the_ends_of_floats_is_drawn_without(value: float, tmp_path: Path) -> None:
    from piton.local.metrics import Point

    points = [Point(attempt=1, step=step, metrics={"loss": loss}) for step, loss in enumerate((2.0, value, 1.0))]
    assert plot.draw(tmp_path / "loss.png", name="huge", points=points, objective=None, attempts=[])


def test_reports_that_cannot_be_read_cost_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.metrics_file.unlink()
    folder.metrics_file.mkdir()

    ending, _ = train(tmp_path / "run")
    assert (ending.trained, ending.summary.phase, ending.summary.start_seconds) == (False, Phase.SUCCEEDED, {})


def test_a_terminal_that_shows_nothing_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.helpers.Listener", Broken)
    ending, _ = train(tmp_path / "run", "--hold-at", "7", drills=("kill@step7",))

    assert (ending.summary.phase, ending.summary.preemptions) == (Phase.SUCCEEDED, 1)
    assert Courteous(Broken())


def read_all(terminal: int) -> None:
    """What a terminal does, until nobody has it open any more."""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb") as stream:
        while stream.read1():
            pass


@pytest.mark.parametrize("terminal", [{"TERM": "dumb"}, {"COLUMNS": "1"}, {"COLUMNS": "0", "LINES": "0"}, {"TERM": ""}])
def test_any_terminal_will_do(terminal: dict[str, str], tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts("--steps", "4"))
    arguments = [sys.executable, "-m", "piton.cli", "run", str(file), "--dir", str(tmp_path / "run"), "--json"]
    mine, its = pty.openpty()
    reading = threading.Thread(target=read_all, args=(mine,))
    reading.start()
    done = subprocess.run(
        arguments, env=os.environ | terminal, stdout=subprocess.PIPE, stderr=its, timeout=120, check=False
    )
    os.close(its)
    reading.join()

    assert done.returncode == 0
    assert json.loads(done.stdout)["phase"] == Phase.SUCCEEDED


@contextlib.contextmanager
def standing_terminal() -> Iterator[tuple[int, Callable[[], None], Callable[[], str]]]:
    """A terminal: its end for the command, Ctrl-S once it shows anything, and Ctrl-Q with all that it shows then."""
    mine, its = pty.openpty()

    def stop() -> None:
        os.read(mine, 1)
        termios.tcflow(its, termios.TCOOFF)

    def move() -> str:
        termios.tcflow(its, termios.TCOON)
        os.close(its)
        return _text(mine)

    yield its, stop, move


@contextlib.contextmanager
def standing_pipe() -> Iterator[tuple[int, Callable[[], None], Callable[[], str]]]:
    """A pipe that is full from the start."""
    mine, its = os.pipe()
    os.set_blocking(its, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(its, b"." * 4096):
            pass
    os.set_blocking(its, True)

    def move() -> str:
        os.close(its)
        return _text(mine)

    yield its, lambda: None, move


def _text(end: int) -> str:
    with os.fdopen(end, "rb") as stream:
        shown = b""
        with contextlib.suppress(OSError):
            while part := stream.read1():
                shown += part
    return shown.decode()


@pytest.mark.parametrize("standing", [standing_terminal, standing_pipe])
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_output_that_stands_still_holds_up_no_training(kind: str, standing: Any, tmp_path: Path) -> None:
    """A kill in the midst of it is answered by the next attempt, and the end is told once the output moves again."""
    if kind == "run":
        file = write_manifest(tmp_path / "run.yaml", **fake_parts("--steps", "12", "--hold-at", "7"))
        state = tmp_path / "out/state.json"
    else:
        file = write(tmp_path / "sweep.yaml", {"first": ("--steps", "12", "--hold-at", "7"), "second": ()})
        state = tmp_path / "out/sweep.json"
    command = [sys.executable, "-m", "piton.cli", "run", str(file), "--dir", str(tmp_path / "out")]
    drill = ["--drill", "kill@step7" if kind == "run" else "first:kill@step7"]
    with standing() as (stderr, stop, move):
        with subprocess.Popen([*command, *drill], stderr=stderr, stdout=subprocess.DEVNULL) as process:
            try:
                stop()
                eventually(lambda: '"phase": "Succeeded"' in text_of(state), seconds=60)
                assert process.poll() is None
            except BaseException:
                process.kill()
                raise
            shown = move()
        assert process.returncode == 0
    assert "kill" in shown
    assert "Succeeded" in shown


def test_a_run_of_a_sweep_whose_curve_fails_stops_no_other(tmp_path: Path) -> None:
    file = write(tmp_path / "sweep.yaml", {"short": (), "long": ("--steps", "60")}, parallelism=2)
    done = command("run", str(file), "--dir", str(tmp_path / "s"), "--json", MPLBACKEND="nonsense")

    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stderr


@pytest.mark.parametrize("error", [ValueError("its folder is lost"), OSError(5, "Input/output error", "run")])
def test_a_run_of_a_sweep_that_cannot_be_driven_stops_no_other(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piton: Piton
) -> None:
    driven = runner.train

    async def train_but_one(order: runner.RunRequest, *rest: Any) -> runner.Ending:
        if order.name == "ablation-bad":
            raise error
        return await driven(order, *rest)

    monkeypatch.setattr(runner, "train", train_but_one)
    file = write(tmp_path / "sweep.yaml", {"bad": (), "good": ("--steps", "60"), "last": ()}, parallelism=2)
    result = piton("run", file, "--dir", tmp_path / "s")

    assert result.code != 0
    assert "ablation-bad is given up, and the other runs go on" in result.err
    assert [json.loads(text_of(tmp_path / f"s/{name}/state.json"))["status"]["phase"] for name in ("good", "last")] == [
        "Succeeded",
        "Succeeded",
    ]
    monkeypatch.undo()
    assert json.loads(text_of(tmp_path / "s/sweep.json"))["status"]["phase"] == "Failed"


def test_an_error_of_the_sweep_itself_lets_the_runs_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piton: Piton
) -> None:
    from piton.local.sweep_runner import _Sweep

    passes = _Sweep._pass

    async def fail_later(self: _Sweep) -> float | None:
        if (tmp_path / "s/long/checkpoints/step-000000005").exists():
            raise RuntimeError("a mistake")
        return await passes(self)

    monkeypatch.setattr(_Sweep, "_pass", fail_later)
    file = write(tmp_path / "sweep.yaml", {"long": ("--steps", "20", "--hold-at", "7")})
    assert piton("run", file, "--dir", tmp_path / "s").code == 70

    state = json.loads(text_of(tmp_path / "s/long/state.json"))
    assert state["status"]["phase"] == "Suspended"
    assert state["status"]["checkpoint"]["step"] >= 5
