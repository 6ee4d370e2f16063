"""Progress over the wire, in the format of KEP-2779 (kubeflow/trainer).

    POST <KUBEFLOW_TRAINER_SERVER_URL>   {"trainerStatus": {"lastUpdatedTime", "progressPercentage",
                                          "estimatedRemainingSeconds", "metrics": [{"name", "value"}]}}

Every field but the time may be missing and metric values are strings, so an unmodified `transformers.Trainer` can be
the sender. Piton's own trainer adds the metrics named in `Progress`; the answer may carry wishes (`TrainerRequests`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from piton.contract.manifest import Complete
from piton.contract.termination import Limit, Outcome, PreviousEnd

# Metric names with a meaning; transformers' KubeflowCallback calls the first two current_step and total_steps.
STEP = "step"
TOTAL_STEPS = "total_steps"
CHECKPOINT_STEP = "checkpoint_step"
RESUMED_FROM = "resumed_from_step"
PREVIOUS_ATTEMPT = "previous_attempt"
PREVIOUS_OUTCOME = "previous_outcome"
MIRROR_REFUSAL = "mirror_refusal"
COMPLETE_ATTEMPT = "complete_attempt"
COMPLETE_STEP = "complete_step"
COMPLETE_DIGEST = "complete_digest"
COMPLETE_BEST_STEP = "complete_best_step"
COMPLETE_BEST_METRIC = "complete_best_metric"
COMPLETE_REASON = "complete_reason"
RESUME_WARNING = "resume_warning"
SESSION = "session"
# The values of an outcome, a refusal, a warning, a digest, a reason and a session are words.
# Ordinary metrics, under names that everybody spells the same.
MIRROR_LAG_STEPS = "mirror_lag_steps"
MIRROR_LAG_SECONDS = "mirror_lag_seconds"
MIRROR_STEP = "mirror_step"
MIRROR_RESTORED_BYTES = "mirror_restored_bytes"
MIRROR_RESTORE_BYTES = "mirror_restore_bytes"
CHECKPOINT_INTERVAL_SECONDS = "checkpoint_interval_seconds"
CHECKPOINTS_SKIPPED = "checkpoints_skipped"
EXAMPLES_SKIPPED = "examples_skipped"
CHECKPOINTS_THAT_FIT = "checkpoints_that_fit"
CHECKPOINT_STALL_SECONDS = "checkpoint_stall_seconds"
MEMORY_PEAK_BYTES = "memory_peak_bytes"
GPU_MEMORY_PEAK_BYTES = "gpu_memory_peak_bytes"
GPU_MEMORY_BYTES = "gpu_memory_bytes"
STEP_SECONDS = "step_seconds"
EVALUATION_SECONDS = "evaluation_seconds"
EVALUATION_EVERY_STEPS = "evaluation_every_steps"
_ALIASES = {"current_step": STEP}
_COMPLETE = (COMPLETE_ATTEMPT, COMPLETE_STEP, COMPLETE_BEST_STEP, COMPLETE_BEST_METRIC)
_RESERVED = frozenset({STEP, TOTAL_STEPS, CHECKPOINT_STEP, RESUMED_FROM, PREVIOUS_ATTEMPT, *_COMPLETE})
TAKEN = _RESERVED | {PREVIOUS_OUTCOME, MIRROR_REFUSAL, RESUME_WARNING, SESSION, COMPLETE_DIGEST, COMPLETE_REASON}
"""Names on the wire that are not free for metrics of a script."""

BODY_BYTES_MAX = 1 << 20
"""A longer report is refused unread."""
# What is kept of a report ends in the run's status, so a sender must not be able to make that too large to store.
_METRICS_MAX = 64
_NAME_MAX = 128
_SENTENCE_MAX = 600
_TIME_MAX = 64
_WHOLE_MAX = 2**53


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
    previous: PreviousEnd | None = None
    """The end of the attempt before, in case its pods were gone before they were read."""
    mirror_refusal: str | None = None
    """The reason why nothing is mirrored although it should be: the bucket is another run's, refuses, or is away."""
    complete: Complete | None = None
    """The final manifest, in the last report of a training that is finished. Its script may go on."""
    resume_warning: str | None = None
    """A part of the state that would not come back as it is from a checkpoint, of a run that goes on all the same."""
    session: str | None = None
    """The one of several trainings of the script that reports, by name, and its step, e.g. `fold-0 step 300/1000`.

    Steps, checkpoint and end are then this training's: they are not the run's, and not sent."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """The request's body."""
        of_run: dict[str, float | int | str | None] = {
            STEP: self.step,
            TOTAL_STEPS: self.total_steps,
            CHECKPOINT_STEP: self.checkpoint_step,
            RESUMED_FROM: self.resumed_from,
            **_complete_to_wire(self.complete),
        }
        values: dict[str, float | int | str | None] = {
            **(of_run if self.session is None else {}),
            PREVIOUS_ATTEMPT: None if self.previous is None else self.previous.attempt,
            PREVIOUS_OUTCOME: None if self.previous is None else self.previous.outcome.value,
            MIRROR_REFUSAL: self.mirror_refusal,
            RESUME_WARNING: self.resume_warning,
            SESSION: self.session,
            **self.metrics,
        }
        status: dict[str, Any] = {"lastUpdatedTime": self.updated}
        if self.percentage is not None and self.session is None:
            status["progressPercentage"] = self.percentage
        if self.remaining_seconds is not None and self.session is None:
            status["estimatedRemainingSeconds"] = self.remaining_seconds
        status["metrics"] = [{"name": name, "value": str(value)} for name, value in values.items() if value is not None]
        return {"trainerStatus": status}

    @classmethod
    def from_wire(cls, body: object) -> Self:
        """Parse a request's body, whoever sent it. Metrics that are not numbers are left out.

        Raises:
            ValueError: it is not a KEP-2779 report.
        """
        status = body.get("trainerStatus") if isinstance(body, dict) else None
        updated = status.get("lastUpdatedTime") if isinstance(status, dict) else None
        if not isinstance(status, dict) or not isinstance(updated, str) or len(updated) > _TIME_MAX:
            raise ValueError("not a KEP-2779 report: no trainerStatus.lastUpdatedTime")
        numbers = _numbers(status.get("metrics"))
        return cls(
            updated=updated,
            percentage=_bounded(status.get("progressPercentage"), 100),
            remaining_seconds=_bounded(status.get("estimatedRemainingSeconds"), 2**31),
            step=_whole(numbers.get(STEP)),
            total_steps=_whole(numbers.get(TOTAL_STEPS)),
            checkpoint_step=_whole(numbers.get(CHECKPOINT_STEP)),
            resumed_from=_whole(numbers.get(RESUMED_FROM)),
            previous=_previous(numbers.get(PREVIOUS_ATTEMPT), status.get("metrics")),
            mirror_refusal=_words(MIRROR_REFUSAL, status.get("metrics"), most=_SENTENCE_MAX),
            complete=_complete(numbers, status.get("metrics")),
            resume_warning=_words(RESUME_WARNING, status.get("metrics"), most=_SENTENCE_MAX),
            session=_words(SESSION, status.get("metrics"), most=_NAME_MAX),
            metrics={name: value for name, value in numbers.items() if name not in _RESERVED},
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse a request's body as it came.

        Raises:
            ValueError: it is not JSON, or not a KEP-2779 report.
        """
        try:
            return cls.from_wire(json.loads(text))
        except RecursionError:
            raise ValueError("not a KEP-2779 report: nested too deeply") from None


@dataclass(frozen=True, kw_only=True)
class StopAt:
    """Until when a trainer may go on."""

    time: datetime | None = None
    """None: no limit says anything."""
    limit: Limit | None = None
    """The limit that is reached then."""
    seconds: float | None = None
    """The same from now on. A trainer goes by this: its clock may not be the server's. None: an older server."""


@dataclass(frozen=True, kw_only=True)
class TrainerRequests:
    """The requests of the server, in its answer."""

    checkpoint: bool = False
    """Save now and go on (a rebalance recommendation, say)."""
    stop: bool = False
    """Save and end in order."""
    stop_at: StopAt | None = None
    """Holds from now on, instead of what the environment or an earlier answer said; None changes nothing."""

    def to_json(self) -> str:
        """The answer's body."""
        fields: dict[str, Any] = {name: True for name in ("checkpoint", "stop") if getattr(self, name)}
        if self.stop_at is not None:
            time, seconds = self.stop_at.time, self.stop_at.seconds
            fields["stopAt"] = {} if time is None else {"time": time.isoformat(), "limit": self.stop_at.limit}
            if seconds is not None:
                fields["stopAt"]["seconds"] = round(seconds, 3)
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse an answer; anything that is not one asks for nothing."""
        try:
            fields = json.loads(text or "{}")
            return cls(
                checkpoint=fields.get("checkpoint") is True,
                stop=fields.get("stop") is True,
                stop_at=_stop_at(fields.get("stopAt")),
            )
        except (ValueError, AttributeError):
            return cls()


def _stop_at(fields: object) -> StopAt | None:
    if not isinstance(fields, dict):
        return None
    if "time" not in fields:
        return StopAt()
    try:
        time = datetime.fromisoformat(fields["time"])
    except (ValueError, TypeError):
        return None
    limit = fields.get("limit")
    return StopAt(
        time=time.replace(tzinfo=time.tzinfo or UTC),
        limit=Limit(limit) if isinstance(limit, str) else None,
        seconds=_number(fields.get("seconds")),
    )


def _numbers(metrics: object) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for item in metrics if isinstance(metrics, list) else []:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or len(name) > _NAME_MAX:
            continue
        value = _number(item.get("value"))
        name = _ALIASES.get(name, name)
        if value is not None and (name in _RESERVED or len(numbers) < _METRICS_MAX):
            numbers[name] = value
    return numbers


def _previous(attempt: float | None, metrics: object) -> PreviousEnd | None:
    number, outcome = _whole(attempt), _words(PREVIOUS_OUTCOME, metrics, most=_NAME_MAX)
    return None if number is None or outcome is None else PreviousEnd(attempt=number, outcome=Outcome(outcome))


def _complete_to_wire(complete: Complete | None) -> dict[str, float | int | str | None]:
    if complete is None:
        return {}
    return {
        COMPLETE_ATTEMPT: complete.attempt,
        COMPLETE_STEP: complete.step,
        COMPLETE_DIGEST: complete.weights_digest,
        COMPLETE_BEST_STEP: complete.best_step,
        COMPLETE_BEST_METRIC: complete.best_metric,
        COMPLETE_REASON: complete.reason,
    }


def _complete(numbers: Mapping[str, float], metrics: object) -> Complete | None:
    attempt, step = _whole(numbers.get(COMPLETE_ATTEMPT)), _whole(numbers.get(COMPLETE_STEP))
    if attempt is None or step is None:
        return None
    return Complete(
        attempt=attempt,
        step=step,
        weights_digest=_words(COMPLETE_DIGEST, metrics, most=_NAME_MAX),
        best_step=_whole(numbers.get(COMPLETE_BEST_STEP)),
        best_metric=numbers.get(COMPLETE_BEST_METRIC),
        reason=_words(COMPLETE_REASON, metrics, most=_SENTENCE_MAX) or "",
    )


def _words(name: str, metrics: object, *, most: int) -> str | None:
    """Return the value of a metric that is no number, at most so many characters of it."""
    for item in metrics if isinstance(metrics, list) else []:
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get("value"), str):
            return str(item["value"])[:most]
    return None


def _number(value: object) -> float | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: float | None) -> int | None:
    return None if value is None or not 0 <= value <= _WHOLE_MAX else int(value)


def _bounded(value: object, top: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, top)
