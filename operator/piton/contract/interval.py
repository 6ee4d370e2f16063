"""Confidence of a mean of few measurements: Student's interval over folds or seeds.

The trainer reports it and the operator tabulates it; neither needs a statistics library for one quantile.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev

CONFIDENCE = 0.95
_HALVINGS = 200
"""More than the bits of a float: the bisection ends at neighbouring numbers."""


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Low and high end of the interval that holds the true mean with this confidence.

    Raises:
        ValueError: one value says nothing about how much it varies.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(values)}")
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's distribution with these degrees of freedom, for a probability from 0.5 up."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"no quantile of probability {probability} and {freedom} degrees of freedom; take 0.5 to 1")
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: int) -> float:
    """Probability of (-t, t); for whole degrees of freedom a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
