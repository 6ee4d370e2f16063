"""The stories that CI runs before each merge; all others run nightly. `tests/presubmit.txt` lists them."""

from pathlib import Path

LIST = Path(__file__).parents[1] / "presubmit.txt"


def stories() -> list[str]:
    """Return the lines of the list: files, tests, or single cases of tests, as pytest names them."""
    return [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
