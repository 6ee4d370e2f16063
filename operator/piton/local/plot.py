"""The picture of a run: loss and objective over steps, every preemption marked. Needs matplotlib (extra `trainer`)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from piton.api.reasons import Reason
from piton.api.status import AttemptStatus, Verdict
from piton.local import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS = "loss"
_SIZE_INCHES = (9.0, 4.8)
_DPI = 130
_LOSS_COLOUR, _OBJECTIVE_COLOUR, _MARK_COLOUR = "#4c72b0", "#dd8452", "#8c8c8c"
_MARKERS_UP_TO = 60
"""With more points than this, markers hide the line."""
_LABELS_UP_TO = 15
"""With more ends than this, their labels cover each other."""
_MARKED = (Verdict.PREEMPTED, Verdict.INFRASTRUCTURE, Verdict.USER_FAILURE)
_BACKEND = "MPLBACKEND"
_DRAWABLE_MAX = 1e300
"""Axes around a value near the largest float cannot be computed."""
_LABELS = {Reason.NODE_GONE: "killed", Reason.NODE_RECLAIMED: "preempted"}


def draw(
    path: Path, *, name: str, points: Sequence[metrics.Point], objective: str | None, attempts: Sequence[AttemptStatus]
) -> bool:
    """Draw it; False when there is nothing to draw, or nothing to draw with."""
    lines = {metric: metrics.series(points, metric) for metric in dict.fromkeys((LOSS, objective or "val_loss"))}
    lines = {metric: values for metric, given in lines.items() if (values := _drawable(given))}
    if not lines:
        return False
    try:
        with _any_backend():  # the first import reads the variable
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for metric, values in lines.items():
        _line(axes, metric, values)
    ends = [attempt for attempt in attempts if attempt.step is not None and attempt.verdict in _MARKED]
    for attempt in ends:
        _mark(axes, attempt, labelled=len(ends) <= _LABELS_UP_TO)
    _dress(axes, name)
    figure.savefig(path, format="png")
    return True


@contextmanager
def _any_backend() -> Iterator[None]:
    """Hide MPLBACKEND: a notebook names its own backend there, which is not installed here and is not needed."""
    backend = os.environ.pop(_BACKEND, None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ[_BACKEND] = backend


def _drawable(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in values if not abs(value) > _DRAWABLE_MAX]


def _line(axes: "Axes", metric: str, values: Sequence[tuple[int, float]]) -> None:
    if metric == LOSS:
        steps, heights = zip(*values, strict=True)
        axes.plot(steps, heights, color=_LOSS_COLOUR, linewidth=1.3, label=metric)
        return
    steps, heights = zip(*metrics.changes(values), strict=True)
    marker = "o" if len(steps) <= _MARKERS_UP_TO else None
    axes.plot(steps, heights, color=_OBJECTIVE_COLOUR, linewidth=1.8, marker=marker, markersize=4, label=metric)


def _mark(axes: "Axes", attempt: AttemptStatus, *, labelled: bool) -> None:
    """A vertical line where an attempt ended against its will."""
    assert attempt.step is not None
    axes.axvline(attempt.step, color=_MARK_COLOUR, linestyle="--", linewidth=1.0)
    if not labelled:
        return
    what = _LABELS.get(attempt.reason) if attempt.reason else None
    label = what or ("preempted" if attempt.verdict is Verdict.PREEMPTED else "failed")
    axes.annotate(
        f"{label} at {attempt.step}",
        xy=(attempt.step, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color="#555555",
    )


def _dress(axes: "Axes", name: str) -> None:
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
