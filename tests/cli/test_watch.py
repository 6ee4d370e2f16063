import functools
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from piton.api.status import CheckpointStatus, RunStatus
from piton.api.status_base import Phase
from piton.cli.watch import Lines, Panel, Printer, facts
from piton.contract.progress import Progress
from piton.local.observers import View
from support.builders import NOW, later


def a_view(step: int | None = 120, *, seconds: float = 0, **fields: Any) -> View:
    progress = None
    if step is not None:
        figures = {"loss": 1.2345678, "val_loss": 1.3, "tokens_per_second": 8191.4, "mfu": 0.311}
        progress = Progress(updated="", step=step, total_steps=300, remaining_seconds=75, metrics=figures)
    saved = CheckpointStatus(step=100, time=NOW - timedelta(seconds=5), attempt=2)
    status = RunStatus(phase=Phase.TRAINING, attempt=2, preemptions=1, checkpoint=saved)
    return View(name="ragcun", status=status, progress=progress, objective=None, now=later(seconds), **fields)


@pytest.mark.parametrize("width", [1, 5, 12, 20, 33, 40, 79, 80, 120, 400])
@pytest.mark.parametrize("view", [a_view(), a_view(None)], ids=["training", "starting"])
def test_the_panel_is_two_lines_in_any_terminal(view: View, width: int) -> None:
    console = Console(width=width, height=50, force_terminal=True, legacy_windows=False)
    lines = console.render_lines(Panel(view), pad=False)

    assert len(lines) <= 2
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)


def test_a_wide_panel_says_everything() -> None:
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(Panel(a_view()))

    for words in ("ragcun", "40% step 120/300", "loss 1.235", "val_loss 1.3", "1m15s left", "8,191 tokens/s",
                  "MFU 31.1%", "saved step 100, 5s ago", "attempt 2", "1 preempted"):  # fmt: skip
        assert words in captured.get()


def test_the_phase_is_told_unless_it_is_training() -> None:
    stopping = a_view(None)
    status = stopping.status.model_copy(update={"phase": Phase.STOPPING})

    assert facts(View(name="a", status=status, progress=None, objective=None, now=NOW))[0] == "stopping"
    assert "training" not in " ".join(facts(stopping))


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.EVALUATING])
def test_a_stage_without_steps_is_told_where_the_steps_would_be(phase: Phase) -> None:
    view = a_view(None)
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(Panel(replace(view, status=view.status.model_copy(update={"phase": phase}))))

    assert captured.get().count(phase.lower()) == 1
    assert "starting" not in captured.get()


def test_progress_without_a_step_is_told_by_its_percentage(capsys: pytest.CaptureFixture[str]) -> None:
    """As transformers begins and ends."""
    lines = Lines(printer := Printer())
    for percentage, seconds in ((0, 0.0), (None, 10.0), (0, 20.0), (100, 30.0)):
        view = a_view(None, seconds=seconds)
        lines.show(replace(view, progress=Progress(updated="", percentage=percentage)))
    printer.finish()

    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["0%", "100%"]


def test_plain_lines_tell_progress_when_it_is_new_and_not_too_often(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(printer := Printer())
    for step, seconds in ((1, 0.0), (2, 1.0), (2, 6.0), (3, 6.1), (3, 12.0), (3, 20.0)):
        lines.show(a_view(step, seconds=seconds))
    printer.finish()

    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["0% step 1/300", "1% step 2/300", "1% step 3/300"]


def test_what_a_printer_has_waiting_is_bounded_and_in_order() -> None:
    stands, moves = threading.Event(), threading.Event()
    written: list[int] = []

    def stand_still() -> None:
        stands.set()
        moves.wait(10)

    printer = Printer()
    printer.print(stand_still)
    stands.wait(10)
    for number in range(1500):
        printer.print(functools.partial(written.append, number))
    moves.set()
    printer.finish()

    assert written == list(range(500, 1500))


def test_what_cannot_be_written_is_lost_alone() -> None:
    written: list[str] = []

    def fail() -> None:
        raise OSError(5, "Input/output error")

    printer = Printer()
    printer.print(fail)
    printer.print(lambda: written.append("next"))
    printer.finish()

    assert written == ["next"]
