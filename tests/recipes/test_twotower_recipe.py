"""`twotower` as the loop trains it: it learns, it resumes, its folds are worth what they are worth alone."""

import json
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from piton.contract.interval import t_interval
from piton.contract.termination import ExitCode
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.recipes.common.ndcg import ndcg
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.results import Results
from support import ranks
from support.attempts import CrashError, assert_same_end, completion, crash, terminate
from support.seats import FakeRankContext
from support.twotower import a_recipe, attempt, changed, gradients, logit, made_up


def results(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


# The whole.


@pytest.mark.parametrize(
    ("loss", "candidates"), [("pointwise", "judged"), ("softmax", "judged"), ("softmax", "all"), ("sampled", "all")]
)
def test_it_learns_which_id_is_good_at_what(tmp_path: Path, loss: str, candidates: str) -> None:
    settings = {"loss": loss, "candidates": candidates, "negatives": 8}
    metrics = attempt(tmp_path, changed(**settings, steps=60, eval_every=20))
    assert metrics["ndcg_10"] > metrics["baseline_ndcg_10"] + 0.1
    assert metrics["ndcg_10_low"] < metrics["ndcg_10"] < metrics["ndcg_10_high"]
    assert completion(tmp_path).best_metric == pytest.approx(metrics["inner_ndcg_10"], abs=0.2)


def test_stopped_and_crashed_it_ends_with_the_very_weights_and_results_of_an_undisturbed_run(tmp_path: Path) -> None:
    attempt(tmp_path / "undisturbed")
    with pytest.raises(CrashError):
        attempt(tmp_path / "disturbed", at=8, action=crash)
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", at=12, action=terminate)
    attempt(tmp_path / "disturbed")
    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")
    assert results(tmp_path / "undisturbed") == results(tmp_path / "disturbed")


def test_the_results_say_what_each_fold_reached_and_how_sure_the_mean_is(tmp_path: Path) -> None:
    metrics = attempt(tmp_path)
    found = results(tmp_path)
    folds = found["folds"]
    assert [fold["fold"] for fold in folds] == [0, 1, 2]
    assert sum(fold["queries"] for fold in folds) == 60
    held_out = [fold["held_out"] for fold in folds]
    assert metrics["ndcg_10"] == pytest.approx(mean(held_out))
    assert (metrics["ndcg_10_low"], metrics["ndcg_10_high"]) == pytest.approx(t_interval(held_out))
    gains = [fold["held_out"] - fold["baseline"] for fold in folds]
    above = found["above_baseline"]
    assert (above["mean"], above["low"], above["high"]) == pytest.approx((mean(gains), *t_interval(gains)))
    assert found["metrics"]["ndcg_10"] == pytest.approx(metrics["ndcg_10"])


def test_a_fold_alone_reaches_what_it_reaches_beside_the_others(tmp_path: Path) -> None:
    settings = {"dropout": 0.0, "steps": 15}
    attempt(tmp_path / "all", changed(**settings))
    metrics = attempt(tmp_path / "alone", changed(**settings, fold=1))
    [alone], beside = results(tmp_path / "alone")["folds"], results(tmp_path / "all")["folds"][1]
    assert alone == {name: pytest.approx(value, abs=1e-3) for name, value in beside.items()}
    assert "ndcg_10_low" not in metrics


def on_two(directory: Path, config: TwoTowerConfig, **drill: Any) -> list[int]:
    return [end.code for end in ranks.run(2, partial(attempt, directory, config, **drill))]


def test_two_ranks_learn_what_one_learns_and_survive_a_stop(tmp_path: Path) -> None:
    config = changed(dropout=0.0, accumulation=2, steps=8, eval_every=4)
    attempt(tmp_path / "one", config)
    assert on_two(tmp_path / "two", config, at=4, action=terminate) == [ExitCode.STOPPED] * 2
    assert on_two(tmp_path / "two", config) == [0, 0]
    for alone, shared in zip(results(tmp_path / "one")["folds"], results(tmp_path / "two")["folds"], strict=True):
        assert shared == {name: pytest.approx(value, abs=0.02) for name, value in alone.items()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fold_seed": 1}, "the judgments, their gains or folds, or the encoder are not those of the checkpoint"),
        ({"seed": 1}, "trainer.config.seed: 1 is not the checkpoint's 0"),
    ],
)
def test_other_folds_or_another_seed_than_the_checkpoints_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CrashError):
        attempt(tmp_path, at=6, action=crash)
    with pytest.raises(BadConfig, match=sentence):
        attempt(tmp_path, changed(**changes))


