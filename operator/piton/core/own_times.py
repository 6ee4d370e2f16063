"""Times that an operator has written whose clock was ahead of this one's. Pure.

A clock is set right, or the operator moves to another machine. Whatever is counted from a time that is yet to come
would wait until then: for hours, with words that promise seconds. So such a time counts, and is written, as now.
"""

from datetime import datetime, timedelta

from piton.api.conditions import settled
from piton.api.status import RunStatus
from piton.core import transitions

_DIFFER = timedelta(seconds=60)
"""By so much the clocks of two operators may differ unnoticed."""
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


def with_times_passed(status: RunStatus, *, now: datetime) -> RunStatus:
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
