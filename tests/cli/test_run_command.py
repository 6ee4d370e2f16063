"""`piton run` as people and machines use it: what it prints, how it is stopped, and what it exits with."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton
from local.helpers import a_command, eventually, fake_parts, text_of, train, write_manifest
from support.processes import is_running


def command(tmp_path: Path, *fake: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    file = write_manifest(tmp_path / "run.yaml", **fake_parts(*fake))
    return ("run", str(file), "--dir", str(tmp_path / "run"), *options)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def held(tmp_path: Path, step: int = 7) -> int:
    """Wait until the trainer waits; its process id."""
    return int(eventually(lambda: text_of(tmp_path / f"run/checkpoints/held-{step}")))


def test_json_is_one_object_and_everything_else_goes_to_stderr(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--hold-at", "7", options=("--json", "--drill", "kill@step7"))
    with a_command(*arguments, cwd=tmp_path) as process:
        code, out, err = finish(process)

    summary: dict[str, Any] = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert {"name", "phase", "reason", "finalStep", "lostSteps", "preemptions", "attempts", "failures", "bestMetric",
            "weightsDigest", "checkpoint", "recoverySeconds"} <= set(summary)  # fmt: skip
    assert (summary["name"], summary["phase"], summary["finalStep"]) == ("fake", "Succeeded", 20)
    assert (summary["lostSteps"], summary["preemptions"], summary["attempts"]) == (2, 1, 2)
    assert summary["checkpoint"] == str(tmp_path / "run/checkpoints/step-000000020")
    assert "Drill kill@step7 at step 7" in err
    assert "2 were trained twice" in err
    assert "Traceback" not in err


def test_a_failed_run_exits_with_1_and_shows_the_end_of_the_log(tmp_path: Path, piton: Piton) -> None:
    result = piton(*command(tmp_path, "--end", "diverged", options=("--quiet", "--json")))

    assert result.code == 1
    assert json.loads(result.out)["phase"] == "Failed"
    assert "the fake diverged" in result.err
    assert f"The last lines of {tmp_path}/run/logs/attempt-1/trainer-0/output.log" in result.err


def test_a_finished_run_says_so_and_exits_with_0(tmp_path: Path, piton: Piton) -> None:
    arguments = command(tmp_path, options=("--json",))
    first, again = piton(*arguments), piton(*arguments)

    assert (first.code, again.code) == (0, 0)
    assert "finished already; nothing was trained" in again.err
    assert json.loads(again.out) == json.loads(first.out)


def test_a_run_that_has_succeeded_without_its_drill_exits_with_3(tmp_path: Path, piton: Piton) -> None:
    arguments = command(tmp_path, options=("--json", "--quiet", "--drill", "kill@step999"))
    first, again = piton(*arguments), piton(*arguments)

    for result in (first, again):
        assert (result.code, json.loads(result.out)["phase"]) == (3, "Succeeded")
        assert json.loads(result.out)["drillsNotFired"] == ["kill@step999"]
        sentence = "fake has Succeeded, but not fired: kill@step999; it was over before it was known to be so far"
        assert result.err.splitlines()[-1] == f"piton: {sentence}"


def test_a_failed_run_exits_with_1_whatever_has_not_fired(tmp_path: Path, piton: Piton) -> None:
    result = piton(
        *command(
            tmp_path,
            "--end",
            "diverged",
            options=(
                "--drill",
                "kill@step999",
            ),
        )
    )

    assert result.code == 1
    assert "but not fired" not in result.err


def test_a_price_gives_a_cost(tmp_path: Path, piton: Piton) -> None:
    result = piton(*command(tmp_path, options=("--json", "--price-per-hour", "3600")))

    cost = json.loads(result.out)["cost"]
    assert result.code == 0
    assert 0 < float(cost["spent"]) < 60
    assert f"        cost  ${cost['spent']}" in result.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops_and_the_same_command_continues(
    signum: signal.Signals, code: int, tmp_path: Path, piton: Piton
) -> None:
    undisturbed, _ = train(tmp_path / "undisturbed")
    arguments = command(tmp_path, "--hold-at", "7", options=("--json",))
    with a_command(*arguments, cwd=tmp_path) as process:
        trainer = held(tmp_path)
        process.send_signal(signum)
        stopped = finish(process)
    continued = piton(*arguments)

    assert stopped[0] == code
    assert "saved at step 7; the same command continues" in stopped[2]
    assert json.loads(stopped[1])["phase"] == "Suspended"
    assert not is_running(trainer)
    assert continued.code == 0
    summary = json.loads(continued.out)
    assert (summary["attempts"], summary["lostSteps"], summary["preemptions"], summary["failures"]) == (2, 0, 0, 0)
    assert summary["weightsDigest"] == undisturbed.summary.weights_digest


def test_a_terminal_that_vanishes_does_not_end_the_training(tmp_path: Path) -> None:
    """A terminal with a bar in it, gone in the middle; the kernel sends SIGHUP as well."""
    reader, terminal = pty.openpty()
    arguments = [sys.executable, "-m", "piton.cli", *command(tmp_path, "--hold-at", "7", options=("--json",))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=terminal, text=True) as process:
        os.close(terminal)
        held(tmp_path)
        shown = b""
        while b"fake" not in shown:
            shown += os.read(reader, 4096)
        os.close(reader)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # the fake holds for it
        out, _ = process.communicate(timeout=60)

    assert process.returncode == 143
    assert json.loads(out)["phase"] == "Suspended"


@pytest.mark.parametrize("gone", ["reader", "disk", "stream"])
def test_words_that_go_nowhere_change_nothing(gone: str, tmp_path: Path) -> None:
    ordered = command(tmp_path, "--hold-at", "7", options=("--json", "--drill", "kill@step7"))
    arguments = [sys.executable, "-m", "piton.cli", *ordered]
    reader, pipe = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    if gone == "stream":
        arguments = ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments]
    stderr = {"reader": pipe, "disk": full, "stream": None}[gone]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=stderr, timeout=120)
    os.close(pipe)
    os.close(full)

    assert done.returncode == 0
    summary = json.loads(done.stdout)
    assert (summary["phase"], summary["finalStep"], summary["preemptions"]) == ("Succeeded", 20, 1)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with a_command(*command(tmp_path, "--hold-at", "7", "--deaf"), cwd=tmp_path) as process:
        trainer = held(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        for line in process.stderr:
            if "once more kills them" in line:
                break
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)

    assert code == 130
    assert "saved at step 5; the same command continues" in err
    assert not is_running(trainer)


def test_a_second_command_on_the_same_folder_is_refused(tmp_path: Path, piton: Piton) -> None:
    arguments = command(tmp_path, "--hold-at", "7")
    with a_command(*arguments, cwd=tmp_path) as process:
        held(tmp_path)
        second = piton(*arguments, "--fresh")
        process.send_signal(signal.SIGINT)
        code, _, _ = finish(process)

    assert (second.code, code) == (2, 130)
    assert f"another `piton run` (process {process.pid}) works in" in second.err
