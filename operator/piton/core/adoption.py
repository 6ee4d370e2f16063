"""Jobs of a run that its status does not know: it was lost, could not be written, or is older than they are."""

from piton.api import stages
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core import results, transitions
from piton.core.context import Context
from piton.core.effects import Decision
from piton.core.evidence import Judgement
from piton.core.unreported import with_doubt
from piton.cost import spending
from piton.observed import AttemptSeen


def adopt_unknown_job(context: Context) -> Decision | None:
    """Take the newest job of the run into the status, if its attempt has a higher number than the status knows."""
    ours = [seen for seen in context.observed.attempts if seen.ours]
    newest = max(ours, key=lambda seen: seen.number, default=None)
    if newest is None or newest.number <= context.status.attempt:
        return None
    record = AttemptStatus(
        number=newest.number, state=AttemptState.STARTING, stage=newest.stage, created_time=context.now
    )
    status = _with_earlier_finished(context, context.status if context.flying is None else _lost(context), newest)
    known = with_doubt(status, newest.number > context.status.attempt + 1)
    status = transitions.enter(known, record, context.timing)
    status = context.phase(status, Phase.STARTING, Reason.STARTING, f"{stages.called(record)} was found")
    return Decision(rule="adopted", status=status, look_again_seconds=0)


def _lost(context: Context) -> RunStatus:
    """Return the status with an end for the attempt that it has in flight: a newer attempt has begun since.

    The attempt has cost what was counted when the status was written. Nobody knows what it has cost since then.
    """
    message = "the status is older than the jobs, as after a restore of etcd: how this attempt ended is not known"
    judgement = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.NO_EVIDENCE, message=message)
    status = spending.stop_at_last_sight(context.status)
    return transitions.end(status, judgement, now=context.now, timing=context.timing)


def _with_earlier_finished(context: Context, status: RunStatus, seen: AttemptSeen) -> RunStatus:
    """Return the status in which the stages before that of this attempt are finished, with what is known of the result.

    The operator creates a job for a stage only then.
    """
    stage = seen.stage
    requested = stages.wanted(context.spec.stages) if context.spec is not None else stages.ORDER
    before = [each for each in stages.ORDER[: stages.ORDER.index(stage)] if each in requested]
    for found in map(status.stage, before):
        if found.end_time is None:
            status = transitions.with_stage(status, found.model_copy(update={"end_time": context.now}))
    if Stage.TRAIN not in before:
        return status
    if context.observed.complete is not None:
        return results.with_trained(status, context.observed.complete)
    is_best = context.spec is None or context.spec.checkpoint.keep.best > 0
    return results.with_evaluated_checkpoint(status, seen.evaluated_step, is_best=is_best)


def adopt_before_deletion(context: Context) -> Decision | None:
    """Take an unknown job into the status before the deletion of its run stops it: the job may have saved."""
    return adopt_unknown_job(context) if context.meta.deleting and not context.status.unreadable else None
