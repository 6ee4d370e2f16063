"""Progress over the wire, in the format of KEP-2779 (kubeflow/trainer).

    POST <KUBEFLOW_TRAINER_SERVER_URL>   {"trainerStatus": {"lastUpdatedTime", "progressPercentage",
                                          "estimatedRemainingSeconds", "metrics": [{"name", "value"}]}}

Every field but the time may be missing and metric values are strings, so an unmodified `transformers.Trainer` can be
the sender. Piton's own trainer adds the metrics named in `Progress`; the answer may carry wishes (`Wishes`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

# Metric names with a meaning; transformers' KubeflowCallback calls the first two current_step and total_steps.
STEP = "step"
TOTAL_STEPS = "total_steps"
CHECKPOINT_STEP = "checkpoint_step"
RESUMED_FROM = "resumed_from_step"
_ALIASES = {"current_step": STEP}
_RESERVED = frozenset({STEP, TOTAL_STEPS, CHECKPOINT_STEP, RESUMED_FROM})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of rank 0."""

    updated: str
    """UTC, ISO 8601."""
    percentage: int | None = None
    remaining_seconds: int | None = None
    step: int | None = None
    total_steps: int | None = None
    checkpoint_step: int | None = None
    resumed_from: int | None = None
    """The step that this attempt started from; None for a fresh start."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """The request's body."""
        numbers: dict[str, float | int | None] = {
            STEP: self.step,
            TOTAL_STEPS: self.total_steps,
            CHECKPOINT_STEP: self.checkpoint_step,
            RESUMED_FROM: self.resumed_from,
            **self.metrics,
        }
        status: dict[str, Any] = {"lastUpdatedTime": self.updated}
        if self.percentage is not None:
            status["progressPercentage"] = self.percentage
        if self.remaining_seconds is not None:
            status["estimatedRemainingSeconds"] = self.remaining_seconds
        status["metrics"] = [
            {"name": name, "value": str(value)} for name, value in numbers.items() if value is not None
        ]
        return {"trainerStatus": status}

    @classmethod
    def from_wire(cls, body: object) -> Self:
        """Parse a request's body, whoever sent it. Metrics that are not numbers are left out.

        Raises:
            ValueError: it is not a KEP-2779 report.
        """
        status = body.get("trainerStatus") if isinstance(body, dict) else None
        if not isinstance(status, dict) or not isinstance(status.get("lastUpdatedTime"), str):
            raise ValueError("not a KEP-2779 report: no trainerStatus.lastUpdatedTime")
        numbers = _numbers(status.get("metrics"))
        return cls(
            updated=status["lastUpdatedTime"],
            percentage=_bounded(status.get("progressPercentage"), 100),
            remaining_seconds=_bounded(status.get("estimatedRemainingSeconds"), 2**31),
            step=_whole(numbers.get(STEP)),
            total_steps=_whole(numbers.get(TOTAL_STEPS)),
            checkpoint_step=_whole(numbers.get(CHECKPOINT_STEP)),
            resumed_from=_whole(numbers.get(RESUMED_FROM)),
            metrics={name: value for name, value in numbers.items() if name not in _RESERVED},
        )


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the server asks for in its answer."""

    checkpoint: bool = False
    """Save now and go on (a rebalance recommendation, say)."""
    stop: bool = False
    """Save and end in order."""

    def to_json(self) -> str:
        """The answer's body."""
        return json.dumps({name: True for name in ("checkpoint", "stop") if getattr(self, name)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse an answer; anything that is not one asks for nothing."""
        try:
            fields = json.loads(text or "{}")
            return cls(checkpoint=fields.get("checkpoint") is True, stop=fields.get("stop") is True)
        except (ValueError, AttributeError):
            return cls()


def _numbers(metrics: object) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for item in metrics if isinstance(metrics, list) else []:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            continue
        try:
            value = float(item.get("value", "nan"))
        except (TypeError, ValueError):
            continue
        if math.isfinite(value):
            name: str = item["name"]
            numbers[_ALIASES.get(name, name)] = value
    return numbers


def _whole(value: float | None) -> int | None:
    return None if value is None or value < 0 else int(value)


def _bounded(value: object, top: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, top)
