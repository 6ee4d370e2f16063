"""Hypothesis drives the core through random worlds and checks, at every step, what must never happen.

A failure prints the steps that lead to it; `@reproduce_failure` or the example database replays it. The rules are in
`tests/support/worlds`.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from piton.api.conditions import settled
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState
from piton.api.status_base import Phase
from piton.core.decide import decide, still
from piton.observed import ReplicaSeen, ReservationSeen
from support.fake_world import TOTAL_STEPS, FakeWorld
from support.worlds.denial_rules import LastingDenials
from support.worlds.invariants import Invariants
from support.worlds.lost_status_rules import LostStatuses
from support.worlds.one_run import PASSES_TO_CONVERGE, TIMING, at_once, with_enough
from support.worlds.operator_rules import OperatorTrouble
from support.worlds.report_rules import BlockedReports


class RandomWorld(OperatorTrouble, LastingDenials, LostStatuses, BlockedReports, Invariants):
    """One run, one adversary."""

    def teardown(self) -> None:
        """Faults stop: the run comes to its end, and then nothing more is done."""
        world = getattr(self, "world", None)
        if world is None:
            return
        if self.understood is not None:
            self.its_status_is_understood_again()
        if world.typo or world.spec.suspend:
            world.typo = {}
            self._edit(world.spec.model_copy(update={"suspend": False}))
        world.slow_seconds, world.next_start = 0, None
        for trainer in world.jobs.values():
            trainer.busy_until = None
        world.failing_reads, world.is_volume_empty, world.half_a_gang_seconds = 0, False, 0
        self._converge(world)
        if world.exists and not settled(world.status):
            assert not world.billed()
            assert world.status.phase is Phase.SUSPENDED
            self._edit(with_enough(world.spec))
            self._converge(world)
        self._check_the_end(world)

    def _converge(self, world: FakeWorld) -> None:
        for _ in range(PASSES_TO_CONVERGE):
            if not world.exists or (settled(world.status) and not world.held):
                break
            self._pass()
            world.admit()
            self._tick()
            self.a_budget_is_exceeded_by_no_more_than_a_stop_takes()

    def _check_the_end(self, world: FakeWorld) -> None:
        if not world.exists:
            assert not world.billed()
            return
        assert settled(world.status), (world.status.phase, world.status.conditions)
        current = world.status.current
        assert current is not None
        assert current.state is AttemptState.ENDED
        if world.status.is_true("Succeeded"):
            assert world.status.result is not None
            is_forgotten = self.statuses_lost and not world.reads_volume
            assert world.status.result.step == TOTAL_STEPS or is_forgotten
            evaluated = world.status.stage(Stage.EVALUATE).end_time is not None
            assert (world.status.result.evaluation is not None) == evaluated
            assert all(step == TOTAL_STEPS for step in world.evaluated)
        else:
            failures = world.status.stage(current.stage).failures_since_progress
            failed = world.status.condition("Failed")
            assert failed is not None
            assert failures >= self.failure_limit or failed.reason is Reason.BUDGET_EXCEEDED, failed
        for _ in range(20):
            self._pass()
            world.tick()
        while self.failures.seconds_left():  # what was denied is tried again then
            world.tick()
        self._pass()
        if world.spec.ttl_after_finished is None:
            self._check_that_nothing_more_is_done(world)

    def _check_that_nothing_more_is_done(self, world: FakeWorld) -> None:
        assert not any(replica.outlives_trainer for replica in self._all_replicas(world))
        assert world.reservation in (None, ReservationSeen()), world.reservation
        before = world.writes
        self._pass()
        assert world.writes == before
        observed = at_once(world.observe())
        assert observed is not None
        assert still(decide(observed, now=world.now(), timing=TIMING), world.status)

    @staticmethod
    def _all_replicas(world: FakeWorld) -> list[ReplicaSeen]:
        observed = at_once(world.observe())
        assert observed is not None
        return [replica for seen in observed.attempts for replica in seen.replicas]


EXAMPLES, MANY_EXAMPLES = 60, 400
WORLDS = int(os.environ.get("PITON_WORLDS", "0"))
"""So many others, by a seed: `make worlds`. 0: the same ones each time."""
_HOW = settings(stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TestRandomWorld = RandomWorld.TestCase
TestRandomWorld.settings = settings(_HOW, max_examples=EXAMPLES)


class ManyRandomWorlds(RandomWorld):
    """The same, at length."""


TestManyRandomWorlds = pytest.mark.crash(ManyRandomWorlds.TestCase)
TestManyRandomWorlds.settings = settings(_HOW, derandomize=not WORLDS, max_examples=WORLDS or MANY_EXAMPLES)
