"""Attempts of a recipe in this process, that something happens to in the middle of a step; and what is left of them."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch.optim import Optimizer

import piton_trainer
from piton.contract.assignment import Assignment
from piton.contract.manifest import Complete, Manifest
from piton.contract.names import COMPLETE_FILE, MANIFEST_FILE, step_folder
from piton_trainer.config import Config
from piton_trainer.recipes.protocol import Recipe
from piton_trainer.training.loop import train

R = TypeVar("R", bound=Recipe)


class CrashError(Exception):
    """Somebody pulled the plug."""


def crash() -> None:
    raise CrashError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def attempt_at(
    directory: Path,
    assignment: Assignment,
    build: Callable[[piton_trainer.Session], Recipe],
    *,
    at: int | None = None,
    action: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Mapping[str, float]:
    """One attempt, with an action before the step `at` (from 0); what it measured at its end."""
    config = Config(checkpoint_dir=directory, assignment=assignment, **settings)
    with piton_trainer.session(config) as session:
        train(session, drilled(build(session), at=at, action=action))
    return Manifest.from_json((directory / step_folder(session.step) / MANIFEST_FILE).read_text()).metrics


def drilled(recipe: R, *, at: int | None, action: Callable[[], None]) -> R:
    """The same recipe, which does something in the middle of one step."""
    tune = recipe.tune

    def act_and_tune(optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        if step == at:
            action()
        tune(optimizers, fraction=fraction, step=step)

    recipe.tune = act_and_tune  # type: ignore[method-assign]
    return recipe


def completion(directory: Path) -> Complete:
    return Complete.from_json((directory / COMPLETE_FILE).read_text())


def assert_same_end(one: Path, other: Path) -> None:
    """The same weights to the bit, and the same best moment."""
    ends = completion(one), completion(other)
    assert ends[0].weights_digest == ends[1].weights_digest, ends
    assert (ends[0].best_step, ends[0].best_metric) == (ends[1].best_step, ends[1].best_metric), ends
