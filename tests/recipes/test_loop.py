"""The shared loop, with the real session and `charlm`: it learns, it resumes, and nothing else changes its weights."""

import math
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig, Diverged, Stopped
from piton_trainer.recipes.charlm import size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import Average, Throughput
from support.attempts import CrashError, assert_same_end, completion, crash, terminate
from support.charlm import TINY, attempt, changed


def test_twenty_steps_teach_it_something(tmp_path: Path) -> None:
    metrics = attempt(tmp_path)
    assert metrics["val_loss"] < 3.5  # it starts at log(104) = 4.64
    assert completion(tmp_path).step == 20


@pytest.mark.parametrize("config", [TINY, changed(ema=None, grad_clip=None, precision="bf16")])
def test_stopped_and_crashed_it_ends_with_the_very_weights_of_an_undisturbed_run(
    tmp_path: Path, config: CharlmConfig
) -> None:
    attempt(tmp_path / "undisturbed", config)

    with pytest.raises(CrashError):
        attempt(tmp_path / "disturbed", config, at=8, action=crash)
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", config, at=12, action=terminate)
    attempt(tmp_path / "disturbed", config)

    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


def poison(monkeypatch: pytest.MonkeyPatch, *bad: int, of_rank: int = 0) -> None:
    """Make the loss of some steps (from 0) of one rank no number; a step of `STEADY` has one micro-batch."""
    loss, calls = Charlm.loss, count()

    def poisoned(self: Charlm, model: nn.Module, batch: Any) -> Tensor:
        is_bad = model.training and next(calls) in bad and self.place.rank == of_rank
        return loss(self, model, batch) * (math.nan if is_bad else 1.0)

    monkeypatch.setattr(Charlm, "loss", poisoned)


STEADY = changed(device_batch_size=16, steps=6, eval_every=6, on_non_finite="Skip")


def test_a_step_that_is_not_of_finite_numbers_is_left_out_where_the_config_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 3)
    metrics = attempt(tmp_path / "skips", STEADY)
    assert metrics["skipped_steps"] == 2
    assert math.isfinite(metrics["val_loss"])
    assert completion(tmp_path / "skips").step == 6


def test_else_it_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 2, 3)
    with pytest.raises(Diverged):
        attempt(tmp_path, STEADY.model_copy(update={"on_non_finite": "Diverge"}))


def test_twenty_in_a_row_end_it_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, *range(2, 30))
    with pytest.raises(Diverged, match="for the 20th time in a row"):
        attempt(tmp_path, STEADY.model_copy(update={"steps": 30, "eval_every": 30}))


def test_a_training_that_skips_nothing_ends_with_the_same_weights(tmp_path: Path) -> None:
    for on_non_finite in ("Skip", "Diverge"):
        attempt(tmp_path / on_non_finite, STEADY.model_copy(update={"on_non_finite": on_non_finite}))
    assert_same_end(tmp_path / "Skip", tmp_path / "Diverge")


def test_an_evaluation_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    for name, every in (("often", 1), ("once", 1000)):
        attempt(tmp_path / name, changed(eval_every=every, steps=6))
    assert completion(tmp_path / "often").weights_digest == completion(tmp_path / "once").weights_digest


@pytest.mark.parametrize(("device_batch", "precision"), [(16, "fp32"), (4, "bf16")])
def test_neither_accumulation_nor_bf16_changes_what_is_learned(
    tmp_path: Path, device_batch: int, precision: str
) -> None:
    plain = attempt(tmp_path / "plain", changed(dropout=0.0))
    other = attempt(tmp_path / "other", changed(dropout=0.0, device_batch_size=device_batch, precision=precision))
    assert [other["loss"], other["val_loss"]] == pytest.approx([plain["loss"], plain["val_loss"]], abs=0.02)


def test_a_run_without_steps_trains_for_its_time(tmp_path: Path) -> None:
    attempt(tmp_path, changed(steps=None), training_seconds=1.0)
    assert completion(tmp_path).reason == "the training time of 1s is spent"
    assert completion(tmp_path).step >= 1


def test_another_text_than_the_checkpoints_is_refused_by_name(tmp_path: Path) -> None:
    with suppress(CrashError):
        attempt(tmp_path / "run", at=6, action=crash)
    (tmp_path / "other.txt").write_text("Something else. " * 1000)
    with pytest.raises(BadConfig) as caught:
        attempt(tmp_path / "run", changed(data=str(tmp_path / "other.txt")))
    assert "the text has other characters than the checkpoint's" in caught.value.detail


@pytest.mark.parametrize(("updates", "weight"), [(1, 1.0), (2, 1 - 2 / 11), (3, 1 - 3 / 12), (10_000, 1 - 0.99)])
def test_the_average_forgets_the_first_weights_soon_and_then_keeps_its_decay(updates: int, weight: float) -> None:
    model, average = nn.Linear(1, 1, bias=False), Average(nn.Linear(1, 1, bias=False), decay=0.99)
    with torch.no_grad():
        model.weight.fill_(0.0)
        if updates > 1:
            average.update_parameters(model)
        average.n_averaged.fill_(updates - 1)
        model.weight.fill_(1.0)
        average.update_parameters(model)
    assert average.module.get_parameter("weight").item() == pytest.approx(weight, rel=1e-5)


class StoppedClock(Clock):
    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_throughput_is_the_median_lap_and_does_not_see_a_save() -> None:
    clock = StoppedClock()
    throughput = Throughput(tokens_per_step=1000, mfu_per_token=1e-6, clock=clock)
    assert throughput.lap() == {}
    for seconds in (0.5, 0.5, 30.0, 0.5):
        clock.seconds += seconds
        figures = throughput.lap()
    assert figures == {"tokens_per_second": 2000.0, "step_seconds": 0.5, "mfu": pytest.approx(0.002)}


def test_mfu_is_the_share_of_the_peak_that_the_config_names(tmp_path: Path) -> None:
    metrics = attempt(tmp_path, changed(peak_flops=1e12, steps=3))
    per_token = size.flops_per_token(TINY, 97)
    assert metrics["mfu"] == pytest.approx(metrics["tokens_per_second"] * per_token / 1e12)


def test_a_device_that_nobody_looked_up_has_no_mfu(tmp_path: Path) -> None:
    assert "mfu" not in attempt(tmp_path, changed(steps=3))
