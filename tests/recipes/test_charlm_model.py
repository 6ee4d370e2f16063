"""The model of `charlm`: shapes, sizes, what it may look at and how it starts."""

import pytest
import torch

from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.model import CharGPT, norm, rotary_table, rotate

TINY = CharlmConfig(
    depth=2, aspect_ratio=16, head_dim=8, sequence_length=16, device_batch_size=2, total_batch_tokens=64, eval_tokens=64
)


def a_model(config: CharlmConfig = TINY, *, symbols: int = 30, seed: int = 0) -> CharGPT:
    model = CharGPT(config, symbols=symbols)
    model.draw_weights(seed)
    return model.eval()


def trained_a_little(model: CharGPT) -> CharGPT:
    """Projections start at zero; without them nothing would flow between positions."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


def test_logits_come_for_every_position_and_every_padded_symbol() -> None:
    logits = a_model(symbols=30)(torch.zeros(3, 16, dtype=torch.long))
    assert logits.shape == (3, 16, 32)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("depth", "aspect_ratio", "head_dim", "width"),
    [(20, 64, 128, 1280), (64, 64, 128, 4096), (45, 64, 128, 2944), (1, 64, 128, 128), (4, 32, 32, 128)],
)
def test_depth_sets_the_width_in_whole_heads(depth: int, aspect_ratio: int, head_dim: int, width: int) -> None:
    config = CharlmConfig(depth=depth, aspect_ratio=aspect_ratio, head_dim=head_dim)
    assert config.width == width
    assert config.heads * head_dim == width


def test_no_position_sees_a_later_one() -> None:
    model = trained_a_little(a_model())
    ids = torch.arange(16).unsqueeze(0)
    changed = ids.clone()
    changed[0, 9] = 25
    before, after = model(ids), model(changed)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9], after[0, 9])
    assert not torch.allclose(before[0, 15], after[0, 15])


def test_attention_depends_on_distance_and_not_on_place() -> None:
    table = rotary_table(TINY)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned_queries, turned_keys = (rotate(x.expand(1, 1, 16, 8), table)[0, 0] for x in (query, key))
    scores = turned_queries @ turned_keys.T
    assert torch.allclose(scores[5, 2], scores[12, 9], atol=1e-5)
    assert not torch.allclose(scores[5, 2], scores[5, 3], atol=1e-3)


def test_a_fresh_model_knows_nothing() -> None:
    ids = torch.randint(30, (4, 16), generator=torch.Generator().manual_seed(0))
    assert a_model(symbols=30)(ids, ids).item() == pytest.approx(torch.tensor(32.0).log().item(), abs=0.01)


def test_logits_stay_within_15() -> None:
    model = a_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(100.0)
    assert model(torch.arange(16).unsqueeze(0)).abs().max() <= 15.0


def test_weights_start_as_in_nanochat() -> None:
    model = a_model(CharlmConfig(depth=2, aspect_ratio=64, head_dim=32), symbols=96)
    bound = 3**0.5 * 128**-0.5
    assert model.wte.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.05)
    for name, weight in model.blocks.named_parameters():
        if "c_proj" in name:
            assert not weight.any()
        else:
            assert 0.99 * bound < weight.abs().max().item() <= bound
            assert weight.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_equal_seeds_draw_equal_weights_and_others_do_not() -> None:
    one, same, other = (a_model(seed=seed).wte.weight for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_norm_has_no_weights_and_gives_unit_mean_square() -> None:
    x = 7 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(norm(x).square().mean(dim=-1), torch.ones(5), atol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    model = trained_a_little(a_model(TINY.model_copy(update={"dropout": 0.5})))
    ids = torch.arange(16).unsqueeze(0)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


AGAIN = TINY.model_copy(update={"dropout": 0.5, "activation_checkpointing": True})
KEPT = TINY.model_copy(update={"dropout": 0.5})


def gradients(config: CharlmConfig) -> list[torch.Tensor | None]:
    model = trained_a_little(a_model(config)).train()
    torch.manual_seed(1)
    ids = torch.arange(16).unsqueeze(0)
    model(ids, ids).backward()
    return [weight.grad for weight in model.parameters()]


def kept_bytes(config: CharlmConfig) -> int:
    """What is kept between the forward and the backward pass."""
    model, kept, ids = a_model(config).train(), list[int](), torch.zeros(2, 16, dtype=torch.long)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, ids)
    return sum(kept)


def test_activations_that_are_computed_again_give_the_same_gradients_also_with_dropout() -> None:
    for again, kept in zip(gradients(AGAIN), gradients(KEPT), strict=True):
        assert again is not None
        assert kept is not None
        assert torch.equal(again, kept)


def test_activations_that_are_computed_again_are_not_kept() -> None:
    assert kept_bytes(AGAIN) < kept_bytes(KEPT) / 4
