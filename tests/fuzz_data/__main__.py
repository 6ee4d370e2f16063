"""Plays many damages: `python -m fuzz_data --cases 2000 --seed 7`; with `--first 12 --cases 1` one of them."""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fuzz_data.play import Case, Kind, Verdict, draw, play

LINE_EVERY = 100
"""Cases between two lines on the progress without a terminal."""


def main() -> int:
    """Play the cases, print what became of them; 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="fuzz_data", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--first", type=int, default=0, help="number of the first case of the seed")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    began = time.monotonic()
    faults: dict[tuple[Kind, str], tuple[int, Verdict]] = {}
    counts: Counter[tuple[Kind, str]] = Counter()
    for number, case, verdict in _played(given.seed, range(given.first, given.first + given.cases), console):
        key = (verdict.kind, case.name if verdict.kind.is_fault else case.reader)
        counts[key] += 1
        if verdict.kind.is_fault:
            faults.setdefault(key, (number, verdict))
    console.print(_table(counts))
    console.print(f"{given.cases} cases in {time.monotonic() - began:.0f} s; SEED={given.seed}", highlight=False)
    for (kind, name), (number, verdict) in faults.items():
        told = "".join(f"    {line}\n" for line in verdict.detail.splitlines()[-15:])
        sys.stdout.write(f"\n{kind}: {name}\n{told}make fuzz-data N=1 SEED={given.seed} FIRST={number}\n")
    return int(bool(faults))


def _played(seed: int, numbers: range, console: Console) -> Iterator[tuple[int, Case, Verdict]]:
    """Yield the cases with their verdicts, under a bar; without a terminal a line now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("cases", total=len(numbers))
        for done, number in enumerate(numbers, 1):
            case = draw(seed, number)
            verdict = _play(case)
            progress.advance(task)
            if verdict.kind.is_fault:
                console.print(f"{verdict.kind}: {case.name}; case {number}", highlight=False)
            elif not console.is_terminal and done % LINE_EVERY == 0:
                console.print(f"{done} of {len(numbers)} cases are played", highlight=False)
            yield number, case, verdict


def _play(case: Case) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="fuzz-data-") as folder:
        return play(case, Path(folder))


def _table(counts: Counter[tuple[Kind, str]]) -> Table:
    table = Table("verdict", "cases", "of", box=None, pad_edge=False)
    for kind in Kind:
        found = {name: count for (verdict, name), count in counts.items() if verdict is kind}
        if found:
            told = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
            table.add_row(str(kind), str(sum(found.values())), told)
    return table


if __name__ == "__main__":
    sys.exit(main())
