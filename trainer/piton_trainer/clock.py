"""The only place of the trainer that reads a clock, so that tests can hand in their own."""

import time
from datetime import UTC, datetime


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
