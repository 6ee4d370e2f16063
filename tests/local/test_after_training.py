"""What follows a training on this machine: it is part of the run, bounded in time, and nothing is trained again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from local.helpers import QUICK, fake_parts, spec_of, train
from piton.api.status_base import Phase

EXPORTED = "run/checkpoints/exported"


def test_a_script_that_runs_on_for_too_long_is_ended_and_the_same_command_runs_it_again(tmp_path: Path) -> None:
    short = replace(QUICK, after_training_seconds=0.3)
    ended, listener = train(tmp_path / "run", "--linger", timing=short)
    again, _ = train(tmp_path / "run", "--linger", timing=short)

    assert (ended.summary.phase, ended.summary.reason, ended.summary.failures) == (Phase.FAILED, "ScriptTimeout", 1)
    assert ended.summary.final_step == 20, "the result stays"
    assert "--after-training allows more" in ended.summary.message
    assert sum("has finished the training at step 20: all steps done" in said for said in listener.said) == 1
    assert (again.summary.phase, again.summary.attempts, again.summary.lost_steps) == (Phase.SUCCEEDED, 2, 0)
    assert again.summary.weights_digest == ended.summary.weights_digest
    assert (tmp_path / EXPORTED).read_text() == "2"


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("drill", ["preempt@99%", "kill@99%"])
def test_a_machine_that_goes_after_the_training_runs_the_script_again(tmp_path: Path, drill: str, nodes: int) -> None:
    volume = {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    spec = spec_of(fake_parts("--linger", nodes=nodes, checkpoint=volume))
    ending, _ = train(tmp_path / "run", spec=spec, drills=(drill,))

    summary = ending.summary
    assert (summary.phase, summary.preemptions, summary.attempts) == (Phase.SUCCEEDED, 1, 2)
    assert (summary.failures, summary.lost_steps, summary.final_step) == (0, 0, 20)
    assert (tmp_path / EXPORTED).read_text() == "2"


@pytest.mark.parametrize("code", [1, 3, 78])
def test_an_exit_code_after_the_training_is_a_failure_and_is_shown(tmp_path: Path, code: int) -> None:
    arguments = ("--exit-after", f"{code}", "--exit-attempts", "3")
    ending, _ = train(tmp_path / "run", *arguments)

    summary = ending.summary
    assert (summary.phase, summary.final_step) == (Phase.FAILED, 20)
    assert summary.failures == (1 if code == 78 else 3)
    assert "the training finished at step 20: all steps done" in summary.message
    assert f"exit code {code}" in summary.message or code == 78
    assert ending.failed_log is not None
    assert "the export failed" in ending.failed_log.read_text()
    trained = [json.loads(line)["attempt"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert set(trained) == {1}, "a repeat trains nothing"


def test_a_repeat_after_such_a_failure_runs_the_script_alone(tmp_path: Path) -> None:
    arguments = ("--exit-after", "3", "--exit-attempts", "3")
    failed, _ = train(tmp_path / "run", *arguments)
    again, _ = train(tmp_path / "run", *arguments)

    assert (again.summary.phase, again.summary.attempts, again.summary.lost_steps) == (Phase.SUCCEEDED, 4, 0)
    assert again.summary.weights_digest == failed.summary.weights_digest
    assert (tmp_path / EXPORTED).read_text() == "4"


def test_a_signal_at_the_interpreters_exit_is_no_failure(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", "--exit-after", "139", "--script", "ended")

    assert (ending.summary.phase, ending.summary.attempts) == (Phase.SUCCEEDED, 1)


def test_a_loop_left_by_break_goes_on_when_the_command_is_said_again(tmp_path: Path) -> None:
    arguments = ("--break-at", "10")
    left, _ = train(tmp_path / "run", *arguments)
    in_a_sweep, _ = train(tmp_path / "run", *arguments)
    again, listener = train(tmp_path / "run", *arguments, goes_on=True)
    finished, _ = train(tmp_path / "run", *arguments, goes_on=True)

    assert (left.summary.phase, left.summary.final_step) == (Phase.SUCCEEDED, 10)
    assert not in_a_sweep.trained, "the command of a sweep is said again for its other runs"
    assert listener.said[0].startswith("The training goes on from step 10, which the script had left by break.")
    assert (again.summary.phase, again.summary.final_step, again.summary.lost_steps) == (Phase.SUCCEEDED, 20, 0)
    assert not finished.trained
