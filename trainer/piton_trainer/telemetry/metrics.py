"""Metrics of the training step, read from the device no more often than needed.

Reading a GPU tensor makes the host wait for the device, so a reported tensor is kept as it is until somebody needs the
number. CPU tensors are read at once.
"""

import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor

from piton.contract import InputError
from piton.contract.assignment import Objective

logger = logging.getLogger(__name__)

LOSS = "loss"
NOT_FINITE_MAX = 20
"""Losses in a row that are not finite after which a training has diverged. `GradScaler`, or the loop itself, may leave
out fewer."""
_EVALUATED = ("val", "eval", "test")
"""Beginnings of the names of metrics that are evaluated."""


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


class ObjectiveMetrics(Metrics):
    """The metrics of a run with this objective."""

    def __init__(self, objective: Objective | None, *, warns: bool = True) -> None:
        """Judge metrics by this objective; `warns` is rank 0's."""
        super().__init__()
        self._objective = objective
        self._warns = warns
        self._not_finite: int | Tensor = 0
        """Losses in a row, the newest included, that are not finite; where losses are on a device, so is this."""
        self._known: set[str] | None = None
        """Metrics of earlier steps; None before the first of them."""
        self._told: set[str] = set()

    def report(self, values: Mapping[str, float | Tensor]) -> None:
        """Take values that belong to the step under way."""
        super().report(values)
        if LOSS in values:
            loss = self._latest[LOSS]
            is_bad = ~torch.isfinite(loss) if isinstance(loss, Tensor) else not math.isfinite(loss)
            self._not_finite = (self._not_finite + 1) * is_bad

    def next_step(self) -> None:
        """Begin the next step: all metrics are of an earlier one."""
        self._look_for_objective()
        super().next_step()

    def losses_not_finite(self, *, on_device: bool) -> int:
        """Return how many losses in a row are not finite; what is still on a device is read only if asked."""
        if isinstance(self._not_finite, Tensor):
            if not on_device:
                return 0
            self._not_finite = int(self._not_finite)
        if self._not_finite and self._warns:
            self._warn(LOSS, f"the loss is not a finite number; {NOT_FINITE_MAX} of them in a row end the training")
        return self._not_finite

    def divergence(self, *, on_device: bool) -> str | None:
        """Return what leaves nothing worth saving, else None; what is still on a device is read only if asked."""
        if self.losses_not_finite(on_device=on_device) >= NOT_FINITE_MAX:
            return f"loss is not a finite number for the {NOT_FINITE_MAX}th time in a row"
        name = LOSS if self._objective is None else self._objective.metric
        value = None if name == LOSS else self._latest.get(name)
        if value is None or (isinstance(value, Tensor) and not on_device) or math.isfinite(self.read(name) or 0.0):
            return None
        return f"{name} is not a finite number"

    def has_diverged(self, *, on_device: bool) -> bool:
        """True if nothing is worth saving any more; what is still on a device is read only if asked."""
        return self.divergence(on_device=on_device) is not None

    def warn_without_objective(self) -> None:
        """Say that the objective was never reported, if that is so."""
        if self._objective is None or not self._warns or self._objective.metric in self._latest:
            return
        wanted, reported = self._objective.metric, sorted(self._latest)
        close = get_close_matches(wanted, reported, n=1)
        self._warn(
            wanted,
            f"objective.metric: no {wanted} is reported, so there is no best step, no patience and no target; "
            f"reported are {', '.join(reported) or 'none'}" + (f"; write {close[0]} if that is meant" if close else ""),
        )

    def _look_for_objective(self) -> None:
        """Warn after the first evaluation that does not bring the objective: metrics that not every step has."""
        known, self._known = self._known, (self._known or set()) | self._fresh
        if self._objective is None or not self._fresh:
            return
        new = self._fresh - {LOSS} - (known or set())
        if any(name.startswith(_EVALUATED) for name in new) if known is None else new:
            self.warn_without_objective()

    def _warn(self, about: str, text: str) -> None:
        """Warn once."""
        if about not in self._told:
            self._told.add(about)
            logger.warning(text)

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
