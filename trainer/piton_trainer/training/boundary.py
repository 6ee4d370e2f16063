"""The exchange between the ranks at a step boundary, and its result. Pure.

Rank 0's clock and rank 0's metrics decide; every rank works with the agreed numbers, so that all of them do the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from piton.contract.assignment import Assignment
from piton.contract.duration import format_duration
from piton_trainer.checkpoint import SaveStatus
from piton_trainer.state.train_state import TrainState


@dataclass(frozen=True, kw_only=True)
class BoundaryVote:
    """One rank's word, or after the exchange what all ranks agreed on: of each number, the largest."""

    stop: bool = False
    """A signal came, the server wishes it, or PITON_STOP_AT has passed."""
    save: bool = False
    """Rank 0 only: a save is due."""
    diverged: bool = False
    value: float | None = None
    """Rank 0 only: the objective, when it was evaluated in this step."""
    training_seconds: float = 0.0
    """Rank 0 only."""
    accumulating: bool = False
    """Gradients wait for an optimizer's step: no moment for a save."""
    in_flight: SaveStatus = field(default_factory=SaveStatus)
    """The save in flight."""
    total: int | None = None
    """The number of steps; epochs may turn out to have more than the first."""

    def to_vector(self) -> list[float]:
        """Numbers of which the largest is taken."""
        value = -math.inf if self.value is None else self.value
        saving = self.in_flight
        flags = (self.stop, self.save, self.diverged, self.accumulating, saving.waits, saving.fails, saving.ends)
        total = -math.inf if self.total is None else float(self.total)
        return [*map(float, flags), value, self.training_seconds, total]

    @classmethod
    def from_vector(cls, vector: Sequence[float]) -> Self:
        """The agreed word."""
        stop, save, diverged, accumulating, waits, fails, ends, value, training_seconds, total = vector
        return cls(
            stop=stop > 0,
            save=save > 0,
            diverged=diverged > 0,
            value=None if value == -math.inf else value,
            training_seconds=training_seconds,
            accumulating=accumulating > 0,
            in_flight=SaveStatus(waits=waits > 0, fails=fails > 0, ends=ends > 0),
            total=None if total == -math.inf else int(total),
        )


@dataclass(frozen=True, kw_only=True)
class StopRehearsal:
    """So many steps, a stop as on a notice, and after the resume as many again: shows that a run works, and its costs.

    Everything is the real run's, also the length that rates and schedules follow from; only the end comes early.
    """

    steps: int

    @property
    def last(self) -> int:
        """The step that it ends with."""
        return 2 * self.steps

    def stops(self, step: int, *, is_resumed: bool) -> bool:
        """True if it is time for the stop."""
        return step >= self.steps and not is_resumed


def reason_to_end(state: TrainState, assignment: Assignment, total: int | None) -> str | None:
    """Return the reason why training is over; None while it is not.

    It is worked out from what the state remembers, so that an attempt that starts after the end sees the end as well,
    and one that is given a longer assignment goes on.
    """
    objective = assignment.objective
    if state.ended is not None:
        return state.ended
    if total is not None and state.step >= total:
        return "all steps are done"
    if objective is not None and state.best_metric is not None and objective.reached(state.best_metric):
        return f"{objective.metric} reached its target of {objective.target:g}"
    if objective is not None and objective.patience and state.evaluations_since_best >= objective.patience:
        return f"{objective.metric} did not improve in {objective.patience} evaluations"
    if assignment.training_seconds is not None and state.training_seconds >= assignment.training_seconds:
        return f"the training time of {format_duration(assignment.training_seconds)} is spent"
    return None
