"""What the objective makes of the metrics: what is an evaluation, and what is worth saving."""

import math

from piton.contract.assignment import Objective
from piton_trainer.metrics import LOSS, Metrics


class Measured(Metrics):
    """The metrics of a run with this objective."""

    def __init__(self, objective: Objective | None) -> None:
        super().__init__()
        self._objective = objective

    @property
    def watched(self) -> tuple[str, ...]:
        """Metrics without which there is nothing worth saving."""
        return (LOSS,) if self._objective is None else (LOSS, self._objective.metric)

    def has_diverged(self, *, on_device: bool) -> bool:
        """Whether one of those is not finite; what is still on a device is read only if asked."""
        return self.not_finite(self.watched, on_device=on_device) is not None

    def evaluation(self, *, save: bool) -> float | None:
        """The objective's value, if it was evaluated in this step. The loss of a batch is not, unless a save is due."""
        objective = self._objective
        if objective is None or not self.is_fresh(objective.metric):
            return None
        if objective.metric == LOSS and not save:
            return None
        value = self.read(objective.metric)
        return value if value is not None and math.isfinite(value) else None

    def to_save(self) -> dict[str, float]:
        """The metrics that belong to this state: an objective from an earlier step does not."""
        metrics = self.read_all()
        if self._objective is not None and not self.is_fresh(self._objective.metric):
            metrics.pop(self._objective.metric, None)
        return metrics
