"""`make pictures`: run `make demo`, and keep its output and its loss curve as the README's pictures in docs/images/."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WIDTH = 118
"""Columns of the terminal in the picture."""
WEB_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""A page that shows a picture loads no fonts for it; the style names a fallback."""


def main() -> None:
    """Train, and replace the pictures if the run has succeeded."""
    lines = demo()
    IMAGES.mkdir(parents=True, exist_ok=True)
    svg = picture(lines).export_svg(title="make demo")
    (IMAGES / "demo.svg").write_text(WEB_FONTS.sub("", svg))
    shutil.copy(ROOT / "runs" / "quickstart" / "loss.png", IMAGES / "demo-loss.png")


def demo() -> list[str]:
    """The lines that `make demo` prints, without make's own.

    Raises:
        subprocess.CalledProcessError: the demo has failed.
    """
    command = ["make", "--silent", "demo"]
    lines = []
    # Lines instead of a bar: a picture has no time. In colour they would need a terminal.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


def picture(lines: list[str]) -> Console:
    """A recording of these lines, with preemptions in another colour."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ make demo", style="bold"))
    for line in lines:
        console.print(Text(line, style=_style(line)), soft_wrap=False)
    return console


def _style(line: str) -> str:
    lost = ("reclaim", "preempt", "killed", "gone")
    if any(word in line.lower() for word in lost):
        return "yellow"
    return "green" if "resumed" in line or "Succeeded" in line or "finished" in line else ""


if __name__ == "__main__":
    main()
