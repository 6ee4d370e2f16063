"""What a run costs, and what its budget does about it, by the second and in virtual time."""

from fractions import Fraction
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, CheckpointStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract.progress import StopAt
from piton.contract.termination import Limit, Outcome, StopAfter
from piton.core.decide import decide
from piton.core.effects import StartAttempt
from piton.core.trainer_requests import requests_for
from piton.cost import budget, spending
from piton.observed import AttemptSeen, Observed, ReplicaSeen, ReplicaState
from piton.rendering.pytorchjob import pytorchjob
from piton.timing import Timing
from support.builders import (
    NOW,
    a_failed_attempt,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    failed,
    later,
    meta,
    problems_of,
    said,
)

HOURLY = Fraction(36)
"""A dollar in 100 seconds."""
TIMING = Timing(stop_seconds=100, worth_seconds=200)


def on(node: str = "n1", *, at: float = 0, price: Fraction | None = HOURLY, **fields: Any) -> ReplicaSeen:
    """A replica that was placed so many seconds after NOW."""
    return a_replica(
        fields.pop("state", ReplicaState.RUNNING),
        name=f"on-{node}",
        node=node,
        placed_at=later(at),
        node_price=price,
        **fields,
    )


def a_budget(usd: str = "10", *, price: str = "36", **parts: Any) -> Spec:
    budget = {"usd": usd, **parts.pop("budget", {})}
    capacity = {"maxPricePerHour": price}
    return a_spec(workers={"gpusPerNode": 0}, capacity=capacity, limits={"budget": budget}, **parts)


def flown(seen: AttemptSeen, status: RunStatus, after: float, spec: Spec | None = None, **fields: Any) -> RunStatus:
    """The status after a pass at that moment."""
    return decide(an_observed(seen, status=status, spec=spec, **fields), now=later(after), timing=TIMING).status


def spent(status: RunStatus, after: float) -> Fraction:
    return spending.spent(status, later(after))


def word(status: RunStatus, kind: str = "Training") -> tuple[Reason, str]:
    condition = status.condition(kind)
    assert condition is not None
    return condition.reason, condition.message


def test_pending_pods_cost_nothing_and_placed_ones_cost_from_their_placement_on() -> None:
    waiting = an_attempt(a_replica(ReplicaState.WAITING))
    status = flown(waiting, a_status(a_record(state=AttemptState.STARTING)), 300)
    assert spent(status, 300) == 0

    placed = flown(an_attempt(on(at=400, state=ReplicaState.WAITING)), status, 500)
    assert spent(placed, 500) == 1
    assert placed.cost is not None
    assert (placed.cost.spent, placed.cost.per_hour) == ("1.00", "36.00")


def test_a_share_of_a_node_pays_its_share() -> None:
    status = flown(an_attempt(on(node_share=Fraction(1, 8))), a_status(a_record()), 100)
    assert spent(status, 800) == 1


def test_nodes_that_come_later_are_paid_from_when_they_came() -> None:
    one = flown(an_attempt(on(), expected_replicas=2), a_status(a_record()), 100)
    both = an_attempt(on(), on("n2", at=300))
    two = flown(both, one, 500)

    assert spent(two, 500) == 3 + 2 * 2
    assert flown(both, two, 600).attempts == two.attempts


def test_an_attempt_keeps_the_price_that_it_was_placed_at() -> None:
    placed = flown(an_attempt(on()), a_status(a_record()), 0)
    dearer = flown(an_attempt(on(price=2 * HOURLY)), placed, 100)
    assert spent(dearer, 100) == 1


def test_an_unknown_price_counts_as_the_highest_and_says_so() -> None:
    seen = an_attempt(on(price=None))
    known = flown(seen, a_status(a_record()), 100, a_budget())
    assert spent(known, 100) == 1
    assert known.cost is not None
    assert known.cost.is_bound

    unknown = flown(seen, a_status(a_record()), 100)
    assert unknown.cost is None
    bounded = flown(seen, unknown, 200, a_budget())
    assert spent(bounded, 200) == 2


