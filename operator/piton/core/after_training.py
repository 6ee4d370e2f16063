"""The time between the end of a training and the end of its script: an evaluation, an export, an upload.

The final manifest proves the training; the run is finished when every replica has ended with exit code 0. An attempt
that is disturbed meanwhile is repeated: its script finds the training finished, and does the rest.
"""

from dataclasses import replace

from piton.api.conditions import TRAINING
from piton.api.reasons import Reason
from piton.api.stages import called
from piton.api.status import AttemptStatus, RunStatus, Verdict
from piton.contract.duration import format_duration
from piton.contract.manifest import Complete
from piton.core import results
from piton.core.context import Context
from piton.core.effects import Announcement
from piton.core.evidence import Judgement
from piton.cost import spending
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState


def known_proof(context: Context) -> Complete | None:
    """Return the final manifest: as this world reads it, as it was reported, or as the status remembers it.

    An attempt that reports another step than the final one trains again: then it has to prove the end anew.
    """
    progress, record = context.observed.progress, context.current
    if context.observed.complete is not None:
        return context.observed.complete
    if progress is not None and progress.complete is not None:
        return progress.complete
    result = context.status.result
    after = context.status.goes_on_after or 0
    proven = [known for known in context.status.attempts if known.trained_time and known.number > after]
    source = proven[-1] if proven else None
    if result is None or result.step is None or source is None or record is None:
        return None
    reached = record.step if progress is None or progress.step is None else progress.step
    if results.is_beyond(result, progress) or (record is not source and reached not in (None, result.step)):
        return None
    return Complete(
        attempt=source.number,
        step=result.step,
        weights_digest=result.weights_digest,
        best_step=result.best_step,
        reason=result.reason,
    )


def with_done(seen: AttemptSeen, record: AttemptStatus | None) -> AttemptSeen:
    """Return the attempt with the replicas that have ended well as they ended, whatever became of their pods.

    A node without a running pod is taken away, its pod with it, and the job's controller puts another in its place.
    """
    if record is None or not record.done:
        return seen
    ended = tuple(ReplicaSeen(name=name, state=ReplicaState.SUCCEEDED, exit_code=0) for name in record.done)
    others = tuple(replica for replica in seen.replicas if replica.name not in record.done)
    succeeded = (replica for replica in seen.replicas if replica.state is ReplicaState.SUCCEEDED)
    there = {replica.name: replace(replica, deleting=False) for replica in succeeded}
    return replace(
        seen,
        replicas=(*others, *(there.get(replica.name, replica) for replica in ended)),
        lost=tuple(replica for replica in seen.lost if replica.name not in record.done),
    )


def running_message(context: Context, status: RunStatus) -> str | None:
    """Return what a finished training waits for, and what that costs; None while it is not finished."""
    record, result, seen = status.current, status.result, context.seen
    if record is None or record.trained_time is None or result is None or seen is None:
        return None
    price = spending.per_hour(status)
    cost = f", at ${spending.as_text(price)} per hour" if price else ""
    ended = f"; {len(record.done)} of them have ended" if record.done else ""
    limit = context.timing.after_training_seconds
    bound = "limits.deadline and limits.budget end it" if limit is None else _bound(limit)
    return (
        f"{called(record)} has finished the training at step {result.step}: {result.reason}. Its script runs on since "
        f"{record.trained_time:%H:%M:%S} UTC{cost}: the run waits for exit code 0 of {seen.expected_replicas} "
        f"replica(s){ended}; {bound}"
    )


def news(context: Context, message: str) -> tuple[Announcement, ...]:
    """Return the announcement of that message, the first time in this attempt."""
    record, condition = context.current, context.status.condition(TRAINING)
    is_known = record is not None and record.trained_time is not None
    if is_known or (condition is not None and condition.reason is Reason.AFTER_TRAINING):
        return ()
    return (Announcement(reason=Reason.AFTER_TRAINING, message=message),)


def seconds_left(context: Context, status: RunStatus) -> float | None:
    """Return for how long the script may still run on; None where nothing but deadline and budget ends it."""
    record, limit = status.current, context.timing.after_training_seconds
    if record is None or record.trained_time is None or limit is None:
        return None
    return limit - (context.now - record.trained_time).total_seconds()


def timeout(context: Context) -> Judgement | None:
    """Return the judgement on a script that has run on for too long."""
    record, limit = context.current, context.timing.after_training_seconds
    left = seconds_left(context, context.status)
    if left is None or left > 0 or record is None or limit is None:
        return None
    message = f"the script of {called(record)} ran on for {format_duration(limit)} after its training was finished"
    if context.timing.rehearses:
        return Judgement(verdict=Verdict.FINISHED, reason=Reason.FINISHED, message=f"{message}, and was stopped")
    message = f"{message}; --after-training allows more, and the same command runs the script again"
    return Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.SCRIPT_TIMEOUT, message=message, permanent=True)


def _bound(seconds: float) -> str:
    return f"it may take {format_duration(seconds)} (--after-training)"
