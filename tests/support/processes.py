"""Processes that a test did not start itself, but has to see the end of."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is more than a name in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
