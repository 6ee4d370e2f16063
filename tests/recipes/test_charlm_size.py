"""What `charlm` says of its own size is what the model and its optimizers have."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from piton_trainer.recipes.charlm import size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.model import CharGPT
from piton_trainer.recipes.charlm.recipe import build
from support.charlm import changed
from support.seats import FakeRankContext

D64 = CharlmConfig(depth=64, vocabulary_multiple=32)
SYMBOLS = 19
"""The seed's 17, what begins a document, and what stands for all others."""
GB = 10**9


def test_arithmetic_needs_no_torch() -> None:
    code = "import sys, piton_trainer.recipes.charlm.size; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("symbols", "multiple", "rows"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (19, 32, 32), (33, 32, 64)]
)
def test_the_vocabulary_is_padded(symbols: int, multiple: int, rows: int) -> None:
    assert size.vocabulary_rows(CharlmConfig(vocabulary_multiple=multiple), symbols) == rows


@pytest.mark.parametrize("changes", [{}, {"depth": 24}, {"depth": 64, "vocabulary_multiple": 32}, {"aspect_ratio": 7}])
def test_a_model_has_the_weights_that_were_counted(changes: dict[str, Any]) -> None:
    config = CharlmConfig(**changes)
    with torch.device("meta"):
        model = CharGPT(config, symbols=SYMBOLS)
    assert sum(weight.numel() for weight in model.parameters()) == size.parameters(config, SYMBOLS)
    assert sum(weight.numel() for weight in model.matrices()) == size.matrix_parameters(config)
    assert model.wte.weight.numel() == model.lm_head.weight.numel() == size.end_parameters(config, SYMBOLS)


@pytest.mark.parametrize(("depth", "billions"), [(24, 0.680), (48, 5.436), (64, 12.885), (80, 25.166)])
def test_the_blocks_have_12_weights_per_layer_and_square_of_the_width(depth: int, billions: float) -> None:
    assert size.matrix_parameters(CharlmConfig(depth=depth)) / 1e9 == pytest.approx(billions, abs=1e-3)


def test_what_a_checkpoint_holds_are_weights_momenta_and_their_average() -> None:
    config = changed(ema=None)
    recipe = build(config, FakeRankContext())
    model = recipe.build()
    optimizers = recipe.optimizers(model)
    recipe.draw_weights(model)
    recipe.loss(model, next(iter(recipe.loader))[0]).backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()

    weights = sum(value.nbytes for value in model.state_dict().values())
    states = [value for one in optimizers for state in one.state.values() for value in state.values()]
    momenta = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.ndim)
    symbols = len(recipe.vocabulary)
    assert size.weights_bytes(config, symbols) == weights
    assert size.checkpoint_bytes(config, symbols) == weights + momenta
    assert size.checkpoint_bytes(changed(ema=0.9), symbols) == 2 * weights + momenta


def test_d64_fits_on_eight_gpus_of_80_gb_only_when_it_is_sharded() -> None:
    assert size.weights_bytes(D64, SYMBOLS) / GB == pytest.approx(51.5, abs=0.1)
    assert size.checkpoint_bytes(D64, SYMBOLS) / GB == pytest.approx(103.1, abs=0.1)
    assert size.resident_bytes(D64, SYMBOLS, ranks=8) / GB == pytest.approx(154.6, abs=0.1)
    sharded = D64.model_copy(update={"parallelism": "fsdp"})
    assert size.resident_bytes(sharded, SYMBOLS, ranks=8) / GB == pytest.approx(19.3, abs=0.1)


def test_flops_per_token_leave_out_the_embedding_and_count_attention() -> None:
    config = changed(depth=2, aspect_ratio=16, head_dim=8, sequence_length=16)
    blocks, head = 12 * 2 * 32**2, 32 * 32
    assert size.flops_per_token(config, 30) == 6 * (blocks + head) + 12 * 2 * 32 * 16
