"""The folder of a run is lost, or takes nothing any more, while `piton run` drives the run."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.test_sweep_command import write
from local.helpers import a_command, eventually, fake_parts, make_sure_dead, text_of, write_manifest
from piton.local.own_files import ASIDE, RUN
from support.processes import is_running


def move_away(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def take_nothing(root: Path) -> None:
    (root / ASIDE.format(RUN.state_file)).mkdir()


def ended(command: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = command.communicate(timeout=30)
    return command.returncode, said


@pytest.mark.parametrize("lose", [move_away, take_nothing])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_the_command_and_the_trainer(
    lose: Callable[[Path], None], signum: signal.Signals, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    file = write_manifest(tmp_path / "run.yaml", **fake_parts("--hold-at", "7"))
    with a_command("run", str(file), "--dir", "run", cwd=tmp_path) as command:
        trainer = int(eventually(lambda: text_of(root / "checkpoints/held-7")))
        try:
            lose(root)
            command.send_signal(signum)
            code, said = ended(command)
            eventually(lambda: not is_running(trainer))
        finally:
            make_sure_dead(trainer)
    assert code == 2
    assert "run does not take the run's state" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_run_whose_folder_is_gone_ends_with_its_trainer(tmp_path: Path) -> None:
    """Nothing can begin again where nothing can be written."""
    root = tmp_path / "run"
    file = write_manifest(tmp_path / "run.yaml", **fake_parts("--steps", "1000000000"))
    with a_command("run", str(file), "--dir", "run", cwd=tmp_path) as command:
        eventually((root / "checkpoints/step-000000005/MANIFEST.json").exists)
        move_away(root)
        code, said = ended(command)
    assert code == 2
    assert "the folder is gone" in said.splitlines()[-1]


def test_a_sweep_whose_folder_is_gone_ends_with_its_runs(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    file = write(tmp_path / "sweep.yaml", {"a": ("--steps", "1000000000"), "b": ("--steps", "1000000000")})
    with a_command("run", str(file), "--dir", "sweep", cwd=tmp_path) as command:
        eventually((root / "a/checkpoints/step-000000005/MANIFEST.json").exists)
        move_away(root)
        code, said = ended(command)
    assert code == 2
    assert "the folder is gone" in said
    assert "Traceback" not in said
