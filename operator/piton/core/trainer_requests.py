"""Requests to a trainer, in the operator's answers to its reports. Pure.

It reaches a trainer that no signal reaches, behind a shell say, and moves the limits that the trainer keeps by itself.
"""

from dataclasses import replace
from datetime import datetime

from piton.api.status import AttemptState, RunStatus
from piton.contract.progress import StopAt, TrainerRequests
from piton.contract.termination import Limit
from piton.core.context import Context
from piton.observed import Observed
from piton.timing import Timing


def requests_for(observed: Observed, status: RunStatus, *, now: datetime, timing: Timing) -> TrainerRequests:
    """Return the requests to the current attempt, valid once this status is written."""
    context = Context(observed=replace(observed, status=status), now=now, timing=timing)
    record = context.flying
    if record is None:
        return TrainerRequests(stop=True)
    return TrainerRequests(
        stop=record.state is AttemptState.STOPPING or observed.meta.deleting,
        stop_at=None if context.spec is None else _stop_at(context),
    )


def _stop_at(context: Context) -> StopAt:
    deadline, spent = context.deadline, context.budget_ends_at()
    found = [(deadline.time, Limit.DEADLINE)] if deadline is not None else []
    found += [(spent, Limit.BUDGET)] if spent is not None else []
    if not found:
        return StopAt()
    time, limit = min(found)
    return StopAt(time=time, limit=limit, seconds=(time - context.now).total_seconds())
