"""nDCG as trec_eval has it: against trec_eval itself, with ties, gaps and nothing relevant; and against the formula."""

import math

import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from piton_trainer.recipes.common.ndcg import dcg, ideal_dcg, ndcg

NAMES = sorted(["d1", "d10", "d2", "d3", "zebra", "a", "D", "9", "90", "ö"])
"""Columns stand in the order of the names."""
ABSENT = None


def trec_eval(scores: list[float | None], grades: list[int | None], k: int) -> float:
    qrel = {name: grade for name, grade in zip(NAMES, grades, strict=True) if grade is not ABSENT}
    run = {name: score for name, score in zip(NAMES, scores, strict=True) if score is not ABSENT}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": qrel}, {f"ndcg_cut.{k}"})
    return float(evaluator.evaluate({"q": run})["q"][f"ndcg_cut_{k}"])


def ours(scores: list[float | None], grades: list[int | None], k: int) -> float:
    gains = torch.tensor([max(grade or 0, 0) for grade in grades], dtype=torch.float32)
    ranked = torch.tensor([-math.inf if score is ABSENT else score for score in scores], dtype=torch.float64)
    found = ndcg(ranked, gains.masked_fill(ranked.isinf(), 0.0), k=k, ideal=ideal_dcg(gains, k))
    return found.item()


some_scores = st.lists(
    st.one_of(st.none(), st.sampled_from([0.0, -1.0, 2.5]), st.floats(-10, 10)), min_size=10, max_size=10
)
some_grades = st.lists(st.one_of(st.none(), st.integers(0, 10)), min_size=10, max_size=10)


@given(some_scores, some_grades, st.sampled_from([1, 3, 10]))
def test_any_ranking_counts_what_trec_eval_counts(scores: list[float | None], grades: list[int | None], k: int) -> None:
    scores[0] = scores[0] or 0.0  # trec_eval wants one document at least
    grades[1] = grades[1] or 0
    assert ours(scores, grades, k) == pytest.approx(trec_eval(scores, grades, k), abs=1e-6)


def test_of_equal_scores_the_last_name_comes_first_as_in_trec_eval() -> None:
    scores: list[float | None] = [1.0] * 10
    for winner in range(10):
        grades: list[int | None] = [int(place == winner) for place in range(10)]
        assert ours(scores, grades, 10) == pytest.approx(1 / math.log2(10 - winner + 1))
        assert ours(scores, grades, 10) == pytest.approx(trec_eval(scores, grades, 10), abs=1e-6)


def test_scores_that_only_a_double_tells_apart_are_equal() -> None:
    scores: list[float | None] = [1.0 + 1e-12, *[1.0] * 9]
    grades: list[int | None] = [1, *[0] * 9]
    assert ours(scores, grades, 10) == pytest.approx(trec_eval(scores, grades, 10), abs=1e-6)
    assert ours(scores, grades, 1) == 0.0


def test_sklearns_mean_over_the_orders_of_equal_scores_is_another_number() -> None:
    # Two documents, equal scores, one relevant: sklearn's ndcg_score is (1 + 1 / log2(3)) / 2 whichever it is.
    both = [ndcg(torch.zeros(2), torch.tensor(gains), k=2).item() for gains in ([1.0, 0.0], [0.0, 1.0])]
    assert both == pytest.approx([1 / math.log2(3), 1.0])
    assert sum(both) / 2 == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_gains_are_linear_and_only_their_ratios_count() -> None:
    scores = torch.tensor([3.0, 2.0, 1.0])
    gains = torch.tensor([0.7, 0.0, 1.0])
    expected = (0.7 + 1.0 / 2) / (1.0 + 0.7 / math.log2(3))
    assert ndcg(scores, gains, k=10).item() == pytest.approx(expected)
    assert ndcg(scores, 10 * gains, k=10).item() == pytest.approx(expected)


def test_a_query_with_nothing_relevant_counts_as_0_and_not_as_undefined() -> None:
    assert ndcg(torch.rand(3, 5), torch.zeros(3, 5), k=10).tolist() == [0.0, 0.0, 0.0]


def test_who_does_not_compete_takes_no_rank() -> None:
    scores = torch.tensor([-math.inf, 1.0, -math.inf, 0.5])
    assert ndcg(scores, torch.tensor([0.0, 0.0, 0.0, 1.0]), k=2).item() == pytest.approx(1 / math.log2(3))


def test_the_ideal_knows_documents_that_were_not_ranked() -> None:
    found = torch.tensor([1.0])
    ideal = ideal_dcg(torch.tensor([1.0, 1.0]), k=10)
    assert ndcg(torch.tensor([0.3]), found, k=10, ideal=ideal).item() == pytest.approx(1 / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_rows_are_ranked_apart(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    scores, gains = torch.rand(shape, generator=rng), torch.rand(shape, generator=rng)
    together = ndcg(scores, gains, k=5).reshape(-1)
    apart: list[Tensor] = [
        ndcg(row, gain, k=5) for row, gain in zip(scores.reshape(-1, 7), gains.reshape(-1, 7), strict=True)
    ]
    assert together.tolist() == [value.item() for value in apart]


def test_the_discount_of_a_rank_is_the_logarithm_of_the_next() -> None:
    assert dcg(torch.tensor([0.0, 0.0, 1.0])).item() == pytest.approx(1 / math.log2(4))
