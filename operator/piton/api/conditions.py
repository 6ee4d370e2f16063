"""Conditions, and the phase that summarizes them.

Pending -> Starting -> Training -> (Stopping -> Recovering -> Starting)* -> Succeeded | Failed
|                       |
Refused                Stopping -> Suspended -> Starting

A run in a queue is Queued before each Starting for which it has no quota.
A run with other stages passes the first line once per stage, with Preparing or Evaluating in place of Training.

StatusUnreadable is True while this version cannot interpret the status of another; the other conditions do not change.
Reporting is False while an attempt trains and nothing is heard of it; it is set only where trainers are to report.
Mirrored is False while checkpoints should be mirrored and are not; it is set only of a run with a mirror that reports.
VolumeNearlyFull is True while the checkpoint volume has hardly room for another checkpoint.
ResumeInexact is True while a training saves what would not come back as it is.
ExamplesSkipped is True while damaged examples are left out of the data, as `maxSkipped` accepts.
SpecPending is True while the spec asks for something that only another attempt, or another volume, can have.
OperatorError is True while the operator fails at the object, by a mistake of its own, or cannot read what it needs.
PodStuck is True while a pod that is being deleted keeps its machine, which answers, or is kept by a finalizer.
Stalled is True while consecutive attempts end without a newer durable step.
Waiting is not a phase: it is True while something outside the run blocks its next transition, in any phase.
"""

from datetime import datetime
from typing import TypeVar

from piton.api.reasons import Reason
from piton.api.status_base import Condition, Conditioned, ConditionStatus, Phase

StatusT = TypeVar("StatusT", bound=Conditioned)

ACCEPTED, TRAINING, WAITING = "Accepted", "Training", "Waiting"
SUSPENDED, SUCCEEDED, FAILED = "Suspended", "Succeeded", "Failed"
STATUS_UNREADABLE, STALLED, REPORTING, MIRRORED = "StatusUnreadable", "Stalled", "Reporting", "Mirrored"
VOLUME_NEARLY_FULL, RESUME_INEXACT, POD_STUCK = "VolumeNearlyFull", "ResumeInexact", "PodStuck"
SPEC_PENDING, OPERATOR_ERROR, EXAMPLES_SKIPPED = "SpecPending", "OperatorError", "ExamplesSkipped"

_WAITS = frozenset(
    {
        Reason.REFUSED,
        Reason.WEBHOOK_UNAVAILABLE,
        Reason.POLICY_DENIED,
        Reason.POD_SECURITY,
        Reason.QUOTA_EXCEEDED,
        Reason.LIMIT_RANGE,
        Reason.MISSING_RIGHTS,
        Reason.NAMESPACE_TERMINATING,
        Reason.ENGINE_MISSING,
        Reason.ENGINE_SILENT,
        Reason.JOB_SUSPENDED,
        Reason.CLAIM_MISSING,
        Reason.VOLUME_UNBOUND,
        Reason.VOLUME_IN_OTHER_ZONE,
        Reason.UNSCHEDULABLE,
        Reason.SCHEDULING_GATED,
        Reason.NODE_LAUNCHING,
        Reason.VOLUME_ATTACHING,
        Reason.VOLUME_MOUNTING,
        Reason.SANDBOX_FAILED,
        Reason.KUBELET_SILENT,
        Reason.IMAGE_PULLING,
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_CONFIG,
        Reason.INIT_CONTAINER,
        Reason.INIT_CONTAINER_FAILED,
        Reason.NAME_TAKEN,
        Reason.WAITING,
        Reason.QUEUED,
        Reason.QUEUE_UNREADABLE,
        Reason.POD_STUCK,
    }
)
"""Reasons that set the condition Waiting."""

_T, _F, _U = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_TABLE: dict[Phase, dict[str, ConditionStatus]] = {
    Phase.PENDING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.REFUSED: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.QUEUED: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.STARTING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.PREPARING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.TRAINING: {TRAINING: _T, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.EVALUATING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.STOPPING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.RECOVERING: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _U, FAILED: _F},
    Phase.SUSPENDED: {TRAINING: _F, SUSPENDED: _T, SUCCEEDED: _U, FAILED: _F},
    Phase.SUCCEEDED: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _T, FAILED: _F},
    Phase.FAILED: {TRAINING: _F, SUSPENDED: _F, SUCCEEDED: _F, FAILED: _T},
}


def settled(status: Conditioned) -> bool:
    """True if the run, or the sweep, has ended for good."""
    return status.is_true(SUCCEEDED) or status.is_true(FAILED)


