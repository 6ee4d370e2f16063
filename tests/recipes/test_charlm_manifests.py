"""The manifests of `charlm` are what they say: complete, with the seed's numbers, and with room for what they keep."""

import json
from pathlib import Path

import pytest
import yaml

from piton.api import validation
from piton.api.spec import Spec
from piton_trainer.recipes import catalog
from piton_trainer.recipes.charlm import size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import rates_at

FOLDER = Path(__file__).parents[2] / "manifests"
SYMBOLS = 19
GIB = 2**30


def read(name: str) -> tuple[Spec, CharlmConfig]:
    document = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    spec = Spec.model_validate_json(json.dumps(document["spec"]), strict=True)
    config = catalog.check("charlm", spec.trainer.config)
    assert isinstance(config, CharlmConfig)
    return spec, config


@pytest.mark.parametrize("name", ["quickstart", "seeds/nanochat-d64", "seeds/nanochat-d64-small"])
def test_nothing_in_it_is_refused_and_its_ranks_can_share_its_batch(name: str) -> None:
    spec, config = read(name)
    assert list(validation.check(spec)) == []
    config.check_world(spec.workers.nodes * max(1, spec.workers.gpus_per_node))
    config.check_length(None if spec.limits.training_time is None else 1.0)


def test_d64_is_the_seeds() -> None:
    spec, config = read("seeds/nanochat-d64")
    assert (config.width, config.heads, config.head_dim, config.sequence_length) == (4096, 32, 128, 2048)
    assert size.vocabulary_rows(config, SYMBOLS) == 32
    ranks = spec.workers.nodes * spec.workers.gpus_per_node
    assert config.total_batch_tokens // (ranks * config.device_batch_size * config.sequence_length) == 8
    rates = rates_at(config, 0.0)
    width = (4096 / 768) ** -0.5
    assert (rates.matrix, rates.embedding, rates.head) == pytest.approx((0.02, 0.3 * width, 0.004 * width))


def test_the_volume_of_d64_has_room_for_all_that_is_kept_and_one_more_on_its_way() -> None:
    spec, config = read("seeds/nanochat-d64")
    keep, volume = spec.checkpoint.keep, spec.checkpoint.volume.size
    assert volume is not None
    whole, thin = size.checkpoint_bytes(config, SYMBOLS), size.weights_bytes(config, SYMBOLS)
    needed = (keep.last + keep.best + 1) * whole + keep.weights_only * thin
    assert 1.2 * needed < int(volume.removesuffix("Gi")) * GIB < 2 * needed


def test_what_stays_in_the_memory_of_one_of_its_gpus_leaves_most_of_80_gb_to_activations() -> None:
    spec, config = read("seeds/nanochat-d64")
    assert size.resident_bytes(config, SYMBOLS, ranks=spec.workers.gpus_per_node) < 20e9
