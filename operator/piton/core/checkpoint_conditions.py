"""Conditions about the places where checkpoints are kept, by the newest report of the attempt that trains.

Mirrored           the bucket: people who ask for a second copy learn when they have none
VolumeNearlyFull   the volume: it can be enlarged before a save fails
"""

from piton.api.conditions import MIRRORED, VOLUME_NEARLY_FULL, with_condition
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import ConditionStatus
from piton.contract.progress import CHECKPOINTS_THAT_FIT, MIRROR_LAG_STEPS
from piton.core.context import Context
from piton.core.effects import Announcement

_TRUE, _FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE
Noted = tuple[RunStatus, tuple[Announcement, ...]]
"""The status with the condition, and an announcement when it has just turned bad."""


def note_mirror(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition Mirrored, and an announcement when it turns False."""
    progress, spec = context.observed.progress, context.spec
    if progress is None or spec is None or spec.checkpoint.mirror is None:
        return status, ()
    if progress.mirror_refusal is not None:
        return _note(context, status, MIRRORED, _FALSE, Reason.MIRROR_OFF, progress.mirror_refusal, is_bad=True)
    if MIRROR_LAG_STEPS not in progress.metrics:
        return status, ()  # nothing was saved yet
    return _note(context, status, MIRRORED, _TRUE, Reason.MIRRORED, "")


def note_volume(context: Context, status: RunStatus) -> Noted:
    """Return the status with the condition VolumeNearlyFull, and an announcement when it turns True."""
    progress = context.observed.progress
    if progress is None or progress.checkpoint_step is None:
        return status, ()
    fit = progress.metrics.get(CHECKPOINTS_THAT_FIT)
    if fit is None:
        if not status.is_true(VOLUME_NEARLY_FULL):
            return status, ()
        return _note(context, status, VOLUME_NEARLY_FULL, _FALSE, Reason.NOT_YET, "")
    room = "no other" if fit < 1 else f"only {fit:.0f} more"
    message = (
        f"beside the checkpoints that are kept, the volume has room for {room}. Enlarge the claim, where its storage "
        "class lets that be done, or keep fewer with spec.checkpoint.keep"
    )
    return _note(context, status, VOLUME_NEARLY_FULL, _TRUE, Reason.VOLUME_NEARLY_FULL, message, is_bad=True)


def _note(
    context: Context,
    status: RunStatus,
    kind: str,
    value: ConditionStatus,
    reason: Reason,
    message: str,
    *,
    is_bad: bool = False,
) -> Noted:
    known = status.condition(kind)
    status = with_condition(status, kind, value, reason, message, now=context.now, generation=context.meta.generation)
    if not is_bad or (known is not None and known.status is value):
        return status, ()
    return status, (Announcement(severity="Warning", reason=reason, message=message),)
