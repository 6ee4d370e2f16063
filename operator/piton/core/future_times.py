"""Times in a status that are in the future, because the operator that wrote them had a clock that was ahead. Pure.

A back-off that is counted from such a time would last for hours, although its message says seconds. Therefore such a
time counts as now, and is written as now.
"""

from datetime import datetime, timedelta

from piton.api.conditions import settled
from piton.api.status import RunStatus
from piton.core import transitions

_DIFFER = timedelta(seconds=60)
"""Largest difference between the clocks of two operators that counts as none."""
_COUNTED_FROM = (
    "created_time",
    "placed_time",
    "pull_time",
    "running_time",
    "formed_time",
    "trained_time",
    "failing_time",
    "ended_time",
)
"""Times of an attempt's record that the operator takes from its own clock. What has cost money counts by itself."""


def without_future_times(status: RunStatus, *, now: datetime) -> RunStatus:
    """Return the status in which no time of the newest attempt, or of its progress, is yet to come."""
    record, shown = status.current, status.progress
    if record is None or status.unreadable or settled(status):
        return status
    ahead = [field for field in _COUNTED_FROM if _is_ahead(getattr(record, field), now)]
    if ahead:
        status = transitions.change(status, **dict.fromkeys(ahead, now))
    if shown is None or not _is_ahead(shown.last_updated_time, now):
        return status
    return status.model_copy(update={"progress": shown.model_copy(update={"last_updated_time": now})})


def _is_ahead(time: datetime | None, now: datetime) -> bool:
    return time is not None and time - now > _DIFFER
