"""A GPT-2 that trains in tenths of a second, in a real transformers.Trainer, with all that makes resuming hard.

Dropout, a shuffled loader, a schedule, accumulated gradients that do not divide the epoch, and tied weights.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from piton.contract.manifest import Complete
from piton_trainer.checkpoint import inspect
from piton_trainer.integrations.transformers import PitonCallback
from support import tiny
from support.accelerators import forget_accelerators
from support.ends import Event

STEPS_PER_EPOCH, EPOCHS = 4, 2
STEPS = STEPS_PER_EPOCH * EPOCHS


@dataclass
class Ran:
    """What an attempt did."""

    code: int = 0
    error: str = ""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    state: Any = None
    trainer: Any = None
    output: Any = None
    complete: Complete | None = None

    @property
    def losses(self) -> dict[int, float]:
        """The losses in the log, by step."""
        return {entry["step"]: entry["loss"] for entry in self.state.log_history if "loss" in entry}


class At(TrainerCallback):  # type: ignore[misc]
    """Lets things happen in the middle of steps."""

    def __init__(self, events: Mapping[int, Event]) -> None:
        self.events = events

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if event := self.events.get(state.global_step + 1):
            event()


def train(
    directory: Path,
    *,
    at: Mapping[int, Event] | None = None,
    config: Any = None,
    callbacks: Any = (),
    later: Any = (),
    **arguments: Any,
) -> Ran:
    """One attempt: a new model, a new Trainer, and random numbers that only the first attempt begins with.

    `later` are callbacks that are named after ours.
    """
    is_first = not (directory / "checkpoints").exists()
    torch.manual_seed(0 if is_first else 5)
    forget_accelerators()
    ours = PitonCallback(config or tiny.config(directory / "checkpoints", tiny.every(3)))
    trainer = make_trainer(directory, [*callbacks, At(at or {}), ours, *later], **arguments)
    if not is_first:
        torch.rand(5)
    ran = Ran(trainer=trainer)
    try:
        ran.output = trainer.train()
    except SystemExit as end:
        ran.code, ran.error = int(end.code or 0), str(end)
    ran.state = trainer.state
    ran.weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    ran.complete = inspect.complete(directory / "checkpoints")
    return ran


def make_trainer(directory: Path, callbacks: list[Any], *, kind: type[Trainer] = Trainer, **arguments: Any) -> Trainer:
    """A Trainer over random tokens."""
    given = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return kind(
        model=build(),
        args=TrainingArguments(output_dir=str(directory / "out"), **given),
        train_dataset=tokens(26 * int(os.environ.get("WORLD_SIZE", "1"))),
        eval_dataset=tokens(6),
        callbacks=callbacks,
    )


def build() -> GPT2LMHeadModel:
    """The model."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def tokens(rows: int) -> list[dict[str, Tensor]]:
    """Random ones, the same each time."""
    numbers = torch.randint(0, 32, (rows, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in numbers]
