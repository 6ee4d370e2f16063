"""Results as a table, and docs/gpu.md, which is made from the JSON files in bench/results."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TITLE = """# What a GPU tells

`make gpu` measures and checks on one GPU, in ten minutes, what a CPU cannot show. It writes this page, from the files
in `bench/results/`. `make gpu DRY=1` runs every part on the CPU, small.

It runs in any interpreter that has torch 2.11 or newer with CUDA, and installs nothing there: `make gpu-wheels
PYTHON_VERSION=3.12` fetches the rest into `.gpu-packages/`, on a machine with a network, and `make gpu
PYTHON=/path/to/python3.12` reads it from there. `MINUTES=5` takes less time: what matters most comes first, and what
there was no time for is named. `TMPDIR` says on which disk checkpoints are measured. Ratios are medians within
repetitions in which all methods take turns.
"""


def table(results: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for part, what, value, beside in _cells(results):
        lines.append(f"{part:<24}{what:<52}{value:>14}  {beside}".rstrip())
    return "\n".join(lines)


def write(path: Path, folder: Path) -> None:
    """Make the page."""
    sections = [_section(json.loads(file.read_text())) for file in _files(folder)]
    path.write_text("\n".join([_TITLE, *(sections or ["No GPU has been measured yet.\n"])]))


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("gpu-*.json") if not json.loads(path.read_text())["machine"]["dry"]]
    return sorted(found, key=lambda path: json.loads(path.read_text())["machine"]["date"], reverse=True)


def _section(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    about = (
        f"{machine['memory_gib']} GiB, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['cores']} cores"
    )
    rows = [f"| {' | '.join(cells)} |" for cells in _cells(results)]
    head = ["| part | what | value | beside |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {machine['device']}, {machine['date']}", "", about + ".", "", *head, *rows, ""])


def _cells(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for part, found in results["parts"].items():
        if found["state"] != "ran":
            yield part, found["state"], "", found["reason"]
        for row in found["rows"]:
            value = "holds" if row["unit"] == "holds" else f"{row['value']:,.4g} {row['unit']}"
            yield part, row["what"], value, row["beside"]
