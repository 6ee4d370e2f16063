"""The time of day; the only place of the operator and the command line that reads it."""

from datetime import UTC, datetime


class SystemClock:
    """Implements `piton.ports.Clock`."""

    def now(self) -> datetime:
        """The present, in UTC."""
        return datetime.now(UTC)
