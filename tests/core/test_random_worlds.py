"""Hypothesis drives the core through random worlds and checks, at every step, what must never happen.

A failure prints the steps that lead to it; `@reproduce_failure` or the example database replays it.
"""

import os
from collections.abc import Callable, Coroutine
from fractions import Fraction
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from piton.api.conditions import ACCEPTED, POD_STUCK, STATUS_UNREADABLE, WAITING, settled
from piton.api.reasons import Reason
from piton.api.spec import EvaluateStage, Spec, Stage
from piton.api.stages import ORDER, wanted
from piton.api.status import AttemptState, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide, still
from piton.cost import spending
from piton.drive import reconcile
from piton.observed import ReplicaSeen, ReservationSeen
from piton.ports import Conflict, Unavailable
from piton.timing import Timing
from support.builders import NOW, a_spec
from support.fake_world import GRACE_SECONDS, PRICE, START_WORDS, TOTAL_STEPS, Crash, FakeWorld, Trainer

Result = TypeVar("Result")
TIMING = Timing(
    backoff_seconds=2,
    backoff_seconds_max=8,
    evidence_seconds=3,
    start_seconds=5,
    refused_image_seconds=3,
    stalled_attempts=4,
    stop_seconds=GRACE_SECONDS + 2,
    worth_seconds=4,
    stuck_seconds=4,
)
PASSES_TO_CONVERGE = 300
PASSES_TO_STOP = 6
"""Good looks after which nothing may run on that is not on its way out."""
ENOUGH = "100000"
ENDS = (Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED)
RIDDLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "phase": lambda status: status | {"phase": "Migrating"},
    "attempt": lambda status: status | {"attempt": "three"},
    "attempts": lambda status: status | {"attempts": {"newest": 3}},
    "state": lambda status: status | {"attempts": _newest(status, state="Frozen")},
    "verdict": lambda status: status | {"attempts": _newest(status, verdict="Moved")},
    "stage": lambda status: status | {"stages": [*status["stages"], StageStatus(name=Stage("Quantize")).to_wire()]},
    "condition": lambda status: status | {"conditions": [*status["conditions"], {"type": "Healthy"}]},
}
"""What another version may do to a status that this one then does not understand."""


