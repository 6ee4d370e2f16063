"""The input of every rule: observation, time, timing, and questions that several rules ask."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal

from piton.api import stages
from piton.api.conditions import in_phase, with_trouble
from piton.api.deadline import Deadline, deadline_after
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec, Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus
from piton.api.status_base import Phase
from piton.contract.termination import Limit, StopAfter
from piton.core.effects import Announcement
from piton.core.wait_reasons import Wait, waits
from piton.cost import budget
from piton.cost.budget import Account
from piton.observed import AttemptSeen, Observed
from piton.timing import Timing

_MOMENT_SECONDS = 60.0
"""A trainer may reach a deadline so much earlier than the operator: it counts seconds from when it was told."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """One moment of one run."""

    observed: Observed
    now: datetime
    timing: Timing

    @property
    def meta(self) -> Meta:
        """Name, generation, deletion, finalizer."""
        return self.observed.meta

    @property
    def spec(self) -> Spec | None:
        """The accepted spec, or None."""
        return self.observed.spec

    @property
    def status(self) -> RunStatus:
        """The status as it was last written."""
        return self.observed.status

    @cached_property
    def current(self) -> AttemptStatus | None:
        """The newest attempt's record."""
        return self.status.current

    @cached_property
    def flying(self) -> AttemptStatus | None:
        """The newest attempt's record while it has not ended."""
        current = self.current
        return current if current and current.state is not AttemptState.ENDED else None

    @cached_property
    def seen(self) -> AttemptSeen | None:
        """The job and the replicas of the newest attempt."""
        return self.observed.attempt(self.current.number) if self.current else None

    @cached_property
    def stage(self) -> Stage | None:
        """The stage of the attempt in flight, or the next one; None when there is none, or nobody can tell."""
        if self.flying is not None:
            return self.flying.stage
        if self.spec is None or self.status.unreadable:  # another version may have stages of its own
            return None
        return stages.next_stage(self.spec, self.status)

    @cached_property
    def deadline(self) -> Deadline | None:
        """The time by which the run, or its current stage, has to end; the earlier of the two."""
        found = [self._deadline_of_run(), self._deadline_of_stage()]
        return min((deadline for deadline in found if deadline), key=lambda deadline: deadline.time, default=None)

    def _deadline_of_run(self) -> Deadline | None:
        if self.spec is None or self.spec.limits.deadline is None:
            return None
        return deadline_after("limits", self.spec.limits.deadline, self.meta.created)

    def _deadline_of_stage(self) -> Deadline | None:
        if self.spec is None or self.stage is None:
            return None
        own, begun = self.spec.stages.of(self.stage), self.status.stage(self.stage).start_time
        if own is None or own.deadline is None or begun is None:
            return None
        return deadline_after(f"stages.{self.stage.lower()}", own.deadline, begun)

    def account(self, status: RunStatus | None = None) -> Account | None:
        """The run's budget and what is spent of it, by this status or the last; None where it has no budget."""
        return budget.account(self.spec, status or self.status, self.stage, now=self.now, timing=self.timing)

    def budget_ends_at(self) -> datetime | None:
        """The time at which the budget is spent at the current price; None without a budget or a price."""
        found = self.account()
        return budget.stop_at(found, self.now) if found else None

    def budget_seconds_to_come(self) -> float | None:
        """Seconds for which the budget pays for the next attempt; None where nobody can tell, or there is no budget."""
        found = self.account()
        if found is None or self.spec is None or self.stage is None:
            return None
        return budget.seconds_to_come(found, self.spec, self.status, self.stage)

    def seconds_to_deadline(self) -> float | None:
        """Seconds left until then; negative when it has passed."""
        deadline = self.deadline
        return None if deadline is None else (deadline.time - self.now).total_seconds()

    def limits(self, status: RunStatus) -> Mapping[Reason, bool]:
        """Return the limits of the run, as reasons, with True for those that it has reached, or has in a moment.

        It has reached both if its spec is not known. One that is reached comes first.
        """
        if self.spec is None:
            return {Reason.DEADLINE_EXCEEDED: True, Reason.BUDGET_EXCEEDED: True}
        left, account = self.seconds_to_deadline(), self.account(status)
        found = {} if left is None else {Reason.DEADLINE_EXCEEDED: left <= _MOMENT_SECONDS}
        if account is not None:
            found[Reason.BUDGET_EXCEEDED] = account.used_up
        return dict(sorted(found.items(), key=lambda limit: not limit[1]))

    def stop_after(self) -> StopAfter | None:
        """Return for how long the next attempt may train, by the limit that is reached first; None without limits."""
        left = [(self.budget_seconds_to_come(), Limit.BUDGET), (self.seconds_to_deadline(), Limit.DEADLINE)]
        known = [(max(0.0, seconds), limit) for seconds, limit in left if seconds is not None]
        if not known:
            return None
        seconds, limit = min(known)
        return StopAfter(seconds=seconds, limit=limit)

    def phase(self, status: RunStatus, phase: Phase, reason: Reason, message: str, *, waits: bool = False) -> RunStatus:
        """The status in that phase, as of now and this generation; with `waits`, Waiting is left as it is."""
        return in_phase(status, phase, reason, message, now=self.now, generation=self.meta.generation, waits=waits)

    def waits(self, status: RunStatus, phase: Phase | None, wait: Wait) -> tuple[RunStatus, tuple[Announcement, ...]]:
        """The status in that phase, or in the one it is in, with why it waits; and the Event about that, if new."""
        return waits(status, phase, wait, now=self.now, generation=self.meta.generation)

    def with_trouble(self, status: RunStatus, kind: str, reason: Reason, message: str | None) -> RunStatus:
        """Return the status with this condition: True with the message, or False where there is none any more."""
        return with_trouble(status, kind, reason, message, now=self.now, generation=self.meta.generation)

    def warn_once(self, kind: str, reason: Reason, message: str) -> tuple[Announcement, ...]:
        """Return a Warning with the message, unless this condition was True already."""
        if self.status.is_true(kind):
            return ()
        return (Announcement(severity="Warning", reason=reason, message=message),)

    def announce_once(
        self, status: RunStatus, reason: Reason, message: str, *, severity: Literal["Normal", "Warning"] = "Normal"
    ) -> tuple[Announcement, ...]:
        """The announcement, unless the run was in this phase already."""
        if status.phase is self.status.phase and status.observed_generation == self.status.observed_generation:
            return ()
        return (Announcement(severity=severity, reason=reason, message=message),)
