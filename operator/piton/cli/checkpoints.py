"""`piton checkpoint`: what is in a checkpoint directory, for people as a table, for machines as JSON.

The reading is the trainer's, which also has the rules of what may go; only `export` needs torch.
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

from piton.clock import SystemClock
from piton.contract import InputError, names
from piton.contract.assignment import Objective, SavePolicy
from piton.contract.duration import format_duration

if TYPE_CHECKING:
    from piton_trainer.checkpoint.inspect import Checked, CheckpointInfo
    from piton_trainer.checkpoint.retention import Deletions

_MARKS = {"newest": "newest", "best": "best", "weightsOnly": "weights only"}
_METRICS_SHOWN = 3
PLAIN_WIDTH = 160
"""Of a table that no terminal limits."""


@dataclass(frozen=True, kw_only=True)
class RetentionRule:
    """Rules of `prune`: the checkpoints to keep."""

    keep_last: int
    keep_best: int
    metric: str | None
    goal: Literal["Minimize", "Maximize"]
    keep_weights: int | None = None
    """Number of other checkpoints kept as weights only. None: existing ones stay, no new ones are made."""


def directory_of(place: Path) -> Path:
    """Return the checkpoint directory that is meant: the folder itself, or that of a run's folder.

    A folder that has checkpoints of its own is meant itself, whatever else lies in it.
    """
    inside = place / "checkpoints"
    if not inside.is_dir() or any(_is_of_a_volume(path.name) for path in place.iterdir()):
        return place
    return inside


def _is_of_a_volume(name: str) -> bool:
    return is_of_checkpoints(name) or name == names.FENCE_FILE


def is_of_checkpoints(name: str) -> bool:
    """True if a file or folder of this name is a checkpoint, or the proof of a finished run."""
    is_step = names.parse_step_folder(name) is not None or names.parse_weights_folder(name) is not None
    return is_step or name == names.COMPLETE_FILE


def ls(directory: Path, *, as_json: bool) -> int:
    """Print what is there, also of the trainings of a script that it has named."""
    from piton_trainer.checkpoint import inspect

    sessions = inspect.sessions(directory)
    if as_json:
        named = [{"session": folder.name, **_described(folder)} for folder in sessions]
        click.echo(json.dumps({**_described(directory), "sessions": named}))
        return 0
    for folder in (directory, *sessions):
        if folder is not directory:
            click.echo(f"\nsession {folder.name}")
        _print(_described(folder))
    return 0


def _described(directory: Path) -> dict[str, Any]:
    """Return what is in one folder, for machines."""
    from piton_trainer.checkpoint import inspect

    found = inspect.survey(directory)
    newest = next((item for item in found if item.problem is None and not item.is_thin), None)
    best = None if newest is None else inspect.best_step(newest)
    rows = [row_of(item, is_newest=item is newest, is_best=item.step == best) for item in found]
    complete, fence = inspect.complete(directory), inspect.fence(directory)
    proof = None if complete is None else json.loads(complete.to_json())
    return {"directory": str(directory), "fence": fence, "complete": proof, "checkpoints": rows}


def _print(described: dict[str, Any]) -> None:
    """Print what is in one folder, for people."""
    print_table(described["checkpoints"])
    fence, proof = described["fence"], described["complete"]
    click.echo("fence: nobody has claimed it" if fence is None else f"fence: held by attempt {fence}")
    if proof is None:
        click.echo("complete: no, the run has not finished here")
    else:
        digest = proof.get("weightsDigest")
        weights = "" if digest is None else f"; weights {digest}"
        click.echo(f"complete: {proof['reason']} at step {proof['step']:,}{weights}")


def row_of(found: "CheckpointInfo", *, is_newest: bool, is_best: bool) -> dict[str, Any]:
    """One checkpoint, for machines."""
    manifest = found.manifest
    row = {"step": found.step, "folder": found.folder.name, "problem": found.problem}
    row |= {"newest": is_newest, "best": is_best, "weightsOnly": found.is_thin}
    if manifest is None:
        return row
    return row | {
        "created": manifest.created,
        "ageSeconds": _age(manifest.created),
        "bytes": manifest.size,
        "attempt": manifest.attempt,
        "worldSize": manifest.world_size,
        "metrics": {name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
        "versions": dict(manifest.versions),
    }


def _age(created: str) -> float | None:
    try:
        return (SystemClock().now() - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return None


def print_table(rows: list[dict[str, Any]]) -> None:
    """The table for people."""
    if not rows:
        click.echo("no checkpoints")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("STEP", "AGE", "SIZE", "ATTEMPT", "RANKS"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("METRICS", "SIZES", ""):
        table.add_column(title, overflow="fold")
    for row in rows:
        age = row.get("ageSeconds")
        marks = ", ".join(word for key, word in _MARKS.items() if row[key])
        table.add_row(
            f"{row['step']:,}",
            "" if age is None else format_duration(age),
            decimal(row["bytes"]) if "bytes" in row else "",
            str(row.get("attempt", "")),
            str(row.get("worldSize", "")),
            _metrics(row.get("metrics", {})),
            row["problem"] or "as written",
            marks,
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(table)


def _metrics(metrics: dict[str, float]) -> str:
    shown = sorted(metrics, key=lambda name: ("loss" not in name, name))[:_METRICS_SHOWN]
    more = f" and {len(metrics) - len(shown)} more" if len(metrics) > len(shown) else ""
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in shown) + more


def verify(directory: Path, *, step: int | None, as_json: bool) -> int:
    """Print what is bad, or that nothing is."""
    from piton_trainer.checkpoint import inspect

    found = of_step(inspect.survey(directory), step, str(directory))
    return report(inspect.verify(found), found, as_json=as_json)


def report(checks: "Iterable[Checked]", found: "list[CheckpointInfo]", *, as_json: bool) -> int:
    """Print how the checks went, while they go; the exit code."""
    done = _watched(checks, found)
    bad = [check for check in done if check.problem]
    problems = [{"folder": check.found.folder.name, "problem": check.problem} for check in bad]
    problems.sort(key=lambda item: (item["folder"] or "", item["problem"] or ""))
    good = len(found) - len({check.found.folder for check in bad})
    if as_json:
        read = sum(check.size for check in done)
        click.echo(json.dumps({"checkpoints": len(found), "good": good, "bytes": read, "problems": problems}))
    else:
        for problem in problems:
            click.echo(f"{problem['folder']}: {problem['problem']}")
        click.echo(f"{good} of {len(found)} checkpoints are good" if found else "no checkpoints")
    return 0 if found and not bad else 1


def _watched(checks: "Iterable[Checked]", found: "list[CheckpointInfo]") -> "list[Checked]":
    total = sum(item.manifest.size for item in found if item.manifest is not None)
    done = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("hashing", total=total)
        for check in checks:
            progress.advance(task, check.size)
            done.append(check)
    return done


def of_step(found: "list[CheckpointInfo]", step: int | None, place: str) -> "list[CheckpointInfo]":
    """Those of this step; all without one."""
    chosen = [item for item in found if step in (None, item.step)]
    if step is not None and not chosen:
        there = ", ".join(str(item.step) for item in found) or "none"
        raise InputError(f"{place} has no checkpoint of step {step}; it has {there}")
    return chosen


def prune(directory: Path, rule: RetentionRule, *, dry_run: bool) -> int:
    """Delete, and make thin, by the rules that the trainer follows."""
    from piton_trainer.checkpoint import inspect

    if rule.keep_best > 1 and rule.metric is None:
        raise InputError(f"--keep-best {rule.keep_best}: by which metric? name it with --metric, such as val_loss")
    found = inspect.survey(directory)
    newest = inspect.newest_good([item for item in found if not item.is_thin])
    if newest is None:
        click.echo("nothing is deleted: none of the checkpoints is good")
        return 1
    going = _going([item for item in found if item.step <= newest.step], newest, rule)
    gone = 0
    for item in found:
        word = _fate(item, going, dry_run=dry_run)
        gone += word == "deleted"
        if word is not None:
            click.echo(f"{item.folder.name}: {'would be ' if dry_run else ''}{word}")
    click.echo(f"{gone} of {len(found)} checkpoints {'would go' if dry_run else 'are gone'}")
    return 0


def _fate(item: "CheckpointInfo", going: "Deletions", *, dry_run: bool) -> str | None:
    """Do with a checkpoint what the rules say, and say it."""
    from piton_trainer.checkpoint.format import layout
    from piton_trainer.checkpoint.retention import make_thin

    if item.step in (going.weights if item.is_thin else going.whole):
        if not dry_run:
            layout.discard(item.folder)
        return "deleted"
    if item.manifest is not None and not item.is_thin and item.step in going.thin:
        if not dry_run:
            make_thin(layout.CommittedCheckpoint(folder=item.folder, manifest=item.manifest), layout.Disk())
        return "made thin"
    return None


def _going(found: "list[CheckpointInfo]", newest: "CheckpointInfo", rule: RetentionRule) -> "Deletions":
    from piton_trainer.checkpoint.inspect import best_step
    from piton_trainer.checkpoint.retention import can_be_thin, what_goes

    objective = None if rule.metric is None else Objective(metric=rule.metric, goal=rule.goal)
    # One that is broken by its sizes already is no reason to let a good one go.
    whole = [(i.step, i.manifest) for i in found if i.manifest is not None and not i.problem and not i.is_thin]
    measured = [(step, manifest.metrics) for step, manifest in whole]
    if rule.metric is not None and not any(rule.metric in metrics for _, metrics in measured):
        raise InputError(f"--metric: no checkpoint has a metric {rule.metric}; it would keep nothing")
    own_best = best_step(newest) if objective is None and rule.keep_best else None
    thins = rule.keep_weights is not None
    return what_goes(
        measured,
        thin=[item.step for item in found if item.is_thin] if thins else [],
        can_be_thin=[step for step, manifest in whole if can_be_thin(manifest)] if thins else [],
        spared={newest.step} if own_best is None else {newest.step, own_best},
        policy=SavePolicy(keep_last=rule.keep_last, keep_best=rule.keep_best, keep_weights_only=rule.keep_weights or 0),
        objective=objective,
    )


def export(
    directory: Path, out: Path, *, kind: str, step: int | None, weights: str | None, config: Path | None = None
) -> int:
    """Write one checkpoint in another format."""
    from piton_trainer.checkpoint import inspect

    if config is not None and kind != "hf":
        raise InputError(f"--config goes with --format hf; {kind} says nothing of the kind of model")
    found = of_step(inspect.survey(directory), step, str(directory))
    whole = [item for item in found if not item.is_thin]
    if weights is None and found and not whole:
        raise InputError(f"of {found[0].folder.name} the weights are all that is left; say --weights-only")
    good = inspect.newest_good(found if weights else whole)
    if good is None or good.manifest is None:
        raise InputError(f"{directory} has no good checkpoint" + (f" of step {step}" if step is not None else ""))
    from piton_trainer.checkpoint import export as exporter

    written = exporter.export(good.folder, good.manifest, out, kind=kind, weights=weights, config=config)
    click.echo(f"step {good.step:,} is in {out}: {written:,} tensors as {kind}")
    return 0
