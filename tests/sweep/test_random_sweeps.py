"""Hypothesis drives a sweep through random worlds and checks, at every step, what must never happen.

The runs are only their statuses: what one run goes through has a test of its own (tests/core/test_random_worlds.py).
"""

import json
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from piton.api.conditions import STATUS_UNREADABLE, settled
from piton.api.status import CostStatus, RunStatus
from piton.api.status_base import Phase
from piton.cost import spending
from piton.sweep.decide import decide
from piton.sweep.expand import limited
from piton.sweep.observed import CreateRun, MoveDeadline, ResumeRun, RunSeen, SuspendRun, SweepEffect
from piton.sweep.parse import ParsedSweep
from piton.sweep.status import SweepStatus
from support.builders import NOW, a_record, a_spec
from support.sweeps import a_run_seen, a_run_status, ends_at, observed_of, parsed

SPEC = a_spec(workers={"gpusPerNode": 0}, capacity={"maxPricePerHour": "36"})
TURNS_TO_CONVERGE = 60
RATE = "36"
"""Dollars per hour of a run that trains."""
ENOUGH = "1000000"
LIVE = (Phase.STARTING, Phase.TRAINING, Phase.RECOVERING)


@cache
def _parsed(parts: str) -> ParsedSweep:
    return parsed(**json.loads(parts))


