"""The end of a trainer process: its exit code, and one JSON object as the container's termination message.

    finished 0 --- stopped 143 --- badConfig 78 --- diverged 79 --- outOfSpace 80 --- fenced 81
    volumeLost 82 --- deviceLost 83 --- notMirrored 84 --- dataUnavailable 85 --- hung 60 --- failed: any other, but
    for those up to 95, which later versions may use

60 is the signal that ends a rank that hangs: it calls _exit with its own number. 143 is what a shell reports for
SIGTERM; 78 is EX_CONFIG of sysexits.h; the others follow it. Exit 0 alone proves nothing (a trainer that traps SIGTERM
may exit 0 too): the operator believes an outcome, or evidence from the pod.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from piton.contract.open_enum import OpenEnum

TERMINATION_MESSAGE_BYTES_MAX = 4096
"""The kubelet cuts a termination message here."""
_METRICS_MAX = 32
_SENTENCE_MAX = 300
_METRIC_NAME = re.compile(r"[A-Za-z0-9_./@-]{1,64}")


class ExitCode(IntEnum):
    """Exit codes that mean something to Piton."""

    FINISHED = 0
    HUNG = 60
    BAD_CONFIG = 78
    DIVERGED = 79
    OUT_OF_SPACE = 80
    FENCED = 81
    VOLUME_LOST = 82
    DEVICE_LOST = 83
    NOT_MIRRORED = 84
    DATA_UNAVAILABLE = 85
    STOPPED = 143


class Outcome(OpenEnum):
    """The outcome of an attempt, as the trainer reports it; a newer trainer may have more of them."""

    FINISHED = "finished"
    """All of the training is done, in the bucket too if there is one, and COMPLETE.json is written."""
    STOPPED = "stopped"
    """Told to stop (SIGTERM, the server's answer, PITON_STOP_AT), saved, and left."""
    BAD_CONFIG = "badConfig"
    """The user's settings or data cannot work; another attempt would end the same way."""
    DIVERGED = "diverged"
    """20 losses in a row, the objective, or a weight to be saved is not a finite number."""
    OUT_OF_SPACE = "outOfSpace"
    """The checkpoint volume is full; older checkpoints are untouched."""
    FENCED = "fenced"
    """A higher attempt has claimed the checkpoint directory."""
    VOLUME_LOST = "volumeLost"
    """The checkpoint volume could not be written to or read for too long, or what was saved on it is lost."""
    DEVICE_LOST = "deviceLost"
    """A GPU, its driver, or the connection between ranks failed. A rank says so too when it only misses another."""
    NOT_MIRRORED = "notMirrored"
    """All of the training is done, but its last checkpoint could not be uploaded to the bucket; the volume has it."""
    DATA_UNAVAILABLE = "dataUnavailable"
    """The bucket of the training data does not answer, or something else than an S3 server does."""
    HUNG = "hung"
    """No rank has ended a step for too long; the watchdog has ended them all."""
    FAILED = "failed"
    """An exception of the user's code or of ours."""


class ScriptEnd(OpenEnum):
    """State of the script after its session has finished the training."""

    RUNNING = "running"
    """It goes on, or it was ended in the middle of what follows the training."""
    ENDED = "ended"
    """It came to its end; nothing is left to do but to end the interpreter."""
    FAILED = "failed"
    """An exception, or an exit code that is not 0."""


class Limit(OpenEnum):
    """A limit of the run's that a trainer keeps by itself."""

    DEADLINE = "deadline"
    BUDGET = "budget"


EXIT_CODES: dict[Outcome, ExitCode] = {
    Outcome.FINISHED: ExitCode.FINISHED,
    Outcome.STOPPED: ExitCode.STOPPED,
    Outcome.BAD_CONFIG: ExitCode.BAD_CONFIG,
    Outcome.DIVERGED: ExitCode.DIVERGED,
    Outcome.OUT_OF_SPACE: ExitCode.OUT_OF_SPACE,
    Outcome.FENCED: ExitCode.FENCED,
    Outcome.VOLUME_LOST: ExitCode.VOLUME_LOST,
    Outcome.DEVICE_LOST: ExitCode.DEVICE_LOST,
    Outcome.NOT_MIRRORED: ExitCode.NOT_MIRRORED,
    Outcome.DATA_UNAVAILABLE: ExitCode.DATA_UNAVAILABLE,
    Outcome.HUNG: ExitCode.HUNG,
}
_OUTCOMES: dict[int, Outcome] = {int(code): outcome for outcome, code in EXIT_CODES.items()}
_LATER_CODES = range(86, 96)


def outcome_of(exit_code: int | None) -> Outcome | None:
    """Return the outcome of an exit code alone; a code reserved for later versions gives an unknown outcome."""
    if exit_code is None:
        return None
    return Outcome(f"exitCode{exit_code}") if exit_code in _LATER_CODES else _OUTCOMES.get(exit_code)


@dataclass(frozen=True, kw_only=True)
class StopAfter:
    """For how long a training may go on. Seconds and no moment: the clocks of two machines differ."""

    seconds: float
    """From its start on."""
    limit: Limit
    """The limit that is reached then."""


@dataclass(frozen=True, kw_only=True)
class Termination:
    """The termination message that rank 0 leaves behind.

    `step` is the last step that was trained, `checkpoint_step` the newest that is durable; the difference is what the
    next attempt has to train again.
    """

    outcome: Outcome
    step: int | None = None
    checkpoint_step: int | None = None
    resumed_from: int | None = None
    weights_digest: str | None = None
    best_step: int | None = None
    best_metric: float | None = None
    fence: int | None = None
    """The attempt that holds the checkpoint directory, when it is not this one: the next attempt has to be higher."""
    limit: Limit | None = None
    """Of one that stopped by itself: the limit that was reached."""
    script: ScriptEnd | None = None
    """Of one that has finished its training: what became of the script since. None: an older trainer does not say."""
    script_error: str | None = None
    """Of a script that has failed since: the error, or its exit code."""
    scripts_left: int | None = None
    """Processes of the container whose scripts run on, by what they say. None: the only one, or none."""
    launched: bool = False
    """True if torchrun started it, which turns every end of its processes into exit code 1."""
    unreported: str | None = None
    """The reason for which the newest reports did not arrive; None if they did."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of an evaluation, at most 32, so that they fit."""
    detail: str = ""
    is_ours: bool = True
    """False for words of the cluster's, or of a program of the user's: they say nothing of what was saved."""

    @property
    def is_proof(self) -> bool:
        """True if it tells of the final manifest: the training is finished, whatever becomes of the script."""
        return self.outcome is Outcome.FINISHED and self.step is not None

    def to_json(self) -> str:
        """One line of JSON that fits into `TERMINATION_MESSAGE_BYTES_MAX`; a long detail is cut."""
        room = TERMINATION_MESSAGE_BYTES_MAX - len(self._dump(detail=""))
        detail = self.detail
        while len(json.dumps(detail)) - 2 > room:
            detail = detail[: max(0, len(detail) - max(1, (len(json.dumps(detail)) - 2 - room) // 6 + 1))]
        return self._dump(detail=detail)

    def _dump(self, *, detail: str) -> str:
        fields = {
            "outcome": self.outcome.value,
            "step": self.step,
            "checkpointStep": self.checkpoint_step,
            "resumedFrom": self.resumed_from,
            "weightsDigest": self.weights_digest,
            "bestStep": self.best_step,
            "bestMetric": self.best_metric,
            "fence": self.fence,
            "limit": None if self.limit is None else self.limit.value,
            "script": None if self.script is None else self.script.value,
            "scriptError": None if self.script_error is None else self.script_error[:_SENTENCE_MAX],
            "scriptsLeft": self.scripts_left,
            "launched": True if self.launched else None,
            "unreported": None if self.unreported is None else self.unreported[:_SENTENCE_MAX],
            "metrics": _metrics(self.metrics) or None,
            "detail": detail,
        }
        return json.dumps({key: value for key, value in fields.items() if value is not None})

    @classmethod
    def from_json(cls, text: str | None) -> Self | None:
        """Parse a termination message; None for anything that is not one (user code may write its own text there).

        An outcome that is not known is a newer trainer's, if there is a detail beside it, as in all of Piton's.
        """
        try:
            fields = json.loads(text or "")
            outcome = Outcome(fields["outcome"])
            if not outcome.is_known and "detail" not in fields:
                return None
            return cls(
                outcome=outcome,
                step=_integer(fields.get("step")),
                checkpoint_step=_integer(fields.get("checkpointStep")),
                resumed_from=_integer(fields.get("resumedFrom")),
                weights_digest=_string(fields.get("weightsDigest")),
                best_step=_integer(fields.get("bestStep")),
                best_metric=_number(fields.get("bestMetric")),
                fence=_integer(fields.get("fence")),
                limit=Limit(fields["limit"]) if isinstance(fields.get("limit"), str) else None,
                script=ScriptEnd(fields["script"]) if isinstance(fields.get("script"), str) else None,
                script_error=_string(fields.get("scriptError")),
                scripts_left=_integer(fields.get("scriptsLeft")),
                launched=fields.get("launched") is True,
                unreported=_string(fields.get("unreported")),
                metrics=_metrics(fields.get("metrics")),
                detail=str(fields.get("detail", "")),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True)
class PreviousEnd:
    """The end of the attempt before, as it has recorded it on the checkpoint volume."""

    attempt: int
    outcome: Outcome

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"attempt": self.attempt, "outcome": self.outcome.value})

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Parse the file; None where it says nothing that this version understands."""
        try:
            fields = json.loads(text)
            attempt, outcome = fields["attempt"], Outcome(fields["outcome"])
        except (ValueError, TypeError, KeyError):
            return None
        return cls(attempt=attempt, outcome=outcome) if _integer(attempt) is not None else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _metrics(value: object) -> dict[str, float]:
    """Finite numbers by name; what is none is left out, and so is what would not fit."""
    found = {str(name): _number(number) for name, number in value.items()} if isinstance(value, Mapping) else {}
    good = {n: v for n, v in found.items() if v is not None and math.isfinite(v) and _METRIC_NAME.fullmatch(n)}
    return dict(sorted(good.items())[:_METRICS_MAX])
