"""Means, intervals and paired differences, against scipy."""

import math
from statistics import mean

import pytest
from scipy import stats

from piton.api.status_base import Phase
from piton.sweep.results import best, tabulate
from piton.sweep.status import MetricResult, VariantResult
from support.sweeps import a_row

BASE = [0.70, 0.72, 0.74, 0.76, 0.78]
BETTER = [0.72, 0.73, 0.76, 0.77, 0.80]


def of(results: tuple[VariantResult, ...], variant: str) -> MetricResult:
    return next(metric for result in results if result.name == variant for metric in result.metrics)


def numbers(*texts: str | None) -> list[float]:
    return [float(text) for text in texts if text is not None]


def test_a_variant_has_the_mean_and_the_interval_that_scipy_has() -> None:
    results = tabulate([a_row("base", value, fold=n) for n, value in enumerate(BASE)], ["ndcg"], "base")

    value = of(results, "base").value
    low, high = stats.t.interval(0.95, len(BASE) - 1, loc=mean(BASE), scale=stats.sem(BASE))
    assert numbers(value.mean, value.low, value.high) == pytest.approx([mean(BASE), low, high], abs=1e-6)
    assert of(results, "base").difference is None


def test_a_difference_is_taken_pair_by_pair_whatever_the_order() -> None:
    rows = [a_row("base", value, fold=n) for n, value in enumerate(BASE)]
    rows += [a_row("better", value, fold=n) for n, value in reversed(list(enumerate(BETTER)))]

    difference = of(tabulate(rows, ["ndcg"], "base"), "better").difference

    assert difference is not None
    paired = stats.ttest_rel(BETTER, BASE).confidence_interval(0.95)
    assert numbers(difference.mean, difference.low, difference.high) == pytest.approx(
        [mean(BETTER) - mean(BASE), paired.low, paired.high], abs=1e-6
    )


def test_only_pairs_that_both_have_are_compared() -> None:
    rows = [a_row("base", 0.5, fold=0), a_row("base", 0.6, fold=1), a_row("other", 0.8, fold=1)]

    found = of(tabulate(rows, ["ndcg"], "base"), "other")

    assert (found.value.mean, found.value.low) == ("0.8", None)
    assert found.difference is not None
    assert (found.difference.mean, found.difference.low) == ("0.2", None)


def test_a_seed_is_not_paired_with_another_seed() -> None:
    rows = [a_row("base", 0.5, seed=0), a_row("other", 0.8, seed=1)]

    assert of(tabulate(rows, ["ndcg"], "base"), "other").difference is None


def test_only_runs_that_have_succeeded_count() -> None:
    rows = [
        a_row("base", 0.5, fold=0),
        a_row("base", 0.9, Phase.TRAINING, fold=1),
        a_row("base", 0.9, Phase.FAILED, fold=2),
    ]

    (result,) = tabulate(rows, ["ndcg"], "base")

    assert (result.succeeded, result.runs, result.metrics[0].value.mean) == (1, 3, "0.5")


def test_a_variant_without_values_has_none() -> None:
    (result,) = tabulate([a_row("base", None, Phase.PENDING)], ["ndcg", "loss"], "base")

    assert (result.succeeded, result.metrics) == (0, ())


@pytest.mark.parametrize(("goal", "name"), [("Minimize", "base"), ("Maximize", "other")])
def test_the_best_is_so_by_the_goal(goal: str, name: str) -> None:
    results = tabulate([a_row("base", 0.5), a_row("other", 0.8), a_row("none")], ["ndcg"], "base")

    found = best(results, "ndcg", goal)

    assert found is not None
    assert found[0] == name
    assert best(results, "loss", goal) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_does_not_count(value: float) -> None:
    (result,) = tabulate([a_row("base", value, fold=0), a_row("base", 0.5, fold=1)], ["ndcg"], "base")

    assert (result.metrics[0].value.mean, result.metrics[0].value.low) == ("0.5", None)
