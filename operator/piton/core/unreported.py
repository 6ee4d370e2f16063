"""Work of which nothing was heard. Nothing heard is not nothing saved.

A program of the user's reports nothing. Reports of a recipe can be blocked by a NetworkPolicy or a certificate, and its
last words go with a machine that is lost.
"""

from datetime import timedelta

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus
from piton.core.context import Context

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
    """True if the checkpoint volume may hold something that the run has saved. In doubt it does.

    The volume is made right before the first job: a status without attempts was lost, or could not be written.
    """
    if not status.attempts:
        return True
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
