"""`piton preflight`: a table of checks for people, one JSON object for machines, and an exit code for scripts."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piton.api.parse import Parsed
from piton.api.spec import Spec
from piton.cli import files
from piton.cli.checkpoints import PLAIN_WIDTH
from piton.cli.train import audience_of
from piton.cost.estimate import price_of
from piton.local import recipe, sweep_specs
from piton.local.rehearsal import Findings, Rehearsal, rehearse
from piton.sweep.parse import ParsedSweep

_STYLES = {"ok": "green", "failed": "bold red", "unknown": "yellow"}


def preflight(file: Path, *, folder: Path | None, steps: int, price: str | None, as_json: bool, quiet: bool) -> int:
    """Rehearse a run; the exit code is 0 when nothing failed, 1 when something did, 128 + the signal's after Ctrl-C.

    Raises:
        ValueError: the run itself is written wrongly.
    """
    parsed = files.read_any(file)
    runs = _runs(parsed)
    for spec in runs.values():
        recipe.checked(spec)
    findings: dict[str, Findings] = {}
    for name, spec in runs.items():
        rehearsal = Rehearsal(
            name=name, spec=spec, parent=folder or Path("runs"), steps=steps, price=price_of(spec, price)
        )
        with audience_of(quiet=quiet) as observer:
            findings[name] = rehearse(rehearsal, observer)
        if not as_json:
            _print(name, findings[name])
        if (signum := findings[name].interrupted) is not None:
            return 128 + signum
    is_good = all(found.is_good for found in findings.values())
    if as_json:
        told = {name: found.to_wire() for name, found in findings.items()}
        click.echo(json.dumps({"name": parsed.meta.name, "ok": is_good, "runs": told}))
    return 0 if is_good else 1


def _runs(parsed: Parsed | ParsedSweep) -> dict[str, Spec]:
    """The run; of a sweep one of each variant, as folds and seeds take the same."""
    if isinstance(parsed, ParsedSweep):
        return {run.name: sweep_specs.spec_of(run) for run in sweep_specs.first_runs(parsed).values()}
    assert parsed.spec is not None
    return {parsed.meta.name: parsed.spec}


def _print(name: str, found: Findings) -> None:
    click.echo(f"{name}:")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("CHECK", no_wrap=True)
    table.add_column("RESULT", no_wrap=True)
    table.add_column("WHAT WAS SEEN, AND WHAT TO DO", overflow="fold")
    for check in found.checks:
        told = check.text if check.fix is None else f"{check.text}\n-> {check.fix}"
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), Text(told))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(table)
    if found.kept is not None:
        click.echo(f"its folder is kept: {found.kept}")
