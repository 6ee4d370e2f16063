"""The quickstart as a user runs it: full size, real text, two processes, machines that go away. About six minutes."""

from pathlib import Path

import pytest

from support.local_run import Found, assert_it_lost_no_step, piton_run, undisturbed_run

MANIFEST = "quickstart.yaml"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

undisturbed = undisturbed_run(MANIFEST)


def test_undisturbed_it_learns(undisturbed: Found) -> None:
    assert (undisturbed["preemptions"], undisturbed["lostSteps"], undisturbed["attempts"]) == (0, 0, 1)
    assert undisturbed["bestMetric"] < 2.5  # nats per character; guessing evenly costs more than 4


def test_a_noticed_preemption_loses_no_step(undisturbed: Found, tmp_path: Path) -> None:
    assert_it_lost_no_step(piton_run(MANIFEST, tmp_path / "run", "preempt@50%"), undisturbed)


def test_two_unannounced_kills_end_in_the_same_weights(undisturbed: Found, tmp_path: Path) -> None:
    found = piton_run(MANIFEST, tmp_path / "run", "kill@30%", "kill@60%")

    assert (found["preemptions"], found["attempts"]) == (2, 3)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert Path(found["checkpoint"]).is_dir()
