"""How often saves are made where nobody has said it: what follows from what, on paper and in a simulated run."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.interval import Case, best_fixed, chosen_by_itself
from piton.api.spec import Checkpoint
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import save_interval
from piton_trainer.checkpoint.save_interval import Interval, IntervalEvidence, choose
from piton_trainer.state.train_state import TrainState

HOUR = 3600.0
AUTO = SavePolicy(auto=True)

seconds = st.floats(0.0, 1e6)
counts = st.floats(0.0, 1e4)
evidence = st.builds(
    IntervalEvidence, interruptions=counts, exposed_seconds=seconds, cost_seconds=seconds, durable_seconds=seconds
)


def an_interval(seen: IntervalEvidence | None = None) -> Interval:
    made = Interval(AUTO)
    made.begin(seen or IntervalEvidence(), now=0.0)
    return made


def length(made: Interval) -> float:
    assert made.choice is not None
    return made.choice.seconds


def save(made: Interval, step: int, *, at: float, stall: float, written: float = 0.0, waited: bool = False) -> None:
    """One save, from its beginning to where it counts."""
    made.saved(step, began=at, ended=at + stall, waited=waited)
    made.durable(step, now=at + stall + written)


def steps(made: Interval, *laps: float) -> None:
    for lap in laps:
        made.stepped(lap)


@pytest.mark.parametrize(
    ("cost", "seen", "expected"),
    [
        (1.5, IntervalEvidence(), math.sqrt(2 * 1.5 * HOUR)),
        (0.064, IntervalEvidence(), math.sqrt(2 * 0.064 * HOUR)),
        (60, IntervalEvidence(interruptions=5), math.sqrt(2 * 60 * HOUR / 6)),
        (30, IntervalEvidence(exposed_seconds=8 * HOUR), math.sqrt(2 * 30 * 9 * HOUR)),
        (0, IntervalEvidence(), save_interval.SHORTEST_SECONDS),
        (2000, IntervalEvidence(), save_interval.LONGEST_SECONDS),
    ],
)
def test_the_interval_is_that_of_young_and_daly(cost: float, seen: IntervalEvidence, expected: float) -> None:
    seen = replace(seen, cost_seconds=cost, durable_seconds=0.0)

    assert choose(seen).seconds == pytest.approx(expected)


def test_the_bounds_are_those_that_the_field_is_explained_with() -> None:
    words = f"from {save_interval.SHORTEST_SECONDS:g} seconds to {save_interval.LONGEST_SECONDS / 60:g} minutes"

    assert words in (Checkpoint.model_fields["every"].description or "")


@given(evidence)
def test_an_interval_is_never_outside_its_bounds(seen: IntervalEvidence) -> None:
    chosen, durable = choose(seen).seconds, seen.durable_seconds or 0.0

    assert chosen >= max(save_interval.SHORTEST_SECONDS, durable)
    assert chosen <= max(save_interval.LONGEST_SECONDS, durable)


@given(evidence, seconds)
def test_the_dearer_a_save_the_longer_the_interval(seen: IntervalEvidence, more: float) -> None:
    dearer = replace(seen, cost_seconds=(seen.cost_seconds or 0.0) + more)

    assert choose(dearer).seconds >= choose(seen).seconds


@given(evidence, st.integers(0, 1000))
def test_the_more_interruptions_the_shorter_the_interval(seen: IntervalEvidence, more: int) -> None:
    assert choose(seen.interrupted(more)).seconds <= choose(seen).seconds


@given(evidence, seconds)
def test_the_longer_nothing_happens_the_longer_the_interval(seen: IntervalEvidence, quiet: float) -> None:
    # What is expected beforehand is all that is left in the end, so this holds while less has happened than that.
    seen = replace(seen, interruptions=seen.exposed_seconds / HOUR)

    assert choose(seen.after(quiet)).seconds >= choose(seen).seconds * (1 - 1e-9)


@given(evidence, seconds, seconds)
def test_time_passes_the_same_in_one_go_and_in_two(seen: IntervalEvidence, first: float, second: float) -> None:
    twice, once = seen.after(first).after(second), seen.after(first + second)

    assert twice.interruptions == pytest.approx(once.interruptions)
    assert twice.exposed_seconds == pytest.approx(once.exposed_seconds)


def test_what_was_seen_long_ago_counts_less_and_what_is_expected_stays() -> None:
    storm = IntervalEvidence(interruptions=10, exposed_seconds=HOUR)

    assert storm.between_seconds == pytest.approx(2 * HOUR / 11)
    assert storm.after(save_interval.HALF_LIFE_SECONDS).interruptions == pytest.approx(5)
    assert storm.after(30 * save_interval.HALF_LIFE_SECONDS).between_seconds < 11 * HOUR


@given(evidence)
def test_what_was_seen_survives_a_checkpoint(seen: IntervalEvidence) -> None:
    document = TrainState(evidence=seen).to_document()
    document["evidence"]["of_another_version"] = 1

    assert TrainState.from_document(document).evidence == seen


def test_a_checkpoint_of_an_older_version_has_seen_nothing() -> None:
    document = TrainState().to_document()
    del document["evidence"]

    assert TrainState.from_document(document).evidence == IntervalEvidence()


def test_the_first_save_comes_early_because_it_is_the_one_that_is_measured() -> None:
    made = an_interval()

    assert not made.is_due(1, now=save_interval.FIRST_SECONDS - 1)
    assert made.is_due(1, now=save_interval.FIRST_SECONDS)


def test_the_first_save_counts_only_until_there_is_a_better_one() -> None:
    made = an_interval()
    save(made, 1, at=60, stall=9)
    after_the_first = length(made)
    save(made, 2, at=400, stall=1)

    assert after_the_first == pytest.approx(math.sqrt(2 * 9 * HOUR), rel=0.05)
    assert length(made) == pytest.approx(math.sqrt(2 * 1 * HOUR), rel=0.1)


def test_one_slow_save_changes_little() -> None:
    made = an_interval()
    for step in range(1, 7):
        save(made, step, at=100 * step, stall=1)
    before = length(made)
    save(made, 7, at=700, stall=50)

    assert length(made) == pytest.approx(before, rel=0.05)


def test_a_save_that_waited_for_another_says_nothing_of_its_cost() -> None:
    made = an_interval(IntervalEvidence(cost_seconds=1, durable_seconds=2))
    before = made.choice
    save(made, 1, at=60, stall=30, waited=True)

    assert made.choice is before
    assert not made.is_due(2, now=91), "but it is a save"


def test_steps_that_are_slower_while_a_save_is_written_are_part_of_its_cost() -> None:
    made = an_interval()
    for step, at in ((1, 60), (2, 160)):
        steps(made, *[1.0] * 9)
        made.saved(step, began=at, ended=at + 1, waited=False)
        steps(made, *[1.25] * 8)
        made.durable(step, now=at + 11)

    assert made.choice is not None
    assert made.choice.cost_seconds == pytest.approx(1 + 2), "ten seconds, in which training did the work of eight"
    assert made.choice.durable_seconds == 11


def test_a_copy_beside_the_first_step_is_part_of_the_cost() -> None:
    made = an_interval()
    steps(made, *[1.0] * 9)
    made.saved(1, began=60, ended=60.5, waited=False)
    steps(made, 1.75, *[1.0] * 60)
    made.durable(1, now=120)

    assert made.choice is not None
    assert made.choice.cost_seconds == 0.5 + 0.75


def test_steps_that_are_not_slower_while_a_save_is_written_cost_nothing() -> None:
    made = an_interval()
    steps(made, 1.0, 1.0, 30.0)
    made.saved(1, began=60, ended=61, waited=False)
    steps(made, 0.9, 1.0, 45.0, 1.0)
    made.durable(1, now=71)

    assert made.choice is not None
    assert made.choice.cost_seconds == 1, "an evaluation now and then is no slowdown"


def test_an_attempt_begins_with_what_the_one_before_has_measured() -> None:
    first = an_interval()
    for step in (1, 2, 3):
        save(first, step, at=100 * step, stall=2, written=5)
    second = Interval(AUTO)
    second.begin(first.evidence(now=400), now=9000.0)

    assert second.choice is not None
    assert (second.choice.cost_seconds, second.choice.durable_seconds) == (2, 7)
    assert length(second) == pytest.approx(length(first), rel=0.02)
    assert not second.is_due(4, now=9000 + length(second) - 1)
    assert second.is_due(4, now=9000 + length(second) + 1)


def test_steps_or_minutes_that_somebody_chose_are_what_holds() -> None:
    made = Interval(SavePolicy(every_seconds=900, every_steps=50))
    made.begin(IntervalEvidence(), now=0.0)
    save(made, 1, at=60, stall=1)

    assert made.choice is None
    assert [step for step in range(1, 200) if made.is_due(step, now=100.0)] == [50, 100, 150]
    assert made.is_due(7, now=961)


@pytest.mark.parametrize("cost", [0.1, 1.0, 10.0, 60.0])
def test_a_formula_of_higher_order_would_gain_next_to_nothing(cost: float) -> None:
    """Daly's exact cost of an interval, at Young's choice and at its least."""

    def time_per_work(chosen: float) -> float:
        return HOUR * math.expm1((chosen + cost) / HOUR) / chosen

    best = min(time_per_work(step / 10) for step in range(10, 20_000))
    assert time_per_work(math.sqrt(2 * cost * HOUR)) < 1.001 * best


CASES = [
    Case(stall=0.06, durable=0.4, between=HOUR),
    Case(stall=1.5, durable=60.0, between=HOUR / 4),
    Case(stall=20.0, durable=20.0, between=HOUR),
    Case(stall=20.0, durable=20.0, between=8 * HOUR),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_chosen_is_within_a_few_percent_of_the_best_interval_in_hindsight(case: Case) -> None:
    best = best_fixed(case, hours=12, seeds=range(4))
    auto = chosen_by_itself(case, hours=12, seeds=range(4))

    assert auto < 1.03 * best.hours


def test_in_changing_weather_it_is_better_than_any_interval_that_stays() -> None:
    case = Case(stall=10.0, durable=10.0, between=HOUR / 6, calm=24 * HOUR)

    assert chosen_by_itself(case, hours=30, seeds=range(4)) < best_fixed(case, hours=30, seeds=range(4)).hours