def test_an_attempt_whose_price_nobody_knew_makes_the_sum_incomplete() -> None:
    placed = flown(an_attempt(on(price=None)), a_status(a_record()), 0)
    closed = flown(an_attempt(failed(1, placed_at=NOW)), placed, 50)
    assert closed.cost is None
    assert closed.current is not None
    again = closed.model_copy(update={"attempts": (closed.current, a_record(2)), "attempt": 2})
    priced = flown(an_attempt(on(), number=2), again, 100)
    assert priced.cost is not None
    assert (priced.cost.is_incomplete, priced.cost.spent) == (True, "1.00")


def test_an_end_that_was_noticed_late_is_billed_to_when_it_was() -> None:
    placed = flown(an_attempt(on()), a_status(a_record()), 0)
    gone = failed(137, name="on-n1", placed_at=NOW, ended_at=later(100), disruption="Evicted")
    status = flown(an_attempt(gone), placed, 4000)

    assert status.current is not None
    assert status.current.state is AttemptState.ENDED
    assert spent(status, 9000) == 1


def test_an_operator_that_was_away_counts_what_was_placed_meanwhile() -> None:
    status = flown(an_attempt(on(at=50)), a_status(a_record()), 3650)
    assert spent(status, 3650) == 36


def test_a_clock_that_goes_back_stands_still_until_it_has_caught_up() -> None:
    placed = flown(an_attempt(on()), a_status(a_record()), 200)
    back = flown(an_attempt(on()), placed, 100)
    assert spent(back, 100) == spent(placed, 200) == 2
    assert spent(back, 300) == 3


def test_what_drops_off_the_list_stays_in_the_sum() -> None:
    bill: dict[str, Any] = {
        "price_per_hour": "36",
        "billed_from": NOW,
        "billed_until": later(100),
        "billed_machines": 1,
    }
    attempts = tuple(an_ended(number, **bill) for number in range(1, 21))
    status = a_status(*attempts, preemptions=20)
    before = spent(status, 100)

    after = decide(an_observed(status=status), now=later(9000), timing=TIMING).status

    assert before == 20
    assert (len(after.attempts), after.attempt) == (20, 21)
    assert spent(after, 9000) == 20


@pytest.mark.parametrize("usd", ["10", "10.00"])
def test_a_budget_stops_the_attempt_while_it_still_pays_for_the_stop(usd: str) -> None:
    spec, seen = a_budget(usd), an_attempt(on())
    status = flown(seen, a_status(a_record()), 0, spec)
    going = decide(an_observed(seen, status=status, spec=spec), now=later(899), timing=TIMING)
    assert going.status.current is not None
    assert going.status.current.state is AttemptState.RUNNING

    stopped = decide(an_observed(seen, status=going.status, spec=spec), now=later(900), timing=TIMING).status
    assert stopped.current is not None
    assert (stopped.current.state, stopped.current.verdict) == (AttemptState.STOPPING, Verdict.STOPPED)
    assert stopped.current.reason is Reason.BUDGET_EXCEEDED


def _paused(spec: Spec) -> RunStatus:
    """A run that was stopped by its budget after 900 seconds, and was gone after 950."""
    seen = an_attempt(on())
    status = flown(seen, a_status(a_record(), checkpoint=CheckpointStatus(step=70, time=NOW, attempt=1)), 0, spec)
    status = flown(seen, status, 900, spec)
    status = decide(an_observed(status=status, spec=spec), now=later(950), timing=TIMING).status
    return decide(an_observed(status=status, spec=spec), now=later(950), timing=TIMING).status


def test_a_run_that_has_spent_its_budget_holds_and_says_what_to_write() -> None:
    status = _paused(a_budget())

    assert status.phase is Phase.SUSPENDED
    reason, message = word(status, "Suspended")
    assert reason is Reason.BUDGET_EXCEEDED
    assert message == (
        "$9.50 of limits.budget ($10) are spent, and a start needs $3.00; step 70 is saved; "
        "raise limits.budget.usd above 12.50 to go on"
    )
    assert spent(status, 99_999) == spent(status, 950)
    again = decide(an_observed(status=status, spec=a_budget()), now=later(5000), timing=TIMING)
    assert (again.status, again.effects, again.look_again_seconds) == (status, (), None)


@pytest.mark.parametrize(("usd", "goes_on"), [("12.50", False), ("12.51", True)])
def test_a_budget_that_is_raised_lets_the_run_go_on_where_it_pays_for_a_start(usd: str, goes_on: bool) -> None:
    spec = a_budget(usd)
    raised = decide(an_observed(status=_paused(a_budget()), spec=spec), now=later(2000), timing=TIMING)
    assert (raised.status.attempt == 2) is goes_on
    assert [type(effect) for effect in raised.effects] == [StartAttempt] * goes_on


