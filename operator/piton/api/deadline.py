"""Deadlines of a run and of its stages."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from piton.api.spec import Meta, Spec
from piton.contract.duration import parse_duration


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """Deadline of a run or of one of its stages."""

    path: str
    """Field of the spec that sets it."""
    after: str
    """The duration in the spec."""
    time: datetime


def deadline_of(meta: Meta, spec: Spec) -> datetime | None:
    """Return the time by which the run has to end, by its limits."""
    after = spec.limits.deadline
    return None if after is None else deadline_after("limits", after, meta.created).time


def deadline_after(where: str, after: str, since: datetime) -> Deadline:
    """Return the deadline that `where` of the spec sets: `after` is a duration, counted from `since`."""
    time = since + timedelta(seconds=parse_duration(after))
    return Deadline(path=f"{where}.deadline", after=after, time=time)
