"""Runs of the fake trainer on this machine, in this process or as a command of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from piton.api.parse import parse
from piton.api.spec import Spec
from piton.core.effects import Announcement
from piton.local.drills import parse as parse_drill
from piton.local.observers import View
from piton.local.runner import LOCAL_PACE, Ending, RunRequest, run
from support.builders import a_manifest
from support.processes import is_running

FAKE = Path(__file__).with_name("fake_trainer.py")
QUICK = replace(LOCAL_PACE, backoff_seconds=0.01, evidence_seconds=0.2, progress_seconds=0.05)


def fake_parts(*arguments: str, nodes: int = 1, **parts: Any) -> dict[str, Any]:
    """The parts of a spec that trains the fake."""
    return {
        "trainer": {"image": "none", "command": ["python", str(FAKE), *arguments]},
        "workers": {"nodes": nodes, "gpusPerNode": 0},
        **parts,
    }


def spec_of(parts: dict[str, Any]) -> Spec:
    parsed = parse(a_manifest("fake", **parts))
    assert parsed.spec is not None, parsed.problems
    return parsed.spec


class Listener:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.views: list[View] = []

    async def announce(self, announcement: Announcement) -> None:
        self.said.append(announcement.message)

    def show(self, view: View) -> None:
        self.views.append(view)


def train(root: Path, *arguments: str, drills: tuple[str, ...] = (), **options: Any) -> tuple[Ending, Listener]:
    """Train the fake in this process."""
    spec = options.pop("spec", None) or spec_of(fake_parts(*arguments, **options.pop("parts", {})))
    listener = Listener()
    order = RunRequest(
        name="fake",
        spec=spec,
        root=root,
        drills=tuple(parse_drill(text) for text in drills),
        timing=options.pop("timing", QUICK),
        **options,
    )
    return run(order, listener), listener


def write_manifest(path: Path, name: str = "fake", **parts: Any) -> Path:
    """A file for the command line."""
    manifest = a_manifest(name, **parts)
    manifest["metadata"] = {"name": name}
    path.write_text(yaml.safe_dump(manifest))
    return path


@contextmanager
def a_command(*arguments: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """`piton …` as a process of its own, that does not outlive the test."""
    command = [sys.executable, "-W", "error", "-m", "piton.cli", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(happened: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


def text_of(path: Path) -> str:
    """What a file holds; nothing while it is not there."""
    return path.read_text() if path.exists() else ""


def make_sure_dead(pid: int) -> None:
    if is_running(pid):
        os.kill(pid, signal.SIGKILL)
