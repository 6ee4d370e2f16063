"""`charlm` on two ranks, with whole and with sharded models."""

from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import piton_trainer
from piton.contract.termination import ExitCode
from piton_trainer.config import Config
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.model import part_of
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import TrainableModel
from support import ranks
from support.attempts import assert_same_end, crash, terminate
from support.charlm import TINY, attempt, changed

DDP = changed(total_batch_tokens=512, steps=8, eval_every=4)
FSDP = changed(parallelism="fsdp", precision="bf16", total_batch_tokens=1024, steps=4, eval_every=2)


def on_two(directory: Path, *args: Any, **drill: Any) -> list[int]:
    return [end.code for end in ranks.run(2, partial(attempt, directory, *args, **drill))]


def test_two_ranks_that_stop_and_crash_end_with_the_weights_of_two_that_did_not(tmp_path: Path) -> None:
    assert on_two(tmp_path / "undisturbed", DDP) == [0, 0]

    assert on_two(tmp_path / "disturbed", DDP, at=3, action=terminate) == [ExitCode.STOPPED] * 2
    assert 0 not in on_two(tmp_path / "disturbed", DDP, at=6, action=crash)
    assert on_two(tmp_path / "disturbed", DDP) == [0, 0]

    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    assert on_two(directory / "undisturbed", FSDP) == [0, 0]
    return directory


def test_shards_of_weights_optimizers_and_averages_survive_a_stop_bit_by_bit(sharded: Path) -> None:
    assert on_two(sharded / "disturbed", FSDP, at=2, action=terminate) == [ExitCode.STOPPED] * 2
    assert on_two(sharded / "disturbed", FSDP) == [0, 0]

    assert_same_end(sharded / "undisturbed", sharded / "disturbed")


def test_activations_that_are_computed_again_change_no_bit_of_a_sharded_model(sharded: Path) -> None:
    again = FSDP.model_copy(update={"activation_checkpointing": True})
    assert on_two(sharded / "again", again) == [0, 0]

    assert_same_end(sharded / "undisturbed", sharded / "again")


def traced(directory: Path, config: CharlmConfig) -> Any:
    """An attempt whose blocks are compiled up to where a C++ compiler would be needed; in a process of its own."""
    nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")  # type: ignore[assignment]
    return attempt(directory, config)


@pytest.mark.crash  # tracing takes some ten seconds
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at them
def test_compiled_blocks_can_be_sharded_and_computed_again(tmp_path: Path) -> None:
    plain = changed(parallelism="fsdp", dropout=0.0, steps=3, eval_every=3)
    all_of_it = plain.model_copy(update={"compile": True, "activation_checkpointing": True})
    assert on_two(tmp_path / "undisturbed", plain) == [0, 0]
    assert [end.code for end in ranks.run(2, partial(traced, tmp_path / "compiled", all_of_it))] == [0, 0]

    assert_same_end(tmp_path / "undisturbed", tmp_path / "compiled")


def test_a_sharded_model_learns_what_a_whole_one_learns(tmp_path: Path) -> None:
    whole, sharded = (changed(parallelism=kind, dropout=0.0, steps=6, eval_every=2) for kind in ("ddp", "fsdp"))
    one, other = (
        ranks.run(2, partial(attempt, tmp_path / config.parallelism, config, judged=False))[0].result
        for config in (whole, sharded)
    )
    assert one.keys() >= {"loss", "val_loss", "bits_per_char"}
    assert other["loss"] == pytest.approx(one["loss"], abs=0.01)
    assert other["val_loss"] == pytest.approx(one["val_loss"], abs=0.01)


def test_one_rank_goes_on_with_what_two_began(tmp_path: Path) -> None:
    config = changed(parallelism="fsdp", dropout=0.0, steps=8, eval_every=8)
    alone = attempt(tmp_path / "alone", config)
    assert on_two(tmp_path / "shared", config, at=3, action=terminate) == [ExitCode.STOPPED] * 2
    assert attempt(tmp_path / "shared", config)["val_loss"] == pytest.approx(alone["val_loss"], abs=0.01)


def evaluation(directory: Path) -> dict[str, float]:
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        return TrainableModel(Charlm(TINY, session), session).evaluate()


def test_every_rank_reports_the_same_evaluation_which_is_that_of_one_rank_alone(tmp_path: Path) -> None:
    alone = evaluation(tmp_path)
    first, second = (end.result for end in ranks.run(2, partial(evaluation, tmp_path)))
    assert first == second
    assert first == pytest.approx(alone, rel=1e-7)


def muon_step(directory: Path) -> list[NDArray[np.float32]]:
    """By how much one step of Muon changes each matrix of a block, for gradients that everybody knows."""
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        trainee = TrainableModel(Charlm(changed(parallelism="fsdp"), session), session)
        weights = list(next(iter(trainee.recipe.blocks(trainee.model))).parameters())
        before = [whole(weight) for weight in weights]
        for number, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.grad = part_of(gradient, weight)
        trainee.recipe.tune(trainee.optimizers, fraction=0.0, step=0)
        trainee.optimizers[1].step()
        return [whole(weight) - old for weight, old in zip(weights, before, strict=True)]


def whole(weight: Tensor) -> NDArray[np.float32]:
    found = weight.full_tensor() if isinstance(weight, DTensor) else weight
    copied: NDArray[np.float32] = found.detach().numpy().copy()
    return copied


def test_muon_turns_a_matrix_that_lies_on_two_ranks_as_one_that_lies_on_one(tmp_path: Path) -> None:
    alone = muon_step(tmp_path)
    first, second = (end.result for end in ranks.run(2, partial(muon_step, tmp_path)))
    for one, here, there in zip(alone, first, second, strict=True):
        assert np.array_equal(here, there)
        # bfloat16, summed in another order.
        assert np.linalg.norm(here - one) < 0.03 * np.linalg.norm(one)


def drawn_after(directory: Path) -> float:
    attempt(directory, changed(steps=1))
    return torch.rand(()).item()


def test_each_rank_drops_out_by_its_own_dice(tmp_path: Path) -> None:
    first, second = (end.result for end in ranks.run(2, partial(drawn_after, tmp_path)))
    assert first != second
