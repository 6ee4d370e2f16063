"""Conditions by the newest report of the attempt that trains.

Reporting          the reports themselves: without them nobody knows how far it is
Mirrored           the bucket: people who ask for a second copy learn when they have none
VolumeNearlyFull   the volume: it can be enlarged before a save fails
ResumeInexact      the checkpoints: part of them would not come back as it is
ExamplesSkipped    the data: it trains on less than people have given it
"""

import math

from piton.api.checkpoint_spec import Keep
from piton.api.conditions import (
    EXAMPLES_SKIPPED,
    MIRRORED,
    REPORTING,
    RESUME_INEXACT,
    VOLUME_NEARLY_FULL,
    with_condition,
)
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.stages import called
from piton.api.status import AttemptState, RunStatus
from piton.api.status_base import ConditionStatus
from piton.contract import progress as reports
from piton.core.context import Context
from piton.core.effects import Announcement

REPORTS_WITHIN_SECONDS = 60.0
"""Seconds without a report after which people are told. A trainer sends one at least every 30 s."""
_TRAINS_ON = "It trains on"
_KEEPS_LEAST = Keep(last=2, best=0, weights_only=0)
"""The fewest checkpoints that a run can keep."""
_PROGRAM = "A program that uses neither piton_trainer nor the Trainer of transformers sends none. "
_CAUSES = (
    "Usual causes: a NetworkPolicy or a service mesh keeps the pod from the operator's Service, or the operator has a "
    "new certificate authority since the pod was created. The log of rank 0 says which"
)
Noted = tuple[RunStatus, tuple[Announcement, ...]]
"""The status with the condition, and an announcement when it has just turned bad."""


def seconds_to_silence(context: Context, status: RunStatus) -> float | None:
    """Return the seconds until the attempt has been silent for too long; 0: it has. None: no reports are expected.

    Rank 0 reports, once all replicas have come together and until the training is finished.
    """
    record, silent = status.current, context.observed.silent_seconds
    if record is None or silent is None or record.formed_time is None or record.stage is not Stage.TRAIN:
        return None
    if record.reports is False or record.trained_time is not None:
        return None
    formed = (context.now - record.formed_time).total_seconds()
    return max(0.0, REPORTS_WITHIN_SECONDS - min(silent, formed))


