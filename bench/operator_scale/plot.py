"""The picture of cost over the number of runs, on logarithmic axes: of these runs, beside what is recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.operator_scale.figure import Figure
from bench.operator_scale.figures import FIGURES, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {
    "operator_cpu_ms": "bring-up: operator CPU per run, ms",
    "bring_up_over_necessary": "bring-up over its necessary writes alone",
    "idle_requests": "idle: requests per second",
    "memory_kb": "operator's memory per run, KB",
}
_MINOR_LABELS = (2, 0.4)
"""Decades up to which numbers between powers of ten have labels: all of them, and some."""
_SIZE_INCHES = (9.0, 6.4)
_NOW, _RECORDED, _GOAL = "#4c72b0", "#8c8c8c", "#55a868"
_LEAST = 0.01
"""What is less is drawn as this: 0 has no place on a logarithmic axis."""

AllResults = Mapping[int, Mapping[str, Any]]


def draw(path: Path, results: AllResults, recorded: AllResults) -> None:
    """Draw one panel for each of four figures."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasSVG(picture)
    every = sorted({*results, *recorded})
    by_name = {figure.name: figure for figure in FIGURES}
    for axes, (name, title) in zip(picture.subplots(2, 2).flat, _PANELS.items(), strict=True):
        _panel(axes, by_name[name], results, recorded, every)
        _dress(axes, title, every)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, format="svg")


def line(name: str, results: AllResults) -> list[tuple[int, float]]:
    """Return the points of a figure: number of runs, value."""
    found = ((runs, values(results[runs])[name]) for runs in sorted(results))
    return [(runs, max(value, _LEAST)) for runs, value in found if value is not None]


def _panel(axes: "Axes", figure: Figure, results: AllResults, recorded: AllResults, every: list[int]) -> None:
    lines = (("recorded", recorded, _RECORDED, "--"), ("now", results, _NOW, "-"))
    for label, of, colour, style in lines:
        if points := line(figure.name, of):
            axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=label)
    if figure.goal is not None:
        axes.plot(every, [figure.goal(runs) for runs in every], ":", color=_GOAL, label="goal")


def _dress(axes: "Axes", title: str, every: list[int]) -> None:
    from matplotlib.ticker import LogFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=_MINOR_LABELS))
    axes.set_xticks(every, [f"{runs:,}" for runs in every])
    axes.set_xticks([], minor=True)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("runs")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
