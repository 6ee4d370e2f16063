"""The table that people paste, and the one that programs read."""

import csv
import io

import pytest

from piton.api.status_base import Phase
from piton.sweep.results import tabulate
from piton.sweep.status import SweepStatus
from piton.sweep.table import Format, render
from support.sweeps import a_row


@pytest.fixture
def status() -> SweepStatus:
    rows = [a_row("base", 0.70, fold=0), a_row("base", 0.72, fold=1)]
    rows += [a_row("is_o", 0.74, fold=0), a_row("is_o", 0.77, fold=1)]
    rows += [a_row("frozen", 0.5, fold=0), a_row("frozen", None, Phase.PENDING, fold=1)]
    return SweepStatus(baseline="base", runs=tuple(rows), results=tabulate(rows, ["ndcg"], "base"))


def test_on_a_terminal_columns_stand_under_each_other(status: SweepStatus) -> None:
    assert render(status, Format.TABLE).splitlines() == [
        "variant  runs  ndcg         vs base",
        "base     2/2   0.71 ± 0.13",
        "is_o     2/2   0.76 ± 0.19  +0.045 ± 0.064",
        "frozen   1/2   0.5          -0.2",
    ]


def test_markdown_aligns_numbers_to_the_right(status: SweepStatus) -> None:
    lines = render(status, Format.MARKDOWN).splitlines()

    assert lines[:3] == [
        "| variant | runs | ndcg | vs base |",
        "| --- | ---: | ---: | ---: |",
        "| base | 2/2 | 0.71 ± 0.13 |  |",
    ]


def test_latex_escapes_names_and_sets_numbers_as_mathematics(status: SweepStatus) -> None:
    lines = render(status, Format.LATEX).splitlines()

    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert r"is\_o & 2/2 & $0.76 \pm 0.19$ & $+0.045 \pm 0.064$ \\" in lines
    assert r"base & 2/2 & $0.71 \pm 0.13$ &  \\" in lines
    assert lines[-1] == r"\end{tabular}"


def test_csv_has_every_number_apart(status: SweepStatus) -> None:
    base, other, frozen = csv.DictReader(io.StringIO(render(status, Format.CSV)))

    assert (base["variant"], base["mean"], base["difference"]) == ("base", "0.71", "")
    assert float(other["low"]) < float(other["mean"]) < float(other["high"])
    assert other["baseline"] == "base"
    assert float(other["difference"]) == pytest.approx(0.045)
    assert (frozen["succeeded"], frozen["runs"], frozen["low"]) == ("1", "2", "")


def test_a_sweep_without_values_is_a_table_of_its_variants() -> None:
    rows = [a_row("base", None, Phase.STARTING)]
    status = SweepStatus(baseline="base", results=tabulate(rows, ["ndcg"], "base"))

    assert render(status, Format.TABLE) == "variant  runs\nbase     0/1\n"
