"""An in-memory world for one sweep, of whose runs there is no more than their statuses.

The API server may deny all that is asked for one run, or the write of the sweep's status, and the operator may die.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Any

from piton.api.status import CostStatus, RunStatus
from piton.api.status_base import Phase
from piton.core.effects import Announcement
from piton.cost import spending
from piton.sweep.expand import limited, merge
from piton.sweep.observed import (
    CreateRun,
    MoveDeadline,
    ResumeRun,
    RunSeen,
    SuspendRun,
    SweepEffect,
    SweepObserved,
    run_of,
)
from piton.sweep.parse import ParsedSweep, parse
from piton.sweep.status import SweepStatus
from support.builders import NOW, a_record, a_spec
from support.fake_denials import ANSWERS, TIME_OUT, sentence
from support.fake_world import Crash
from support.sweeps import a_run_seen, a_run_status, a_sweep, ends_at, observed_of

RATE = "36"
"""Dollars per hour of a run that trains."""
SPEC = a_spec(workers={"gpusPerNode": 0}, capacity={"maxPricePerHour": RATE})
STATUS = "the status"
"""What is denied when the sweep's own status cannot be written."""


@lru_cache(maxsize=1024)
def _parsed(written: str, plan: str, accepted: str) -> ParsedSweep:
    manifest = a_sweep(**json.loads(written))
    known = {"accepted": {"generation": 1, "spec": json.loads(accepted)}} if accepted != "null" else {}
    return parse({**manifest, "status": {"plan": plan, **known}})


@dataclass
class FakeSweep:
    """See the module's docstring."""

    parts: dict[str, Any]
    """What is written of the spec, in the words of `a_sweep`."""
    typo: Mapping[str, Any] = field(default_factory=dict)
    """What is wrong with it, merged into that."""
    generation: int = 1
    time: datetime = NOW
    status: SweepStatus = field(default_factory=SweepStatus)
    runs: dict[str, RunSeen] = field(default_factory=dict)
    understood: dict[str, RunStatus] = field(default_factory=dict)
    """Statuses of runs whose status is not understood now, as they were."""
    made: int = 0
    denied: dict[str, str] = field(default_factory=dict)
    """By run, what the API server answers to all that is asked for it."""
    calls_until_crash: int | None = None
    announced: list[Announcement] = field(default_factory=list)
    watch: Callable[[SweepEffect], None] = lambda _: None
    """Told of each effect before it is carried out."""
    is_cached: bool = False

    # --- the ports ---------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        return self.time

    async def announce(self, announcement: Announcement) -> None:
        self.announced.append(announcement)

    async def observe(self, *, live: bool = False) -> SweepObserved | None:
        return observed_of(self.parsed(), *self.runs.values(), status=self.status, generation=self.generation)

    def parsed(self) -> ParsedSweep:
        accepted = self.status.accepted.spec if self.status.accepted else None
        written = merge(self.parts, self.typo)
        return _parsed(json.dumps(written, sort_keys=True), self.status.plan, json.dumps(accepted, sort_keys=True))

    async def apply(self, effect: SweepEffect) -> None:
        self._call(run_of(effect), lambda: self._apply(effect))

    async def write_status(self, status: SweepStatus) -> None:
        if self.calls_until_crash is not None:
            raise Crash
        self._call(STATUS, lambda: self._write(status))

    def _write(self, status: SweepStatus) -> None:
        self.status = status

    def _call(self, about: str, act: Callable[[], None]) -> None:
        if self.calls_until_crash is not None:
            if self.calls_until_crash == 0:
                raise Crash
            self.calls_until_crash -= 1
        answer = self.denied.get(about)
        if answer in (None, TIME_OUT):
            act()
        if answer is not None:
            raise ANSWERS[answer](sentence(f"touch {about}", answer))

    def _apply(self, effect: SweepEffect) -> None:
        self.watch(effect)
        match effect:
            case CreateRun(run=run, until=until):
                deadline = limited(run, until, self.time).get("limits", {}).get("deadline")
                if run.name not in self.runs:
                    self.made += 1
                    self.runs[run.name] = a_run_seen(
                        run.name,
                        Phase.STARTING,
                        created=self.time,
                        ends_at=ends_at(deadline, self.time) if deadline else None,
                        uid=f"uid-{self.made}",
                        spec=SPEC,
                    )
                    self.set_phase(run.name, Phase.TRAINING)
            case SuspendRun(name=name):
                self.runs[name] = replace(self.runs[name], suspend=True, held=True)
            case ResumeRun(name=name):
                self.runs[name] = replace(self.runs[name], suspend=False, held=False)
            case MoveDeadline(name=name, seconds=seconds):
                seen = self.runs[name]
                ends = None if seconds is None else seen.created + timedelta(seconds=seconds)
                self.runs[name] = replace(seen, ends_at=ends)

    # --- what becomes of runs ----------------------------------------------------------------------------------------

    def readable(self) -> list[RunSeen]:
        """Runs that have not ended, and whose status is understood."""
        return [seen for seen in self.runs.values() if not seen.settled and seen.name not in self.understood]

    def spent(self) -> Fraction:
        """What the runs that exist have cost, as far as their statuses are understood."""
        known = (seen.status for name, seen in self.runs.items() if name not in self.understood)
        return sum((spending.spent(status, self.time) for status in known), Fraction(0))

    def set_phase(self, name: str, phase: Phase) -> None:
        """What it has cost stays; it costs more while it trains."""
        before = spending.spent(self.runs[name].status, self.time)
        status = a_run_status(phase, 0.5 if phase is Phase.SUCCEEDED else None)
        paid = CostStatus(earlier=spending.as_text(before, 6), time=self.time)
        billed = a_record(billed_from=self.time, price_per_hour=RATE, billed_machines=1)
        attempts = (billed,) if phase is Phase.TRAINING else ()
        status = status.model_copy(update={"cost": paid, "attempts": attempts})
        self.runs[name] = replace(self.runs[name], status=status)

    def pass_seconds(self, seconds: float) -> None:
        """Runs end by their own deadlines, and hold when they are told to."""
        self.time += timedelta(seconds=seconds)
        for seen in self.readable():
            if seen.ends_at and self.time >= seen.ends_at:
                self.set_phase(seen.name, Phase.FAILED)
            elif seen.suspend:
                self.set_phase(seen.name, Phase.SUSPENDED)

    def confuse(self, name: str, change: Mapping[str, Any]) -> None:
        """Another version writes the status of a run."""
        status = self.understood.setdefault(name, self.runs[name].status)
        changed = RunStatus.read({**status.to_wire(), **change})
        assert changed.unreadable
        self.runs[name] = replace(self.runs[name], status=changed)

    def clear_up(self) -> None:
        for name, status in self.understood.items():
            self.runs[name] = replace(self.runs[name], status=status)
        self.understood = {}
