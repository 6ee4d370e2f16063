"""Everything that a decision about a sweep may look at, and everything that it may want done."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from piton.api.conditions import settled
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.core.effects import AnyDecision
from piton.ports import RefusedEffect
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.status import SweepStatus


@dataclass(frozen=True, kw_only=True)
class RunSeen:
    """Current state of a run of the sweep."""

    name: str
    created: datetime
    suspend: bool = False
    held: bool = False
    """True if the sweep has suspended it."""
    ends_at: datetime | None = None
    """Time at which it ends by its own limits."""
    spec: Spec | None = None
    """None if it cannot be parsed."""
    uid: str = ""
    """Identity of the run with this cost: another one if a run of the same name was created anew."""
    status: RunStatus

    @cached_property
    def settled(self) -> bool:
        """True if it has ended and will not continue; False if its status is unreadable."""
        return self.status.unreadable is None and settled(self.status)

    @property
    def quiet(self) -> bool:
        """True if nothing of it runs, and nothing will start without a change."""
        held = self.status.unreadable is None and self.suspend and self.status.phase is Phase.SUSPENDED
        return self.settled or held


@dataclass(frozen=True, kw_only=True)
class SweepObserved:
    """Current state of a sweep."""

    meta: Meta
    spec: SweepSpec | None
    """None if there are problems."""
    plan: tuple[PlannedRun, ...] = ()
    problems: tuple[str, ...] = ()
    meanwhile: str = ""
    """The parts of a spec that is refused that act all the same, and those that do not yet."""
    status: SweepStatus
    runs: tuple[RunSeen, ...] = ()
    """Existing runs that the sweep owns."""

    def run(self, name: str) -> RunSeen | None:
        """Return the run of that name, if it exists."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, RunSeen]:
        return {seen.name: seen for seen in self.runs}


@dataclass(frozen=True, kw_only=True)
class CreateRun:
    """Create the run. An existing run of this sweep counts as success."""

    run: PlannedRun
    until: datetime | None
    """Time at which the sweep ends; the run's own deadline may be earlier."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class SuspendRun:
    """Suspend the run, and record that the sweep has done so."""

    name: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ResumeRun:
    """Resume a run that the sweep has suspended."""

    name: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class MoveDeadline:
    """Change the run's deadline, because the sweep's has changed."""

    name: str
    seconds: float | None
    """New deadline, counted from the run's creation; None removes it."""
    reason: Reason


SweepEffect = CreateRun | SuspendRun | ResumeRun | MoveDeadline


def run_of(effect: SweepEffect) -> str:
    """Return the name of the run that the effect is about."""
    return effect.run.name if isinstance(effect, CreateRun) else effect.name


def name_of(effect: SweepEffect) -> str:
    """Return the same name for the effect in each pass that decides it."""
    return f"{type(effect).__name__} {run_of(effect)}"


Refusals = Sequence[RefusedEffect[SweepEffect]]
SweepDecision = AnyDecision[SweepEffect, SweepStatus]
"""Decision about a sweep."""
