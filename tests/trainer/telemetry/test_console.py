"""What a pod's log says while it trains."""

from dataclasses import replace

import pytest

from piton.contract.progress import Progress
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.mirror.messages import Transfer
from piton_trainer.telemetry.console import ConsoleReporter, line, transfer_line

REPORT = Progress(updated="2026-01-01T00:00:00+00:00", step=120)


def test_a_line_says_how_far_how_good_how_long_and_how_safe() -> None:
    full = Progress(
        updated=REPORT.updated,
        step=120,
        total_steps=600,
        percentage=20,
        remaining_seconds=70,
        checkpoint_step=100,
        metrics={"loss": 2.3123},
    )

    assert line(full) == "step 120 of 600 (20%), loss 2.312, 1m10s left, step 100 is saved"
    assert line(REPORT) == "step 120"


def test_a_line_says_how_far_a_checkpoint_is_on_its_way() -> None:
    restoring = Transfer(
        is_restore=True, step=6, done=41_300_000_000, total=103_000_000_000, bytes_per_second=57_100_000.0
    )

    assert transfer_line(restoring) == "restoring step 6 from the mirror: 41.3 GB of 103 GB, 57.1 MB/s, 18m1s left"
    assert transfer_line(replace(restoring, is_restore=False, bytes_per_second=0.0)) == (
        "uploading step 6 to the mirror: 41.3 GB of 103 GB"
    )


def test_lines_come_further_and_further_apart(capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleReporter()
    said = []
    for second in range(300):
        if console.is_due(float(second)):
            console.report(REPORT, float(second))
            said.append(second)

    assert said == [5, 15, 35, 75, 135, 195, 255]
    assert capsys.readouterr().err.splitlines() == ["piton: step 120"] * 7


def a_choice(seconds: float, *, cost: float | None = 1.472) -> Choice:
    return Choice(seconds=seconds, cost_seconds=cost, durable_seconds=3.2, between_seconds=3500.0)


def test_an_interval_is_told_with_its_reasons_when_it_is_known_and_when_it_changes_by_much(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = ConsoleReporter()
    for choice in (a_choice(60, cost=None), a_choice(100), a_choice(130), a_choice(160), a_choice(110), a_choice(100)):
        console.on_interval(choice)

    assert capsys.readouterr().err.splitlines() == [
        f"piton: saving every {interval}: a save costs 1.5 s and is durable after 3.2 s, "
        "an interruption is expected every 58m20s"
        for interval in ("1m40s", "2m40s", "1m40s")
    ]
