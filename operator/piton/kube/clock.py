"""The operator's clock; the only place of the cluster world that reads the time of day."""

from datetime import UTC, datetime


class SystemClock:
    """The machine's time, in UTC."""

    def now(self) -> datetime:
        """The present."""
        return datetime.now(UTC)
