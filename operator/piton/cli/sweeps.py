"""`piton run` of a sweep, and `piton results`: from arguments to an order, and to tables."""

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Self

import click

from piton.api.conditions import SUSPENDED
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.cli import drill_results, files
from piton.cli.watch import Lines, NoOutput, Printer
from piton.contract import InputError, names
from piton.core.effects import Announcement
from piton.local import drills as fire
from piton.local import sweep_folder, sweep_runner
from piton.local.drills import Drill
from piton.local.observers import RunObserver
from piton.local.own_files import SWEEP
from piton.local.sweep_runner import SweepEnding, SweepRequest
from piton.sweep.parse import ParsedSweep
from piton.sweep.status import SweepStatus
from piton.sweep.table import Format, render
from piton.timing import Timing


class ConsoleSweepObserver:
    """Prints the events of all runs as lines, each with the name of the run before it."""

    def __init__(self, sweep: str, *, quiet: bool) -> None:
        self._sweep = sweep
        self._printer = None if quiet else Printer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._printer is not None:
            self._printer.finish()

    async def announce(self, announcement: Announcement) -> None:
        """Print an announcement of the sweep as a whole."""
        await self._lines().announce(announcement)

    def of(self, name: str) -> RunObserver:
        """Return the observer of that run."""
        return self._lines(f"{name.removeprefix(f'{self._sweep}-')}: ")

    def _lines(self, prefix: str = "") -> NoOutput:
        return NoOutput() if self._printer is None else Lines(self._printer, prefix)


def train(
    sweep: ParsedSweep,
    *,
    folder: Path | None,
    drills: tuple[str, ...],
    notice_seconds: float,
    timing: Timing,
    price: Fraction | None,
    as_json: bool,
    fresh: bool,
    quiet: bool,
) -> int:
    """Run it.

    The exit code is 0 when every run has succeeded, 1 when one failed, 3 when all have succeeded and a drill has not
    fired, 128 + the signal's after Ctrl-C.
    """
    order = SweepRequest(
        sweep=sweep,
        root=folder or Path("runs") / sweep.meta.name,
        fresh=fresh,
        drills=drills_of(sweep, drills),
        notice_seconds=notice_seconds,
        timing=timing,
        price=price,
    )
    with ConsoleSweepObserver(sweep.meta.name, quiet=quiet) as observer:
        ending = sweep_runner.run(order, observer)
    if as_json:
        click.echo(json.dumps(_wire(ending)))
    _close(ending)
    for name, error in ending.errors.items():
        if isinstance(error, InputError):
            raise InputError(f"{name}: {error}") from error
        raise error
    if ending.status.phase is Phase.SUCCEEDED:
        return drill_results.exit_code(ending.runs)
    return 1 if ending.interrupted is None else 128 + int(ending.interrupted)


def drills_of(sweep: ParsedSweep, texts: Iterable[str]) -> dict[str, tuple[Drill, ...]]:
    """Map each drill to its runs: `isotropy:preempt@50%` is for the runs of a variant, or one; without a name for all.

    Raises:
        ValueError: the variant or run does not exist, or the text is not a drill.
    """
    found: dict[str, tuple[Drill, ...]] = {}
    known = {run.variant for run in sweep.plan} | {run.short_name(sweep.meta.name) for run in sweep.plan}
    for text in texts:
        prefix, colon, rest = text.partition(":")
        name = prefix if colon and prefix in known else None
        drill = _drill(text if name is None else rest, known)
        for run in sweep.plan:
            if name in (None, run.variant, run.short_name(sweep.meta.name)):
                found[run.name] = (*found.get(run.name, ()), drill)
    return found


def _drill(text: str, known: Iterable[str]) -> Drill:
    try:
        return fire.parse(text)
    except ValueError as error:
        if ":" not in text:
            raise
        raise InputError(f"{error}; a name before the colon is one of {', '.join(sorted(known))}") from error


def _wire(ending: SweepEnding) -> dict[str, object]:
    """As plain values, camelCase."""
    status = ending.status.to_wire()
    kept = {key: status.get(key) for key in ("phase", "done", "counts", "best", "baseline", "results", "cost")}
    return {"name": ending.name, **kept, "runs": [summary.to_wire() for summary in ending.runs]}


def _close(ending: SweepEnding) -> None:
    """The last words, on stderr: stdout belongs to --json."""
    status = ending.status
    held = status.condition(SUSPENDED)
    if status.phase is Phase.SUSPENDED and held is not None and held.reason is Reason.BUDGET_EXCEEDED:
        click.echo(held.message, err=True)
    elif ending.interrupted is not None and status.phase is not Phase.SUCCEEDED:
        click.echo("Stopped; what was trained is saved; the same command continues.", err=True)
    elif not ending.trained:
        click.echo(f"{ending.name} is finished already; nothing was trained. Say --fresh to start over.", err=True)
    for summary in ending.runs:
        if summary.phase == Phase.FAILED:
            click.echo(f"{summary.name} failed: {summary.message}; its logs are in {summary.logs}", err=True)
    cost = f", for ${status.cost.spent}" if status.cost else ""
    click.echo(f"{ending.name}: {status.phase}, {status.done} runs are done{cost}", err=True)
    click.echo(render(status, Format.TABLE), err=True, nl=False)
    drill_results.complain(ending.runs)


def results(place: str, *, form: str, folder: Path | None) -> int:
    """Print the table of a sweep: of its folder, name or file, or of the object on stdin."""
    status = _piped(Path(place)) if place == files.STDIN else _local(Path(place), folder)
    click.echo(render(status, Format(form)), nl=False)
    return 0


def _local(place: Path, folder: Path | None) -> SweepStatus:
    named = Path("runs") / place
    if place.is_dir() or (not place.exists() and named.is_dir()):
        return _of_folder(place if place.is_dir() else named)
    if place.suffix == ".json" or place.is_fifo() or place.is_char_device():
        return _piped(place)
    found = files.read_any(place)
    if not isinstance(found, ParsedSweep):
        raise InputError(f"{place} holds a TrainingRun; results are of a TrainingSweep")
    return _of_folder(folder or Path("runs") / found.meta.name)


def _of_folder(root: Path) -> SweepStatus:
    state = sweep_folder.load(root)
    if state is None:
        raise InputError(f"{root} holds no sweep (it has no {SWEEP.state_file}); run it first, or name its folder")
    return state.status


def _piped(place: Path) -> SweepStatus:
    """Return the object as `kubectl get tsweep NAME -o json` prints it."""
    wanted = "pipe kubectl get tsweep NAME -o json here"
    text = files.read_text(place, names.SWEEP_KIND)
    try:
        document = json.loads(text)
        kind, found = document.get("kind", names.SWEEP_KIND), SweepStatus.read(document["status"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(f"that is no TrainingSweep with a status; {wanted}") from error
    if kind != names.SWEEP_KIND:
        raise InputError(f"that is a {kind}, and results are of a {names.SWEEP_KIND}; {wanted}")
    if found.unreadable:
        raise InputError(f"{found.unreadable}; print it with the version that wrote it")
    return found
