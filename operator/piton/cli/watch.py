"""Three ways to watch a run: live in a terminal, as lines, and not at all. All of them on stderr.

A terminal may stand still (Ctrl-S, a frozen connection, a pipe that nobody reads). A write then lasts until it moves
again. Announcements and progress are therefore written by another thread than the one that drives the run.
"""

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from piton.api.status_base import Phase
from piton.contract.duration import format_duration
from piton.contract.progress import Progress
from piton.core.effects import Announcement
from piton.local.observers import View

_LINE_SECONDS = 5.0
"""Between two lines about progress alone."""
_NOWHERE = (None, None, None)
_BAR_WIDTH_MIN = 8
_WITHOUT_STEPS = (Phase.PREPARING, Phase.EVALUATING)


class NoOutput:
    """Nobody watches."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def announce(self, announcement: Announcement) -> None:
        """Say nothing."""

    def show(self, view: View) -> None:
        """Show nothing."""


class Printer:
    """Prints in order, on a thread of its own, so that a terminal that stands still holds up no training.

    While the terminal stands still, the newest 1,000 lines wait; older ones are left out.
    """

    _WAITING_MAX = 1000

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque(maxlen=self._WAITING_MAX)
        self._changed = threading.Condition()
        self._is_printing = False

    def print(self, write: Callable[[], None]) -> None:
        """Queue a write. Errors of the write are dropped."""
        with self._changed:
            self._waiting.append(write)
            if not self._is_printing:
                with contextlib.suppress(RuntimeError):  # the machine has no thread left: the next line tries again
                    threading.Thread(target=self._print_all, name="printer", daemon=True).start()
                    self._is_printing = True

    def finish(self) -> None:
        """Wait until all is written, however long the terminal stands still."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_printing)

    def _print_all(self) -> None:
        while (write := self._next()) is not None:
            with contextlib.suppress(Exception):
                write()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            self._is_printing = False
            self._changed.notify_all()
            return None


class Lines(NoOutput):
    """Plain lines, for logs and pipes: each announcement, and progress from time to time."""

    def __init__(self, printer: Printer, prefix: str = "") -> None:
        self._printer = printer
        self._prefix = prefix
        self._last: datetime | None = None
        self._place: tuple[str | None, int | None, int | None] = _NOWHERE
        """The session, the step and the percentage of the last line."""

    def __exit__(self, *_: object) -> None:
        self._printer.finish()

    async def announce(self, announcement: Announcement) -> None:
        """One line."""
        self._print(announcement.message)

    def show(self, view: View) -> None:
        """A line when the last one is old and there is something new."""
        shown = view.progress
        place = (shown.session, shown.step, shown.percentage) if shown else _NOWHERE
        if place in (_NOWHERE, self._place):
            return
        if self._last is not None and (view.now - self._last).total_seconds() < _LINE_SECONDS:
            return
        self._last, self._place = view.now, place
        self._print(", ".join([_position(view), *facts(view)]))

    def _print(self, text: str) -> None:
        line = self._prefix + text
        self._printer.print(lambda: print(line, file=sys.stderr, flush=True))


class Live(NoOutput):
    """A bar and a line of facts at the bottom of the terminal, whatever its width; announcements scroll above."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._printer = Printer()
        self._console = Console(stderr=True, highlight=False)
        self._live = RichLive(console=self._console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._printer.finish()
        self._live.stop()

    async def announce(self, announcement: Announcement) -> None:
        """One line above the bar."""
        line = Text(announcement.message, style="yellow" if announcement.severity == "Warning" else "")
        self._printer.print(lambda: self._live.console.print(line))

    def show(self, view: View) -> None:
        """Keep it for the next refresh."""
        self._view = view

    def _render(self) -> "Panel | Text":
        return Text("") if self._view is None else Panel(self._view)


class Panel:
    """Two lines about a run that never wrap: what does not fit is left out, the least important first."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._bar(options.max_width)
        parts: list[str] = []
        for fact in facts(self.view):
            if len(" · ".join([*parts, fact])) <= options.max_width:
                parts.append(fact)
        yield Text(" · ".join(parts), no_wrap=True, overflow="ellipsis", style="dim")

    def _bar(self, width: int) -> Table | Text:
        view, left, right = self.view, self.view.name, _position(self.view)
        fixed = len(left) + len(right) + 2
        if width < fixed + _BAR_WIDTH_MIN:
            return Text(f"{left} {right}", no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 1, 0, 0))
        bar = ProgressBar(total=100, completed=fraction(view.progress) * 100, width=width - fixed)
        table.add_row(Text(left, style="bold", no_wrap=True), bar, Text(right, no_wrap=True))
        return table


def fraction(progress: Progress | None) -> float:
    """The part of the training that is done, from 0 to 1."""
    if progress is None:
        return 0.0
    if progress.step is not None and progress.total_steps:
        return min(1.0, progress.step / progress.total_steps)
    return (progress.percentage or 0) / 100


def _position(view: View) -> str:
    progress, phase = view.progress, view.status.phase
    if phase in _WITHOUT_STEPS:
        return phase.lower()
    if progress is not None and progress.session is not None:
        return progress.session
    if progress is None or (progress.step is None and progress.percentage is None):
        return "starting"
    if progress.step is None:  # transformers' first report and its last
        return f"{fraction(progress):.0%}"
    total = "" if progress.total_steps is None else f"/{progress.total_steps}"
    return f"{fraction(progress):.0%} step {progress.step}{total}"


def facts(view: View) -> list[str]:
    """Describe the current state, the most important part first."""
    status, progress = view.status, view.progress
    found = [status.phase.lower() if status.phase not in (Phase.TRAINING, *_WITHOUT_STEPS) else ""]
    if progress is not None:
        found += _training(view, progress)
    if status.checkpoint:
        age = (view.now - status.checkpoint.time).total_seconds()
        found.append(f"saved step {status.checkpoint.step}, {format_duration(age)} ago")
    found.append(f"attempt {status.attempt}" if status.attempt else "")
    found.append(f"{status.preemptions} preempted" if status.preemptions else "")
    found.append(f"{status.failures} failed" if status.failures else "")
    return [fact for fact in found if fact]


def _training(view: View, progress: Progress) -> list[str]:
    shown = dict.fromkeys(("loss", view.objective or "val_loss"))
    found = [f"{name} {progress.metrics[name]:.4g}" for name in shown if name in progress.metrics]
    if progress.remaining_seconds is not None:
        found.append(f"{format_duration(progress.remaining_seconds)} left")
    if "tokens_per_second" in progress.metrics:
        found.append(f"{progress.metrics['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in progress.metrics:
        found.append(f"MFU {progress.metrics['mfu']:.1%}")
    return found
