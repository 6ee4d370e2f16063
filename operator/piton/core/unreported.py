"""Work of which nothing was heard. Nothing heard is not nothing saved.

A program of the user's reports nothing. Reports of a recipe can be blocked by a NetworkPolicy or a certificate, and its
last words go with a machine that is lost.
"""

from datetime import timedelta

from piton.api.conditions import REPORTING, with_reporting
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import called
from piton.api.status import AttemptState, AttemptStatus, RunStatus
from piton.api.status_base import ConditionStatus
from piton.core.context import Context
from piton.core.effects import Announcement

REPORTS_WITHIN_SECONDS = 60.0
"""Seconds without a report after which people are told. A trainer sends one at least every 30 s."""
_SAVES_WITHIN = timedelta(seconds=60)
"""An attempt that trained for longer may have saved, whatever it said."""
_EXITED_ZERO = frozenset({Reason.FINISHED, Reason.EXITED_ZERO, Reason.NO_PROOF})
_UNSEEN = frozenset(
    {
        Reason.DISRUPTED,
        Reason.NODE_GONE,
        Reason.NODE_RECLAIMED,
        Reason.ZONE_SILENT,
        Reason.POD_DELETED,
        Reason.JOB_VANISHED,
        Reason.KILLED,
        Reason.NO_EVIDENCE,
    }
)
"""Ends in which a pod may be gone before anybody has seen it run."""


def may_hold_checkpoint(status: RunStatus) -> bool:
    """True if the checkpoint volume may hold something that the run has saved. In doubt it does."""
    if status.unreadable or status.checkpoint is not None or status.may_hold_unlisted_work:
        return True
    return any(may_have_saved(record) for record in status.attempts)


def may_have_saved(record: AttemptStatus) -> bool:
    """True if the attempt may have left something on the checkpoint volume. In doubt it has.

    It has not if no trainer of it has run, or if it failed within a minute and its last words name no checkpoint. A
    report is not enough: it may have saved since.
    """
    if record.stage is not Stage.TRAIN or not _may_have_run(record):
        return False
    if record.last_words_time is None or record.reason in _EXITED_ZERO:
        return True
    if record.running_time is None or record.ended_time is None:
        return True
    return ran_for_long(record)


def ran_for_long(record: AttemptStatus) -> bool:
    """True if the attempt ran for so long that a trainer may have saved."""
    if record.running_time is None or record.ended_time is None:
        return False
    return record.ended_time - record.running_time > _SAVES_WITHIN


def is_unheard(context: Context) -> bool:
    """True if a recipe trained, which reports, and neither a report nor last words of the attempt have arrived."""
    record, spec = context.flying, context.spec
    if record is None or record.stage is not Stage.TRAIN or spec is None or spec.trainer.recipe is None:
        return False
    return record.step is None and record.last_words_time is None and context.observed.progress is None


def _may_have_run(record: AttemptStatus) -> bool:
    """True if its trainer was seen running, or if its pods had machines and went before anybody looked."""
    if record.running_time is not None:
        return True
    if record.reason is None:  # the run was deleted under it; Stopping: it was seen waiting when Piton stopped it
        return bool(record.replicas) and record.state is not AttemptState.STOPPING
    return record.reason in _UNSEEN


def seconds_to_silence(context: Context, status: RunStatus) -> float | None:
    """Return the seconds until the attempt has been silent for too long; 0: it has. None: no reports are expected.

    Rank 0 reports, and only once all replicas have come together.
    """
    record, silent = status.current, context.observed.silent_seconds
    if record is None or silent is None or record.formed_time is None or record.stage is not Stage.TRAIN:
        return None
    formed = (context.now - record.formed_time).total_seconds()
    return max(0.0, REPORTS_WITHIN_SECONDS - min(silent, formed))


def note_reporting(context: Context, status: RunStatus) -> tuple[RunStatus, tuple[Announcement, ...]]:
    """Return the status with the condition Reporting of an attempt that runs, and an announcement when it falls silent.

    A program of the user's may send no reports at all: that is in the condition only.
    """
    left, record = seconds_to_silence(context, status), status.current
    if left is None or record is None:
        return status, ()
    if left > 0:
        if context.observed.progress is None:
            return status, ()  # it may still report in time
        return _reporting(context, status, None), ()
    is_program = context.spec is not None and context.spec.trainer.recipe is None
    message = (
        f"no report has come from {called(record)} for {REPORTS_WITHIN_SECONDS:.0f} s. It trains on, but its step, its "
        f"metrics and its checkpoints are not known. {_PROGRAM if is_program else ''}{_CAUSES}"
    )
    known = status.condition(REPORTING)
    is_new = known is None or known.status is not ConditionStatus.FALSE
    news = Announcement(severity="Warning", reason=Reason.NO_REPORTS, message=message)
    return _reporting(context, status, message), (news,) if is_new and not is_program else ()


def note_unreported(context: Context, status: RunStatus) -> RunStatus:
    """Return the status with what the last words of the attempt say of reports that did not arrive."""
    words = [replica.termination for replica in context.seen.replicas if replica.termination] if context.seen else []
    cause = next((termination.unreported for termination in words if termination.unreported), None)
    if cause is None or status.current is None:
        return status
    return _reporting(context, status, f"{called(status.current)} could not report: {cause}. {_CAUSES}")


def _reporting(context: Context, status: RunStatus, silence: str | None) -> RunStatus:
    return with_reporting(status, silence, now=context.now, generation=context.meta.generation)


_PROGRAM = "A program that uses neither piton_trainer nor the Trainer of transformers sends none. "
_CAUSES = (
    "Usual causes: a NetworkPolicy or a service mesh keeps the pod from the operator's Service, or the operator has a "
    "new certificate authority since the pod was created. The log of rank 0 says which"
)
