"""One moment of a sweep: what its rules decide from."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from piton.api.conditions import OPERATOR_ERROR, in_phase, settled, with_accepted, with_trouble
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract.duration import parse_duration
from piton.cost.budget import Account
from piton.sweep import cost
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.observed import (
    RunSeen,
    SweepObserved,
)
from piton.sweep.rows import refreshed
from piton.sweep.status import SweepStatus
from piton.timing import Timing


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """One moment of one sweep."""

    observed: SweepObserved
    now: datetime
    timing: Timing

    @property
    def spec(self) -> SweepSpec:
        """The accepted spec; rules that ask for it come after those that see to it."""
        assert self.observed.spec is not None
        return self.observed.spec

    @cached_property
    def status(self) -> SweepStatus:
        """The status, with what is seen of the runs."""
        return refreshed(self.observed, now=self.now)

    @cached_property
    def alive(self) -> list[RunSeen]:
        """The runs that exist and have not ended."""
        return [seen for seen in self.observed.runs if not seen.settled]

    @cached_property
    def steered(self) -> list[RunSeen]:
        """Those of them that may be told something: not a run whose own status is not understood."""
        return [seen for seen in self.alive if seen.status.unreadable is None]

    @cached_property
    def pending(self) -> list[PlannedRun]:
        """The runs that are still to be created; those that were refused before come last, and hold nobody up."""
        rows = zip(self.observed.plan, self.status.runs, strict=True)
        waiting = [(row.refused is not None, run) for run, row in rows if row.phase is Phase.PENDING]
        return [run for _, run in sorted(waiting, key=lambda it: it[0])]

    @property
    def until(self) -> datetime | None:
        """Time at which the sweep ends by its deadline."""
        deadline = self.spec.limits.deadline
        return None if deadline is None else self.observed.meta.created + timedelta(seconds=parse_duration(deadline))

    @cached_property
    def account(self) -> Account | None:
        """The sweep's budget, if it has one."""
        return cost.account_of(self.observed, self.status, self.pending, timing=self.timing)

    def phase(self, status: SweepStatus, phase: Phase, reason: Reason, message: str) -> SweepStatus:
        """The status in that phase, as of now and this generation."""
        return in_phase(status, phase, reason, message, now=self.now, generation=self.observed.meta.generation)

    def with_trouble(self, status: SweepStatus, kind: str, reason: Reason, message: str | None) -> SweepStatus:
        """Return the status with this condition: True with the message, or False where there is none any more."""
        return with_trouble(status, kind, reason, message, now=self.now, generation=self.observed.meta.generation)


def answer(context: SweepContext, status: SweepStatus) -> SweepStatus:
    """Return the status with the answers to the current spec, also of a sweep that has ended."""
    observed, generation = context.observed, context.observed.meta.generation
    if observed.meta.deleting or not status.conditions:
        return status
    status = context.with_trouble(status, OPERATOR_ERROR, Reason.OPERATOR_ERROR, None)
    if settled(observed.status):
        problem = "; ".join(observed.problems) or None
        status = with_accepted(status, observed.status, problem, now=context.now, generation=generation)
    return status.model_copy(update={"observed_generation": generation})
