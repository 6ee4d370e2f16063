"""The manifests of `resnet50` are what they say: complete, and with the numbers of those whose recipe they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from piton.api import validation
from piton.api.spec import Spec
from piton_trainer.recipes import catalog
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.schedule import rate_at, size_at

FOLDER = Path(__file__).parents[2] / "manifests" / "seeds"
IMAGENET = 1_281_167


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return document


def config_of(name: str) -> ResnetConfig:
    trainer = read(name)["spec"]["trainer"]
    config = catalog.check(trainer["recipe"], trainer["config"])
    assert isinstance(config, ResnetConfig)
    return config


@pytest.mark.parametrize("name", ["resnet50", "resnet50-ffcv", "resnet50-small"])
def test_it_says_what_piton_understands_and_its_ranks_can_share_its_batch(name: str) -> None:
    spec = Spec.model_validate_json(json.dumps(read(name)["spec"]), strict=True)
    assert set(validation.check(spec)) <= set(validation.not_yet(spec))
    config = config_of(name)
    config.check_world(spec.workers.nodes * max(1, spec.workers.gpus_per_node))
    config.check_length(None)


def test_the_seeds_rates_and_sizes_are_those_of_its_table() -> None:
    config = config_of("resnet50")
    rates = [rate_at(config, epoch / 60, warmup=8 / 60) for epoch in (0, 8, 60)]
    assert rates == pytest.approx([0.8 / 25, 0.8, 0.8 / 25 / 1e4])
    assert [size_at(config.sizes, epoch / 60) for epoch in (5, 19, 20, 39, 41, 59)] == [160, 160, 192, 192, 224, 224]
    assert config.ema is not None
    assert config.ema ** (60 * IMAGENET / config.batch_size) < 1e-9  # nothing of the first weights is left


def test_ffcvs_rates_and_sizes_are_those_of_its_16_epochs() -> None:
    config = config_of("resnet50-ffcv")
    rates = [rate_at(config, epoch / 16, warmup=2 / 16) for epoch in (0, 2, 9, 16)]
    assert rates == pytest.approx([1.7e-4, 1.7, 0.85, 0.0])
    assert [size_at(config.sizes, epoch / 16) for epoch in range(16)] == [160] * 12 + [192] * 4
