"""What a pod's log says while it trains."""

import pytest

from piton.contract.progress import Progress
from piton_trainer.narrator import Narrator, line

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


def test_lines_come_further_and_further_apart(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator()
    said = []
    for second in range(300):
        if narrator.is_due(float(second)):
            narrator.post(REPORT, float(second))
            said.append(second)

    assert said == [5, 15, 35, 75, 135, 195, 255]
    assert capsys.readouterr().err.splitlines() == ["piton: step 120"] * 7
