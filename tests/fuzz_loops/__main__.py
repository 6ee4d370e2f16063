"""Plays many random loops: `python -m fuzz_loops --loops 500 --seed 7`, or one of them: `--loop '{"ranks": 2, …}'`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of a pool of threads only the bookkeeping would survive a fork

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fuzz_loops.draw import draw
from fuzz_loops.loop import Loop
from fuzz_loops.play import Kind, Verdict, play
from fuzz_loops.shrink import smallest

WASTED_MAX = 0.05
"""Fraction of the loops that torch may refuse: those try nothing."""


def main() -> int:
    """Play the loops, print what became of them; 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="fuzz_loops", description=__doc__)
    parser.add_argument("--loops", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--first", type=int, default=0, help="number of the first loop of the seed")
    parser.add_argument("--loop", type=Loop.from_json, help="one loop, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 150)
    loops = [given.loop] if given.loop else [draw(given.seed, given.first + number) for number in range(given.loops)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-loops-") as folder:
        verdicts = list(_played(loops, Path(folder), console))
        faults = [(loop, verdict) for loop, verdict in verdicts if verdict.kind.is_fault]
        console.print(_table(verdicts))
        console.print(f"{len(verdicts)} loops in {time.monotonic() - began:.0f} s; SEED={given.seed}", highlight=False)
        for loop, verdict in _first_of_each(faults):
            _tell(loop if given.loop else _smallest(loop, verdict, Path(folder)), verdict)
    wasted = sum(verdict.kind is Kind.NO_LOOP for _, verdict in verdicts)
    if is_wasteful := wasted > WASTED_MAX * len(verdicts):
        console.print(f"torch refuses {wasted} of them: draw such loops no more, see fits() in loop.py")
    return int(bool(faults) or is_wasteful)


def _played(loops: list[Loop], folder: Path, console: Console) -> Iterator[tuple[Loop, Verdict]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loops", total=len(loops))
        for number, loop in enumerate(loops, 1):
            verdict = _play(loop, folder)
            progress.advance(task)
            if verdict.kind.is_fault:
                console.print(f"{verdict.kind}: {verdict.reason}; loop {number}, of which a simpler one follows")
            elif not console.is_terminal and number % 10 == 0:
                console.print(f"{number} of {len(loops)} loops are played")
            yield loop, verdict


def _play(loop: Loop, folder: Path) -> Verdict:
    """Play a loop in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return play(loop, Path(own) / "loop")


def _smallest(loop: Loop, verdict: Verdict, folder: Path) -> Loop:
    return smallest(loop, lambda smaller: _play(smaller, folder).kind is verdict.kind)


def _first_of_each(faults: list[tuple[Loop, Verdict]]) -> list[tuple[Loop, Verdict]]:
    found: dict[tuple[Kind, str], tuple[Loop, Verdict]] = {}
    for loop, verdict in faults:
        found.setdefault((verdict.kind, verdict.reason), (loop, verdict))
    return list(found.values())


def _table(verdicts: list[tuple[Loop, Verdict]]) -> Table:
    table = Table("verdict", "loops", "why", box=None, pad_edge=False)
    counts = Counter((verdict.kind, verdict.reason) for _, verdict in verdicts)
    order = list(Kind)
    for (kind, reason), count in sorted(counts.items(), key=lambda item: (order.index(item[0][0]), -item[1])):
        table.add_row(str(kind), str(count), reason)
    return table


def _tell(loop: Loop, verdict: Verdict) -> None:
    sys.stdout.write(f"\n{verdict.kind}: {verdict.reason}\n")
    sys.stdout.write("".join(f"    {line}\n" for line in verdict.detail.splitlines()[-30:]))
    sys.stdout.write(f"make fuzz-loops LOOP='{loop.to_json()}'\n")


if __name__ == "__main__":
    sys.exit(main())
