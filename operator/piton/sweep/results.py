"""From the rows of a sweep to what its variants have reached: means, intervals, and differences to the baseline.

Only runs that have succeeded count. Variants are compared pair by pair, fold with the same fold and seed with the same
seed: what folds and seeds differ in is then in both, and falls out of the difference.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from piton.api.spec import ObjectiveSpec
from piton.api.status import MetricValue, RunStatus
from piton.contract.interval import t_interval
from piton.sweep.model import SweepSpec
from piton.sweep.status import MetricResult, Row, SweepEstimate, VariantResult

Values = Mapping[tuple[int | None, int | None], float]
"""Fold and seed -> value."""


def metric_names(spec: SweepSpec, objective: ObjectiveSpec | None) -> tuple[str, ...]:
    """The metrics to tabulate, the objective's first."""
    judged = (objective.metric,) if objective else ()
    return tuple(dict.fromkeys((*judged, *spec.metrics)))


def values_of(status: RunStatus, objective: ObjectiveSpec | None, names: Sequence[str]) -> tuple[MetricValue, ...]:
    """Return these metrics of a run: of the objective's the best, once it is known; of the others the newest.

    Results of the stage Evaluate replace values that were reported during training.
    """
    found = {metric.name: metric.value for metric in (status.progress.metrics if status.progress else ())}
    if status.result:
        if objective and status.result.best_metric is not None:
            found[objective.metric] = status.result.best_metric
        measured = status.result.evaluation.metrics if status.result.evaluation else ()
        found |= {metric.name: metric.value for metric in measured}
    return tuple(MetricValue(name=name, value=found[name]) for name in names if name in found)


def tabulate(rows: Sequence[Row], names: Sequence[str], baseline: str) -> tuple[VariantResult, ...]:
    """Return the results of each variant, in the order of the rows."""
    variants = dict.fromkeys(row.variant for row in rows)
    return tuple(_variant(variant, rows, names, baseline) for variant in variants)


def best(results: Sequence[VariantResult], metric: str, goal: str) -> tuple[str, str] | None:
    """Return the name and mean of the best variant by that metric; None while no variant has a value."""
    known = [(float(m.value.mean), v.name, m.value.mean) for v in results for m in v.metrics if m.name == metric]
    if not known:
        return None
    _, name, text = (min if goal == "Minimize" else max)(known, key=lambda entry: entry[0])
    return name, text


def _variant(variant: str, rows: Sequence[Row], names: Sequence[str], baseline: str) -> VariantResult:
    own = [row for row in rows if row.variant == variant]
    metrics = []
    for name in names:
        values = _values(rows, variant, name)
        if values:
            others = {} if variant == baseline else _values(rows, baseline, name)
            difference = _pairs(values, others)
            metrics.append(MetricResult(name=name, value=_estimate(list(values.values())), difference=difference))
    return VariantResult(
        name=variant, succeeded=sum(row.succeeded for row in own), runs=len(own), metrics=tuple(metrics)
    )


def _values(rows: Sequence[Row], variant: str, name: str) -> Values:
    """Return the finite values by fold and seed: a run with a non-finite metric has no result in it."""
    return {
        row.pair: value
        for row in rows
        if row.variant == variant and row.succeeded
        for metric in row.metrics
        if metric.name == name and math.isfinite(value := float(metric.value))
    }


def _pairs(values: Values, baseline: Values) -> SweepEstimate | None:
    differences = [value - baseline[pair] for pair, value in values.items() if pair in baseline]
    return _estimate(differences) if differences else None


def _estimate(values: Sequence[float]) -> SweepEstimate:
    if len(values) == 1:
        return SweepEstimate(mean=_text(values[0]))
    low, high = t_interval(values)
    return SweepEstimate(mean=_text(mean(values)), low=_text(low), high=_text(high))


def _text(value: float) -> str:
    return f"{value:.6g}"
