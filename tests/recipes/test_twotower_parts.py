"""The parts of `twotower` by themselves: folds, table, losses, model."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from piton_trainer.data.ranking.judgments import Collector, Judgments
from piton_trainer.data.ranking.rows import JudgmentRow
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.twotower import losses
from piton_trainer.recipes.twotower.folds import Fold, normalised, split
from piton_trainer.recipes.twotower.model import Stacked, TwoTower
from piton_trainer.recipes.twotower.table import Table, priors
from support.twotower import CPU, TINY, WIDTH, changed, made_up


def folds_of(judgments: Judgments, *, folds: int = 3, seed: int = 0, inner: float = 0.2) -> list[Fold]:
    return split(judgments, folds=folds, wanted=range(folds), seed=seed, inner_fraction=inner)


def of(*rows: tuple[str, str, float, bool]) -> Judgments:
    """Rows of text, id, gain and whether it was judged; each text is a query."""
    collector = Collector()
    for text, name, gain, original in rows:
        collector.add(
            JudgmentRow(query=f"{text}{original}", id=name, text=text, gain=gain, original=original, confidence=0.5)
        )
    return collector.judgments("rows")


# Folds.


def test_every_judged_query_is_held_out_once_and_in_no_other_role_then() -> None:
    found = folds_of(made_up(queries=61))
    assert sorted(query for fold in found for query in fold.held_out.tolist()) == list(range(61))
    for fold in found:
        roles = [*fold.train.tolist(), *fold.inner.tolist(), *fold.held_out.tolist()]
        assert sorted(roles) == list(range(61))
        assert len(fold.held_out) in (20, 21)
        assert len(fold.inner) == round(0.2 * (61 - len(fold.held_out)))


def test_guesses_are_trained_on_and_never_validated() -> None:
    judgments = made_up(queries=30, guesses=15)
    for fold in folds_of(judgments):
        assert set(range(30, 45)) <= set(fold.train.tolist())
        assert judgments.judged[fold.inner].all()
        assert judgments.judged[fold.held_out].all()


def test_a_guess_about_a_text_that_validates_is_not_trained_on() -> None:
    judged = [(f"text {number}", "a", 1.0, True) for number in range(12)]
    guesses = [(f"  TEXT   {number} ", "b", 0.0, False) for number in range(12)]
    judgments = of(*judged, *guesses)
    for fold in folds_of(judgments):
        trained = {normalised(judgments.texts[query]) for query in fold.train}
        validated = {normalised(judgments.texts[query]) for query in [*fold.inner, *fold.held_out]}
        assert not trained & validated
        assert {query for query in fold.train.tolist() if query >= 12} == {
            query + 12 for query in fold.train.tolist() if query < 12
        }


def test_queries_of_equal_text_are_in_the_same_part() -> None:
    collector = Collector()
    for number in range(24):
        text = f"text {number // 2}" if number % 2 else f"Text  {number // 2}"
        collector.add(JudgmentRow(query=f"q{number}", id="a", text=text, gain=1.0))
    for fold in folds_of(collector.judgments("pairs")):
        for part in (fold.train, fold.inner, fold.held_out):
            assert {query ^ 1 for query in part.tolist()} == set(part.tolist())


def test_folds_depend_on_the_texts_and_the_seed_alone() -> None:
    judgments = made_up()
    one, same, other = (folds_of(judgments, seed=seed) for seed in (0, 0, 1))
    assert all(
        torch.equal(a.held_out, b.held_out) and torch.equal(a.inner, b.inner) for a, b in zip(one, same, strict=True)
    )
    assert not all(torch.equal(a.held_out, b.held_out) for a, b in zip(one, other, strict=True))
    alone = split(judgments, folds=3, wanted=[1], seed=0, inner_fraction=0.2)
    assert torch.equal(alone[0].train, one[1].train)
    with_guesses = folds_of(made_up(guesses=20))
    assert all(torch.equal(a.held_out, b.held_out) for a, b in zip(one, with_guesses, strict=True))


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(BadConfig) as caught:
        folds_of(made_up(queries=5))
    assert caught.value.detail == ("trainer.config.folds: 3 is too many for 5 judged queries; each needs two at least")
    with pytest.raises(BadConfig, match=r"innerFraction: 0\.99 leaves nothing to train on"):
        folds_of(made_up(queries=6), inner=0.99)


# The table.


def test_rows_become_dense_only_where_they_are_asked_for() -> None:
    table = Table(of(("x", "b", 1.0, True), ("y", "a", 0.7, True), ("y", "c", 0.0, False)), CPU)
    cells = table.cells(torch.tensor([[2, 0], [1, 1]]))
    assert cells.gains.tolist()[0] == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert cells.gains[1].tolist() == [[pytest.approx(0.7), 0.0, 0.0]] * 2
    assert cells.weights.tolist() == [[[0.0, 0.0, 0.5], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]] * 2]
    assert cells.originals[0].tolist() == [[False, False, False], [False, True, False]]


def test_priors_are_means_of_judged_rows_of_the_given_queries_only() -> None:
    judgments = of(
        ("x", "a", 1.0, True), ("y", "a", 0.0, True), ("z", "a", 1.0, True), ("w", "a", 1.0, False),
        ("x", "b", 1.0, True), ("z", "c", 0.7, True),
    )  # fmt: skip
    known = priors(judgments, torch.tensor([0, 1, 3]))
    assert known.means.tolist() == pytest.approx([0.5, 1.0, 2 / 3])
    assert known.smoothed.tolist() == pytest.approx([(1 + 2 / 3) / 3, (1 + 2 / 3) / 2, 2 / 3])
    assert known.popularity.tolist() == pytest.approx((np.array([2, 2, 1]) ** 0.75 / (2 * 2**0.75 + 1)).tolist())


# The losses.


def test_the_pointwise_loss_is_the_cross_entropy_of_each_pair_times_its_confidence() -> None:
    scores, gains = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[0.7, 1.0, 0.0]])
    found = losses.pointwise(scores, gains, torch.tensor([[1.0, 0.5, 0.0]]))
    assert found.item() == pytest.approx(math.log(2) + 0.5 * math.log(1 + math.exp(-2)))


def test_the_softmax_loss_weighs_each_relevant_pair_by_its_gain_and_confidence() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, -math.inf]])
    found = losses.softmax(scores, torch.tensor([[0.7, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.5, 0.0]]))
    total = math.log(math.e + math.e**2 + math.e**3)
    assert found.item() == pytest.approx(-0.7 * (1 - total) - 0.5 * (3 - total))


def test_a_query_with_nothing_relevant_has_no_softmax_loss_and_no_gradient_that_is_not_a_number() -> None:
    scores = torch.full((1, 3), -math.inf, requires_grad=False)
    scores[0, 0] = 1.0
    scores.requires_grad_()
    found = losses.softmax(scores, torch.zeros(1, 3), torch.ones(1, 3))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0.0
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def corrected(scores: Tensor, relevant: Tensor, counts: Tensor, probabilities: Tensor) -> Tensor:
    return losses.softmax(
        scores + losses.sampling_correction(relevant, counts, probabilities), relevant.float(), torch.ones_like(scores)
    )


def test_drawn_exactly_as_often_as_expected_a_sample_gives_the_loss_of_all() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 8, generator=rng)
    relevant = torch.rand(3, 5, 8, generator=rng) < 0.3
    counts = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 4]]).expand(3, 8)
    found = corrected(scores, relevant, counts, counts / 32)
    assert torch.allclose(found, losses.softmax(scores, relevant.float(), torch.ones_like(scores)), atol=1e-5)


def test_the_correction_is_the_logarithm_of_how_much_too_often_an_id_was_drawn() -> None:
    relevant = torch.tensor([[True, False, False, False]])
    counts, probabilities = torch.tensor([3.0, 3.0, 1.0, 0.0]), torch.tensor([0.1, 0.25, 0.6, 0.05])
    found = losses.sampling_correction(relevant, counts, probabilities)
    assert found[0].tolist() == pytest.approx([0.0, math.log(3 / (7 * 0.25)), math.log(1 / (7 * 0.6)), -math.inf])


def test_a_draw_that_hits_a_relevant_id_is_masked_for_that_query_only() -> None:
    relevant = torch.tensor([[True, False], [False, False]])
    counts = torch.tensor([5.0, 5.0])
    found = losses.sampling_correction(relevant, counts, torch.tensor([0.25, 0.75]))
    assert found[0, 0].item() == 0.0
    assert found[1, 0].item() == pytest.approx(math.log(5 / (10 * 0.25)))


def test_on_average_over_many_draws_the_corrected_sum_is_that_over_all_ids() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 20, generator=rng, dtype=torch.float64)
    relevant = torch.zeros(1, 20, dtype=torch.bool)
    relevant[0, 3] = True
    probabilities = torch.rand(20, generator=rng, dtype=torch.float64) + 0.1
    probabilities = probabilities / probabilities.sum()
    estimates = []
    for _ in range(500):
        drawn = torch.multinomial(probabilities, 16, replacement=True, generator=rng)
        counts = torch.bincount(drawn, minlength=20).double()
        correction = losses.sampling_correction(relevant, counts, probabilities)
        estimates.append((scores + correction).exp().sum())
    others = scores.exp().sum() - scores[0, 3].exp()
    assert torch.stack(estimates).mean().item() == pytest.approx((others + scores[0, 3].exp()).item(), rel=0.03)


# The model.


def a_model(config: Any = TINY, *, seed: int = 0, prior: Tensor | None = None) -> TwoTower:
    model = TwoTower(config, width=WIDTH, ids=7)
    folds = len(config.fold_numbers)
    model.draw_weights(seed, torch.zeros(folds, 7) if prior is None else prior)
    return model.eval()


def test_a_stacked_layer_is_a_linear_layer_per_fold() -> None:
    layer = Stacked(2, 3, 4)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 5, 3)
    for fold in range(2):
        alone = F.linear(x[fold], layer.weight[fold].T, layer.bias[fold, 0])
        assert torch.allclose(layer(x)[fold], alone, atol=1e-6)


def test_a_score_is_the_cosine_over_the_temperature_plus_the_bias_of_the_id() -> None:
    prior = torch.arange(21.0).view(3, 7)
    model, x = a_model(prior=prior), torch.randn(3, 4, WIDTH)
    scores, _ = model(x)
    queries = F.normalize(model.query_tower(model.heads(x)), dim=-1) if model.heads else x
    ids = F.normalize(model.id_tower(model.embedding), dim=-1)
    assert torch.allclose(scores, queries @ ids.mT / 0.3 + prior.unsqueeze(1), atol=1e-5)
    assert (scores - prior.unsqueeze(1)).abs().max() <= 1 / 0.3 + 1e-4


def test_a_dot_product_has_no_such_limit() -> None:
    config = changed(similarity="dot", heads=0)
    x = torch.randn(3, 4, WIDTH)
    model = a_model(config)
    scores, alike = model(1000 * x)
    assert scores.abs().max() > 10 / 0.3
    assert not alike.any()


def test_scores_of_some_ids_are_those_columns_of_all() -> None:
    model, x = a_model(), torch.randn(3, 4, WIDTH)
    columns = torch.tensor([6, 1])
    assert torch.allclose(model(x, columns)[0], model(x)[0][:, :, columns], atol=1e-6)


def test_no_fold_notices_another() -> None:
    model, x = a_model(), torch.randn(3, 4, WIDTH)
    scores = model(x)[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight[1].normal_()
    x[1] = 0.0
    changed_scores = model(x)[0]
    assert torch.equal(changed_scores[[0, 2]], scores[[0, 2]])
    assert not torch.allclose(changed_scores[1], scores[1])


def test_a_fold_starts_with_the_same_weights_alone_and_beside_others() -> None:
    beside, alone = a_model(), a_model(changed(fold=1))
    for name, weight in alone.named_parameters():
        assert torch.equal(weight[0], beside.get_parameter(name)[1])
    assert not torch.equal(beside.embedding[0], beside.embedding[1])
    assert not torch.equal(beside.embedding, a_model(seed=1).embedding)


def test_views_are_as_alike_as_their_squared_cosines() -> None:
    config = changed(heads=2, head_width=2)
    model = a_model(config)
    assert model.heads is not None
    with torch.no_grad():
        model.heads.weight.zero_()
        model.heads.bias.copy_(torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(3, 1, 4))
    assert model(torch.zeros(3, 5, WIDTH))[1].flatten().tolist() == pytest.approx([0.5] * 15)


def test_dropout_acts_in_training_only() -> None:
    model, x = a_model(changed(dropout=0.5, id_layers=[8])), torch.randn(3, 4, WIDTH)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