def test_a_budget_that_stops_ends_the_run_and_names_what_is_saved() -> None:
    status = _paused(a_budget(budget={"onExceeded": "Stop"}))
    assert status.phase is Phase.FAILED
    reason, message = word(status, "Failed")
    assert reason is Reason.BUDGET_EXCEEDED
    assert "step 70 is saved" in message
    assert "raise" not in message


def test_nothing_is_started_that_the_budget_does_not_pay_for() -> None:
    decision = decide(an_observed(spec=a_budget("3")), now=NOW, timing=TIMING)
    assert (decision.status.attempt, decision.status.phase) == (0, Phase.SUSPENDED)
    assert decide(an_observed(spec=a_budget("3.01")), now=NOW, timing=TIMING).status.attempt == 1


def test_a_start_is_paid_at_the_price_of_the_last_one_at_its_stage() -> None:
    cheap = an_ended(1, price_per_hour="3.6", billed_from=NOW, billed_until=NOW, billed_machines=1)
    status = a_status(cheap, preemptions=1)
    assert decide(an_observed(status=status, spec=a_budget("1")), now=NOW, timing=TIMING).status.attempt == 2
    prepared = a_status(cheap.model_copy(update={"stage": Stage.PREPARE, "verdict": Verdict.FINISHED}))
    held = decide(
        an_observed(status=prepared, spec=a_budget("1", stages={"prepare": {}})), now=NOW, timing=TIMING
    ).status
    assert held.phase is Phase.SUSPENDED


def test_a_number_that_was_taken_before_the_budget_was_lowered_is_never_started() -> None:
    status = a_status(a_record(state=AttemptState.PENDING))
    decision = decide(an_observed(status=status, spec=a_budget("1")), now=NOW, timing=TIMING)
    assert decision.effects == ()
    assert decision.status.current is not None
    assert decision.status.current.reason is Reason.BUDGET_EXCEEDED


def test_people_are_warned_once_and_again_of_another_budget() -> None:
    seen, spec = an_attempt(on()), a_budget("20", budget={"warnAt": 50})
    status = flown(seen, a_status(a_record()), 0, spec)
    warned = decide(an_observed(seen, status=status, spec=spec), now=later(1000), timing=TIMING)
    again = decide(an_observed(seen, status=warned.status, spec=spec), now=later(1001), timing=TIMING)
    raised = a_budget("21", budget={"warnAt": 50})
    more = decide(an_observed(seen, status=again.status, spec=raised), now=later(1100), timing=TIMING)

    assert [news.message for news in warned.announcements] == ["50% of limits.budget ($20) are spent"]
    assert word(warned.status)[1] == "attempt 1 is running; 50% of limits.budget ($20) are spent"
    assert again.announcements == ()
    assert again.status == warned.status
    assert [news.reason for news in more.announcements] == [Reason.BUDGET_WARNING]


def test_the_core_wakes_at_the_warning_and_at_the_limit_and_time_alone_writes_nothing() -> None:
    seen, spec = an_attempt(on()), a_budget()

    def look(status: RunStatus, after: float) -> tuple[RunStatus, float | None]:
        decision = decide(an_observed(seen, status=status, spec=spec), now=later(after), timing=TIMING)
        return decision.status, decision.look_again_seconds

    status, wait = look(a_status(a_record()), 0)
    assert wait == 800
    still, wait = look(status, 300)
    assert (still, wait) == (status, 500)
    warned, wait = look(still, 800)
    assert wait == 100
    stopping, wait = look(warned, 900)
    assert (stopping.phase, wait) == (Phase.STOPPING, 0)
    deleting = an_attempt(on(deleting=True), deleting=True)
    waiting = decide(an_observed(deleting, status=stopping, spec=spec), now=later(910), timing=TIMING)
    assert (waiting.status, waiting.look_again_seconds) == (stopping, None)


def test_an_operator_that_comes_back_past_the_limit_stops_the_attempt_at_once() -> None:
    seen, spec = an_attempt(on()), a_budget()
    first = decide(an_observed(seen, status=a_status(a_record()), spec=spec), now=later(5000), timing=TIMING)
    assert first.look_again_seconds == 0
    assert first.status.cost is not None
    assert first.status.cost.spent == "50.00"
    assert flown(seen, first.status, 5000, spec).phase is Phase.STOPPING


