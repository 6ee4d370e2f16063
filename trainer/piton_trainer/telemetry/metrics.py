"""Metrics of the training step, read from the device no more often than needed.

Reading a GPU tensor makes the host wait for the device, so a reported tensor is kept as it is until somebody needs the
number. CPU tensors are read at once.
"""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from piton.contract import InputError
from piton.contract.assignment import Objective

LOSS = "loss"


class Metrics:
    """The latest value of each metric."""

    def __init__(self) -> None:
        self._latest: dict[str, float | Tensor] = {}
        self._fresh: set[str] = set()

    def report(self, values: Mapping[str, float | Tensor]) -> None:
        """Take values that belong to the step under way."""
        for name, value in values.items():
            self._latest[name] = _kept(name, value)
        self._fresh |= values.keys()

    def next_step(self) -> None:
        """Begin the next step: all metrics are of an earlier one."""
        self._fresh.clear()

    def is_fresh(self, name: str) -> bool:
        """True if the metric was reported in the step under way."""
        return name in self._fresh

    def read(self, name: str) -> float | None:
        """A metric's latest value as a number; None when it was never reported."""
        value = self._latest.get(name)
        if isinstance(value, Tensor):
            value = self._latest[name] = float(value)
        return value

    def read_all(self) -> dict[str, float]:
        """Every metric that is a finite number."""
        values = {name: self.read(name) for name in self._latest}
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    def not_finite(self, names: Iterable[str], *, on_device: bool) -> str | None:
        """The first of these metrics that is not finite; those still on a device are read only if asked."""
        for name in names:
            value = self._latest.get(name)
            if value is None or (isinstance(value, Tensor) and not on_device):
                continue
            if not math.isfinite(self.read(name) or 0.0):
                return name
        return None


class ObjectiveMetrics(Metrics):
    """The metrics of a run with this objective."""

    def __init__(self, objective: Objective | None) -> None:
        super().__init__()
        self._objective = objective

    @property
    def watched(self) -> tuple[str, ...]:
        """Metrics without which there is nothing worth saving."""
        return (LOSS,) if self._objective is None else (LOSS, self._objective.metric)

    def has_diverged(self, *, on_device: bool) -> bool:
        """True if one of those is not finite; what is still on a device is read only if asked."""
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


def _kept(name: str, value: float | Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise InputError(f"{name} has to be one number, not a tensor of shape {tuple(value.shape)}")
    return value.detach() if value.device.type != "cpu" else float(value.detach())
