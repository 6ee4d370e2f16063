"""What the operator asks of a trainer in its answers to reports. Pure.

It reaches a trainer that no signal reaches, behind a shell say, and moves the limits that the trainer keeps by itself.
"""

from dataclasses import replace
from datetime import datetime

from piton.contract.ends import Limit
from piton.contract.progress import StopAt, Wishes
from piton.core import budget
from piton.core.backoff import Pace
from piton.core.context import Context
from piton.core.observed import Observed
from piton.core.status import AttemptState, RunStatus


def wishes(observed: Observed, status: RunStatus, *, now: datetime, pace: Pace) -> Wishes:
    """What holds for the attempt in flight, once this status is written."""
    context = Context(observed=replace(observed, status=status), now=now, pace=pace)
    record = context.flying
    if record is None:
        return Wishes(stop=True)
    return Wishes(
        stop=record.state is AttemptState.STOPPING or observed.meta.deleting,
        stop_at=None if context.spec is None else _stop_at(context),
    )


def _stop_at(context: Context) -> StopAt:
    deadline, spent = context.deadline(), budget.stop_at(context)
    found = [(deadline.time, Limit.DEADLINE)] if deadline is not None else []
    found += [(spent, Limit.BUDGET)] if spent is not None else []
    if not found:
        return StopAt()
    time, limit = min(found)
    return StopAt(time=time, limit=limit)
