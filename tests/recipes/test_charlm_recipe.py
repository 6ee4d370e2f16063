"""The recipe `charlm` without a loop: its data, its rates, its optimizers, its metric."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Muon

from piton_trainer.data.text.sources import DOCUMENT
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm, build, momentum_at, rates_at, warmdown
from support.seats import FakeRankContext

CPU = torch.device("cpu")


def a_config(**changes: Any) -> CharlmConfig:
    small = {
        "depth": 1,
        "aspect_ratio": 16,
        "head_dim": 8,
        "sequence_length": 16,
        "device_batch_size": 2,
        "total_batch_tokens": 16 * 12,
        "eval_tokens": 16 * 7,
        "steps": 10,
    }
    return CharlmConfig(**{**small, **changes})


@pytest.mark.parametrize(
    ("fraction", "length", "factor"),
    [(0.0, 0.4, 1.0), (0.6, 0.4, 1.0), (0.8, 0.4, 0.5), (0.9, 0.4, 0.25), (1.0, 0.4, 0.0), (1.2, 0.4, 0.0),
     (0.5, 1.0, 0.5), (0.99, 0.0, 1.0)],
)  # fmt: skip
def test_rates_hold_and_then_fall_linearly_to_zero(fraction: float, length: float, factor: float) -> None:
    assert warmdown(fraction, length) == pytest.approx(factor)


def test_rates_follow_the_width_and_the_batch() -> None:
    plain = rates_at(CharlmConfig(depth=12), 0.0)
    assert (plain.matrix, plain.embedding, plain.head) == pytest.approx((0.02, 0.3, 0.004))
    wide = rates_at(CharlmConfig(depth=48), 0.0)
    assert (wide.matrix, wide.embedding, wide.head) == pytest.approx((0.02, 0.15, 0.002))
    quarter = rates_at(CharlmConfig(depth=12, total_batch_tokens=131_072), 0.8)
    assert (quarter.matrix, quarter.embedding, quarter.head) == pytest.approx((0.005, 0.075, 0.001))
    as_written = rates_at(CharlmConfig(depth=12, total_batch_tokens=131_072, reference_batch_tokens=None), 0.0)
    assert as_written.matrix == 0.02


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.85), (150, 0.90), (300, 0.95), (10_000, 0.95)])
def test_momentum_warms_up(step: int, momentum: float) -> None:
    assert momentum_at(step) == pytest.approx(momentum)


def test_muon_trains_the_blocks_and_adamw_the_ends_at_rates_that_depend_on_the_moment_alone() -> None:
    recipe = build(a_config(reference_batch_tokens=None), FakeRankContext())
    model = recipe.build()
    adamw, muon = recipe.optimizers(model)
    assert isinstance(adamw, AdamW)
    assert isinstance(muon, Muon)
    held = [weight for optimizer in (adamw, muon) for group in optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in held} == {id(weight) for weight in model.parameters()}
    assert len(held) == len(list(model.parameters()))

    recipe.tune([adamw, muon], fraction=0.8, step=150)
    wide = (16 / 768) ** -0.5
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([0.15 * wide, 0.002 * wide])
    assert muon.param_groups[0]["lr"] == pytest.approx(0.01)
    assert muon.param_groups[0]["momentum"] == pytest.approx(0.90)
    assert not any(group["weight_decay"] for optimizer in (adamw, muon) for group in optimizer.param_groups)


def nanochats_muon(weight: Tensor, gradients: Sequence[Tensor], rate: float) -> Tensor:
    """The weight after so many steps as nanochat takes them, but for the rounding to bfloat16."""
    momentum = torch.zeros_like(weight)
    for step, gradient in enumerate(gradients):
        now = min(step / 300, 1.0)
        beta = (1 - now) * 0.85 + now * 0.95
        momentum = torch.lerp(momentum, gradient, 1 - beta)
        x = torch.lerp(gradient, momentum, beta)
        is_tall = x.shape[0] > x.shape[1]
        x = x.T if is_tall else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.T if is_tall else x
        weight = weight - rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5 * x
    return weight


@pytest.mark.parametrize("name", ["attention.c_q", "c_fc", "c_proj"])
def test_muon_steps_as_in_nanochat_on_square_tall_and_wide_matrices(name: str) -> None:
    recipe = build(a_config(aspect_ratio=32, reference_batch_tokens=None), FakeRankContext())
    model = recipe.build()
    recipe.draw_weights(model)
    adamw, muon = recipe.optimizers(model)
    weight = model.get_parameter(f"blocks.0.{name}.weight")
    rng = torch.Generator().manual_seed(0)
    gradients = [torch.randn(weight.shape, generator=rng) for _ in range(3)]
    before = weight.detach().clone()
    wanted = nanochats_muon(before, gradients, rate=0.02)

    for step, gradient in enumerate(gradients):
        recipe.tune([adamw, muon], fraction=0.0, step=step)
        weight.grad = gradient
        muon.step()

    # torch's rounds to bfloat16, which is a percent or two.
    assert (weight - wanted).norm() < 0.03 * (wanted - before).norm()


def test_documents_begin_with_a_symbol_that_the_model_knows(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("12+3\n\n4L\n\n" * 100)
    recipe = build(a_config(data=str(tmp_path / "x.txt"), documents=True, vocabulary_multiple=32), FakeRankContext())
    assert recipe.vocabulary.decode(recipe.loader.windows.tokens[:9]) == f"{DOCUMENT}12+3{DOCUMENT}4L{DOCUMENT}"
    assert recipe.build().get_parameter("wte.weight").shape[0] == 32


def test_validation_is_the_end_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a" * 900 + "b" * 100)
    recipe = build(a_config(data=str(tmp_path), validation_fraction=0.1), FakeRankContext())
    decode = recipe.vocabulary.decode
    assert set(decode(recipe.validation.tokens)) == {"b"}
    assert set(decode(recipe.loader.windows.tokens)) == {"a"}


def test_a_text_shorter_than_a_window_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a" * 300)
    with pytest.raises(BadConfig) as caught:
        build(a_config(data=str(tmp_path)), FakeRankContext())
    assert caught.value.detail == (
        "trainer.config.sequenceLength: 16 is too long for 285 characters of training and 15 of validation text; "
        "take a shorter one or more text"
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_metric_is_the_mean_over_the_windows_however_many_ranks_share_them(world_size: int) -> None:
    def evaluate(rank: int) -> tuple[float, float, int]:
        recipe = Charlm(a_config(), FakeRankContext(rank=rank, world_size=world_size))
        model = recipe.build()
        recipe.draw_weights(model)
        with torch.no_grad():
            sums, count = recipe.evaluate(model)
        return sums["val_loss"].item(), sums["bits_per_char"].item(), count

    shares = [evaluate(rank) for rank in range(world_size)]
    nats, bits, count = (sum(share[part] for share in shares) for part in range(3))
    assert count == 7
    assert nats / count == pytest.approx(math.log(104), abs=0.01)
    assert bits / count == pytest.approx(math.log2(104), abs=0.01)
