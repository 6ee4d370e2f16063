"""Fire drills: reclaims that a user orders, to see the run survive them. `preempt@50%`, `kill@step120`, `kill@2m`.

    preempt   with notice: SIGTERM, and SIGKILL when the notice is over
    kill      without: SIGKILL to everything at once

They hit the training, but for `prepare:kill@5s` and `evaluate:preempt@2s`: so long after that stage's start.
A percentage and a step are known from the program's reports alone.

Pure: when a drill is due is decided here, the world carries it out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from piton.api.spec import Stage
from piton.contract import InputError
from piton.contract.duration import parse_duration
from piton.contract.progress import Progress

Unit = Literal["percent", "step", "seconds"]
_FORM = re.compile(
    r"(?:(?P<stage>prepare|evaluate):)?(?P<kind>preempt|kill)@(?:(?P<percent>[0-9]+(?:\.[0-9]+)?)%|step(?P<step>[0-9]+)|(?P<time>[0-9dhms]+))"
)
_PERCENT_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One reclaim, and where in the run it happens."""

    kind: Literal["preempt", "kill"]
    unit: Unit
    position: float
    """Percent of the training, a step, or seconds since the run's start, or its stage's."""
    text: str
    """As the user wrote it."""
    stage: Stage = Stage.TRAIN


def parse(text: str) -> Drill:
    """Parse a drill.

    Raises:
        ValueError: it is none.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InputError(f"{text!r} is no drill; write one like preempt@50%, kill@30%, kill@step120 or preempt@90s")
    kind: Literal["preempt", "kill"] = "preempt" if found["kind"] == "preempt" else "kill"
    if found["percent"] is not None:
        unit, position = _percent(text, float(found["percent"]))
    elif found["step"] is not None:
        unit, position = _step(text, int(found["step"]))
    else:
        unit, position = "seconds", _seconds(text, found["time"])
    stage = Stage(found["stage"].capitalize()) if found["stage"] else Stage.TRAIN
    if stage is not Stage.TRAIN and unit != "seconds":
        raise InputError(f"{text!r} is no drill: only training has steps; write one like {found['stage']}:{kind}@5s")
    return Drill(kind=kind, unit=unit, position=position, text=text, stage=stage)


def _percent(text: str, position: float) -> tuple[Unit, float]:
    if not 0 < position < _PERCENT_MAX:
        raise InputError(f"{text!r} is outside of the run; write a percentage between 0 and 100, such as 50%")
    return "percent", position


def _step(text: str, position: int) -> tuple[Unit, float]:
    if position < 1:
        raise InputError(f"{text!r} is outside of the run; the first step is step1")
    return "step", float(position)


def _seconds(text: str, time: str) -> float:
    try:
        return parse_duration(time)
    except ValueError as error:
        raise InputError(f"{text!r} is no drill: {error}") from error


def pending(drills: Sequence[Drill], fired: Sequence[str]) -> tuple[Drill, ...]:
    """Those that have not fired yet, in order of position. A drill given twice fires twice."""
    left, done = [], list(fired)
    for drill in sorted(drills, key=lambda drill: (drill.unit, drill.position)):
        if drill.text in done:
            done.remove(drill.text)
        else:
            left.append(drill)
    return tuple(left)


def first_due(drills: Sequence[Drill], *, progress: Progress | None, seconds: float) -> Drill | None:
    """The first of them whose moment has come, `seconds` after the run's start."""
    return next((drill for drill in drills if _due(drill, progress, seconds)), None)


def _due(drill: Drill, progress: Progress | None, seconds: float) -> bool:
    if drill.unit == "seconds":
        return seconds >= drill.position
    if progress is None:
        return False
    if drill.unit == "step":
        return progress.step is not None and progress.step >= drill.position
    if progress.step is not None and progress.total_steps:
        return progress.step * _PERCENT_MAX >= drill.position * progress.total_steps
    return progress.percentage is not None and progress.percentage >= drill.position