def test_nobody_waits_for_better_evidence_at_the_users_cost() -> None:
    spec = a_budget()
    crashed = an_attempt(on(), failed(1, name="b", placed_at=NOW))
    status = flown(an_attempt(on(), on("b")), a_status(a_record()), 0, spec)
    patient = flown(crashed, status, 380, spec)
    assert patient.current is not None
    assert patient.current.state is AttemptState.RUNNING
    assert flown(crashed, patient, 400, spec).current == patient.current.model_copy(
        update={
            "state": AttemptState.STOPPING,
            "verdict": Verdict.STOPPED,
            "reason": Reason.BUDGET_EXCEEDED,
            "message": "told to stop: BudgetExceeded",
            "failing_time": later(400),
        }
    )


def test_a_budget_holds_also_while_the_spec_cannot_be_read() -> None:
    seen = an_attempt(on())
    status = flown(seen, a_status(a_record()), 0, a_budget())
    broken: Observed = an_observed(seen, status=status, problems=("spec.x: unknown field",))
    assert decide(broken, now=later(899), timing=TIMING).status.phase is Phase.TRAINING
    assert decide(broken, now=later(900), timing=TIMING).status.phase is Phase.STOPPING


def test_a_node_that_is_known_to_cost_more_is_left_and_the_reason_is_said() -> None:
    spec = a_spec(capacity={"maxPricePerHour": "35.99"})
    status = flown(an_attempt(on()), a_status(a_record()), 10, spec)
    assert status.current is not None
    assert (status.current.verdict, status.current.reason) == (Verdict.INFRASTRUCTURE, Reason.PRICE_TOO_HIGH)
    reason, message = word(status)
    assert reason is Reason.PRICE_TOO_HIGH
    assert "on-n1: the node n1 costs $36.00 per hour, and capacity.maxPricePerHour is $35.99; raise it" in message

    enough = flown(an_attempt(on()), a_status(a_record()), 10, a_spec(capacity={"maxPricePerHour": "36.00"}))
    assert enough.phase is Phase.TRAINING


def test_prices_that_stay_too_high_make_the_run_wait_longer_and_never_end_it() -> None:
    """Prices fall again. Nothing is paid for the wait, and each look at a dear node takes seconds."""
    dear = an_ended(1, Verdict.INFRASTRUCTURE, reason=Reason.PRICE_TOO_HIGH, message="the node n1 costs $36.00")
    status = a_status(*(dear.model_copy(update={"number": number}) for number in range(1, 13)))

    waits = decide(an_observed(status=status), now=later(3599), timing=TIMING)
    assert waits.status.phase is Phase.RECOVERING
    assert "the node n1 costs $36.00" in word(waits.status)[1]
    stalled = waits.status.condition("Stalled")
    assert stalled is not None
    assert "raise capacity.maxPricePerHour" in stalled.message
    assert decide(an_observed(status=status), now=later(3600), timing=TIMING).status.attempt == 13


def test_a_deleted_run_and_one_that_has_ended_are_left_alone() -> None:
    spec, seen = a_budget(), an_attempt(on())
    status = flown(seen, a_status(a_record()), 0, spec)
    deleted = decide(
        an_observed(seen, status=status, spec=spec, run=meta(deleting=True)), now=later(9000), timing=TIMING
    )
    assert deleted.status.conditions == status.conditions
    assert deleted.status.current is not None
    assert deleted.status.current.verdict is None
    ended = a_status(an_ended(1, Verdict.FINISHED), phase=Phase.SUCCEEDED)
    assert decide(an_observed(status=ended, spec=spec), now=later(9000), timing=TIMING).status == ended


def test_what_was_trained_twice_is_wasted_at_the_price_of_every_step() -> None:
    seen = an_attempt(on())
    status = a_status(a_record(step=75))
    lost = status.model_copy(update={"lost": status.lost.model_copy(update={"steps": 25})})
    status = flown(seen, lost, 400)
    assert status.cost is not None
    assert (status.cost.spent, status.cost.wasted) == ("4.00", "1.00")


