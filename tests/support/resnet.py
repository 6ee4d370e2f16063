"""Tiny runs of `resnet50` on a task that takes seconds: which quarter of an image is the brightest?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.data import Data
from piton_trainer.recipes.resnet50.prepare import files
from piton_trainer.recipes.resnet50.recipe import Resnet
from support.attempts import attempt_at

TINY: Mapping[str, Any] = {
    "layers": [1, 1],
    "width": 4,
    "smallImages": True,
    "sizes": [[0, 8], [0.5, 12]],
    "evalSize": 12,
    "evalCrop": 1.0,
    "minCrop": 0.7,
    "flip": False,
    "evalFlip": False,
    "cutmix": 0.3,
    "mixup": 0.3,
    "batchSize": 24,
    "deviceBatchSize": 6,
    "learningRate": 0.2,
    "referenceBatch": None,
    "warmupEpochs": 0.5,
    "epochs": 4.0,
    "evalEpochs": 1.0,
    "ema": 0.9,
    "decodeThreads": 1,
}


def a_config(data: Path, **changes: Any) -> ResnetConfig:
    return ResnetConfig.model_validate({"data": str(data), **TINY, **changes})


def attempt(directory: Path, config: ResnetConfig, *, target: float | None = None, **drill: Any) -> Mapping[str, float]:
    """One attempt; what it measured at its end."""
    assignment = Assignment(
        recipe="resnet50",
        config=config.model_dump(by_alias=True, exclude_unset=True),
        save=SavePolicy(every_steps=5),
        objective=Objective(metric="val_top1", goal="Maximize", target=target),
    )

    def build(session: piton_trainer.Session) -> Resnet:
        paths = files(config, session.directory)
        return Resnet(config, session, Data(paths, config.validation_fraction, config.max_skipped))

    return attempt_at(directory, assignment, build, **drill)
