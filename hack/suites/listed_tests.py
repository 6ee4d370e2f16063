"""Tests that a list names: the stories of the presubmit, and the slow tests that `make test` leaves out."""

from pathlib import Path

_TESTS = Path(__file__).parents[2] / "tests"
PRESUBMIT = _TESTS / "presubmit.txt"
"""Stories on a cluster that CI runs before each merge; all others run nightly."""
SLOW = _TESTS / "slow.txt"
"""Tests for `make test-slow`. `python -m hack.suites.slow_tests` writes it by the times that a suite has measured."""


def listed(path: Path) -> list[str]:
    """Return the lines of a list: files, tests, or single cases of tests, as pytest names them."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