@pytest.mark.parametrize(("amount", "text"), [("0", "0.00"), ("1/3", "0.34"), ("12.5", "12.50"), ("0.001", "0.01")])
def test_amounts_are_written_to_the_next_cent(amount: str, text: str) -> None:
    assert spending.as_text(Fraction(amount)) == text


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            {"limits": {"budget": {"usd": "250"}}},
            "spec.capacity.maxPricePerHour: missing; limits.budget counts with it",
        ),
        ({"capacity": {"maxPricePerHour": "0.00"}}, "spec.capacity.maxPricePerHour: '0.00' gets no node"),
    ],
)
def test_a_budget_needs_a_price_and_the_sentence_says_what_to_write(parts: dict[str, Any], sentence: str) -> None:
    assert any(problem.startswith(sentence) and '"12.50"' in problem for problem in problems_of(**parts))


def test_a_budget_with_a_price_is_accepted() -> None:
    limits = {"budget": {"usd": "250"}}
    assert problems_of(limits=limits, capacity={"maxPricePerHour": "12.50"}) == ()


def test_a_machine_that_nobody_knows_the_price_of_beside_one_that_is_known_makes_the_sum_incomplete() -> None:
    one = flown(an_attempt(on(), expected_replicas=2), a_status(a_record()), 100)
    both = an_attempt(on(), on("n2", at=200, price=None))
    two = flown(both, flown(both, one, 300), 400)
    assert two.cost is not None
    assert two.cost.is_incomplete
    assert spent(two, 400) == 4


def test_an_attempt_that_the_status_had_forgotten_is_billed_from_its_placement() -> None:
    found = decide(an_observed(an_attempt(on(at=-500))), now=later(100), timing=TIMING).status
    assert spent(flown(an_attempt(on(at=-500)), found, 100), 100) == 6


def test_a_bill_is_never_from_the_future() -> None:
    ahead = flown(an_attempt(on(at=500)), a_status(a_record()), 100)
    assert spent(ahead, 200) == 1


@pytest.mark.parametrize("before", [{"billed_until": later(300)}, {"ended_time": later(300)}])
@pytest.mark.parametrize("placed", [200, 300, 350])
def test_no_second_is_paid_for_two_attempts(before: dict[str, Any], placed: float) -> None:
    """The end of the one before is not known exactly: its status was restored, or the operator's clock was ahead."""
    earlier = an_ended(1, price_per_hour="36", billed_from=NOW, billed_machines=1, **before)
    status = flown(an_attempt(on(at=placed), number=2), a_status(earlier, a_record(2)), 400)
    assert spent(status, 400) == 3 + (400 - max(300, placed)) / 100


def test_an_attempt_is_told_for_how_long_the_budget_pays_once_it_trains() -> None:
    """At what a node may cost at most; it may wait for hours until then, and that costs nothing."""
    (effect,) = decide(an_observed(spec=a_budget("50")), now=later(9000), timing=TIMING).effects
    assert isinstance(effect, StartAttempt)
    assert effect.stop_after == StopAfter(seconds=5000, limit=Limit.BUDGET)


def test_an_attempt_is_told_in_seconds_when_its_deadline_comes() -> None:
    """Its machine's clock may be another: no moment is compared there."""
    for spec, wanted in (
        (a_spec(limits={"deadline": "24h"}), StopAfter(seconds=86_400 - 9000, limit=Limit.DEADLINE)),
        (a_spec(), None),
    ):
        (effect,) = decide(an_observed(spec=spec), now=later(9000), timing=TIMING).effects
        assert isinstance(effect, StartAttempt)
        assert effect.stop_after == wanted


def test_what_the_trainer_is_told_moves_with_budget_price_and_deadline() -> None:
    seen = an_attempt(on())
    status = flown(seen, a_status(a_record()), 0, a_budget())

    def told(spec: Spec, after: float = 500) -> StopAt | None:
        return requests_for(an_observed(seen, spec=spec), status, now=later(after), timing=TIMING).stop_at

    assert told(a_budget("10")) == StopAt(time=later(1000), limit=Limit.BUDGET, seconds=500)
    assert told(a_budget("20")) == StopAt(time=later(2000), limit=Limit.BUDGET, seconds=1500)
    sooner = a_budget("20")
    sooner = sooner.model_copy(update={"limits": sooner.limits.model_copy(update={"deadline": "15m"})})
    assert told(sooner) == StopAt(time=later(900), limit=Limit.DEADLINE, seconds=400)
    assert told(a_spec()) == StopAt(), "a limit that is taken away is none any more"


