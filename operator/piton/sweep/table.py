"""The results of a sweep as a table: for a terminal, Markdown, LaTeX, or as CSV for other programs.

A value is shown as mean ± half of its interval; CSV has every number apart, as the status has it.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from piton.sweep.status import MetricResult, SweepEstimate, SweepStatus, VariantResult


class Format(StrEnum):
    """Format of a table."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table of text cells. The first column contains names, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render(status: SweepStatus, form: Format) -> str:
    """Return the results as text, with a final line feed."""
    if form is Format.CSV:
        return _csv(status)
    return _RENDERERS[form](tabulated(status))


def tabulated(status: SweepStatus) -> Table:
    """Return a row per variant, with the value of each metric and its difference to the baseline."""
    names = list(dict.fromkeys(metric.name for result in status.results for metric in result.metrics))
    compared = [name for name in names if any(_difference(result, name) for result in status.results)]
    head = ["variant", "runs"]
    for name in names:
        head += [name, f"vs {status.baseline}"] if name in compared else [name]
    rows = []
    for result in status.results:
        cells = [result.name, f"{result.succeeded}/{result.runs}"]
        for name in names:
            metric = _metric(result, name)
            cells.append(_shown(metric.value) if metric else "")
            if name in compared:
                difference = _difference(result, name)
                cells.append(_shown(difference, sign="+") if difference else "")
        rows.append(tuple(cells))
    return Table(head=tuple(head), rows=tuple(rows))


def _metric(result: VariantResult, name: str) -> MetricResult | None:
    return next((metric for metric in result.metrics if metric.name == name), None)


def _difference(result: VariantResult, name: str) -> SweepEstimate | None:
    metric = _metric(result, name)
    return metric.difference if metric else None


def _shown(value: SweepEstimate, sign: str = "") -> str:
    """Two digits of half the interval, which is symmetric, and as many of the mean as that leaves certain."""
    mean = float(value.mean)
    half = 0.0 if value.low is None or value.high is None else (float(value.high) - float(value.low)) / 2
    if half <= 0:
        return f"{mean:{sign}.4g}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def _plain(table: Table) -> str:
    widths = [max(len(row[column]) for row in (table.head, *table.rows)) for column in range(len(table.head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (table.head, *table.rows)
    ]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> str:
    rule = ("---", *("---:" for _ in table.head[1:]))
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.head, rule, *table.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _latex(table: Table) -> str:
    """For the package booktabs."""
    head = " & ".join(_escaped(cell) for cell in table.head)
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", "\\toprule", f"{head} \\\\", "\\midrule"]
    lines += [_latex_row(row) for row in table.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    variant, runs, *numbers = cells
    shown = [f"${cell.replace('±', _PLUS_MINUS)}$" if cell else "" for cell in numbers]
    return " & ".join([_escaped(variant), runs, *shown]) + " \\\\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _csv(status: SweepStatus) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    writer.writerows(_csv_rows(status))
    return out.getvalue()


def _csv_rows(status: SweepStatus) -> Iterator[list[object]]:
    for result in status.results:
        for metric in result.metrics:
            value, difference = metric.value, metric.difference
            compared = [status.baseline, difference.mean, difference.low, difference.high] if difference else [None] * 4
            yield [
                result.name,
                result.succeeded,
                result.runs,
                metric.name,
                value.mean,
                value.low,
                value.high,
                *compared,
            ]


_CSV_HEAD = ("variant", "succeeded", "runs", "metric", "mean", "low", "high", "baseline", "difference",
             "difference_low", "difference_high")  # fmt: skip
_PLUS_MINUS = "\\pm"
_LATEX = {
    "\\": "\\textbackslash{}",
    "_": "\\_",
    "%": "\\%",
    "&": "\\&",
    "#": "\\#",
    "$": "\\$",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}
_RENDERERS: dict[Format, Callable[[Table], str]] = {
    Format.TABLE: _plain,
    Format.MARKDOWN: _markdown,
    Format.LATEX: _latex,
}
