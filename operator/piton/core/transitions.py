"""Transitions of the status: an attempt begins, reports, ends. The only place that counts.

Every function takes a status and returns the next one. Each number moves together with the state that justifies it, in
one write, so a pass that is repeated after a crash counts nothing twice.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import (
    REPLICAS_MAX,
    AttemptState,
    AttemptStatus,
    CheckpointStatus,
    Lost,
    MetricValue,
    PlacedReplica,
    ProgressStatus,
    RunStatus,
    StageStatus,
    Verdict,
)
from piton.contract.duration import format_duration
from piton.contract.progress import Progress
from piton.contract.termination import Outcome, PreviousEnd, Termination
from piton.core.evidence import Judgement
from piton.core.unreported import (
    began_unseen,
    has_last_words,
    is_in_doubt,
    may_have_saved,
    may_hold_unlisted_work,
    trained_since,
)
from piton.cost import spending
from piton.observed import AttemptSeen, JobState, ReplicaSeen, ReplicaState
from piton.timing import Timing, is_ordered

COUNTERS = {
    Verdict.PREEMPTED: "preemptions",
    Verdict.INFRASTRUCTURE: "infrastructure_failures",
    Verdict.USER_FAILURE: "failures",
}
"""The counter in the status of a run and of a stage, by verdict."""


def begin(status: RunStatus, seen: Iterable[AttemptSeen], stage: Stage, *, now: datetime, timing: Timing) -> RunStatus:
    """Take the next attempt number, for that stage; higher than any that is known from anywhere."""
    number = max([status.attempt, *(attempt.number for attempt in seen)]) + 1
    return enter(
        status, AttemptStatus(number=number, state=AttemptState.PENDING, stage=stage, created_time=now), timing
    )


def enter(status: RunStatus, record: AttemptStatus, timing: Timing) -> RunStatus:
    """Append an attempt's record. What the one before has shown stays until there is something new to show."""
    stage = status.stage(record.stage)
    changes = {"attempts": stage.attempts + 1, "start_time": stage.start_time or record.created_time}
    attempts = (*status.attempts, record)
    kept = attempts[-timing.kept_records :]
    dropped = attempts[: len(attempts) - len(kept)]
    status = spending.forget(status, dropped)
    may_hold = may_hold_unlisted_work(status) or any(map(may_have_saved, dropped))
    holds = may_hold if may_hold or len(kept) < record.number else None
    status = status.model_copy(update={"attempt": record.number, "attempts": kept, "may_hold_unlisted_work": holds})
    return with_stage(status, stage.model_copy(update=changes))


def with_stage(status: RunStatus, stage: StageStatus) -> RunStatus:
    """Return the status with this stage in place of the one of its name."""
    stages = {known.name: known for known in status.stages} | {stage.name: stage}
    return status.model_copy(update={"stages": tuple(stages.values())})


def change(status: RunStatus, **fields: object) -> RunStatus:
    """The current attempt's record with some fields changed."""
    assert status.current is not None
    return status.model_copy(update={"attempts": (*status.attempts[:-1], status.current.model_copy(update=fields))})


