"""How far `charlm` is by the clock, over attempts and on all ranks; and what ends it early."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Config
from piton_trainer.errors import Stopped
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import train
from support import ranks
from support.attempts import completion, terminate
from support.charlm import changed
from support.clocks import FakeClock

BY_TIME = changed(steps=None, eval_every=1000, warmdown_fraction=0.4, ema=None)
BY_STEPS = changed(steps=20, eval_every=2, ema=None)


class Timed(Charlm):
    """Its steps take as long as they are told, on a clock that nothing else moves."""

    def __init__(self, *args: Any, clock: FakeClock, seconds: float, stop_at: int | None) -> None:
        super().__init__(*args)
        self.clock, self.seconds, self.stop_at = clock, seconds, stop_at
        self.seen: list[tuple[float, float]] = []
        """Fraction and Muon's rate, step by step."""

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        super().tune(optimizers, fraction=fraction, step=step)
        self.seen.append((fraction, optimizers[1].param_groups[0]["lr"]))
        self.clock.pass_seconds(self.seconds)
        if step == self.stop_at:
            terminate()


class Overfitting(Charlm):
    """Its second evaluation is the best one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.evaluations = 0

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        self.evaluations += 1
        return {"val_loss": torch.tensor(1.0 + abs(self.evaluations - 2))}, 1


def timed(directory: Path, *, stop_at: int | None = None, others_seconds: float = 10.0) -> list[tuple[float, float]]:
    """100 s of training in steps of 10 s by rank 0's clock; what was seen."""
    clock = FakeClock()
    orders = Assignment(
        recipe="charlm",
        save=SavePolicy(every_steps=100),
        objective=Objective(metric="val_loss"),
        training_seconds=100.0,
    )
    opened = piton_trainer.session(Config(checkpoint_dir=directory, assignment=orders), clock=clock)
    with suppress(Stopped), opened as session:
        seconds = 10.0 if session.is_main else others_seconds
        recipe = Timed(BY_TIME, session, clock=clock, seconds=seconds, stop_at=stop_at)
        train(session, recipe)
    return recipe.seen


def test_rates_fall_with_the_training_time_over_a_preemption_and_its_last_step_is_evaluated(tmp_path: Path) -> None:
    first, second = timed(tmp_path, stop_at=6), timed(tmp_path)

    assert (len(first), len(second)) == (7, 3)
    fractions, rates = zip(*first, *second, strict=True)
    assert fractions == pytest.approx([step / 10 for step in range(10)])
    assert rates == pytest.approx([0.02] * 7 + [0.015, 0.01, 0.005])
    done = completion(tmp_path)
    assert done.reason == "the training time of 1m40s is spent"
    assert done.best_step == 10  # the last one was evaluated, and no other


def test_all_ranks_go_by_the_clock_of_the_first(tmp_path: Path) -> None:
    first, second = (end.result for end in ranks.run(2, partial(timed, tmp_path, others_seconds=1.0)))

    assert first == second
    assert len(first) == 10


def test_it_ends_when_validation_gets_worse_and_keeps_its_best(tmp_path: Path) -> None:
    orders = Assignment(
        recipe="charlm", save=SavePolicy(every_steps=2), objective=Objective(metric="val_loss", patience=2)
    )
    with piton_trainer.session(Config(checkpoint_dir=tmp_path, assignment=orders)) as session:
        train(session, Overfitting(BY_STEPS, session))

    done = completion(tmp_path)
    assert (done.step, done.reason) == (8, "val_loss did not improve in 2 evaluations")
    assert (done.best_step, done.best_metric) == (4, 1.0)
    steps = [step for step, _ in sorted(layout.step_folders(tmp_path))]
    # One more stays where no save has been read back yet, and a save waits a step where the one before is slow.
    assert {4, 8}.issubset(steps)
    assert len(steps) in (3, 4)
