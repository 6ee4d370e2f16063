"""Tiny runs of `charlm` with everything that makes resuming hard: dropout, an average, a warm-down, two optimizers."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.manifest import Complete, Manifest
from piton.contract.names import COMPLETE_FILE, MANIFEST_FILE, step_folder
from piton_trainer.config import Config
from piton_trainer.loop import train
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm

TINY = CharlmConfig(
    depth=2,
    aspect_ratio=32,
    head_dim=16,
    sequence_length=64,
    device_batch_size=4,
    total_batch_tokens=1024,
    reference_batch_tokens=None,
    steps=20,
    eval_every=10,
    eval_tokens=2048,
    dropout=0.2,
    ema=0.9,
)


class Drilled(Charlm):
    """Does something in the middle of one step, and draws random numbers when it evaluates."""

    def __init__(self, *args: Any, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        super().__init__(*args)
        self.at = at
        self.action = action

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        if step == self.at:
            self.action()
        super().tune(optimizers, fraction=fraction, step=step)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        torch.rand(3)
        return super().evaluate(model)


class CrashError(Exception):
    """Somebody pulled the plug."""


def crash() -> None:
    raise CrashError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def attempt(
    directory: Path,
    config: CharlmConfig = TINY,
    *,
    judged: bool = True,
    training_seconds: float | None = None,
    save: SavePolicy | None = None,
    **drill: Any,
) -> Mapping[str, float]:
    """One attempt; what it measured at its end. What is judged is saved whenever it got better."""
    assignment = Assignment(
        recipe="charlm",
        config=config.model_dump(by_alias=True),
        save=save or SavePolicy(every_steps=5),
        objective=Objective(metric="val_loss") if judged else None,
        training_seconds=training_seconds,
    )
    with piton_trainer.session(Config(checkpoint_dir=directory, assignment=assignment)) as session:
        train(session, Drilled(config, session, **drill))
    return Manifest.from_json((directory / step_folder(session.step) / MANIFEST_FILE).read_text()).metrics


def completion(directory: Path) -> Complete:
    return Complete.from_json((directory / COMPLETE_FILE).read_text())


def changed(**changes: Any) -> CharlmConfig:
    return TINY.model_copy(update=changes)
