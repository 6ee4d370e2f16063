"""Student's interval, against the library that everybody trusts."""

import math
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from piton.contract.interval import t_interval, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 30, 99, 1000])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.9, 0.975, 0.995, 0.9999])
def test_a_quantile_is_scipys(probability: float, freedom: int) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_an_interval_is_scipys(values: list[float]) -> None:
    error = stdev(values) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    expected = (mean(values) - half, mean(values) + half)
    assert t_interval(values) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_ten_folds_are_multiplied_by_2262_and_not_by_196() -> None:
    values = [0.70, 0.72, 0.74, 0.76, 0.78, 0.70, 0.72, 0.74, 0.76, 0.78]
    low, high = t_interval(values)
    assert (high - low) / 2 == pytest.approx(2.262 * stdev(values) / math.sqrt(10), rel=1e-3)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_one_value_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two values"):
        t_interval(values)


@pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_that_does_not_exist_is_refused(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, freedom)
