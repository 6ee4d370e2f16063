"""Hypothesis drives a sweep through random worlds and checks, at every step, what must never happen.

The runs are only their statuses: what one run goes through has a test of its own (tests/core/test_random_worlds.py).
What is in effect of a spec is known here by what was written, and when; not by what the operator makes of it.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from piton.api.conditions import ACCEPTED, STATUS_UNREADABLE, WAITING, settled
from piton.api.status_base import Phase
from piton.contract.duration import parse_duration
from piton.drive import independent, run_pass
from piton.failures import Failures
from piton.ports import PortError
from piton.sweep.decide import decide, is_binding
from piton.sweep.observed import CreateRun, ResumeRun, SweepDecision, SweepEffect, SweepObserved, name_of
from piton.sweep.refusals import refused
from piton.sweep.status import SweepStatus
from support.builders import NOW
from support.fake_denials import ANSWERS, sentence
from support.fake_sweep import RATE, STATUS, FakeSweep
from support.fake_world import Crash
from support.sweeps import observed_of
from support.worlds.one_run import at_once

TURNS_TO_CONVERGE = 60
ENOUGH = "1000000"
ENOUGH_TO_BEGIN = 20
"""Dollars that a stop of all runs, and a start, cost at most."""
LIVE = (Phase.STARTING, Phase.TRAINING, Phase.RECOVERING)
TYPOS: Mapping[str, Mapping[str, Any]] = {
    "a field": {"paralelism": 2},
    "a number": {"parallelism": 0},
    "a duration": {"limits": {"deadline": "soon"}},
    "an amount": {"limits": {"budget": {"usd": "much"}}},
    "no time": {"limits": {"deadline": "0s"}},
    "no money": {"limits": {"budget": {"usd": "0"}}},
    "a part of the budget": {"limits": {"budget": {"onExceeded": "Explode"}}},
    "a flag": {"suspend": "yes"},
    "the limits": {"limits": "none"},
    "the template": {"template": {"objective": {"metric": "loss"}}},
    "the variants": {"variants": [{"name": "another"}]},
    "the seeds": {"seeds": [1, 2]},
    "the template, and more": {"template": {"objective": {"metric": "loss"}}, "suspend": "no"},
}
"""Ways in which a spec becomes one that is refused."""
CHANGES = ("the template", "the variants", "the seeds")
"""Those of them that are no mistake before the sweep has begun."""


@dataclass(frozen=True, kw_only=True)
class InEffect:
    """What the user's words mean now."""

    parallelism: int
    suspend: bool
    until: datetime | None
    usd: str | None

    def passed(self, now: datetime) -> bool:
        return self.until is not None and now >= self.until


