"""Tiny runs of `resnet50` on a task that takes seconds: which quarter of an image is the brightest?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.manifest import Manifest
from piton.contract.names import MANIFEST_FILE, step_folder
from piton_trainer.config import Config
from piton_trainer.loop import train
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.data import Data
from piton_trainer.recipes.resnet50.prepare import files
from piton_trainer.recipes.resnet50.recipe import Resnet

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


class Drilled(Resnet):
    """Does something in the middle of one step."""

    def __init__(self, *args: Any, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        super().__init__(*args)
        self.at = at
        self.action = action

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        if step == self.at:
            self.action()
        super().tune(optimizers, fraction=fraction, step=step)


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
    with piton_trainer.session(Config(checkpoint_dir=directory, assignment=assignment)) as session:
        data = Data(files(config, session.directory), config.validation_fraction)
        train(session, Drilled(config, session, data, **drill))
    return Manifest.from_json((directory / step_folder(session.step) / MANIFEST_FILE).read_text()).metrics
