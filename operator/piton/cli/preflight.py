"""`piton preflight`: a table of checks for people, one JSON object for machines, and an exit code for scripts."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piton.cli import files
from piton.cli.checkpoints import PLAIN_WIDTH
from piton.cli.train import audience_of
from piton.core.estimate import price_of
from piton.local import recipe
from piton.local.rehearsal import Findings, Rehearsal, rehearse

_STYLES = {"ok": "green", "failed": "bold red", "unknown": "yellow"}


def preflight(file: Path, *, folder: Path | None, steps: int, price: str | None, as_json: bool, quiet: bool) -> int:
    """Rehearse a run; the exit code is 0 when nothing failed, 1 when something did, 128 + the signal's after Ctrl-C.

    Raises:
        ValueError: the run itself is written wrongly.
    """
    parsed = files.read(file)
    assert parsed.spec is not None
    recipe.checked(parsed.spec)
    rehearsal = Rehearsal(
        name=parsed.meta.name,
        spec=parsed.spec,
        parent=folder or Path("runs"),
        steps=steps,
        price=price_of(parsed.spec, price),
    )
    with audience_of(quiet=quiet) as audience:
        found = rehearse(rehearsal, audience)
    if as_json:
        click.echo(json.dumps({"name": rehearsal.name, **found.to_wire()}))
    else:
        _print(found)
    if found.interrupted is not None:
        return 128 + found.interrupted
    return 0 if found.is_good else 1


def _print(found: Findings) -> None:
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