class RandomSweep(RuleBasedStateMachine):
    """One sweep, one adversary."""

    @initialize(
        parallelism=st.integers(1, 4),
        folds=st.sampled_from([None, 2]),
        stop=st.booleans(),
        budget=st.sampled_from([None, "25", "100"]),
    )
    def begin(self, parallelism: int, folds: int | None, stop: bool, budget: str | None) -> None:
        parts: dict[str, Any] = {"parallelism": parallelism, "onFailure": "Stop" if stop else "Continue"}
        parts["template"] = {"workers": {"gpusPerNode": 0}, "capacity": {"maxPricePerHour": RATE}}
        parts |= {"folds": folds} if folds else {}
        self.world = FakeSweep(parts=parts, watch=self._check_effect)
        self._limit(budget=budget)
        self.names = [run.name for run in self.world.parsed().plan]
        self.written: dict[int, tuple[dict[str, Any], Mapping[str, Any]]] = {1: (copy.deepcopy(parts), {})}
        self.failures = Failures(self.world)
        self.spent = self.gone = Fraction(0)
        self.ever_succeeded: set[str] = set()

    def in_effect(self) -> InEffect | None:
        """None: no spec was ever accepted."""
        world = self.world
        parts = accepted = world.parts
        if world.typo:
            if world.status.accepted is None:
                return None
            accepted, typo = self.written[world.status.accepted.generation]
            assert not typo, "took a spec for accepted that is refused"
        typo_limits = world.typo.get("limits", {})
        limits, before = parts["limits"], accepted["limits"]
        if not isinstance(typo_limits, Mapping):
            limits = before
            typo_limits = {}
        deadline = (before if "deadline" in typo_limits else limits).get("deadline")
        amounts = typo_limits.get("budget", {})
        keeps = "usd" in amounts or (amounts and "budget" not in limits)
        budget = (before if keeps else limits).get("budget", {})
        return InEffect(
            parallelism=accepted["parallelism"],
            suspend=bool((accepted if "suspend" in world.typo else parts).get("suspend")),
            until=NOW + timedelta(seconds=parse_duration(deadline)) if deadline else None,
            usd=budget.get("usd"),
        )

    # --- the operator ------------------------------------------------------------------------------------------------

    @rule(dies_after=st.none() | st.integers(0, 2))
    def look(self, dies_after: int | None) -> None:
        """One pass; an operator that dies leaves some effects done and the status as it was."""
        self.world.calls_until_crash = dies_after
        rules = independent(self._decide, self._turn_down, is_binding, name_of)
        try:
            at_once(run_pass(self.world, self.world, rules, self.failures))
            self._check_answered()
        except Crash:
            self.failures = Failures(self.world)
        except PortError:
            assert STATUS in self.world.denied
        self.world.calls_until_crash = None

    def _decide(self, observed: SweepObserved) -> SweepDecision:
        return decide(observed, now=self.world.now())

    def _turn_down(self, observed: SweepObserved, decision: SweepDecision, refusals: Any) -> SweepDecision:
        return refused(observed, decision, refusals, now=self.world.now())

    def _check_effect(self, effect: SweepEffect) -> None:
        """Before it is carried out."""
        wanted, world = self.in_effect(), self.world
        assert wanted is not None, "began what nobody accepted"
        if isinstance(effect, CreateRun | ResumeRun):
            assert wanted.usd is None or world.spent() + self.gone < Fraction(wanted.usd), "begun without money"
            assert not wanted.suspend, "begun while suspended"
        if not isinstance(effect, CreateRun):
            assert effect.name not in world.understood, "touched a run that nobody reads"
            assert not isinstance(effect, ResumeRun) or world.runs[effect.name].held, "let go what somebody else holds"
            return
        alive = [seen for seen in world.runs.values() if not seen.settled]
        assert effect.run.name in world.runs or len(alive) < wanted.parallelism, "more at once than allowed"
        assert effect.until == wanted.until
        assert not wanted.passed(world.time), "created after the deadline"
        assert effect.run.name not in self.ever_succeeded, "trained again what was trained"

    def _check_answered(self) -> None:
        """Whether a spec is accepted is said at the first look, in every phase."""
        status = self.world.status
        assert status.observed_generation == self.world.generation
        assert status.is_true(ACCEPTED) is not bool(self.world.typo)

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 60, 1800, 7200]), looks=st.booleans())
    def time_passes(self, seconds: int, looks: bool) -> None:
        self.world.pass_seconds(seconds)
        if looks:
            self.look(None)

    @rule(
        phase=st.sampled_from([*LIVE, Phase.TRAINING, Phase.SUCCEEDED, Phase.SUCCEEDED, Phase.FAILED]),
        number=st.integers(0, 9),
    )
    def a_run_goes_on(self, phase: Phase, number: int) -> None:
        live = self.world.readable()
        if live:
            seen = live[number % len(live)]
            self.world.set_phase(seen.name, Phase.SUSPENDED if seen.suspend else phase)

    @rule(
        numbers=st.sets(st.integers(0, 9), min_size=1, max_size=4),
        answer=st.sampled_from(sorted(ANSWERS)),
        seconds=st.sampled_from([0, 20, 200]),
    )
    def some_runs_are_denied(self, numbers: set[int], answer: str, seconds: int) -> None:
        """All that is asked for them: created, suspended, moved. The others go on, and after two minutes it is told."""
        for number in numbers:
            self.world.denied[self.names[number % len(self.names)]] = answer
        for _ in range(seconds // 10):
            self.look(None)
            self.world.pass_seconds(10)
        self.look(None)
        if seconds >= 200 and STATUS not in self.world.denied:
            self._check_what_goes_on()

    @rule(answer=st.sampled_from(sorted(ANSWERS)), looks=st.integers(1, 3))
    def the_status_is_denied_for_a_while(self, answer: str, looks: int) -> None:
        self.world.denied[STATUS] = answer
        for _ in range(looks):
            self.look(None)
        del self.world.denied[STATUS]

    @rule()
    def all_are_served_again(self) -> None:
        self.world.denied.clear()

    @precondition(lambda self: not self.world.denied)
    @rule()
    def what_is_in_effect_is_done(self) -> None:
        """In a few looks, once what was denied before is tried again."""
        self.world.pass_seconds(self.failures.seconds_left() or 0)
        for _ in range(3):
            self.look(None)
        self._check_what_goes_on()

    def _check_what_goes_on(self) -> None:
        wanted, world = self.in_effect(), self.world
        if wanted is None or settled(world.status) or wanted.passed(world.time):
            return
        stops = world.parts["onFailure"] == "Stop" and world.status.counts.failed
        if wanted.suspend or stops or (wanted.usd is not None and world.spent() + self.gone >= Fraction(wanted.usd)):
            held = [seen for seen in world.readable() if seen.name not in world.denied]
            assert all(seen.suspend for seen in held), "goes on though it is to stop"
        elif wanted.usd is not None:
            has_enough = Fraction(wanted.usd) > world.spent() + self.gone + ENOUGH_TO_BEGIN and not world.understood
            assert not has_enough or not any(seen.held for seen in world.readable() if seen.name not in world.denied)
        else:
            alive = [seen for seen in world.runs.values() if not seen.settled]
            missing = [name for name in self.names if name not in world.runs and name not in self.ever_succeeded]
            has_room = len(alive) < wanted.parallelism
            assert not has_room or all(name in world.denied for name in missing), "one that is denied holds others"
            assert not any(seen.held for seen in world.readable() if seen.name not in world.denied)
            if has_room and missing:
                self._check_told(missing)

    def _check_told(self, names: list[str]) -> None:
        told = self.world.status.condition(WAITING)
        assert told is not None
        assert self.world.status.is_true(WAITING)
        words = [sentence(f"touch {name}", self.world.denied[name]) for name in names]
        assert any(each in told.message for each in words)
        rows = [row for row in self.world.status.runs if row.name in names]
        assert any(row.refused in words for row in rows)

    # --- another version ---------------------------------------------------------------------------------------------

    @rule(change=st.sampled_from([{"phase": "Migrating"}, {"attempts": 7}]), number=st.integers(0, 9))
    def a_runs_status_is_not_understood(self, change: dict[str, Any], number: int) -> None:
        if self.world.runs:
            self.world.confuse(sorted(self.world.runs)[number % len(self.world.runs)], change)

    @rule()
    def they_are_understood_again(self) -> None:
        self.world.clear_up()

    @rule(change=st.sampled_from([{"phase": "Migrating"}, {"runs": 7}, {"counts": {"active": "two"}}]))
    def the_sweeps_status_is_not_understood_for_a_while(self, change: dict[str, Any]) -> None:
        """Nothing is done, and all of it stays but for the condition that says so."""
        written = self.world.status.to_wire() | change
        status = SweepStatus.read(written)
        observed = observed_of(self.world.parsed(), *self.world.runs.values(), status=status)
        decision = decide(observed, now=self.world.time)
        assert decision.effects == ()
        assert decision.status.is_true(STATUS_UNREADABLE)
        assert {**decision.status.to_wire(), "conditions": 0} == {**written, "conditions": 0}

    # --- the user ----------------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(sorted(TYPOS)))
    def misspell(self, what: str) -> None:
        if self.world.status.plan or what not in CHANGES:
            self.world.typo = TYPOS[what]
            self._edited()

    @precondition(lambda self: not self.world.denied and self.world.status.accepted)
    @rule(usd=st.sampled_from(["10", "50", "200"]), suspend=st.booleans())
    def change_the_rest_beside_a_part_of_the_budget_that_is_wrong(self, usd: str, suspend: bool) -> None:
        self.world.typo = TYPOS["a part of the budget"]
        self._limit(budget=usd)
        self.world.parts["suspend"] = suspend
        self._edited()
        self.what_is_in_effect_is_done()

    @precondition(lambda self: self.world.typo)
    @rule()
    def mend(self) -> None:
        self.world.typo = {}
        self._edited()

    @rule()
    def suspend_or_resume(self) -> None:
        self.world.parts["suspend"] = not self.world.parts.get("suspend")
        self._edited()

    @rule(parallelism=st.integers(1, 4))
    def change_parallelism(self, parallelism: int) -> None:
        self.world.parts["parallelism"] = parallelism
        self._edited()

    @rule(deadline=st.sampled_from([None, "30m", "2h"]))
    def move_the_deadline(self, deadline: str | None) -> None:
        self._limit(deadline=deadline)
        self._edited()

    @rule(usd=st.sampled_from([None, "10", "50", "200"]))
    def change_the_budget(self, usd: str | None) -> None:
        self._limit(budget=usd)
        self._edited()

    def _limit(self, **limits: str | None) -> None:
        old = self.world.parts.get("limits", {})
        if "budget" in limits:
            limits["budget"] = {"usd": limits["budget"]} if limits["budget"] else None  # type: ignore[assignment]
        self.world.parts["limits"] = {name: limit for name, limit in {**old, **limits}.items() if limit is not None}

    def _edited(self) -> None:
        self.world.generation += 1
        self.written[self.world.generation] = copy.deepcopy(self.world.parts), self.world.typo

    @rule(number=st.integers(0, 9), looks=st.booleans())
    def delete_a_run(self, number: int, looks: bool) -> None:
        """Before, or after, it was written down what it has reached."""
        if looks:
            self.look(None)
            self.what_was_written_as_a_success_stays_one()
        if self.world.runs:
            name = sorted(self.world.runs)[number % len(self.world.runs)]
            uid = self.world.runs.pop(name).uid
            self.gone += sum(Fraction(row.cost or 0) for row in self.world.status.runs if row.uid == uid)
            self.world.understood.pop(name, None)
            self.look(None)

    # --- what must never happen --------------------------------------------------------------------------------------

    @invariant()
    def what_was_written_as_a_success_stays_one(self) -> None:
        written = {row.name for row in self.world.status.runs if row.succeeded}
        assert self.ever_succeeded <= written
        self.ever_succeeded = written

    @invariant()
    def what_was_spent_is_spent(self) -> None:
        """Also when a run is deleted, made anew, or has ended."""
        cost = self.world.status.cost
        shown = Fraction(cost.spent) if cost else self.spent
        assert shown >= self.spent
        self.spent = shown

    @invariant()
    def every_run_is_counted_once(self) -> None:
        status = self.world.status
        if status.plan:
            assert status.counts.total == len(status.runs) == len(self.names)

    @invariant()
    def a_success_of_the_sweep_is_one_of_every_run(self) -> None:
        if self.world.status.phase is Phase.SUCCEEDED:
            assert all(row.succeeded for row in self.world.status.runs)

    # --- and in the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nobody interferes any more, and every run does its work: the sweep ends, and then nothing more is done."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.clear_up()
        world.denied.clear()
        world.typo = {}
        world.parts["suspend"] = False
        self._limit(budget=ENOUGH)
        self._edited()
        for _ in range(TURNS_TO_CONVERGE):
            self.look(None)
            for name, seen in list(world.runs.items()):
                late = seen.ends_at is not None and world.time >= seen.ends_at
                if not seen.settled:
                    phase = Phase.FAILED if late else Phase.SUSPENDED if seen.suspend else Phase.SUCCEEDED
                    world.set_phase(name, phase)
            world.time += timedelta(seconds=30)
        assert settled(world.status), (world.status.phase, world.status.counts)
        before, observed = world.status, at_once(world.observe())
        assert observed is not None
        decision = decide(observed, now=world.time)
        assert (decision.effects, decision.status) == ((), before)


WORLDS = int(os.environ.get("PITON_WORLDS", "0"))
"""So many others, by a seed: `make worlds`. 0: the same ones each time."""
_HOW = settings(stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TestRandomSweep = RandomSweep.TestCase
TestRandomSweep.settings = settings(_HOW, max_examples=60)


class ManyRandomSweeps(RandomSweep):
    """The same, at length."""


TestManyRandomSweeps = pytest.mark.crash(ManyRandomSweeps.TestCase)
TestManyRandomSweeps.settings = settings(_HOW, derandomize=not WORLDS, max_examples=WORLDS or 300)
