"""Increments of the counters by one pass: the difference between a run's status before and after it. Pure.

Whoever counts these once the new status is written counts nothing twice: a pass that is repeated after a crash, or an
operator that starts again, finds the new status already there, and the difference is nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict

REASONS: dict[Verdict, tuple[Reason, ...]] = {
    Verdict.FINISHED: (Reason.FINISHED, Reason.EXITED_ZERO),
    Verdict.PREEMPTED: (Reason.DISRUPTED, Reason.NODE_GONE, Reason.ZONE_SILENT, Reason.NODE_RECLAIMED),
    Verdict.INFRASTRUCTURE: (
        Reason.POD_DELETED,
        Reason.JOB_VANISHED,
        Reason.KILLED,
        Reason.NO_PROOF,
        Reason.NAME_TAKEN,
        Reason.UNKNOWN_END,
        Reason.HUNG,
        Reason.NODE_REFUSED,
        Reason.SANDBOX_FAILED,
        Reason.IMAGE_PULL_FAILED,
        Reason.START_FAILED,
        Reason.INIT_CONTAINER_FAILED,
        Reason.GANG_INCOMPLETE,
        Reason.STOPPED_EARLY,
        Reason.NO_EVIDENCE,
        Reason.FENCED,
        Reason.VOLUME_LOST,
        Reason.NOT_MIRRORED,
        Reason.DATA_UNAVAILABLE,
        Reason.DEVICE_LOST,
        Reason.PRICE_TOO_HIGH,
    ),
    Verdict.USER_FAILURE: (
        Reason.CRASHED,
        Reason.OUT_OF_MEMORY,
        Reason.OUT_OF_DISK,
        Reason.CANNOT_START,
        Reason.BAD_CONFIG,
        Reason.DIVERGED,
        Reason.OUT_OF_SPACE,
        Reason.SCRIPT_TIMEOUT,
    ),
    Verdict.STOPPED: (
        Reason.SUSPENDED,
        Reason.DEADLINE_EXCEEDED,
        Reason.BUDGET_EXCEEDED,
        Reason.NOT_WANTED,
        Reason.QUOTA_TAKEN,
        Reason.JOB_SUSPENDED,
    ),
}
"""Reasons for an attempt's end, by verdict."""
DISTURBANCES = (Verdict.PREEMPTED, Verdict.INFRASTRUCTURE, Verdict.USER_FAILURE)
"""Ends after which a run has to recover."""


@dataclass(frozen=True, kw_only=True)
class End:
    """An attempt that has ended."""

    verdict: Verdict
    reason: Reason
    stage: Stage = Stage.TRAIN


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A run that trains again."""

    verdict: Verdict
    """The verdict of the end from which the run has recovered."""
    seconds: float
    """From the first sign of the end to the first step that was reported after it."""


@dataclass(frozen=True, kw_only=True)
class Increments:
    """The changes since the status before."""

    started: tuple[Stage, ...] = ()
    """The stages of the attempts whose jobs were created."""
    ends: tuple[End, ...] = ()
    recovery: Recovery | None = None
    lost_steps: int = 0


def increments(old: RunStatus, new: RunStatus) -> Increments:
    """Return the increments between the old status and the new one."""
    known = {record.number: record for record in old.attempts}
    return Increments(
        started=tuple(r.stage for r in new.attempts if _has_started(known.get(r.number), r)),
        ends=tuple(end for record in new.attempts if (end := _end(known.get(record.number), record))),
        recovery=_recovery(known, new.attempts),
        lost_steps=max(0, new.lost.steps - old.lost.steps),
    )


def _has_started(old: AttemptStatus | None, new: AttemptStatus) -> bool:
    """An attempt that ended before its job was created is none."""
    had = old is not None and old.state is not AttemptState.PENDING
    return not had and new.state not in (AttemptState.PENDING, AttemptState.ENDED)


def _end(old: AttemptStatus | None, new: AttemptStatus) -> End | None:
    if new.state is not AttemptState.ENDED or (old is not None and old.state is AttemptState.ENDED):
        return None
    verdict, reason = new.verdict or Verdict.INFRASTRUCTURE, new.reason or Reason.NO_EVIDENCE
    return End(verdict=verdict, reason=reason, stage=new.stage)


def _recovery(known: dict[int, AttemptStatus], attempts: Sequence[AttemptStatus]) -> Recovery | None:
    """The first report of an attempt that follows a disturbed one. Last words are no report: their time is the end."""
    if not attempts or attempts[-1].state not in (AttemptState.STARTING, AttemptState.RUNNING):
        return None
    record, before = attempts[-1], known.get(attempts[-1].number)
    fallen = _fallen(attempts[:-1])
    if record.training_time is None or (before and before.training_time) or fallen is None or fallen.verdict is None:
        return None
    since = fallen.failing_time or fallen.ended_time or record.created_time
    return Recovery(verdict=fallen.verdict, seconds=max(0.0, (record.training_time - since).total_seconds()))


def _fallen(earlier: Sequence[AttemptStatus]) -> AttemptStatus | None:
    """The newest attempt that trained; none where somebody told the run to stop after it."""
    for record in reversed(earlier):
        if record.verdict not in DISTURBANCES:
            return None
        if record.training_time is not None:
            return record
    return None
