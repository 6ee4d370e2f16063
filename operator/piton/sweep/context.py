"""One moment of a sweep: what its rules decide from."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

from pydantic_core import to_json

from piton.api.conditions import ACCEPTED, OPERATOR_ERROR, in_phase, settled, with_accepted, with_trouble
from piton.api.problems import in_brief
from piton.api.reasons import Reason
from piton.api.status import AcceptedSpec
from piton.api.status_base import Phase
from piton.api.validation_sizes import SPEC_MAX
from piton.contract.duration import parse_duration
from piton.core.effects import Announcement
from piton.cost.budget import Account
from piton.sweep import cost
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.observed import (
    RunSeen,
    SweepDecision,
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


def answer(context: SweepContext, decision: SweepDecision) -> SweepDecision:
    """Return the decision with the answers to the current spec, also of a sweep that has ended."""
    observed, generation, status = context.observed, context.observed.meta.generation, decision.status
    if observed.meta.deleting or not status.conditions:
        return decision
    status = context.with_trouble(status, OPERATOR_ERROR, Reason.OPERATOR_ERROR, None)
    status = status.model_copy(update={"observed_generation": generation})
    if status.phase is Phase.REFUSED:  # it is said already
        return replace(decision, status=status)
    problem = _problem(observed)
    status = with_accepted(status, observed.status, problem, now=context.now, generation=generation)
    news = decision.announcements
    if problem is not None and _is_new(observed.status, problem):
        news = (*news, Announcement(severity="Warning", reason=Reason.INVALID_SPEC, message=problem))
    return replace(decision, status=_remembered(observed, status), announcements=news)


def _problem(observed: SweepObserved) -> str | None:
    """Return why the spec is refused, and what happens meanwhile; None: it is not."""
    problems = in_brief(observed.problems)
    if not problems or observed.spec is None or settled(observed.status):
        return problems or None
    return f"{problems} (until that is mended, {observed.meanwhile})"


def _is_new(status: SweepStatus, problem: str) -> bool:
    known = status.condition(ACCEPTED)
    return known is None or known.reason is not Reason.INVALID_SPEC or known.message != problem


def _remembered(observed: SweepObserved, status: SweepStatus) -> SweepStatus:
    """Return the status with the spec as the one that was accepted last, if it is."""
    spec, generation, known = observed.spec, observed.meta.generation, status.accepted
    if spec is None or observed.problems or settled(status):
        return status
    if known.generation == generation if known else status == observed.status:  # not a write for that alone
        return status
    written = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if len(to_json(written)) > SPEC_MAX:
        return status.model_copy(update={"accepted": None})
    return status.model_copy(update={"accepted": AcceptedSpec(generation=generation, spec=written)})