def place(status: RunStatus, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """Write down where the replicas of the current attempt are, and since when they run.

    One that was seen to end is not missed afterwards.
    """
    record = status.current
    if record is None or seen is None:
        return status
    over = {replica.uid for replica in seen.replicas if _is_over(replica, seen)}
    known = {entry.name: entry for entry in record.replicas if entry.uid not in over}
    for replica in seen.replicas:
        if replica.node and replica.placed_at and replica.uid not in over and replica.name not in known:
            known[replica.name] = PlacedReplica(
                name=replica.name, uid=replica.uid, node=replica.node, placed_time=replica.placed_at
            )
        entry = known.get(replica.name)
        if entry is not None and entry.uid == replica.uid and entry.running_time is None and replica.has_run:
            known[replica.name] = entry.model_copy(update={"running_time": now})
    found = tuple(known[name] for name in sorted(known))[:REPLICAS_MAX]
    zone = record.zone or next((replica.zone for replica in seen.replicas if replica.zone), None)
    return status if (found, zone) == (record.replicas, record.zone) else change(status, replicas=found, zone=zone)


def form(status: RunStatus, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """Write down when the first replica of the current attempt ran, and when all had."""
    record = status.current
    if record is None or seen is None or record.formed_time is not None:
        return status
    if (since := began_unseen(record, seen)) != record.trained_from:
        status = change(status, trained_from=since)
    if record.running_time is None and any(replica.has_run for replica in seen.replicas):
        status = change(status, running_time=now)
    return change(status, formed_time=now) if seen.formed and record.state is not AttemptState.STOPPING else status


def _is_over(replica: ReplicaSeen, seen: AttemptSeen) -> bool:
    """True if it has ended, or the job's own controller takes it away because the job is over."""
    if replica.state in (ReplicaState.SUCCEEDED, ReplicaState.FAILED):
        return True
    failed = seen.job is JobState.FAILED and any(other.state is ReplicaState.FAILED for other in seen.replicas)
    taken = replica.disruption or replica.node_gone or replica.node_reclaimed
    return replica.deleting and (failed or seen.job is JobState.SUCCEEDED) and not taken


def report(status: RunStatus, progress: Progress | None, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """Take in what the current attempt says of itself, live or in its last words. Only training has steps."""
    record, terminations = status.current, terminations_of(seen)
    trains = record is not None and record.stage is Stage.TRAIN
    if trains and record is not None and record.last_words_time is None and has_last_words(seen):
        status = change(status, last_words_time=now)
    if progress is not None and trains:
        status = _learn(status, progress.previous)
        status = _with_steps(status, progress.step, progress.checkpoint_step, progress.resumed_from, now=now)
        status = _show(status, progress, now=now)
    for termination in terminations:
        if trains:
            status = _with_steps(
                status, termination.step, termination.checkpoint_step, termination.resumed_from, now=now
            )
        if termination.fence is not None and termination.fence > status.attempt:
            status = status.model_copy(update={"attempt": termination.fence, "may_hold_unlisted_work": True})
    return status


def end(
    status: RunStatus, judgement: Judgement, *, now: datetime, timing: Timing, spec: Spec | None = None
) -> RunStatus:
    """Close the current attempt and move its counters. While nobody trains, nobody knows how long it takes."""
    status = change(
        status, state=AttemptState.ENDED, ended_time=now, replicas=(), done=None, **verdict_fields(judgement)
    )
    if status.progress is not None:
        shown = status.progress.model_copy(update={"estimated_remaining_seconds": None, "eta": None})
        status = status.model_copy(update={"progress": shown})
    assert status.current is not None
    stage = status.stage(status.current.stage)
    if judgement.verdict is Verdict.FINISHED:
        return with_stage(status, stage.model_copy(update={"end_time": now, "fruitless_attempts": 0}))
    before = 0 if has_saved(status, status.current) else stage.failures_since_progress
    failed = judgement.verdict is Verdict.USER_FAILURE
    changes = {
        "failures_since_progress": before + failed,
        "fruitless_attempts": _fruitless(status, stage, timing, spec),
    }
    stage = stage.model_copy(update=changes)
    counter = COUNTERS.get(judgement.verdict)
    if counter is not None:
        status = status.model_copy(update={counter: getattr(status, counter) + 1})
        stage = stage.model_copy(update={counter: getattr(stage, counter) + 1})
    return with_stage(status, stage)


def _learn(status: RunStatus, previous: PreviousEnd | None) -> RunStatus:
    """Correct the verdict of an attempt without evidence, if the checkpoint volume shows that it was stopped.

    So it was drained or reclaimed, together with all that could have said so; its trainer has lost nothing.
    """
    if previous is None or previous.outcome is not Outcome.STOPPED:
        return status
    record = next((known for known in status.attempts if known.number == previous.attempt), None)
    if record is None or record.state is not AttemptState.ENDED or record.reason is not Reason.NO_EVIDENCE:
        return status
    message = f"it was told to stop and saved, as the checkpoint volume says; before that was known: {record.message}"
    judgement = Judgement(verdict=Verdict.PREEMPTED, reason=Reason.DISRUPTED, message=message)
    known = record.model_copy(update=verdict_fields(judgement))
    status = status.model_copy(
        update={"attempts": tuple(known if other is record else other for other in status.attempts)}
    )
    old, new = COUNTERS[Verdict.INFRASTRUCTURE], COUNTERS[Verdict.PREEMPTED]
    stage = status.stage(record.stage)
    status = with_stage(status, stage.model_copy(update=_moved(stage, old, new)))
    return status.model_copy(update=_moved(status, old, new))


def _moved(counted: RunStatus | StageStatus, old: str, new: str) -> dict[str, int]:
    """Both counters, after one that was counted by the old is counted by the new."""
    return {old: max(0, getattr(counted, old) - 1), new: getattr(counted, new) + 1}


def has_saved(status: RunStatus, record: AttemptStatus) -> bool:
    """True if an attempt has made a step durable that is newer than what the run had before it."""
    trains = record.stage is Stage.TRAIN
    return trains and status.checkpoint is not None and status.checkpoint.attempt == record.number


def _fruitless(status: RunStatus, stage: StageStatus, timing: Timing, spec: Spec | None) -> int:
    """Count the attempts of the stage in a row without progress, including the one that has just ended."""
    record = status.current
    assert record is not None
    if has_saved(status, record) or _may_have_progressed(record, timing):
        return 0
    if is_in_doubt(record, spec, timing):
        return stage.fruitless_attempts
    # What follows a finished training saves nothing newer: its machine may be taken as often as machines are taken.
    is_taken = record.trained_time is not None and record.verdict is Verdict.PREEMPTED
    return stage.fruitless_attempts + (not is_taken and not is_ordered(record))


def _may_have_progressed(record: AttemptStatus, timing: Timing) -> bool:
    """True if a program that does not say how far it is was on its machines for longer than any back-off lasts.

    Some never say it, reports of a recipe can be blocked, and none says it after its training. Last words without a
    step say that there was none.
    """
    is_silent = (record.step is None and record.last_words_time is None) or record.trained_time is not None
    if not is_silent or record.billed_from is None or record.ended_time is None or trained_since(record) is None:
        return False
    return (record.ended_time - record.billed_from).total_seconds() > timing.backoff_seconds_max


def forgive(status: RunStatus) -> RunStatus:
    """The user has held the run, and will have looked at it: what came to nothing before does not count any more."""
    stages = tuple(stage.model_copy(update={"fruitless_attempts": 0}) for stage in status.stages)
    return status if stages == status.stages else status.model_copy(update={"stages": stages})


def verdict_fields(judgement: Judgement) -> dict[str, object]:
    """A judgement, as fields of an attempt's record."""
    return {
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "message": judgement.message[:1024],
        "permanent": judgement.permanent,
    }


def terminations_of(seen: AttemptSeen | None) -> list[Termination]:
    """Termination messages, the one that knows most first."""
    termination = [replica.termination for replica in seen.replicas if replica.termination] if seen else []
    return sorted(
        termination, key=lambda w: (w.outcome is not Outcome.FINISHED, -(w.checkpoint_step or -1), -(w.step or -1))
    )


def _with_steps(
    status: RunStatus, step: int | None, checkpoint_step: int | None, resumed_from: int | None, *, now: datetime
) -> RunStatus:
    record = status.current
    assert record is not None
    if step is not None and record.training_time is None:
        status = _count_lost(status, resumed_from or 0)
        status = change(status, training_time=now, resumed_from=resumed_from)
    status = change(
        status,
        step=_highest(record.step, step),
        checkpoint_step=_highest(record.checkpoint_step, checkpoint_step),
    )
    if checkpoint_step is None or (status.checkpoint and status.checkpoint.step >= checkpoint_step):
        return status
    newest = CheckpointStatus(step=checkpoint_step, time=now, attempt=record.number)
    return status.model_copy(update={"checkpoint": newest.with_unknown_of(status.checkpoint)})


def _count_lost(status: RunStatus, resumed_from: int) -> RunStatus:
    """Steps that an earlier attempt had trained and this one trains again; counted once, at its first word."""
    reached = next((r.step for r in reversed(status.attempts[:-1]) if r.step is not None), 0)
    again = max(0, reached - resumed_from)
    return status.model_copy(update={"lost": Lost(steps=status.lost.steps + again).with_unknown_of(status.lost)})


def _show(status: RunStatus, progress: Progress, *, now: datetime) -> RunStatus:
    """The newest report, for people. transformers leaves the steps out of its first and last ones: they are known."""
    known = status.current.step if status.current else None
    total = status.progress.total_steps if status.progress else None
    shown = ProgressStatus(
        step=known if progress.step is None else progress.step,
        total_steps=total if progress.total_steps is None else progress.total_steps,
        progress_percentage=progress.percentage,
        estimated_remaining_seconds=progress.remaining_seconds,
        eta=None if progress.remaining_seconds is None else format_duration(progress.remaining_seconds),
        session=progress.session,
        metrics=metric_values(progress.metrics),
    ).with_unknown_of(status.progress)
    if status.progress and status.progress.model_copy(update={"last_updated_time": None}) == shown:
        return status
    return status.model_copy(update={"progress": shown.model_copy(update={"last_updated_time": now})})


def metric_values(metrics: Mapping[str, float]) -> tuple[MetricValue, ...]:
    """Return metrics as a status lists them; the first 32 by name."""
    return tuple(MetricValue(name=name, value=f"{value:.6g}") for name, value in sorted(metrics.items())[:32])


def _highest(old: int | None, new: int | None) -> int | None:
    return max((value for value in (old, new) if value is not None), default=None)