# Its parts that need the others.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_it_has_learned_it_ranks_by_what_the_training_queries_say_of_the_ids(
    tmp_path: Path, precision: str
) -> None:
    recipe = a_recipe(changed(temperature=1e6, precision=precision), context=FakeRankContext(tmp_path))
    model = recipe.build()
    recipe.draw_weights(model)
    model.eval()
    metrics, count = recipe.evaluate(model)
    judgments, fold = recipe.judgments, recipe.folds[0]
    trained = np.isin(np.repeat(np.arange(60), np.diff(judgments.starts)), fold.train.numpy())
    mine = trained & (judgments.ids == 4)
    expected = (judgments.gains[mine].sum() + judgments.gains[trained].mean()) / (mine.sum() + 1)
    assert model.get_parameter("prior")[0, 0, 4].item() == pytest.approx(logit(expected), abs=1e-5)
    assert count == 1
    assert metrics["ndcg_10"].item() == pytest.approx(metrics["baseline_ndcg_10"].item(), abs=0.05)


def test_nothing_of_a_held_out_query_reaches_the_start_of_its_fold() -> None:
    plain = a_recipe()
    judgments = made_up()
    for query in plain.folds[0].held_out.tolist():
        judgments.gains[judgments.starts[query] : judgments.starts[query + 1]] = 0.7
    spoiled = a_recipe(judgments=judgments)
    assert np.array_equal(plain.criterion.priors[0].smoothed, spoiled.criterion.priors[0].smoothed)
    assert np.array_equal(plain.criterion.priors[0].popularity, spoiled.criterion.priors[0].popularity)
    assert not np.array_equal(plain.criterion.priors[1].smoothed, spoiled.criterion.priors[1].smoothed)
    assert torch.equal(plain.criterion._shares[0], spoiled.criterion._shares[0])


def test_the_baseline_ranks_all_queries_of_a_fold_by_the_means_of_the_others() -> None:
    recipe = a_recipe()
    judgments, fold = recipe.judgments, recipe.folds[2]
    others = set(range(60)) - set(fold.held_out.tolist())
    rows = np.isin(np.repeat(np.arange(60), np.diff(judgments.starts)), list(others))
    means = np.array([judgments.gains[rows & (judgments.ids == number)].mean() for number in range(12)])
    found = []
    for query in fold.held_out.tolist():
        own = slice(judgments.starts[query], judgments.starts[query + 1])
        scores, gains = torch.full((12,), -torch.inf), torch.zeros(12)
        scores[judgments.ids[own]] = torch.from_numpy(means[judgments.ids[own]]).float()
        gains[judgments.ids[own]] = torch.from_numpy(judgments.gains[own])
        found.append(ndcg(scores, gains, k=10).item())
    assert recipe.results.folds[2].baseline == pytest.approx(mean(found))


def test_guesses_do_not_count_when_it_is_measured() -> None:
    judgments = made_up()
    guess = int(judgments.starts[int(a_recipe(judgments=judgments).folds[0].held_out[0])])
    judgments.originals[guess] = False
    judgments.gains[guess] = 1.0
    spoiled = a_recipe(judgments=judgments)
    cells = spoiled.table.cells(spoiled.folds[0].held_out[:1])
    row = spoiled.evaluator.of(torch.zeros(1, 12), spoiled.folds[0].held_out[:1])
    gains = (cells.gains * cells.originals)[0]
    assert not gains[judgments.ids[guess]]
    assert row.item() == pytest.approx(
        ndcg(torch.zeros(12).masked_fill(~cells.originals[0], -torch.inf), gains, k=10).item()
    )


def test_all_ids_compete_where_the_config_says_so() -> None:
    judged, everybody = a_recipe(), a_recipe(changed(candidates="all"))
    queries, scores = torch.tensor([0]), torch.zeros(1, 12)
    scores[0, 1::2] = 1.0  # query 0 has judgments of the even ids only
    assert judged.evaluator.of(scores, queries).item() > everybody.evaluator.of(scores, queries).item()