def test_a_trainer_is_asked_to_stop_where_no_signal_may_reach_it() -> None:
    seen = an_attempt(on())
    going = flown(seen, a_status(a_record()), 0, a_budget())
    stopping = flown(seen, going, 900, a_budget())
    for status, stop in ((going, False), (stopping, True)):
        assert requests_for(an_observed(seen, spec=a_budget()), status, now=later(901), timing=TIMING).stop is stop


@pytest.mark.parametrize(
    ("limit", "reason"), [(Limit.BUDGET, Reason.BUDGET_EXCEEDED), (Limit.DEADLINE, Reason.DEADLINE_EXCEEDED)]
)
def test_a_trainer_that_stopped_by_itself_at_a_limit_has_failed_nobody(limit: Limit, reason: Reason) -> None:
    """The operator was away."""
    limits = a_budget("40") if limit is Limit.BUDGET else a_spec(limits={"deadline": "1h"})
    end = said(Outcome.STOPPED, step=70, checkpoint_step=70, limit=limit, detail="in its words")
    seen = a_failed_attempt(on(state=ReplicaState.FAILED, exit_code=143, termination=end))
    status = flown(seen, a_status(a_record(formed_time=NOW)), 5000, limits)
    ended = status.attempts[0]
    assert (ended.verdict, ended.reason) == (Verdict.STOPPED, reason)
    assert (status.failures, status.infrastructure_failures, status.preemptions) == (0, 0, 0)


def test_the_pods_of_a_command_have_a_deadline_as_the_last_resort() -> None:
    """Ten minutes after the budget is spent: a program that does not use the library keeps no limit by itself."""
    for trainer, expected in (({"command": ["python", "train.py"]}, 5600), ({"recipe": "charlm"}, None)):
        spec = a_budget("50", trainer={"image": "trainer:1", **trainer})
        (effect,) = decide(an_observed(spec=spec), now=later(9), timing=TIMING).effects
        assert isinstance(effect, StartAttempt)
        assert effect.active_deadline_seconds == expected
        job = pytorchjob(meta(), spec, 1, active_deadline_seconds=effect.active_deadline_seconds)
        pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        assert pod.get("activeDeadlineSeconds") == expected


@pytest.mark.parametrize(("after", "reason"), [(100, Reason.STOPPED_EARLY), (5000, Reason.BUDGET_EXCEEDED)])
def test_what_the_kubelet_ended_at_that_deadline_is_stopped_by_the_limit(after: float, reason: Reason) -> None:
    running = flown(an_attempt(on()), a_status(a_record(formed_time=NOW)), 0, a_budget())
    over = a_failed_attempt(failed(143, over_time=True, placed_at=NOW, node="n1"))
    ended = flown(over, running, after, a_budget()).attempts[0]
    assert ended.reason is reason


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.EVALUATE])
@pytest.mark.parametrize("price", [Fraction(36), None])
def test_a_stage_that_is_not_wanted_any_more_is_left_under_a_budget(stage: Stage, price: Fraction | None) -> None:
    """Its attempt may be on a machine already, or wait for one; a sweep asks for the same price."""
    seen = an_attempt(on(price=price, state=ReplicaState.WAITING))
    status = a_status(a_record(state=AttemptState.STARTING, stage=stage), phase=Phase.STARTING)
    decision = decide(an_observed(seen, status=status, spec=a_budget()), now=NOW, timing=TIMING)

    assert decision.status.current is not None
    assert (decision.rule, decision.status.current.reason) == ("stop_requested", Reason.NOT_WANTED)
    assert budget.reserve_of(a_budget(), status, timing=TIMING) == 0


def test_a_number_whose_job_was_made_for_a_stage_that_is_not_wanted_any_more_is_told_to_stop() -> None:
    """The status with the job was never written: the operator was killed, and came back after the edit."""
    waiting = an_attempt(a_replica(ReplicaState.WAITING))
    status = a_status(a_record(state=AttemptState.PENDING, stage=Stage.PREPARE), phase=Phase.PENDING)
    for spec in (a_budget(), a_spec()):
        decision = decide(an_observed(waiting, status=status, spec=spec), now=NOW, timing=TIMING)
        assert (decision.rule, decision.effects) == ("stop_requested", ())
