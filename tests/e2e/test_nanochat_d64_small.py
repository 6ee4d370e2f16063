"""`nanochat-d64-small` as a user runs it: real text, two processes, a machine that goes away. A minute or two each."""

import math
from pathlib import Path

import pytest

from support.local_run import Found, assert_it_lost_no_step, piton_run, undisturbed_run

MANIFEST = "seeds/nanochat-d64-small.yaml"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

undisturbed = undisturbed_run(MANIFEST)


def test_it_learns_to_write_documentation(undisturbed: Found) -> None:
    assert undisturbed["bestMetric"] / math.log(2) < 2.1  # bits per character; guessing evenly costs 6.6


def test_a_noticed_preemption_loses_no_step_and_changes_no_bit(undisturbed: Found, tmp_path: Path) -> None:
    found = piton_run(MANIFEST, tmp_path / "run", "preempt@50%")

    assert_it_lost_no_step(found, undisturbed)