class RandomSweep(RuleBasedStateMachine):
    """One sweep, one adversary."""

    @initialize(
        parallelism=st.integers(1, 4),
        folds=st.sampled_from([None, 2]),
        stop=st.booleans(),
        budget=st.sampled_from([None, "25", "100"]),
    )
    def begin(self, parallelism: int, folds: int | None, stop: bool, budget: str | None) -> None:
        self.parts: dict[str, Any] = {"parallelism": parallelism, "onFailure": "Stop" if stop else "Continue"}
        self.parts["template"] = {"workers": {"gpusPerNode": 0}, "capacity": {"maxPricePerHour": RATE}}
        self._limit(budget=budget)
        self.made = 0
        self.spent = Fraction(0)
        if folds:
            self.parts["folds"] = folds
        self.now = NOW
        self.status = SweepStatus()
        self.runs: dict[str, RunSeen] = {}
        self.ever_succeeded: set[str] = set()
        self.understood: dict[str, RunStatus] = {}

    @property
    def sweep(self) -> ParsedSweep:
        return _parsed(json.dumps(self.parts, sort_keys=True))

    # --- the operator ------------------------------------------------------------------------------------------------

    @rule(dies_after=st.none() | st.integers(0, 2))
    def look(self, dies_after: int | None) -> None:
        """One pass; an operator that dies leaves some effects done and the status as it was."""
        decision = decide(observed_of(self.sweep, *self.runs.values(), status=self.status), now=self.now)
        account = decision.status.cost
        for effect in decision.effects[:dies_after]:
            if isinstance(effect, CreateRun | ResumeRun) and account is not None and account.budget is not None:
                assert Fraction(account.spent) < Fraction(account.budget), "begun without money"
            self._apply(effect)
        if dies_after is None:
            self.status = decision.status

    def _apply(self, effect: SweepEffect) -> None:
        assert isinstance(effect, CreateRun) or effect.name not in self.understood, "touched a run that nobody reads"
        match effect:
            case CreateRun(run=run, until=until):
                alive = [seen for seen in self.runs.values() if not seen.settled]
                assert len(alive) < self.parts["parallelism"], "more at once than allowed"
                assert not self.parts.get("suspend"), "created while suspended"
                assert until is None or until > self.now, "created after the deadline"
                assert run.name not in self.ever_succeeded, "trained again what was trained"
                deadline = limited(run, until, self.now).get("limits", {}).get("deadline")
                ends = ends_at(deadline, self.now) if deadline else None
                if run.name not in self.runs:
                    self.made += 1
                    fresh = a_run_seen(
                        run.name, Phase.STARTING, created=self.now, ends_at=ends, uid=f"uid-{self.made}", spec=SPEC
                    )
                    self.runs[run.name] = fresh
                    self._set(run.name, Phase.TRAINING)
            case SuspendRun(name=name):
                self.runs[name] = replace(self.runs[name], suspend=True, held=True)
            case ResumeRun(name=name):
                assert self.runs[name].held, "let go what somebody else holds"
                self.runs[name] = replace(self.runs[name], suspend=False, held=False)
            case MoveDeadline(name=name, seconds=seconds):
                seen = self.runs[name]
                ends = None if seconds is None else seen.created + timedelta(seconds=seconds)
                self.runs[name] = replace(seen, ends_at=ends)

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 60, 1800, 7200]), looks=st.booleans())
    def time_passes(self, seconds: int, looks: bool) -> None:
        self.now += timedelta(seconds=seconds)
        for name, seen in self.runs.items():
            if name in self.understood:
                continue
            if not seen.settled and seen.ends_at and self.now >= seen.ends_at:
                self._set(name, Phase.FAILED)
            elif not seen.settled and seen.suspend:
                self._set(name, Phase.SUSPENDED)
        if looks:
            self.look(None)

    @rule(
        phase=st.sampled_from([*LIVE, Phase.TRAINING, Phase.SUCCEEDED, Phase.SUCCEEDED, Phase.FAILED]),
        number=st.integers(0, 9),
    )
    def a_run_goes_on(self, phase: Phase, number: int) -> None:
        live = [seen for seen in self.runs.values() if not seen.settled and seen.name not in self.understood]
        if live:
            seen = live[number % len(live)]
            self._set(seen.name, Phase.SUSPENDED if seen.suspend else phase)

    def _set(self, name: str, phase: Phase) -> None:
        """What it has cost stays; it costs more while it trains."""
        before = spending.spent(self.runs[name].status, self.now)
        status = a_run_status(phase, 0.5 if phase is Phase.SUCCEEDED else None)
        paid = CostStatus(earlier=spending.as_text(before, 6), time=self.now)
        billed = a_record(billed_from=self.now, price_per_hour=RATE, billed_machines=1)
        attempts = (billed,) if phase is Phase.TRAINING else ()
        status = status.model_copy(update={"cost": paid, "attempts": attempts})
        self.runs[name] = replace(self.runs[name], status=status)

    # --- another version ---------------------------------------------------------------------------------------------

    @rule(change=st.sampled_from([{"phase": "Migrating"}, {"attempts": 7}]), number=st.integers(0, 9))
    def a_runs_status_is_not_understood(self, change: dict[str, Any], number: int) -> None:
        if not self.runs:
            return
        name = sorted(self.runs)[number % len(self.runs)]
        status = self.understood.setdefault(name, self.runs[name].status)
        changed = RunStatus.read(status.to_wire() | change)
        assert changed.unreadable
        self.runs[name] = replace(self.runs[name], status=changed)

    @rule()
    def they_are_understood_again(self) -> None:
        for name, status in self.understood.items():
            self.runs[name] = replace(self.runs[name], status=status)
        self.understood = {}

    @rule(change=st.sampled_from([{"phase": "Migrating"}, {"runs": 7}, {"counts": {"active": "two"}}]))
    def the_sweeps_status_is_not_understood_for_a_while(self, change: dict[str, Any]) -> None:
        """Nothing is done, and all of it stays but for the condition that says so."""
        written = self.status.to_wire() | change
        status = SweepStatus.read(written)
        decision = decide(observed_of(self.sweep, *self.runs.values(), status=status), now=self.now)
        assert decision.effects == ()
        assert decision.status.is_true(STATUS_UNREADABLE)
        assert {**decision.status.to_wire(), "conditions": 0} == {**written, "conditions": 0}

    # --- the user ----------------------------------------------------------------------------------------------------

    @rule()
    def suspend_or_resume(self) -> None:
        self.parts["suspend"] = not self.parts.get("suspend")

    @rule(parallelism=st.integers(1, 4))
    def change_parallelism(self, parallelism: int) -> None:
        self.parts["parallelism"] = parallelism

    @rule(deadline=st.sampled_from([None, "30m", "2h"]))
    def move_the_deadline(self, deadline: str | None) -> None:
        self._limit(deadline=deadline)

    @rule(usd=st.sampled_from([None, "10", "50", "200"]))
    def change_the_budget(self, usd: str | None) -> None:
        self._limit(budget=usd)

    def _limit(self, **limits: str | None) -> None:
        old = self.parts.get("limits", {})
        if "budget" in limits:
            limits["budget"] = {"usd": limits["budget"]} if limits["budget"] else None  # type: ignore[assignment]
        self.parts["limits"] = {name: limit for name, limit in {**old, **limits}.items() if limit is not None}

    @rule(number=st.integers(0, 9), looks=st.booleans())
    def delete_a_run(self, number: int, looks: bool) -> None:
        """Before, or after, it was written down what it has reached."""
        if looks:
            self.look(None)
            self.what_was_written_as_a_success_stays_one()
        if self.runs:
            name = sorted(self.runs)[number % len(self.runs)]
            del self.runs[name]
            self.understood.pop(name, None)
            self.look(None)

    # --- what must never happen --------------------------------------------------------------------------------------

    @invariant()
    def what_was_written_as_a_success_stays_one(self) -> None:
        written = {row.name for row in self.status.runs if row.succeeded}
        assert self.ever_succeeded <= written
        self.ever_succeeded = written

    @invariant()
    def what_was_spent_is_spent(self) -> None:
        """Also when a run is deleted, made anew, or has ended."""
        shown = Fraction(self.status.cost.spent) if self.status.cost else self.spent
        assert shown >= self.spent
        self.spent = shown

    @invariant()
    def every_run_is_counted_once(self) -> None:
        if self.status.plan:
            assert self.status.counts.total == len(self.status.runs) == len(self.sweep.plan)

    @invariant()
    def a_success_of_the_sweep_is_one_of_every_run(self) -> None:
        if self.status.phase is Phase.SUCCEEDED:
            assert all(row.succeeded for row in self.status.runs)

    # --- and in the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nobody interferes any more, and every run does its work: the sweep ends, and then nothing more is done."""
        if not hasattr(self, "parts"):
            return
        self.they_are_understood_again()
        self.parts["suspend"] = False
        self._limit(budget=ENOUGH)
        for _ in range(TURNS_TO_CONVERGE):
            self.look(None)
            for name, seen in list(self.runs.items()):
                late = seen.ends_at is not None and self.now >= seen.ends_at
                if not seen.settled:
                    self._set(name, Phase.FAILED if late else Phase.SUSPENDED if seen.suspend else Phase.SUCCEEDED)
            self.now += timedelta(seconds=30)
        assert settled(self.status), (self.status.phase, self.status.counts)
        before = self.status
        decision = decide(observed_of(self.sweep, *self.runs.values(), status=self.status), now=self.now)
        assert (decision.effects, decision.status) == ((), before)


RandomSweep.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestRandomSweep = RandomSweep.TestCase
