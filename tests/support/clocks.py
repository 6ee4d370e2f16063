"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta

from piton_trainer.clock import Clock


class FakeClock(Clock):
    """Starts at noon."""

    def __init__(self) -> None:
        self._passed = 0.0
        self._set_by = 0.0

    def pass_seconds(self, seconds: float) -> None:
        """Let time go by."""
        self._passed += seconds

    def set_time(self, seconds: float) -> None:
        """Set the time of day forward by so much, as NTP does; back, if it is negative."""
        self._set_by += seconds

    def monotonic(self) -> float:
        return self._passed

    def process_seconds(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.pass_seconds(seconds)

    def now(self) -> datetime:
        return datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=self._passed + self._set_by)
