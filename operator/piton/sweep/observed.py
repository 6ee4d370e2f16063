"""Everything that a decision about a sweep may look at, and everything that it may want done."""

from dataclasses import dataclass
from datetime import datetime

from piton.api.conditions import settled
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.core.effects import AnyDecision
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.status import SweepStatus


@dataclass(frozen=True, kw_only=True)
class RunSeen:
    """A run of the sweep's, as it is now."""

    name: str
    created: datetime
    suspend: bool = False
    held: bool = False
    """It was the sweep that has suspended it."""
    ends_at: datetime | None = None
    """Time at which it ends by its own limits."""
    spec: Spec | None = None
    """None where it cannot be read."""
    uid: str = ""
    """Identity of the run with this cost: another one if a run of the same name was created anew."""
    status: RunStatus

    @property
    def settled(self) -> bool:
        """True if it has ended for good, as far as its status is understood."""
        return self.status.unreadable is None and settled(self.status)

    @property
    def quiet(self) -> bool:
        """True if nothing of it runs, nor will as it stands."""
        held = self.status.unreadable is None and self.suspend and self.status.phase is Phase.SUSPENDED
        return self.settled or held


@dataclass(frozen=True, kw_only=True)
class SweepObserved:
    """One sweep, as it is now."""

    meta: Meta
    spec: SweepSpec | None
    """None when there are problems."""
    plan: tuple[PlannedRun, ...] = ()
    problems: tuple[str, ...] = ()
    status: SweepStatus
    runs: tuple[RunSeen, ...] = ()
    """Those that exist and are its own."""

    def run(self, name: str) -> RunSeen | None:
        """The run of that name, if it exists."""
        return next((seen for seen in self.runs if seen.name == name), None)


@dataclass(frozen=True, kw_only=True)
class CreateRun:
    """Create the run. Already existing and ours is success."""

    run: PlannedRun
    until: datetime | None
    """Time at which the sweep ends; the run's own deadline may be earlier."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class SuspendRun:
    """Suspend the run, and leave word that it was the sweep."""

    name: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ResumeRun:
    """Let a run that the sweep has suspended go on."""

    name: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class MoveDeadline:
    """The sweep's deadline was moved, and so is the run's."""

    name: str
    seconds: float | None
    """From the run's creation; None: it has none any more."""
    reason: Reason


SweepEffect = CreateRun | SuspendRun | ResumeRun | MoveDeadline
SweepDecision = AnyDecision[SweepEffect, SweepStatus]
"""Decision about a sweep."""
