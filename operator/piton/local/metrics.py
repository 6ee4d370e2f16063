"""Reports of a run, one line of JSON each: the data of the curve, across attempts and commands."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piton.contract.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Point:
    """Metrics that were reported of one step."""

    attempt: int
    step: int
    metrics: Mapping[str, float]


def append(path: Path, attempt: int, progress: Progress) -> None:
    """Append a report. If the disk is full, the curve lacks a point, and the run continues."""
    if progress.step is None:
        return
    record = {
        "time": progress.updated,
        "attempt": attempt,
        "step": progress.step,
        "checkpointStep": progress.checkpoint_step,
        "metrics": dict(progress.metrics),
    }
    with contextlib.suppress(OSError, UnicodeError), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[Point]:
    """Return all reports, oldest first; lines that a crash has left incomplete are skipped.

    A file that cannot be read has none: the training does not depend on its curve.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [point for line in lines if (point := _point(line))]


def _point(line: str) -> Point | None:
    try:
        record = json.loads(line)
        metrics = {str(name): float(value) for name, value in record["metrics"].items()}
        return Point(attempt=int(record["attempt"]), step=int(record["step"]), metrics=metrics)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def series(points: Iterable[Point], name: str) -> list[tuple[int, float]]:
    """Return one metric over steps. For a step that was trained again, the latest value counts."""
    values = {point.step: point.metrics[name] for point in points if name in point.metrics}
    return sorted(values.items())


def changes(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the steps with a new value of a metric, and the value: reports repeat an evaluation until the next one."""
    earlier = [None, *(value for _, value in values)]
    return [(step, value) for (step, value), before in zip(values, earlier, strict=False) if value != before]