def note_reporting(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition Reporting of an attempt that runs, and an announcement when it falls silent.

    A program of the user's may send no reports at all: that is in the condition only.
    """
    left, record, progress = seconds_to_silence(context, status), status.current, context.observed.progress
    if progress is not None and progress.complete is not None:
        left = math.inf  # it was the last report, and it came
    if left is None or record is None:
        return status, ()
    if left > 0:
        if progress is None:
            return status, ()  # it may still report in time
        return _with_health(context, status, REPORTING, Reason.REPORTING, Reason.NO_REPORTS, None)
    is_program = context.spec is not None and context.spec.trainer.recipe is None
    message = (
        f"no report has come from {called(record)} for {REPORTS_WITHIN_SECONDS:.0f} s. {_TRAINS_ON}, but its step, its "
        f"metrics and its checkpoints are not known. {_PROGRAM if is_program else ''}{_CAUSES}"
    )
    status, news = _with_health(context, status, REPORTING, Reason.REPORTING, Reason.NO_REPORTS, message)
    return status, () if is_program else news


def end_silence(context: Context, status: RunStatus) -> RunStatus:
    """Return the status without the silence of an attempt that does not train any more. Its last words stay."""
    known, record = status.condition(REPORTING), status.current
    if known is None or known.status is not ConditionStatus.FALSE or _TRAINS_ON not in known.message:
        return status
    if record is not None and record.state is AttemptState.RUNNING and f" {called(record)} " in known.message:
        return status
    now, generation = context.now, context.meta.generation
    return with_condition(
        status, REPORTING, ConditionStatus.UNKNOWN, Reason.NOT_YET, "", now=now, generation=generation
    )


def note_unreported(context: Context, status: RunStatus) -> RunStatus:
    """Return the status with what the last words of the attempt say of reports that did not arrive."""
    words = [replica.termination for replica in context.seen.replicas if replica.termination] if context.seen else []
    cause = next((termination.unreported for termination in words if termination.unreported), None)
    if cause is None or status.current is None:
        return status
    message = f"{called(status.current)} could not report: {cause}. {_CAUSES}"
    return _with_health(context, status, REPORTING, Reason.REPORTING, Reason.NO_REPORTS, message)[0]


def note_mirror(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition Mirrored, and an announcement when it turns False or True again."""
    progress, spec, known = context.observed.progress, context.spec, status.condition(MIRRORED)
    if progress is None or spec is None or spec.checkpoint.mirror is None:
        return status, ()
    lag, step = progress.metrics.get(reports.MIRROR_LAG_STEPS), progress.metrics.get(reports.MIRROR_STEP)
    if progress.mirror_refusal is None and lag is None:
        return status, ()  # nothing was saved yet
    was_off = known is not None and known.status is ConditionStatus.FALSE
    if was_off and progress.mirror_refusal is None and step is None and lag:
        return status, ()  # a new attempt, which has not mirrored anything so far
    status, news = _with_health(context, status, MIRRORED, Reason.MIRRORED, Reason.MIRROR_OFF, progress.mirror_refusal)
    if was_off and status.is_true(MIRRORED):
        has = "" if step is None else f": {spec.checkpoint.mirror.uri} has step {step:.0f}"
        news = (Announcement(reason=Reason.MIRRORED, message=f"checkpoints are mirrored again{has}"),)
    return status, news


def note_volume(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition VolumeNearlyFull, and an announcement when it turns True."""
    progress = context.observed.progress
    if progress is None or progress.checkpoint_step is None:
        return status, ()
    message, fit = None, progress.metrics.get(reports.CHECKPOINTS_THAT_FIT)
    if fit is not None:
        room = "no other" if fit < 1 else f"only {fit:.0f} more"
        fewer = ", or keep fewer with spec.checkpoint.keep" if _may_keep_fewer(context.spec) else ""
        message = (
            f"beside the checkpoints that are kept, the volume has room for {room}. Enlarge the claim, where its "
            f"storage class lets that be done{fewer}"
        )
    return _with_warning(context, status, VOLUME_NEARLY_FULL, Reason.VOLUME_NEARLY_FULL, message)


def _may_keep_fewer(spec: Spec | None) -> bool:
    """True if another `spec.checkpoint.keep` may keep fewer checkpoints. Best ones need an objective."""
    if spec is None:
        return True
    best = 0 if spec.objective is None else spec.checkpoint.keep.best
    return spec.checkpoint.keep.model_copy(update={"best": best}) != _KEEPS_LEAST


def note_resume(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition ResumeInexact, and an announcement when it turns True."""
    progress = context.observed.progress
    if progress is None:
        return status, ()
    message = progress.resume_warning
    return _with_warning(context, status, RESUME_INEXACT, Reason.RESUME_INEXACT, message)


def note_skipped(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition ExamplesSkipped, and an announcement when it turns True.

    A trainer reports it with each step, so before the first one of an attempt nothing changes.
    """
    progress = context.observed.progress
    if progress is None or progress.step is None or progress.step <= (progress.resumed_from or 0):
        return status, ()
    message, count = None, progress.metrics.get(reports.EXAMPLES_SKIPPED, 0.0)
    if count > 0:
        message = (
            f"{count:.0f} damaged examples of the data are left out, as spec.trainer.config.maxSkipped accepts. "
            "The log of rank 0 names the first and the file that lists them"
        )
    return _with_warning(context, status, EXAMPLES_SKIPPED, Reason.EXAMPLES_SKIPPED, message)


def _with_warning(context: Context, status: RunStatus, kind: str, reason: Reason, message: str | None) -> Noted:
    """Return the status with a condition that is True while there is a message, and a Warning when that begins."""
    news = () if message is None else context.warn_once(kind, reason, message)
    return context.with_trouble(status, kind, reason, message), news


def _with_health(
    context: Context, status: RunStatus, kind: str, good: Reason, bad: Reason, problem: str | None
) -> Noted:
    """Return the status with a condition that is False where there is a problem, and a Warning when that begins."""
    now, generation, known = context.now, context.meta.generation, status.condition(kind)
    if problem is None:
        return with_condition(status, kind, ConditionStatus.TRUE, good, "", now=now, generation=generation), ()
    was_bad = known is not None and known.status is ConditionStatus.FALSE
    news = () if was_bad else (Announcement(severity="Warning", reason=bad, message=problem),)
    return with_condition(status, kind, ConditionStatus.FALSE, bad, problem, now=now, generation=generation), news
