"""`charlm` on two ranks, with whole and with sharded models."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import piton_trainer
from piton.contract.ends import ExitCode
from piton_trainer.config import Config
from piton_trainer.loop import Trainee
from piton_trainer.recipes.charlm.recipe import Charlm
from support import ranks
from support.attempts import assert_same_end, crash, terminate
from support.charlm import TINY, attempt, changed

DDP = changed(total_batch_tokens=512, steps=8, eval_every=4)
FSDP = changed(parallelism="fsdp", total_batch_tokens=512, steps=4, eval_every=2)


def on_two(directory: Path, *args: Any, **drill: Any) -> list[int]:
    return [end.code for end in ranks.run(2, partial(attempt, directory, *args, **drill))]


def test_two_ranks_that_stop_and_crash_end_with_the_weights_of_two_that_did_not(tmp_path: Path) -> None:
    assert on_two(tmp_path / "undisturbed", DDP) == [0, 0]

    assert on_two(tmp_path / "disturbed", DDP, at=3, action=terminate) == [ExitCode.STOPPED] * 2
    assert 0 not in on_two(tmp_path / "disturbed", DDP, at=6, action=crash)
    assert on_two(tmp_path / "disturbed", DDP) == [0, 0]

    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


def test_shards_of_weights_optimizers_and_averages_survive_a_stop_bit_by_bit(tmp_path: Path) -> None:
    assert on_two(tmp_path / "undisturbed", FSDP) == [0, 0]

    assert on_two(tmp_path / "disturbed", FSDP, at=2, action=terminate) == [ExitCode.STOPPED] * 2
    assert on_two(tmp_path / "disturbed", FSDP) == [0, 0]

    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


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
        return Trainee(Charlm(TINY, session), session).evaluate()


def test_every_rank_reports_the_same_evaluation_which_is_that_of_one_rank_alone(tmp_path: Path) -> None:
    alone = evaluation(tmp_path)
    first, second = (end.result for end in ranks.run(2, partial(evaluation, tmp_path)))
    assert first == second
    assert first == pytest.approx(alone, rel=1e-7)


def drawn_after(directory: Path) -> float:
    attempt(directory, changed(steps=1))
    return torch.rand(()).item()


def test_each_rank_drops_out_by_its_own_dice(tmp_path: Path) -> None:
    first, second = (end.result for end in ranks.run(2, partial(drawn_after, tmp_path)))
    assert first != second
