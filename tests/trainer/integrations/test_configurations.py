"""Thirty ways to configure transformers' and Lightning's Trainer: preempted in the middle, each ends as undisturbed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    Timer,
)
from torch.utils.data import DataLoader

from support import ends, resume
from support import tiny_lightning as pl
from support import tiny_transformers as hf

pytestmark = [
    pytest.mark.crash,  # three trainings each
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformers: AdamW, linear schedule, accumulation over 2": {},
    "transformers: no accumulation": {"gradient_accumulation_steps": 1},
    "transformers: accumulation over 3": {"gradient_accumulation_steps": 3},
    "transformers: SGD": {"optim": "sgd"},
    "transformers: Adafactor": {"optim": "adafactor"},
    "transformers: RMSprop": {"optim": "rmsprop"},
    "transformers: cosine schedule with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "transformers: constant schedule with warm-up": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
    "transformers: polynomial schedule": {"lr_scheduler_type": "polynomial"},
    "transformers: reduce on plateau, evaluated each epoch": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "epoch",
    },
    "transformers: max_steps": {"max_steps": 7},
    "transformers: drop_last": {"dataloader_drop_last": True},
    "transformers: two loader workers": {"dataloader_num_workers": 2},
    "transformers: label smoothing and weight decay": {"label_smoothing_factor": 0.1, "weight_decay": 0.1},
    "transformers: noise in the embeddings": {"neftune_noise_alpha": 5.0},
    "transformers: bf16": {"bf16": True},
    "transformers: gradient checkpointing": {"activation_checkpointing": True},
}
LIGHTNING: dict[str, Callable[[], dict[str, Any]]] = {
    "Lightning: AdamW, schedule by step, validation each epoch": dict,
    "Lightning: no validation": lambda: {"validate": False},
    "Lightning: validation every 2 batches": lambda: {"val_check_interval": 2},
    "Lightning: validation every 2 epochs": lambda: {"check_val_every_n_epoch": 2},
    "Lightning: accumulation over 2": lambda: {"accumulate_grad_batches": 2},
    "Lightning: accumulation over 3, validation every 2 batches": lambda: {
        "accumulate_grad_batches": 3,
        "val_check_interval": 2,
    },
    "Lightning: clipped gradients": lambda: {"gradient_clip_val": 0.1},
    "Lightning: bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "Lightning: max_steps": lambda: {"max_steps": 13, "max_epochs": -1},
    "Lightning: limit_train_batches": lambda: {"limit_train_batches": 4},
    "Lightning: two loader workers": lambda: {"workers": 2},
    "Lightning: EarlyStopping": lambda: {"callbacks": [EarlyStopping("val_loss", patience=9)]},
    "Lightning: ModelCheckpoint beside it": lambda: {"callbacks": [ModelCheckpoint(save_last=True)]},
    "Lightning: Timer": lambda: {"callbacks": [Timer(duration="00:01:00:00")]},
    "Lightning: EMAWeightAveraging": lambda: {"callbacks": [EMAWeightAveraging(decay=0.9)]},
    "Lightning: ReduceLROnPlateau by epoch": lambda: {"kind": pl.Plateau},
    "Lightning: ReduceLROnPlateau by step, validation every 2 batches": lambda: {
        "kind": pl.PlateauOfSteps,
        "val_check_interval": 2,
    },
    "Lightning: manual optimization of two networks": lambda: {"kind": pl.Adversaries},
    "Lightning: data without a length": lambda: {"data": DataLoader(pl.Stream(), batch_size=6)},
    "Lightning: data with a length that is too large": lambda: {"data": DataLoader(pl.Boastful(), batch_size=6)},
    "Lightning: GradientAccumulationScheduler": lambda: {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
}


def same(one: Any, other: Any) -> bool:
    assert one.weights.keys() == other.weights.keys()
    return all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)


@resume.exact_each("TRANSFORMERS")
@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize("arguments", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_trainer_of_transformers_ends_as_it_would_have(arguments: dict[str, Any], stop: int, tmp_path: Path) -> None:
    whole = hf.train(tmp_path / "whole", **arguments)
    stopped = hf.train(tmp_path / "parts", at={stop: ends.terminate}, **arguments)
    resumed = hf.train(tmp_path / "parts", **arguments)
    assert (whole.code, stopped.code, resumed.code) == (0, 143, 0), (whole.error, stopped.error, resumed.error)
    assert resumed.losses == whole.losses
    assert same(resumed, whole)


@resume.exact_each("LIGHTNING")
@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("arguments", LIGHTNING.values(), ids=LIGHTNING)
def test_a_trainer_of_lightning_ends_as_it_would_have(
    arguments: Callable[[], dict[str, Any]], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = pl.train(tmp_path / "whole", **arguments())
    stopped = pl.train(tmp_path / "parts", at={stop: ends.terminate}, **arguments())
    resumed = pl.train(tmp_path / "parts", **arguments())
    assert (whole.code, stopped.code, resumed.code) == (0, 143, 0), (whole.error, stopped.error, resumed.error)
    assert stopped.seen + resumed.seen == whole.seen
    assert same(resumed, whole)
