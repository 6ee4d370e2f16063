"""A report of how far the run is, from what the session knows. Pure."""

import math
from collections.abc import Mapping
from datetime import datetime

from piton.contract.assignment import Assignment
from piton.contract.manifest import Complete
from piton.contract.progress import TAKEN, Progress
from piton.contract.termination import PreviousEnd
from piton_trainer.state.train_state import TrainState

_PERCENT_MAX = 99
"""Until the last checkpoint is durable there is something left to do."""


def progress_of(
    state: TrainState,
    *,
    assignment: Assignment,
    total: int | None,
    started: tuple[int, float],
    durable_step: int | None,
    resumed_from: int | None,
    previous: PreviousEnd | None,
    mirror_refusal: str | None,
    resume_warning: str | None,
    metrics: Mapping[str, float],
    now: datetime,
    complete: Complete | None,
    session: str | None = None,
) -> Progress:
    """Return the report. `started` is the step and the training seconds that this attempt began with.

    `session` is the name of the training, where a script has several.

    A script may report a `step` of its own; on the wire the name is taken.
    """
    finished = complete is not None
    fraction = state.fraction_done(assignment, total)
    known = bool(total or assignment.training_seconds)
    return Progress(
        updated=now.isoformat(timespec="seconds"),
        percentage=100 if finished else min(_PERCENT_MAX, math.floor(100 * fraction)) if known else None,
        remaining_seconds=0 if finished else _remaining_seconds(state, assignment, total, started),
        step=state.step,
        total_steps=total,
        checkpoint_step=durable_step,
        resumed_from=resumed_from,
        previous=previous,
        mirror_refusal=mirror_refusal,
        resume_warning=resume_warning,
        complete=complete,
        session=None if session is None else _place(session, state.step, total),
        metrics={name: value for name, value in metrics.items() if name not in TAKEN},
    )


def _place(session: str, step: int, total: int | None) -> str:
    """Return how far a training is that is one of several."""
    return f"{session} step {step}" + ("" if total is None else f"/{total}")


def _remaining_seconds(
    state: TrainState, assignment: Assignment, total: int | None, started: tuple[int, float]
) -> int | None:
    """By the pace of this attempt, since the one before may have had other machines."""
    steps, seconds = state.step - started[0], state.training_seconds - started[1]
    estimates = []
    if total is not None and steps > 0:
        estimates.append((total - state.step) * seconds / steps)
    if assignment.training_seconds is not None:
        estimates.append(assignment.training_seconds - state.training_seconds)
    return max(0, math.ceil(min(estimates))) if estimates else None
