"""Hypothesis drives a sweep through random worlds and checks, at every step, what must never happen.

The runs are only their statuses: what one run goes through has a test of its own (tests/core/test_random_worlds.py).
"""

import json
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from piton.core.conditions import settled
from piton.core.status import Phase
from piton.sweep.decide import decide
from piton.sweep.expand import limited
from piton.sweep.observed import CreateRun, HoldBack, LetGo, MoveDeadline, RunSeen, SweepEffect
from piton.sweep.parse import ParsedSweep
from piton.sweep.status import SweepStatus
from support.builders import NOW
from support.sweeps import a_run_seen, a_run_status, ends_at, observed_of, parsed

TURNS_TO_CONVERGE = 60
LIVE = (Phase.STARTING, Phase.TRAINING, Phase.RECOVERING)


@cache
def _parsed(parts: str) -> ParsedSweep:
    return parsed(**json.loads(parts))


class RandomSweep(RuleBasedStateMachine):
    """One sweep, one adversary."""

    @initialize(parallelism=st.integers(1, 4), folds=st.sampled_from([None, 2]), stop=st.booleans())
    def begin(self, parallelism: int, folds: int | None, stop: bool) -> None:
        self.parts: dict[str, Any] = {"parallelism": parallelism, "onFailure": "Stop" if stop else "Continue"}
        if folds:
            self.parts["folds"] = folds
        self.now = NOW
        self.status = SweepStatus()
        self.runs: dict[str, RunSeen] = {}
        self.ever_succeeded: set[str] = set()

    @property
    def sweep(self) -> ParsedSweep:
        return _parsed(json.dumps(self.parts, sort_keys=True))

    # --- the operator ------------------------------------------------------------------------------------------------

    @rule(dies_after=st.none() | st.integers(0, 2))
    def look(self, dies_after: int | None) -> None:
        """One pass; an operator that dies leaves some effects done and the status as it was."""
        decision = decide(observed_of(self.sweep, *self.runs.values(), status=self.status), now=self.now)
        for effect in decision.effects[:dies_after]:
            self._apply(effect)
        if dies_after is None:
            self.status = decision.status

    def _apply(self, effect: SweepEffect) -> None:
        match effect:
            case CreateRun(run=run, until=until):
                alive = [seen for seen in self.runs.values() if not seen.settled]
                assert len(alive) < self.parts["parallelism"], "more at once than allowed"
                assert not self.parts.get("suspend"), "created while suspended"
                assert until is None or until > self.now, "created after the deadline"
                assert run.name not in self.ever_succeeded, "trained again what was trained"
                deadline = limited(run, until, self.now).get("limits", {}).get("deadline")
                ends = ends_at(deadline, self.now) if deadline else None
                self.runs.setdefault(run.name, a_run_seen(run.name, Phase.STARTING, created=self.now, ends_at=ends))
            case HoldBack(name=name):
                self.runs[name] = replace(self.runs[name], suspend=True, held=True)
            case LetGo(name=name):
                assert self.runs[name].held, "let go what somebody else holds"
                self.runs[name] = replace(self.runs[name], suspend=False, held=False)
            case MoveDeadline(name=name, seconds=seconds):
                seen = self.runs[name]
                ends = None if seconds is None else seen.created + timedelta(seconds=seconds)
                self.runs[name] = replace(seen, ends_at=ends)

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 60, 1800, 7200]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for name, seen in self.runs.items():
            if not seen.settled and seen.ends_at and self.now >= seen.ends_at:
                self._set(name, Phase.FAILED)

    @rule(phase=st.sampled_from([*LIVE, Phase.SUCCEEDED, Phase.SUCCEEDED, Phase.FAILED]), number=st.integers(0, 9))
    def a_run_goes_on(self, phase: Phase, number: int) -> None:
        live = [seen for seen in self.runs.values() if not seen.settled]
        if live:
            seen = live[number % len(live)]
            self._set(seen.name, Phase.SUSPENDED if seen.suspend else phase)

    def _set(self, name: str, phase: Phase) -> None:
        self.runs[name] = replace(
            self.runs[name], status=a_run_status(phase, 0.5 if phase is Phase.SUCCEEDED else None)
        )

    # --- the user ----------------------------------------------------------------------------------------------------

    @rule()
    def suspend_or_resume(self) -> None:
        self.parts["suspend"] = not self.parts.get("suspend")

    @rule(parallelism=st.integers(1, 4))
    def change_parallelism(self, parallelism: int) -> None:
        self.parts["parallelism"] = parallelism

    @rule(deadline=st.sampled_from([None, "30m", "2h"]))
    def move_the_deadline(self, deadline: str | None) -> None:
        self.parts["limits"] = {"deadline": deadline} if deadline else {}

    @rule(number=st.integers(0, 9), looks=st.booleans())
    def delete_a_run(self, number: int, looks: bool) -> None:
        """Before, or after, it was written down what it has reached."""
        if looks:
            self.look(None)
            self.what_was_written_as_a_success_stays_one()
        if self.runs:
            del self.runs[sorted(self.runs)[number % len(self.runs)]]
            self.look(None)

    # --- what must never happen --------------------------------------------------------------------------------------

    @invariant()
    def what_was_written_as_a_success_stays_one(self) -> None:
        written = {row.name for row in self.status.runs if row.succeeded}
        assert self.ever_succeeded <= written
        self.ever_succeeded = written

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
        self.parts["suspend"] = False
        for _ in range(TURNS_TO_CONVERGE):
            self.look(None)
            for name, seen in list(self.runs.items()):
                if not seen.settled:
                    self._set(name, Phase.SUSPENDED if seen.suspend else Phase.SUCCEEDED)
            self.now += timedelta(seconds=30)
        assert settled(self.status), (self.status.phase, self.status.counts)
        before = self.status
        decision = decide(observed_of(self.sweep, *self.runs.values(), status=self.status), now=self.now)
        assert (decision.effects, decision.status) == ((), before)


RandomSweep.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestRandomSweep = RandomSweep.TestCase
