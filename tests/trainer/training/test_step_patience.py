"""How long saves and stops wait for the step of an optimizer."""

from piton_trainer.training.step_patience import FEW, FIRST, STOP_SECONDS, StepPatience
from support.clocks import FakeClock


def make(*, accumulates: int = 0) -> StepPatience:
    """Optimizer 0 has stepped, once, with the gradients of so many batches."""
    patience = StepPatience(FakeClock())
    for _ in range(accumulates - 1):
        patience.count(waiting=[0], stepped=[])
    if accumulates:
        patience.count(waiting=[], stepped=[0])
    return patience


def holds_for(patience: StepPatience, number: int, *, stepping: tuple[int, ...] = ()) -> int:
    """Return the batches after which the gradients of an optimizer are waited for no more."""
    batches = 0
    while batches == 0 or patience.holds_save:
        patience.count(waiting=[number], stepped=stepping)
        batches += 1
    return batches


def test_the_first_step_of_a_run_is_waited_for_longest() -> None:
    assert holds_for(make(), 0) == FIRST


def test_an_optimizer_beside_one_that_steps_is_waited_for_shortly() -> None:
    assert holds_for(make(), 1, stepping=(0,)) == FEW


def test_one_that_has_stepped_is_waited_for_as_long_as_its_accumulations_make_likely() -> None:
    assert holds_for(make(accumulates=1), 0) == FEW
    assert holds_for(make(accumulates=50), 0) == 100


def test_the_next_attempt_knows_who_was_given_up_and_how_long_accumulations_are() -> None:
    before, after = make(accumulates=50), StepPatience(FakeClock())
    holds_for(before, 1)
    after.load_state_dict(before.state_dict())
    after.count(waiting=[1], stepped=[])
    assert not after.holds_save
    assert holds_for(after, 0) == 100
    after.count(waiting=[], stepped=[0, 1])
    after.count(waiting=[1], stepped=[])
    assert after.holds_save


def test_a_step_after_it_was_given_up_is_no_accumulation_of_that_length() -> None:
    patience = make(accumulates=1)
    holds_for(patience, 1)
    for _ in range(100):
        patience.count(waiting=[1], stepped=[0])
    patience.count(waiting=[], stepped=[0, 1])
    assert holds_for(patience, 1, stepping=(0,)) == FEW


def test_a_stop_waits_for_the_longest_accumulation_and_for_seconds_at_most() -> None:
    clock = FakeClock()
    patience = StepPatience(clock)
    patience.load_state_dict({"longest": [[0, 40]]})
    patience.count(waiting=[0], stepped=[])
    assert patience.holds_stop()
    for _ in range(38):
        patience.count(waiting=[0], stepped=[])
    assert patience.holds_stop()
    clock.pass_seconds(STOP_SECONDS)
    assert not patience.holds_stop()
