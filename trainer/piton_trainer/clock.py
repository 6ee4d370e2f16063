"""The only place of the trainer that reads a clock, so that tests can hand in their own."""

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_START_TIME = 19
"""Of the fields of /proc/…/stat that follow the program's name."""


class Clock:
    """Two clocks: one that never jumps, for durations, and the one that the rest of the world shares."""

    def monotonic(self) -> float:
        """Seconds since some moment; only differences mean something."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def now(self) -> datetime:
        """The time of day, UTC."""
        return datetime.now(UTC)

    def process_seconds(self) -> float:
        """Return the age of this process in seconds; 0 if it is unknown."""
        return _age_of("self")

    def launcher_seconds(self) -> float | None:
        """Return the seconds that torchrun took until it started this process; None without torchrun."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        return max(0.0, _age_of(str(os.getppid())) - self.process_seconds())


def _age_of(process: str) -> float:
    """Seconds since a process was started, by the kernel's account of it, which counts hundredths."""
    with suppress(OSError, ValueError, IndexError):
        # The second field is the program's name in brackets, and may hold anything.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, since_boot - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK"))
    return 0.0
