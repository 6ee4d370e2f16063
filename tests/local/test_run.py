"""Whole runs on this machine, with real processes and a trainer that needs nothing but Python."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from local.helpers import fake_parts, spec_of, train
from piton.api.status_base import Phase
from piton.local import world
from support.processes import is_running


def test_a_run_finishes_and_leaves_its_proof_and_its_curve(tmp_path: Path) -> None:
    ending, listener = train(tmp_path / "run")

    summary = ending.summary
    assert (summary.phase, summary.final_step, summary.attempts, summary.lost_steps) == (Phase.SUCCEEDED, 20, 1, 0)
    assert (summary.best_metric, summary.best_step) == (0.25, 20)
    assert summary.weights_digest is not None
    assert summary.checkpoint == summary.best_checkpoint == tmp_path / "run/checkpoints/step-000000020"
    assert summary.curve is not None
    assert summary.curve.read_bytes().startswith(b"\x89PNG")
    assert listener.said[-1].startswith("Finished after 1 attempt(s)")


def test_a_noticed_preemption_loses_nothing_and_a_kill_what_was_not_saved(tmp_path: Path) -> None:
    undrilled, _ = train(tmp_path / "undrilled")
    spec = spec_of(fake_parts("--hold-at", "7", "--hold-at", "13", nodes=2, checkpoint=shared()))
    drilled, listener = train(tmp_path / "drilled", spec=spec, drills=("kill@65%", "preempt@step7"))

    summary = drilled.summary
    assert (summary.phase, summary.preemptions, summary.attempts, summary.failures) == (Phase.SUCCEEDED, 2, 3, 0)
    assert summary.lost_steps == 3, "step 13 was trained, step 10 was saved; step 7 was saved on notice"
    assert summary.weights_digest == undrilled.summary.weights_digest
    assert summary.recovery_seconds > 0
    assert summary.drills_not_fired == ()
    drills = [sentence for sentence in listener.said if sentence.startswith("Drill")]
    assert drills == [
        "Drill preempt@step7 at step 7: the machine goes in 30s",
        "Drill kill@65% at step 13: the machine is gone, without notice",
    ]


def test_a_trainer_that_ignores_its_notice_is_killed_when_it_is_over(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", "--deaf", "--hold-at", "7", drills=("preempt@step7",), notice_seconds=0.2)

    assert (ending.summary.phase, ending.summary.preemptions, ending.summary.lost_steps) == (Phase.SUCCEEDED, 1, 2)


def test_a_kill_takes_helpers_in_other_sessions_along(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", "--child", "--hold-at", "7", drills=("kill@step7",))

    children = [int((tmp_path / f"run/checkpoints/child-{attempt}").read_text()) for attempt in (1, 2)]
    assert ending.summary.phase == Phase.SUCCEEDED
    assert not any(is_running(child) for child in children)


def test_three_crashes_fail_the_run_and_its_log_is_named(tmp_path: Path) -> None:
    ending, listener = train(tmp_path / "run", "--crash-at", "8")

    assert (ending.summary.phase, ending.summary.failures, ending.summary.attempts) == (Phase.FAILED, 3, 3)
    assert ending.summary.reason == "FailureLimit"
    assert ending.summary.checkpoint == tmp_path / "run/checkpoints/step-000000005"
    assert ending.failed_log is not None
    assert "the fake hit its bug" in ending.failed_log.read_text()
    assert listener.said[-1].startswith("Failed: 3 failures of the program")


def test_saying_a_failed_command_again_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    arguments = ("--crash-at", "8", "--crash-attempts", "3")
    train(tmp_path / "run", *arguments)
    ending, _ = train(tmp_path / "run", *arguments)

    assert (ending.summary.phase, ending.summary.final_step, ending.summary.attempts) == (Phase.SUCCEEDED, 20, 4)
    assert next(line["step"] for line in reports(tmp_path) if line["attempt"] == 4) == 6


def test_what_another_attempt_would_meet_again_ends_the_run_at_once(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", "--end", "diverged")

    assert (ending.summary.phase, ending.summary.attempts, ending.summary.reason) == (Phase.FAILED, 1, "Diverged")


def test_a_program_that_the_machine_cannot_start_is_the_users_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    spec = spec_of({**fake_parts(), "trainer": {"image": "none", "command": [str(broken)]}})
    ending, _ = train(tmp_path / "run", spec=spec)

    assert (ending.summary.phase, ending.summary.failures) == (Phase.FAILED, 3)
    assert f"cannot start: No such file or directory: {broken}" in ending.summary.message


def test_a_program_without_the_library_is_finished_when_it_exits_zero(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", "--end", "silent")

    assert (ending.summary.phase, ending.summary.weights_digest) == (Phase.SUCCEEDED, None)


def test_a_finished_run_trains_nothing_and_fresh_starts_over(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "run")
    again, listener = train(tmp_path / "run")
    fresh, _ = train(tmp_path / "run", fresh=True)

    assert first.trained
    assert not again.trained
    assert listener.said == []
    assert again.summary.weights_digest == first.summary.weights_digest == fresh.summary.weights_digest
    assert (fresh.trained, fresh.summary.attempts) == (True, 1)


def test_a_drill_fires_once_in_a_run_also_over_several_commands(tmp_path: Path) -> None:
    arguments = ("--hold-at", "7", "--crash-at", "9", "--crash-attempts", "4")
    failed, _ = train(tmp_path / "run", *arguments, drills=("kill@step7",))
    ending, _ = train(tmp_path / "run", *arguments, drills=("kill@step7",))

    assert (failed.summary.phase, failed.summary.preemptions, failed.summary.failures) == (Phase.FAILED, 1, 3)
    assert (ending.summary.phase, ending.summary.preemptions) == (Phase.SUCCEEDED, 1)


def test_a_drill_that_never_came_is_told(tmp_path: Path) -> None:
    ending, _ = train(tmp_path / "run", drills=("kill@step999",))

    assert ending.summary.drills_not_fired == ("kill@step999",)


def test_drills_of_a_run_that_was_finished_before_are_told_as_well(tmp_path: Path) -> None:
    train(tmp_path / "run", "--hold-at", "7", drills=("kill@step7",))
    again, _ = train(tmp_path / "run", "--hold-at", "7", drills=("kill@step7", "kill@50%"))

    assert not again.trained
    assert again.summary.drills_not_fired == ("kill@50%",)


def test_an_attempt_that_ends_without_a_report_is_told_while_drills_wait_for_one(tmp_path: Path) -> None:
    ending, listener = train(tmp_path / "run", "--mute", drills=("kill@35%", "preempt@step7", "kill@1h"))

    sentence = (
        "Attempt 1 has ended without a report of its progress, and without reports no drill at a percentage or a step "
        "can fire: kill@35%, preempt@step7"
    )
    assert listener.said.count(sentence) == 1
    assert listener.said.index(sentence) < len(listener.said) - 1, "before the run's end is told"
    assert ending.summary.drills_not_fired == ("kill@35%", "kill@1h", "preempt@step7")


def test_an_attempt_that_trains_for_long_without_a_report_is_told_while_drills_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "REPORT_SECONDS_MAX", 0.1)
    _, listener = train(tmp_path / "run", "--mute", "--hold-at", "7", drills=("preempt@35%", "kill@2s"))

    told = [sentence.split(",")[0] for sentence in listener.said if "Attempt 1 has" in sentence or "Drill" in sentence]
    assert told[0].startswith("Attempt 1 has not reported any progress for ")
    assert told[1].startswith("Drill kill@2s: ")


@pytest.mark.parametrize(
    ("arguments", "drills"),
    [
        ((), ("kill@step999",)),
        (("--mute",), ("kill@1h",)),
        (("--mute",), ()),
        (("--mute", "--hold-at", "7", "--hold-attempts", "1"), ("kill@1s",)),
    ],
    ids=["it reports", "seconds need no report", "no drills", "all drills have fired"],
)
def test_missing_reports_are_told_only_while_drills_wait_for_them(
    arguments: tuple[str, ...], drills: tuple[str, ...], tmp_path: Path
) -> None:
    _, listener = train(tmp_path / "run", *arguments, drills=drills)

    assert [sentence for sentence in listener.said if "report" in sentence] == []


def test_an_attempt_that_a_drill_ended_is_not_blamed_for_reporting_nothing(tmp_path: Path) -> None:
    ending, listener = train(tmp_path / "run", "--hold-at", "7", drills=("kill@0s", "preempt@35%"))

    assert [sentence for sentence in listener.said if "without a report" in sentence] == []
    assert ending.summary.drills_not_fired == ()


def test_a_changed_program_is_refused_and_changed_limits_are_not(tmp_path: Path) -> None:
    train(tmp_path / "run", "--end", "diverged")

    with pytest.raises(ValueError, match=r"spec\.trainer\.command is not what this run began with"):
        train(tmp_path / "run", "--steps", "30")
    ending, _ = train(tmp_path / "run", "--end", "diverged", parts={"limits": {"failures": 7}})
    assert ending.summary.attempts == 2


def test_a_folder_is_for_one_command_at_a_time(tmp_path: Path) -> None:
    train(tmp_path / "run")
    with (tmp_path / "run/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(ValueError, match=rf"another `piton run` \(process {os.getpid()}\) works in"):
            train(tmp_path / "run")


def test_fresh_never_empties_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years of work")

    with pytest.raises(ValueError, match="holds something else than a run"):
        train(tmp_path, fresh=True)
    assert (tmp_path / "thesis.txt").exists()


def shared() -> dict[str, Any]:
    return {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}


def reports(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
