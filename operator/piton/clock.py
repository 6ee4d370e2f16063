"""The time of day; the only place of the operator and the command line that reads it."""

import logging
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_log = logging.getLogger(__name__)


class SystemClock:
    """Implements `piton.ports.Clock`."""

    def now(self) -> datetime:
        """The present, in UTC."""
        return datetime.now(UTC)


class ServerClock(SystemClock):
    """The time of day by the API server, which dates all objects; this machine's clock may be off by a day.

    The answers of the server are dated to the second. So this machine's clock is what counts, unless the two differ by
    more than the way of an answer explains.
    """

    _DIFFER = timedelta(seconds=5)

    def __init__(self) -> None:
        self._ahead = timedelta()
        """By how much the server's clock is ahead of this machine's."""

    def now(self) -> datetime:
        """The present, in UTC, as the API server would date it."""
        return super().now() + self._ahead

    def hear(self, date: str | None) -> None:
        """Take in the time at which the API server has answered, as HTTP has it. Anything else changes nothing."""
        try:
            told = parsedate_to_datetime(date or "").astimezone(UTC)
        except (TypeError, ValueError):
            return
        ahead = told - super().now()
        if abs(ahead - self._ahead) <= self._DIFFER:
            return
        self._ahead = ahead if abs(ahead) > self._DIFFER else timedelta()
        _log.warning("the API server's clock is %+.0f s from this machine's; its time counts", ahead.total_seconds())
