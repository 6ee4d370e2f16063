"""The pure rules of a step boundary: one exchange for all ranks, and the reasons for which a training ends."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piton.contract.assignment import Assignment, Objective
from piton_trainer.state.train_state import TrainState
from piton_trainer.training.boundary import BoundaryVote, StopRehearsal, reason_to_end

votes = st.builds(
    BoundaryVote,
    stop=st.booleans(),
    save=st.booleans(),
    diverged=st.booleans(),
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    training_seconds=st.floats(0, 1e9),
    accumulating=st.booleans(),
)


def agreed(*ranks: BoundaryVote) -> BoundaryVote:
    """The result of the collective: the largest of each number."""
    return BoundaryVote.from_vector(
        [max(numbers) for numbers in zip(*(rank.to_vector() for rank in ranks), strict=True)]
    )


@given(votes)
def test_one_rank_agrees_with_itself(vote: BoundaryVote) -> None:
    assert agreed(vote) == vote


@given(st.lists(votes, min_size=1, max_size=4))
def test_one_rank_is_enough_to_stop_to_diverge_and_to_postpone_a_save(ranks: list[BoundaryVote]) -> None:
    found = agreed(*ranks)

    assert found.stop == any(rank.stop for rank in ranks)
    assert found.diverged == any(rank.diverged for rank in ranks)
    assert found.accumulating == any(rank.accumulating for rank in ranks)


def test_the_value_of_rank_0_reaches_ranks_that_have_none() -> None:
    assert agreed(BoundaryVote(value=-3.5), BoundaryVote(), BoundaryVote()).value == -3.5
    assert agreed(BoundaryVote(), BoundaryVote()).value is None


LOWER = Objective(metric="val_loss", target=1.5, patience=3)
HIGHER = Objective(metric="accuracy", goal="Maximize", target=0.9)
REASONS: list[tuple[dict[str, Any], Assignment, int | None, str | None]] = [
    ({"step": 9}, Assignment(), 10, None),
    ({"step": 10}, Assignment(), 10, "all steps are done"),
    ({"step": 10_000}, Assignment(), None, None),
    ({"ended": "the script ended its loop"}, Assignment(), 10, "the script ended its loop"),
    ({"best_metric": 1.6}, Assignment(objective=LOWER), 10, None),
    ({"best_metric": 1.5}, Assignment(objective=LOWER), 10, "val_loss reached its target of 1.5"),
    ({"best_metric": 0.91}, Assignment(objective=HIGHER), 10, "accuracy reached its target of 0.9"),
    ({"best_metric": math.nan}, Assignment(objective=HIGHER), 10, None),
    ({"evaluations_since_best": 2}, Assignment(objective=LOWER), 10, None),
    ({"evaluations_since_best": 3}, Assignment(objective=LOWER), 10, "val_loss did not improve in 3 evaluations"),
    ({"training_seconds": 3599.0}, Assignment(training_seconds=3600), 10, None),
    ({"training_seconds": 3600.0}, Assignment(training_seconds=3600), 10, "the training time of 1h is spent"),
]


@pytest.mark.parametrize(("state", "assignment", "total", "reason"), REASONS)
def test_a_training_ends_for_these_reasons(
    state: dict[str, Any], assignment: Assignment, total: int | None, reason: str | None
) -> None:
    assert reason_to_end(TrainState(**state), assignment, total) == reason


def test_an_attempt_after_the_end_finds_the_same_end_and_a_longer_assignment_goes_on() -> None:
    state = TrainState.from_document(TrainState(step=10).to_document())

    assert reason_to_end(state, Assignment(), 10) == "all steps are done"
    assert reason_to_end(state, Assignment(), 20) is None


def test_a_rehearsal_stops_once_and_ends_with_twice_its_steps() -> None:
    rehearsal = StopRehearsal(steps=3)

    assert [rehearsal.stops(step, is_resumed=False) for step in (2, 3)] == [False, True]
    assert not rehearsal.stops(3, is_resumed=True)
    assert rehearsal.last == 6
