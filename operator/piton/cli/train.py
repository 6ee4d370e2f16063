"""`piton run`: from arguments to an order, and from its ending to words, JSON and an exit code."""

import contextlib
import json
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from piton.api.status_base import Phase
from piton.cli import drill_results, files, sweeps
from piton.cli.watch import Lines, Live, NoOutput, Printer
from piton.contract import InputError, startup_phases
from piton.contract.duration import format_duration, parse_duration
from piton.local import drills as fire
from piton.local.observers import RunObserver
from piton.local.runner import LOCAL_PACE, Ending, RunRequest, run
from piton.local.summary import Summary
from piton.sweep.parse import ParsedSweep

_LOG_LINES = 15
_TENTHS_BELOW = 60


def train(
    file: Path,
    *,
    folder: Path | None,
    drills: tuple[str, ...],
    notice: str,
    after_training: str,
    price: str | None,
    as_json: bool,
    fresh: bool,
    quiet: bool,
) -> int:
    """Run it.

    The exit code is 0 when the model is trained, 1 when the run failed, 3 when it is trained and a drill has not fired,
    128 + the signal's after Ctrl-C.
    """
    parsed, notice_seconds = files.read_any(file), _seconds_of("--notice", notice)
    timing = replace(LOCAL_PACE, after_training_seconds=_seconds_of("--after-training", after_training))
    if isinstance(parsed, ParsedSweep):
        return sweeps.train(
            parsed,
            folder=folder,
            drills=drills,
            notice_seconds=notice_seconds,
            timing=timing,
            price=None if price is None else Fraction(price),
            as_json=as_json,
            fresh=fresh,
            quiet=quiet,
        )
    assert parsed.spec is not None
    order = RunRequest(
        name=parsed.meta.name,
        spec=parsed.spec,
        root=folder or Path("runs") / parsed.meta.name,
        fresh=fresh,
        drills=tuple(fire.parse(text) for text in drills),
        notice_seconds=notice_seconds,
        timing=timing,
        price=None if price is None else Fraction(price),
        goes_on=True,
    )
    with audience_of(quiet=quiet) as observer:
        ending = run(order, observer)
    if as_json:
        click.echo(json.dumps(ending.summary.to_wire()))
    _close(ending)
    return _exit_code(ending)


def _seconds_of(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def audience_of(*, quiet: bool) -> contextlib.AbstractContextManager[RunObserver]:
    """Return the observer of a run that fits the terminal."""
    if quiet:
        return NoOutput()
    return Live() if sys.stderr.isatty() else Lines(Printer())


def _exit_code(ending: Ending) -> int:
    if ending.summary.phase == Phase.SUCCEEDED:
        return drill_results.exit_code([ending.summary])
    if ending.interrupted is not None:
        return 128 + int(ending.interrupted)
    return 1


def _close(ending: Ending) -> None:
    """The last words, on stderr: stdout belongs to --json."""
    summary = ending.summary
    if ending.failed_log:
        _print(f"The last lines of {_shown(ending.failed_log)}:")
        for line in _tail(ending.failed_log):
            _print(f"  | {line}")
    if ending.interrupted is not None and summary.phase != Phase.SUCCEEDED:
        step = summary.final_step if summary.checkpoint else None
        _print("Stopped; the same command continues." if step is None else _saved(summary))
    elif not ending.trained:
        _print(f"{summary.name} is finished already; nothing was trained. Say --fresh to start over.")
    for name, value in _rows(summary):
        _print(f"{name:>12}  {value}")
    drill_results.complain([summary])


def _saved(summary: Summary) -> str:
    assert summary.checkpoint is not None
    step = int(summary.checkpoint.name.rpartition("-")[2])
    return f"Stopped; saved at step {step}; the same command continues."


def _rows(summary: Summary) -> list[tuple[str, str]]:
    outcome = summary.phase + (f": {summary.message}" if summary.message else "")
    rows = [("run", summary.name), ("outcome", outcome)]
    if summary.final_step is not None:
        rows.append(("steps", f"{summary.final_step:,}; {summary.lost_steps:,} were trained twice"))
    rows.append(("attempts", _attempts(summary)))
    rows += [("stage", _stage(name, stage)) for name, stage in summary.stages.items()]
    if summary.examples_skipped:
        rows.append(("left out", f"{_count(summary.examples_skipped, 'damaged example')} of the data"))
    if summary.cost:
        rows.append(("cost", _cost(summary.cost)))
    if summary.start_seconds:
        rows.append(("last start", startup_phases.sentence(summary.start_seconds)))
    if summary.best_metric is not None:
        at = "" if summary.best_step is None else f" at step {summary.best_step:,}"
        rows.append(("best metric", f"{summary.best_metric:.4f}{at}"))
    if summary.evaluation:
        rows.append(("evaluation", ", ".join(f"{name} {value:.4g}" for name, value in summary.evaluation.items())))
    paths = (
        ("checkpoint", summary.checkpoint),
        ("best", summary.best_checkpoint),
        ("curve", summary.curve),
        ("logs", summary.logs),
    )
    rows += [(name, _shown(path)) for name, path in paths if path]
    if summary.mirror_off:
        rows.append(("mirror", summary.mirror_off))
    if summary.weights_digest:
        rows.append(("weights", summary.weights_digest))
    if summary.drills_not_fired:
        rows.append(("not fired", ", ".join(summary.drills_not_fired)))
    return rows


def _attempts(summary: Summary) -> str:
    text = f"{summary.attempts}, with {_count(summary.preemptions, 'preemption')}"
    text += f" and {_count(summary.failures, 'failure')}"
    if summary.infrastructure_failures:
        text += f", {_count(summary.infrastructure_failures, 'failure')} of the machine"
    if summary.recovery_seconds:
        text += f"; {_seconds(summary.recovery_seconds)} to recover, in all"
    return text


def _cost(cost: Mapping[str, Any]) -> str:
    text = ("at most " if cost["isBound"] else "") + f"${cost['spent']}"
    text += f" of a budget of ${cost['budget']}" if "budget" in cost else ""
    return text + (f", ${cost['wasted']} for steps that were trained twice" if float(cost["wasted"]) else "")


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    took = "not finished" if stage["seconds"] is None else _seconds(stage["seconds"])
    return f"{name}: {took}, {_count(stage['attempts'], 'attempt')}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < _TENTHS_BELOW else format_duration(seconds)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tail(path: Path) -> list[str]:
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=_LOG_LINES)]
    return []


def _shown(path: Path) -> str:
    """Relative to where the user stands, when that is shorter."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _print(line: str) -> None:
    click.echo(line, err=True)
