"""Tiny runs of `charlm` with everything that makes resuming hard: dropout, an average, a warm-down, two optimizers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm
from support.attempts import attempt_at

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


class Dicey(Charlm):
    """Draws random numbers when it evaluates."""

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        torch.rand(3)
        return super().evaluate(model)


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
    return attempt_at(directory, assignment, partial(Dicey, config), **drill)


def changed(**changes: Any) -> CharlmConfig:
    return TINY.model_copy(update=changes)
