"""Figures beside recorded ones: which of them got worse. Pure.

Machines differ, and so does one machine from hour to hour. Where a figure is a time or CPU time, the two floors of the
same runs say by how much: a figure of a machine that is half as fast may be twice as large.
"""

from dataclasses import dataclass, replace

from bench.operator_scale.figure import Figure, Results, Scale
from bench.operator_scale.figures import FIGURES, values

TOLERANCE = 0.25
"""Two runs on one machine differ by so much."""
NOT_RECORDED = "not recorded"
"""The verdict on a figure that is not among those that were recorded for as many runs."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure beside the recorded one."""

    figure: Figure
    value: float | None
    """None: it was not measured."""
    recorded: float | None
    ratio: float | None
    """Over the recorded one, on a machine as fast as then; None where one of the two is missing or 0."""
    verdict: str
    """`worse`, `better`, `not recorded`, or nothing."""


def compare(results: Results, recorded: Results | None, *, tolerance: float = TOLERANCE) -> list[Comparison]:
    """Return each figure beside that of the recorded results for as many runs."""
    now, then = values(results), values(recorded) if recorded else {}
    found = (
        _compared(figure, now[figure.name], then.get(figure.name), _slowness(figure, results, recorded), tolerance)
        for figure in FIGURES
    )
    return [one if then else replace(one, verdict="") for one in found]


def _compared(
    figure: Figure, value: float | None, recorded: float | None, slowness: float, tolerance: float
) -> Comparison:
    ratio, verdict = None, ""
    if value is not None and recorded is None:
        verdict = NOT_RECORDED
    if value is not None and recorded is not None:
        expected = recorded * slowness
        ratio = value / expected if expected else None
        if value - expected > max(figure.slack, tolerance * expected):
            verdict = "worse"
        if expected - value > figure.slack and value < expected / (1 + tolerance):
            verdict = "better"
    return Comparison(figure=figure, value=value, recorded=recorded, ratio=ratio, verdict=verdict)


def _slowness(figure: Figure, results: Results, recorded: Results | None) -> float:
    """Return how many times as slow the machine is as it was when the recorded figure was measured."""
    if recorded is None or figure.scale is Scale.NONE:
        return 1.0
    now, then = results["floor"][figure.scale.value], recorded["floor"][figure.scale.value]
    return float(now / then) if now and then else 1.0
