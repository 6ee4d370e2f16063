"""Summary of a command, as one value: printed for people, or as one JSON object for machines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from piton.api.conditions import FAILED, MIRRORED, SUCCEEDED, SUSPENDED
from piton.api.spec import Stage
from piton.api.status import AttemptStatus, RunStatus, StageStatus, Verdict
from piton.api.status_base import ConditionStatus
from piton.contract import startup_phases
from piton.contract.progress import EXAMPLES_SKIPPED
from piton.local import metrics
from piton.local.drills import Drill, pending
from piton.local.run_folder import LocalState, RunFolder

_TAKEN = (Verdict.PREEMPTED, Verdict.INFRASTRUCTURE)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of a run when its command ends."""

    name: str
    phase: str
    reason: str | None
    message: str
    final_step: int | None
    lost_steps: int
    preemptions: int
    attempts: int
    failures: int
    infrastructure_failures: int
    best_metric: float | None
    best_step: int | None
    weights_digest: str | None
    checkpoint: Path | None
    """Newest checkpoint."""
    best_checkpoint: Path | None
    stages: Mapping[str, Mapping[str, Any]]
    """Stages beside the training: attempts at each, their ends, and the time that they took."""
    evaluation: Mapping[str, float]
    """Metrics of the stage Evaluate, by name."""
    cost: Mapping[str, Any]
    """Cost in dollars as text, and its completeness; empty where no price is known."""
    examples_skipped: int
    """Damaged examples that are left out of the data, as `maxSkipped` accepts."""
    recovery_seconds: float
    """Sum of the seconds from each loss of a machine to the first trained step of the next attempt."""
    start_seconds: Mapping[str, float]
    """Seconds of the newest start, from process to first step, by phase; see `contract.startup_phases`."""
    mirror_off: str | None
    """Reason why nothing was mirrored at the end, of a run that has a mirror."""
    drills_not_fired: tuple[str, ...]
    curve: Path | None
    logs: Path

    def to_wire(self) -> dict[str, Any]:
        """As plain values, camelCase; JSON has no other numbers than finite ones."""
        return {
            "name": self.name,
            "phase": self.phase,
            "reason": self.reason,
            "message": self.message,
            "finalStep": self.final_step,
            "lostSteps": self.lost_steps,
            "preemptions": self.preemptions,
            "attempts": self.attempts,
            "failures": self.failures,
            "infrastructureFailures": self.infrastructure_failures,
            "bestMetric": self.best_metric if self.best_metric is None or math.isfinite(self.best_metric) else None,
            "bestStep": self.best_step,
            "weightsDigest": self.weights_digest,
            "checkpoint": _text(self.checkpoint),
            "bestCheckpoint": _text(self.best_checkpoint),
            "stages": {name: dict(stage) for name, stage in self.stages.items()},
            "evaluation": dict(self.evaluation),
            "cost": dict(self.cost),
            "examplesSkipped": self.examples_skipped,
            "recoverySeconds": self.recovery_seconds,
            "startSeconds": dict(self.start_seconds),
            "mirrorOff": self.mirror_off,
            "drillsNotFired": list(self.drills_not_fired),
            "curve": _text(self.curve),
            "logs": str(self.logs),
        }


def summarise(folder: RunFolder, state: LocalState, drills: Sequence[Drill]) -> Summary:
    """Summarize a run from its folder and state; the drills are those of the command."""
    status, complete, points = state.status, folder.complete(), metrics.read(folder.metrics_file)
    result = status.result
    condition = next(
        (c for kind in (SUCCEEDED, FAILED, SUSPENDED) if status.is_true(kind) and (c := status.condition(kind))), None
    )
    best_step = result.best_step if result else None
    best_metric = complete.best_metric if complete else None
    if best_metric is None and result and result.best_metric is not None:
        best_metric = float(result.best_metric)
    return Summary(
        name=state.name,
        phase=status.phase.value,
        reason=condition.reason.value if condition else None,
        message=condition.message if condition else "",
        final_step=_final_step(status),
        lost_steps=status.lost.steps,
        preemptions=status.preemptions,
        attempts=status.attempt,
        failures=status.failures,
        infrastructure_failures=status.infrastructure_failures,
        best_metric=best_metric,
        best_step=best_step,
        weights_digest=result.weights_digest if result else None,
        checkpoint=folder.newest_checkpoint(),
        best_checkpoint=folder.checkpoint(best_step),
        stages=_stages(status),
        evaluation=_evaluation(status),
        cost=_cost(status),
        examples_skipped=newest_skipped(points),
        recovery_seconds=round(recovery_seconds(status.attempts), 3),
        start_seconds=newest_start(points),
        mirror_off=_mirror_off(status),
        drills_not_fired=tuple(drill.text for drill in pending(drills, state.drills_fired)),
        curve=folder.curve_file if folder.curve_file.exists() else None,
        logs=folder.root / "logs",
    )


def _mirror_off(status: RunStatus) -> str | None:
    condition = status.condition(MIRRORED)
    return condition.message if condition is not None and condition.status is ConditionStatus.FALSE else None


def _stages(status: RunStatus) -> dict[str, dict[str, Any]]:
    if {stage.name for stage in status.stages} <= {Stage.TRAIN}:
        return {}
    return {stage.name.value: _stage(stage) for stage in status.stages}


def _cost(status: RunStatus) -> dict[str, Any]:
    said = {"spent", "budget", "wasted", "is_bound", "is_incomplete"}
    found = status.cost
    return found.model_dump(mode="json", by_alias=True, exclude_none=True, include=said) if found else {}


def _stage(stage: StageStatus) -> dict[str, Any]:
    took = stage.end_time - stage.start_time if stage.end_time and stage.start_time else None
    return {
        "attempts": stage.attempts,
        "preemptions": stage.preemptions,
        "failures": stage.failures,
        "seconds": None if took is None else round(took.total_seconds(), 3),
    }


def _evaluation(status: RunStatus) -> dict[str, float]:
    found = status.result.evaluation if status.result else None
    return {metric.name: float(metric.value) for metric in found.metrics} if found else {}


def recovery_seconds(attempts: Sequence[AttemptStatus]) -> float:
    """From each loss of a machine to the first trained step after it, summed up."""
    total = 0.0
    for lost, following in pairwise(attempts):
        if lost.verdict in _TAKEN and lost.ended_time and following.training_time:
            total += (following.training_time - lost.ended_time).total_seconds()
    return total


def newest_start(points: Sequence[metrics.Point]) -> dict[str, float]:
    """The phases of the newest start that was reported."""
    return next((phases for point in reversed(points) if (phases := startup_phases.from_metrics(point.metrics))), {})


def newest_skipped(points: Sequence[metrics.Point]) -> int:
    """Return the number of skipped examples of the newest report of a step; 0 where it has none."""
    newest = next((point for point in reversed(points) if point.metrics.get("loss") is not None), None)
    return 0 if newest is None else int(newest.metrics.get(EXAMPLES_SKIPPED, 0))


def _final_step(status: RunStatus) -> int | None:
    """The step that the run ended at, or has reached so far."""
    if status.result and status.result.step is not None:
        return status.result.step
    steps = [attempt.step for attempt in status.attempts if attempt.step is not None]
    saved = [status.checkpoint.step] if status.checkpoint else []
    return steps[-1] if steps else max(saved, default=None)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
