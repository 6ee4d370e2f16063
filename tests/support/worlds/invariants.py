"""What must never happen, checked after each step."""

from fractions import Fraction

from hypothesis.stateful import invariant

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import ORDER, wanted
from piton.api.status import AttemptState
from piton.cost import spending
from support.builders import NOW
from support.fake_world import GRACE_SECONDS
from support.worlds.one_run import OneRun


class Invariants(OneRun):
    """See the names."""

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
        if not self.old_news and not self.statuses_lost:
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
        assert not now or self.world.exported_by, "the script has come to its end"
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
                + self._stopped_by_a_limit_that_a_slow_clock_has_not_reached()
            )

    def _stopped_by_a_limit_that_a_slow_clock_has_not_reached(self) -> int:
        early = [attempt for attempt in self.world.status.attempts if attempt.reason is Reason.STOPPED_EARLY]
        return len(early) if self.slowest else 0

    @invariant()
    def what_is_spent_never_falls_and_no_second_is_paid_twice(self) -> None:
        shown = spending.dollars(self.world.status.cost.spent) if self.world.status.cost else Fraction(0)
        assert shown >= self.spent
        self.spent = shown
        elapsed = (self.world.time - NOW).total_seconds()
        assert shown <= elapsed + self.slowest + 0.01, "the difference of two clocks is paid once"

    @invariant()
    def a_budget_is_exceeded_by_no_more_than_a_stop_takes(self) -> None:
        assert self.seconds_over_budget <= GRACE_SECONDS + 1, self.world.status

    @invariant()
    def nothing_is_taken_away_after_a_refusal(self) -> None:
        assert not self.world.denials.after_undone

    @invariant()
    def nothing_comes_before_what_it_builds_on(self) -> None:
        """No job before finalizer and claim, and no end of a forgotten job before it is written down."""
        if not self.old_news:
            assert not self.world.unfounded

    @invariant()
    def no_run_goes_before_what_runs_for_it(self) -> None:
        if not self.world.exists and not self.old_news:
            assert not self.world.billed()

    @invariant()
    def nothing_starts_beside_what_is_left_of_an_attempt_that_nobody_told_to_go(self) -> None:
        if not self.old_news:
            assert not self.world.beside_leftovers

    @invariant()
    def a_checkpoint_outlives_its_run_whether_anything_was_heard_of_it_or_not(self) -> None:
        world = self.world
        if not self.old_news:
            kept = world.volume and not world.is_volume_owned if world.exists else world.volume
            assert kept or not world.store.steps