def some_gradients(config: TwoTowerConfig, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    recipe = a_recipe(config)
    model = recipe.build()
    recipe.draw_weights(model)
    recipe.loss(model, numbers).backward()  # type: ignore[no-untyped-call]
    if config.grad_clip is not None:
        recipe.clip(model, config.grad_clip)
    return gradients(model)


@pytest.mark.parametrize("grad_clip", [None, 0.01])
@pytest.mark.parametrize("loss", ["pointwise", "softmax"])
def test_a_gradient_is_that_of_the_fold_alone_clipped_by_itself(loss: str, grad_clip: float | None) -> None:
    config = changed(loss=loss, dropout=0.0, grad_clip=grad_clip)
    numbers = torch.stack([fold.train[:8] for fold in a_recipe(config).folds])
    beside = some_gradients(config, numbers)
    alone = some_gradients(config.model_copy(update={"fold": 2}), numbers[2:])
    for name, gradient in alone.items():
        assert torch.allclose(gradient[0], beside[name][2], atol=1e-6), name
    if grad_clip is not None:
        for fold in range(3):
            norm = torch.stack([gradient[fold].square().sum() for gradient in beside.values()]).sum().sqrt()
            assert norm.item() == pytest.approx(grad_clip, rel=1e-2)


def test_the_loss_that_is_reported_is_the_mean_over_the_folds() -> None:
    recipe = a_recipe(changed(dropout=0.0, diversity=0.0))
    model = recipe.build()
    recipe.draw_weights(model)
    numbers = torch.stack([fold.train for fold in recipe.folds])
    scores, _ = model(recipe.embedded.of(numbers))
    cells = recipe.table.cells(numbers)
    pairs = torch.nn.functional.binary_cross_entropy_with_logits(scores, cells.gains, reduction="none")
    expected = (pairs * cells.weights).sum((1, 2)) / cells.weights.sum((1, 2))
    assert recipe.loss(model, numbers).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_unjudged_pairs_count_as_useless_where_all_compete() -> None:
    recipe = a_recipe(changed(dropout=0.0, diversity=0.0, candidates="all"))
    model = recipe.build()
    recipe.draw_weights(model)
    numbers = torch.stack([fold.train for fold in recipe.folds])
    scores, _ = model(recipe.embedded.of(numbers))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, recipe.table.cells(numbers).gains)
    assert recipe.loss(model, numbers).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("fraction", "rate"), [(0.0, 0.02), (0.5, 0.01), (1.0, 0.0)])
def test_the_rate_falls_along_a_half_cosine_and_biases_do_not_decay(fraction: float, rate: float) -> None:
    recipe = a_recipe(changed(weight_decay=0.1))
    model = recipe.build()
    optimizers = recipe.optimizers(model)
    recipe.tune(optimizers, fraction=fraction, step=0)
    layers, others = optimizers[0].param_groups
    assert [layers["lr"], others["lr"]] == pytest.approx([rate, rate])
    assert (layers["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    held = [*layers["params"], *others["params"]]
    assert {id(weight) for weight in held} == {id(weight) for weight in model.parameters()}
    assert any(weight is model.get_parameter("prior") for weight in others["params"])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_fold_sees_its_own_queries_once_per_epoch_however_many_ranks_share_them(world_size: int) -> None:
    recipes = [a_recipe(context=FakeRankContext(rank=rank, world_size=world_size)) for rank in range(world_size)]
    streams = [iter(recipe.loader) for recipe in recipes]
    steps = [torch.cat([batch for stream in streams for batch in next(stream)], dim=1) for _ in range(9)]
    seen = torch.cat(steps, dim=1)
    for fold, numbers in zip(recipes[0].folds, seen, strict=True):
        epoch = len(fold.train)
        assert sorted(numbers[:epoch].tolist()) == sorted(fold.train.tolist())
    resumed = a_recipe()
    resumed.loader.load_state_dict({**recipes[0].loader.state_dict(), "position": 32})
    assert torch.equal(next(iter(resumed.loader))[0].sort().values, steps[4].sort().values)


def test_the_held_out_result_is_that_of_the_moment_that_the_inner_queries_chose() -> None:
    found = Results(a_recipe().folds, [0.1, 0.2, 0.3])
    found.consider(5, [0.5, 0.5, 0.5], [0.1, 0.2, 0.3])
    found.consider(10, [0.6, 0.4, 0.5], [0.0, 0.9, 0.9])
    assert [(fold.step, fold.held_out) for fold in found.folds] == [(10, 0.0), (5, 0.2), (5, 0.3)]
    again = Results(a_recipe().folds, [0.0, 0.0, 0.0])
    again.load_state_dict(json.loads(json.dumps(found.state_dict())))
    assert again.to_json() == found.to_json()


def test_throughput_counts_the_queries_of_all_folds() -> None:
    recipe: Any = a_recipe()
    assert recipe.tokens_per_step == 24
    with torch.device("meta"):
        assert recipe.flops_per_token(recipe.build()) > 0
