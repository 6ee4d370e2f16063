"""The condition Mirrored: people who ask for a second copy of their checkpoints learn when they have none."""

from piton.api.conditions import MIRRORED, with_mirrored
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import ConditionStatus
from piton.contract.progress import MIRROR_LAG_STEPS
from piton.core.context import Context
from piton.core.effects import Announcement


def note_mirroring(context: Context, status: RunStatus) -> tuple[RunStatus, tuple[Announcement, ...]]:
    """Return the status with the condition Mirrored, by the newest report, and an announcement when it turns False."""
    progress, spec = context.observed.progress, context.spec
    if progress is None or spec is None or spec.checkpoint.mirror is None:
        return status, ()
    refusal, known = progress.mirror_refusal, status.condition(MIRRORED)
    if refusal is None and MIRROR_LAG_STEPS not in progress.metrics:
        return status, ()  # nothing was saved yet
    status = with_mirrored(status, refusal, now=context.now, generation=context.meta.generation)
    if refusal is None or (known is not None and known.status is ConditionStatus.FALSE):
        return status, ()
    message = f"nothing is mirrored, and the checkpoints have no second copy: {refusal}"
    return status, (Announcement(severity="Warning", reason=Reason.MIRROR_OFF, message=message),)