def in_phase(
    status: StatusT,
    phase: Phase,
    reason: Reason,
    message: str,
    *,
    now: datetime,
    generation: int,
    waits: bool = False,
) -> StatusT:
    """Return the status in that phase, with all conditions set; those that the phase concerns carry the reason.

    With `waits`, the condition Waiting is left unchanged, because its reason differs from the phase's.
    """
    conditions = status.conditions
    accepted = _F if phase is Phase.REFUSED else _T
    accepted_why = (reason, message) if phase is Phase.REFUSED else (Reason.ACCEPTED, "")
    conditions = _set(conditions, ACCEPTED, accepted, *accepted_why, now, generation)
    for kind, value in _TABLE[phase].items():
        about = kind == TRAINING or value is _T or (value is _F and kind == SUCCEEDED)
        why = (reason, message) if about else (Reason.NOT_YET, "")
        conditions = _set(conditions, kind, value, *why, now, generation)
    status = status.model_copy(update={"phase": phase, "conditions": conditions, "observed_generation": generation})
    if waits:
        return status
    if reason in _WAITS:
        return with_waiting(status, reason, message, now=now, generation=generation)
    return without_waiting(status, now=now, generation=generation)


def without_words(status: StatusT) -> StatusT:
    """Return the status for a comparison: without the reasons and messages that quote the cluster, and without costs.

    Costs grow with the clock alone, and each write counts them anew.
    """
    conditions = tuple(
        condition.model_copy(update={"reason": Reason.NOT_YET, "message": ""})
        if condition.type in (TRAINING, WAITING, OPERATOR_ERROR)
        else condition
        for condition in status.conditions
    )
    return status.without_growth().model_copy(update={"conditions": conditions})


def with_waiting(status: StatusT, reason: Reason, message: str, *, now: datetime, generation: int) -> StatusT:
    """Return the status with the condition Waiting set to True for this reason; the rest is unchanged."""
    return with_condition(status, WAITING, _T, reason, message, now=now, generation=generation)


def without_waiting(status: StatusT, *, now: datetime, generation: int) -> StatusT:
    """Return the status with the condition Waiting set to False; the rest is unchanged."""
    return with_condition(status, WAITING, _F, Reason.NOT_YET, "", now=now, generation=generation)


def with_trouble(
    status: StatusT, kind: str, reason: Reason, message: str | None, *, now: datetime, generation: int
) -> StatusT:
    """Return the status with this condition: True with the message, or False where there is none and it was True."""
    if message is not None:
        return with_condition(status, kind, _T, reason, message, now=now, generation=generation)
    if not status.is_true(kind):
        return status
    return with_condition(status, kind, _F, Reason.NOT_YET, "", now=now, generation=generation)


def with_accepted(status: StatusT, before: StatusT, problem: str | None, *, now: datetime, generation: int) -> StatusT:
    """Return the status with Accepted set by the spec, and not by the phase as `in_phase` has it.

    The time of its last transition is counted from the status before.
    """
    status = as_before(status, before, ACCEPTED)
    if problem is None:
        return with_condition(status, ACCEPTED, _T, Reason.ACCEPTED, "", now=now, generation=generation)
    return with_condition(status, ACCEPTED, _F, Reason.INVALID_SPEC, problem, now=now, generation=generation)


def as_before(status: StatusT, before: Conditioned, kind: str) -> StatusT:
    """Return the status with this condition as it was before, if it was there; the rest is unchanged."""
    known = before.condition(kind)
    conditions = tuple(known if known and c.type == kind else c for c in status.conditions)
    return status.model_copy(update={"conditions": conditions})


def with_condition(
    status: StatusT,
    kind: str,
    value: ConditionStatus,
    reason: Reason,
    message: str,
    *,
    now: datetime,
    generation: int,
) -> StatusT:
    """Return the status with this condition; the rest is unchanged."""
    conditions = _set(status.conditions, kind, value, reason, message, now, generation)
    return status.model_copy(update={"conditions": conditions})


def _set(
    conditions: tuple[Condition, ...],
    kind: str,
    status: ConditionStatus,
    reason: Reason,
    message: str,
    now: datetime,
    generation: int,
) -> tuple[Condition, ...]:
    old = next((c for c in conditions if c.type == kind), None)
    said = (status, reason, message, generation)
    if old is not None and (old.status, old.reason, old.message, old.observed_generation) == said:
        return conditions
    new = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=old.last_transition_time if old and old.status is status else now,
        observed_generation=generation,
    ).with_unknown_of(old)
    if old is None:
        return (*conditions, new)
    return tuple(new if c is old else c for c in conditions)