def _newest(status: dict[str, Any], **fields: str) -> list[dict[str, Any]]:
    return [*status["attempts"][:-1], status["attempts"][-1] | fields]


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """What it returns. A fake world never waits, and an event loop for each pass takes as long as the pass."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("it waits for something")


class RandomWorld(RuleBasedStateMachine):
    """One run, one adversary."""

    @initialize(
        failures=st.integers(1, 4),
        old_news=st.booleans(),
        deletion=st.booleans(),
        stages=st.sampled_from([{}, {"prepare": {}}, {"prepare": {}, "evaluate": {}}]),
        budget=st.sampled_from([None, ("15", "Pause"), ("25", "Pause"), ("15", "Stop")]),
        queue=st.booleans(),
        stalled=st.sampled_from(["24h", "20s"]),
        lives=st.sampled_from([None, "30s"]),
        mesh=st.booleans(),
    )
    def begin(
        self,
        failures: int,
        old_news: bool,
        deletion: bool,
        stages: dict[str, Any],
        budget: str | None,
        queue: bool,
        stalled: str,
        lives: str | None,
        mesh: bool,
    ) -> None:
        """Some worlds are free of stale observations, and some of deletion: both hide other faults."""
        self.old_news, self.deletion = old_news, deletion
        self.stages = stages
        limits: dict[str, Any] = {"failures": failures, "stalled": stalled, "startTimeout": "10s"}
        if budget is not None:
            limits["budget"] = dict(zip(("usd", "onExceeded"), budget, strict=True))
        self.world = FakeWorld(
            spec=a_spec(
                limits=limits,
                stages=stages,
                capacity={"maxPricePerHour": f"{PRICE}"},
                **({} if lives is None else {"ttlAfterFinished": lives}),
            ),
            reservation=ReservationSeen() if queue else None,
            has_mesh=mesh,
        )
        self.spent, self.slowest = Fraction(0), 0
        self.looks_over_budget = self.seconds_over_budget = 0
        self.highest = 0
        self.succeeded = False
        self.crashes = 0
        self.machines_lost = self.cordons = 0
        self.jobs_lost = 0
        self.devices_lost = self.half_gangs = 0
        self.failure_limit = failures
        self.spec = self.world.spec
        self.understood: RunStatus | None = None

    def _pass(self) -> None:
        stale = self.world.stale or self.world.lag
        try:
            at_once(reconcile(self.world, self.world, self.world, TIMING))
            self.looks_over_budget += self._over_budget() and not stale
        except (Conflict, Unavailable, Crash):
            pass
        finally:
            self.world.calls_until_crash, self.world.stale, self.world.lag = None, 0, 0

    def _tick(self) -> None:
        self.world.tick()
        over = self._over_budget() and self.looks_over_budget >= PASSES_TO_STOP
        self.seconds_over_budget = self.seconds_over_budget + 1 if over and self.world.heard() else 0

    def _over_budget(self) -> bool:
        """Whether what runs should be on its way out; a change of the budget begins the count anew."""
        status, spec = self.world.status, self.world.spec
        budget = spec.limits.budget if spec and self.understood is None else None
        reserve = spending.per_hour(status) * Fraction(TIMING.stop_seconds) / spending.HOUR
        over = budget is not None and spending.spent(status, self.world.now()) + reserve >= Fraction(budget.usd)
        if not over:
            self.looks_over_budget = 0
        return over

    # --- the operator ------------------------------------------------------------------------------------------------

    @rule(times=st.integers(1, 6))
    def look(self, times: int) -> None:
        for _ in range(times):
            self._pass()

    @rule(calls=st.integers(1, 3), after=st.booleans())
    def look_and_die(self, calls: int, after: bool) -> None:
        self.world.calls_until_crash, self.world.crash_after_the_call = calls, after
        self._pass()

    @precondition(lambda self: self.old_news)
    @rule(ago=st.integers(1, 6))
    def look_at_old_news(self, ago: int) -> None:
        self.world.stale = ago
        self._pass()

    @precondition(lambda self: self.old_news)
    @rule(ago=st.integers(1, 6), times=st.integers(1, 4))
    def look_through_a_cache_that_is_behind(self, ago: int, times: int) -> None:
        for _ in range(times):
            self.world.lag = ago
            self._pass()

    @rule(seconds=st.integers(1, 5), times=st.integers(1, 3))
    def look_through_a_slow_server(self, seconds: int, times: int) -> None:
        """What was read is old when it is acted on."""
        self.world.seconds_per_call = seconds
        for _ in range(times):
            self._pass()
        self.world.seconds_per_call = 0

    @rule(times=st.integers(1, 6))
    def the_server_is_busy(self, times: int) -> None:
        before = self._touched()
        self.world.is_busy = True
        for _ in range(times):
            self._pass()
        self.world.is_busy = False
        assert self._touched() == before

    @rule(seconds=st.integers(20, 60))
    def operator_is_away(self, seconds: int) -> None:
        """A trainer keeps the budget by itself."""
        for _ in range(seconds):
            self._tick()
        for trainer in self.world.billed():
            begun = trainer.stage is Stage.TRAIN and trainer.start is None
            assert not begun or trainer.stops_at is None or self.world.time <= trainer.stops_at

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self._tick()

    @rule(seconds=st.sampled_from([0, 0, 5, 60]))
    def operators_clock_is_set(self, seconds: int) -> None:
        self.world.slow_seconds = seconds
        self.slowest = max(self.slowest, seconds)

    @rule(how=st.sampled_from(["preempt", "kill_node", "cut_node", "vanish", "reclaim"]))
    def machine_goes(self, how: str) -> None:
        trainer = self.world.running()
        if trainer:
            self.machines_lost += 1
            getattr(self.world, how)(trainer)

    @rule()
    def machine_goes_with_its_pod_while_nobody_looks(self) -> None:
        """Once the status knows where the replica was, that is enough: whoever looks next sees a preemption."""
        record, trainer = self.world.status.current, self.world.running()
        if record is None or trainer is None or record.number != trainer.number:
            return
        known = [placed.uid for placed in record.replicas] == [trainer.pod]
        wanted = record.state is AttemptState.RUNNING and not trainer.deleting and not trainer.disruption
        self.machines_lost += 1
        before = self.world.status.preemptions
        self.world.vanish(trainer)
        self._tick()
        self._pass()
        current = self.world.status.current
        if (
            self.understood is None
            and known
            and wanted
            and self._undisturbed()
            and current is not None
            and current.number == record.number
        ):
            assert (self.world.status.preemptions, current.verdict) == (before + 1, Verdict.PREEMPTED)

    def _undisturbed(self) -> bool:
        """Whether nobody but the machine has ended the attempt."""
        number = self.world.status.attempt
        return not self.world.deleting and number in self.world.job_exists and self.world.store.complete is None

    @rule(how=st.sampled_from(["evicted", "suspended", "deleted"]))
    def a_machine_does_not_end_its_pod(self, how: str) -> None:
        """People are told, and nothing else runs meanwhile. Then the machine is replaced."""
        trainer = self.world.running()
        if trainer is None or self.understood is not None or self.world.spec is None or self.world.slow_seconds:
            return
        if how == "deleted" and not self.deletion:
            return
        trainer.never_ends = True
        if how == "evicted":
            self.world.preempt(trainer)
        elif how == "suspended":
            self.suspend_or_resume()
        else:
            self.delete()
        created = len(self.world.created)
        for _ in range(PASSES_TO_STOP + GRACE_SECONDS + int(TIMING.stuck_seconds)):
            self._pass()
            self.world.tick()
        assert len(self.world.created) == created
        if trainer.deleting and trainer.shown:
            assert self.world.status.is_true(POD_STUCK)
            record = self.world.status.current
            holds_up = self.world.deleting or (record is not None and record.state is AttemptState.STOPPING)
            assert self.world.status.is_true(WAITING) or not holds_up
        self.machines_lost += 1
        self.world.kill_node(trainer)
        trainer.never_ends = False

    @rule(ends=st.sampled_from(["back", "gone", "dead"]), seconds=st.integers(1, 30), passes=st.booleans())
    def machine_turns_silent(self, ends: str, seconds: int, passes: bool) -> None:
        """As with its zone: silence alone restarts nothing. Then it answers, or counts as gone."""
        trainer = self.world.running()
        if trainer is None:
            return
        created = len(self.world.created)
        self.world.fall_silent(trainer)
        for _ in range(seconds):
            if passes:
                self._pass()
            self._tick()
        assert self.old_news or len(self.world.created) == created
        self._silence_ends(trainer, ends)

    def _silence_ends(self, trainer: Trainer, ends: str) -> None:
        self.world.answer(trainer)
        if ends == "back" or not trainer.shown:
            return
        self.machines_lost += 1
        if ends == "gone" or not trainer.alive:
            self.world.cut_node(trainer)
        else:
            self.world.kill_node(trainer)

    @rule(seconds=st.integers(1, 20))
    def the_next_gang_is_half(self, seconds: int) -> None:
        self.half_gangs += 1
        self.world.half_a_gang_seconds = seconds

    @rule(what=st.sampled_from(sorted(START_WORDS)), seconds=st.integers(1, 40))
    def the_next_container_does_not_start(self, what: str, seconds: int) -> None:
        self.world.next_start, self.world.next_start_seconds = what, seconds

    @rule(what=st.sampled_from(sorted(set(START_WORDS) - {"no command"})))
    def what_has_trained_does_not_start_on_another_machine(self, what: str) -> None:
        """After an attempt has had time to report something durable: whatever is said then, it is no failure of its."""
        self._goes_on(12)
        before, starts = self.world.status.failures, len(self.world.failed_starts)
        self.the_next_container_does_not_start(what, 9)
        self.machine_goes("kill_node")
        self._goes_on(14)
        if all(is_proven for _, is_proven in self.world.failed_starts[starts:]):
            assert self.world.status.failures == before

    @rule()
    def a_node_runs_short_of_memory(self) -> None:
        """Once that is nobody's fault, and in the next attempt the program's."""
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.machines_lost += 1
            self.crashes += trainer.number - 1 in self.world.evicted
            self.world.evict_for_memory(trainer)

    @rule()
    def device_fails(self) -> None:
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.devices_lost += 1
            self.world.break_device(trainer)

    @rule()
    def a_machine_is_cordoned(self) -> None:
        """What the program does by itself afterwards is its own doing. Who deletes its pod drains the machine."""
        trainer = self.world.running()
        if trainer:
            self.cordons += not trainer.is_cordoned
            trainer.is_cordoned = True

    @rule(effects=st.integers(1, 4), times=st.integers(1, 3))
    def an_effect_is_refused(self, effects: int, times: int) -> None:
        """Nothing is taken away on the strength of what was not done. The next pass tries it again."""
        self.world.effects_until_refusal = effects
        for _ in range(times):
            self._pass()
        self.world.effects_until_refusal = None

    @rule(what=st.sampled_from(["bug", "memory", "disk"]))
    def program_fails(self, what: str) -> None:
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.crashes += 1
            self.world.crash(trainer, out_of_memory=what == "memory", out_of_disk=what == "disk")

    @precondition(lambda self: self.world.job_exists)
    @rule()
    def job_vanishes(self) -> None:
        self.jobs_lost += 1
        self.world._stop(max(self.world.job_exists))

    @rule(attempts=st.integers(3, 7))
    def no_attempt_gets_anywhere(self, attempts: int) -> None:
        """As while a kubelet refuses pods: each job is over as soon as it is there."""
        for _ in range(attempts):
            for _ in range(PASSES_TO_STOP + int(TIMING.backoff_seconds_max)):
                self._pass()
                self._tick()
                if self.world.job_exists:
                    self.job_vanishes()
                    break

    @rule()
    def reports_are_blocked_or_arrive(self) -> None:
        """By a NetworkPolicy, a certificate: nothing is heard of the attempts that follow."""
        self.world.are_reports_blocked = not self.world.are_reports_blocked

    @rule(kind=st.sampled_from(["jobs", "workloads"]), seconds=st.integers(1, 12), pod_goes=st.booleans())
    def a_kind_is_not_served(self, kind: str, seconds: int, pod_goes: bool) -> None:
        """Nothing begins that would need it, and no attempt ends because nobody can tell what there is of it."""
        self._goes_on(6)
        created, before = len(self.world.created), self.world.status.current
        self.world.unserved = kind
        trainer = self.world.running()
        if trainer and pod_goes and kind == "jobs":
            self.machines_lost += 1
            self.world.vanish(trainer)
        for _ in range(seconds):
            self._pass()
            self._tick()
        self.world.unserved = ""
        current = self.world.status.current
        if kind == "jobs" or self.world.reservation is not None:
            assert len(self.world.created) == created
        if self.understood is None and before and current and current.number == before.number and not before.reason:
            assert current.reason not in (Reason.JOB_VANISHED, Reason.QUOTA_TAKEN)

    @rule(attempts=st.integers(1, 2))
    def reads_fail(self, attempts: int) -> None:
        self.world.failing_reads += attempts

    @rule()
    def the_next_machine_mounts_another_volume(self) -> None:
        """After an attempt has had time to report something durable, and before the next has had time to replace it."""
        self._goes_on(12)
        self.world.is_volume_empty = True
        self.machine_goes("kill_node")
        self._goes_on(12)
        self.world.is_volume_empty = False

    def _goes_on(self, seconds: int) -> None:
        """Seen by the operator, and by Kueue, every second."""
        for _ in range(seconds):
            self._pass()
            self.world.admit()
            self._tick()

    @precondition(lambda self: self.world.reservation)
    @rule()
    def kueue_admits(self) -> None:
        self.world.admit()

    @precondition(lambda self: self.world.reservation and self.understood is None)
    @rule()
    def kueue_evicts(self) -> None:
        """The run gives its quota back in the time of an orderly stop, whatever it did, and that is no failure."""
        before = self.world.status.failures
        self.world.evict()
        for _ in range(10):
            self._pass()
            self.world.tick()
        assert self.world.reservation is not None
        assert not self.world.reservation.held
        assert not self.world.billed()
        assert self.world.status.failures <= max(before, self.crashes + self._wrong_starts())

    @precondition(lambda self: self.world.reservation)
    @rule()
    def kueue_lets_it_run(self) -> None:
        """Asked, admitted, started: otherwise few worlds get that far."""
        self._goes_on(6)

    # --- another version ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.understood is None and self.world.status.attempt and not self.world.deleting)
    @rule(how=st.sampled_from(sorted(RIDDLES)), seconds=st.integers(0, 20))
    def another_version_writes_what_is_not_understood(self, how: str, seconds: int) -> None:
        self.understood = self.world.status
        written = RIDDLES[how](self.world.status.to_wire())
        self.world.status = RunStatus.read(written)
        self.world.version += 1
        assert self.world.status.unreadable
        for _ in range(seconds):
            before = self._touched()
            self._pass()
            if not self.old_news:  # nobody knows then what the status says now
                assert self._touched() == before
            self._tick()
        kept = self.world.status.to_wire()
        assert {**kept, "conditions": 0} == {**written, "conditions": 0}
        others = [condition for condition in written["conditions"] if condition["type"] != STATUS_UNREADABLE]
        assert all(condition in kept["conditions"] for condition in others)

    @precondition(lambda self: self.understood is not None)
    @rule()
    def its_status_is_understood_again(self) -> None:
        assert self.understood is not None
        told = [c for c in self.world.status.conditions if c.type == STATUS_UNREADABLE]
        others = tuple(c for c in self.understood.conditions if c.type != STATUS_UNREADABLE)
        self.world.status = self.understood.model_copy(update={"conditions": (*others, *told)})
        self.world.version += 1
        self.understood = None

    def _touched(self) -> tuple[object, ...]:
        """What an operator could have created, deleted, told or judged."""
        world = self.world
        jobs = [(t.number, t.deleting, t.shown) for t in world.jobs.values()]
        return jobs, set(world.job_exists), list(world.created), world.held, world.volume, world.reservation

    # --- the user ----------------------------------------------------------------------------------------------------

    @rule()
    def suspend_or_resume(self) -> None:
        if self.world.spec is not None:
            self._edit(self.world.spec.model_copy(update={"suspend": not self.world.spec.suspend}))

    @precondition(lambda self: self.understood is None)
    @rule()
    def suspend_for_a_while(self) -> None:
        """Nothing is paid for while a run is suspended, and nothing is started."""
        if self.world.spec is None:
            return
        spec = self.world.spec
        self._edit(spec.model_copy(update={"suspend": True}))
        for _ in range(15):
            self._pass()
            self.world.tick()
        assert not self.world.billed()
        assert not self.world.exists or self.world.deleting or self.world.status.phase in ENDS
        self._edit(spec.model_copy(update={"suspend": False}))

    @precondition(lambda self: self.world.spec is not None and self.world.spec.limits.budget is not None)
    @rule(usd=st.sampled_from(["10", "20", "40", "60"]))
    def change_the_budget(self, usd: str) -> None:
        self._edit(_with_budget(self.world.spec, usd))
        self.looks_over_budget = self.seconds_over_budget = 0

    @rule()
    def misspell_or_mend(self) -> None:
        if self.world.spec is None:
            self._edit(self.spec)
        else:
            self.spec = self.world.spec
            self._edit(None)

    @precondition(lambda self: self.understood is None)
    @rule()
    def each_edit_is_answered(self) -> None:
        """Also of a run that has ended, in the time of a few good looks."""
        for _ in range(3):
            self._pass()
            self.world.tick()
        status = self.world.status
        if self.world.deleting or not status.conditions:
            return
        assert status.observed_generation == self.world.generation
        assert status.is_true(ACCEPTED) is not bool(self.world.problems)

    @rule()
    def want_an_evaluation_or_not(self) -> None:
        if self.world.spec is not None:
            stages = self.world.spec.stages
            evaluate = None if stages.evaluate else EvaluateStage()
            self._edit(self.world.spec.model_copy(update={"stages": stages.model_copy(update={"evaluate": evaluate})}))

    @precondition(lambda self: self.deletion and self.world.created)
    @rule()
    def delete(self) -> None:
        self.world.deleting = True
        self.world.version += 1
        self.world._forget()

    def _edit(self, spec) -> None:  # type: ignore[no-untyped-def]
        self.world.spec, self.world.problems = spec, () if spec else ("spec.x: unknown field",)
        self.world.generation += 1
        self.world.version += 1

    # --- what must never happen --------------------------------------------------------------------------------------

    @invariant()
    def at_most_one_attempt_can_commit(self) -> None:
        assert len(self.world.unfenced()) <= 1

    @invariant()
    def at_most_one_attempt_is_paid_for_unless_old_news_were_believed(self) -> None:
        if not self.old_news:
            assert len(self.world.billed()) <= 1, self.world.jobs

    @invariant()
    def nothing_starts_without_quota_and_none_is_released_under_pods_unless_old_news_were_believed(self) -> None:
        if not self.old_news:
            assert not self.world.without_quota

    @invariant()
    def attempt_numbers_never_go_back(self) -> None:
        status = self.understood or self.world.status
        assert status.attempt >= self.highest
        self.highest = status.attempt
        if not self.old_news:
            assert self.world.created == sorted(self.world.created)
        if not self.old_news and not self.jobs_lost:
            # A job that somebody deletes between its creation and the status write is created again; the fence tells
            # the two apart by their owners.
            assert len(self.world.created) == len(set(self.world.created))

    @invariant()
    def an_attempt_ends_before_the_next_begins(self) -> None:
        assert all(record.state is AttemptState.ENDED for record in self.world.status.attempts[:-1])

    @invariant()
    def a_commit_never_comes_from_an_older_attempt(self) -> None:
        writers = [attempt for _, attempt in self.world.store.steps]
        assert writers == sorted(writers)

    @invariant()
    def what_was_reported_as_durable_is_never_trained_again_from_step_0(self) -> None:
        if not self.old_news:
            assert not self.world.lost_by

    @invariant()
    def the_stages_come_in_order_and_each_when_the_one_before_is_finished(self) -> None:
        order = [ORDER.index(stage) for stage in self.world.stages_created]
        assert order == sorted(order)
        reached = max(order, default=0)
        needed = [Stage.PREPARE, Stage.TRAIN] if self.stages else [Stage.TRAIN]
        behind = [stage for stage in needed if ORDER.index(stage) < reached]
        assert all(self.world.status.stage(stage).end_time for stage in behind), self.world.status.stages
        assert reached < ORDER.index(Stage.EVALUATE) or self.world.store.complete is not None

    @invariant()
    def success_is_proven_and_for_ever(self) -> None:
        now = self.world.status.is_true("Succeeded")
        assert not (self.succeeded and not now)
        assert not now or self.world.store.complete is not None
        if now and not self.succeeded:
            spec = self.world.spec_in_effect()
            assert spec is not None
            assert all(self.world.status.stage(stage).end_time for stage in wanted(spec.stages))
        self.succeeded = now

    @invariant()
    def every_end_is_booked_to_its_own_account(self) -> None:
        assert self.world.status.failures <= self.crashes + self._wrong_starts()
        status = self.world.status
        assert all(stage.failures_since_progress <= min(stage.failures, self.failure_limit) for stage in status.stages)
        for counter in ("failures", "preemptions", "infrastructure_failures"):
            assert getattr(status, counter) == sum(getattr(stage, counter) for stage in status.stages)
        assert status.preemptions <= self.machines_lost + self.cordons
        if not self.old_news:  # a pod that went before anybody looked leaves no evidence of a preemption
            assert status.preemptions + status.infrastructure_failures <= (
                self.machines_lost
                + self.cordons
                + self.jobs_lost
                + self.world.volumes_lost
                + self.devices_lost
                + self.half_gangs
                + len(self.world.failed_starts)
            )

    def _wrong_starts(self) -> int:
        """Attempts that the user may have kept from starting: what had run before can start."""
        unproven = ("wrong name", "unknown")
        starts = self.world.failed_starts
        return sum(how == "no command" or (how in unproven and not is_proven) for how, is_proven in starts)

    @invariant()
    def what_is_spent_never_falls_and_no_second_is_paid_twice(self) -> None:
        shown = spending.dollars(self.world.status.cost.spent) if self.world.status.cost else Fraction(0)
        assert shown >= self.spent
        self.spent = shown
        elapsed = (self.world.time - NOW).total_seconds()
        # What is placed in the future, by a clock that is behind, is billed from now on: once per attempt.
        assert shown <= elapsed + self.slowest * len(self.world.created) + 0.01

    @invariant()
    def a_budget_is_exceeded_by_no_more_than_a_stop_takes(self) -> None:
        assert self.seconds_over_budget <= GRACE_SECONDS + 1, self.world.status

    @invariant()
    def nothing_is_taken_away_after_a_refusal(self) -> None:
        assert not self.world.after_refusal

    @invariant()
    def nothing_starts_beside_what_is_left_of_an_attempt_that_nobody_told_to_go(self) -> None:
        if not self.old_news:
            assert not self.world.beside_leftovers

    @invariant()
    def a_checkpoint_outlives_its_run_whether_anything_was_heard_of_it_or_not(self) -> None:
        if not self.world.exists and not self.old_news:
            assert self.world.volume or not self.world.store.steps

    # --- and in the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop: the run comes to its end, and then nothing more is done."""
        world = getattr(self, "world", None)
        if world is None:
            return
        if self.understood is not None:
            self.its_status_is_understood_again()
        if world.spec is None or world.spec.suspend:
            spec = world.spec or self.spec
            assert spec is not None
            self._edit(spec.model_copy(update={"suspend": False}))
        world.slow_seconds, world.next_start = 0, None
        world.failing_reads, world.is_volume_empty, world.half_a_gang_seconds = 0, False, 0
        self._converge(world)
        if world.exists and not settled(world.status):
            assert not world.billed()
            assert world.status.phase is Phase.SUSPENDED
            self._edit(_with_enough(world.spec))
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
            assert world.status.result.step == TOTAL_STEPS
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
        if world.spec is None or world.spec.ttl_after_finished is None:
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


def _with_budget(spec: Spec | None, usd: str) -> Spec:
    assert spec is not None
    assert spec.limits.budget is not None
    return _with_limits(spec, budget=spec.limits.budget.model_copy(update={"usd": usd}))


def _with_enough(spec: Spec | None) -> Spec:
    """Money and time to come to the end."""
    assert spec is not None
    spec = spec if spec.limits.budget is None else _with_budget(spec, ENOUGH)
    return _with_limits(spec, stalled="24h")


def _with_limits(spec: Spec, **limits: object) -> Spec:
    return spec.model_copy(update={"limits": spec.limits.model_copy(update=limits)})


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
