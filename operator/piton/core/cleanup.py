"""Rules for the end of a run, and for its deletion: its jobs, the claim of its checkpoints, the run itself.

    deleted    every attempt stops in order, then the finalizer comes off
    ended      left-over attempts stop, kept jobs are trimmed, and the run is deleted after spec.ttlAfterFinished

The claim that Piton makes has no owner while the run lives, so nothing that happens to the run takes it along. When
the run is over or deleted, the run becomes the owner of a claim that goes with it: the garbage collector does the rest.
A run that is taken up again is no owner before its next attempt starts.
"""

from dataclasses import replace
from datetime import timedelta

from piton.api.conditions import FAILED, SUCCEEDED, TRAINING, WAITING, settled, without_waiting
from piton.api.reasons import Reason
from piton.api.spec import Reclaim
from piton.api.status import AttemptState, RunStatus
from piton.api.status_base import ConditionStatus
from piton.contract.duration import parse_duration
from piton.core import stuck_pods, transitions
from piton.core.attempt_progress import with_report
from piton.core.context import Context
from piton.core.effects import (
    Announcement,
    Decision,
    DeleteRun,
    Effect,
    OwnVolume,
    RemoveFinalizer,
    StartAttempt,
    StopAttempt,
)
from piton.core.stopping import stop_effects
from piton.core.unreported import has_seen_all_wait, may_hold_checkpoint
from piton.core.wait_reasons import Wait, refusal, waited_seconds
from piton.observed import AttemptSeen
from piton.rendering.volume_claim import how_to_go_on
from piton.timing import Timing


def deleted(context: Context) -> Decision | None:
    """Stop every attempt in order, then decide about the claim and let the run go."""
    if not context.meta.deleting:
        return None
    status = context.status if context.status.unreadable else _stopping(context)
    effects: tuple[Effect, ...] = _stop_all(context, Reason.DELETED)
    news: tuple[Announcement, ...] = ()
    unknown = _find_unknown_job(context)
    is_gone = not (unknown or any(seen.ours for seen in context.observed.attempts))
    if is_gone and context.meta.held and not context.observed.volume.unknown:
        known = _closed(context, status)
        effects = (*volume_effects(context, known, Reason.DELETED), RemoveFinalizer(reason=Reason.DELETED))
        news = volume_news(context, known)
    wait = unknown or stuck_pods.find_wait(context, *context.observed.attempts)
    if wait is not None:
        status = context.waits(status, None, wait)[0]
    elif status.is_true(WAITING) and not settled(status) and not status.unreadable:
        status = context.phase(status, status.phase, Reason.DELETED, "the run is being deleted")
    else:
        status = _unhindered(context, status)
    again = context.timing.try_again_seconds(waited_seconds(status, context.now)) if unknown else None
    return Decision(rule="deleted", effects=effects, status=status, announcements=news, look_again_seconds=again)


def _find_unknown_job(context: Context) -> Wait | None:
    """Return why the run is not let go: nobody can tell whether the job of its last attempt exists; None: it may be."""
    why, status, record = context.observed.jobs_unknown, context.status, context.flying
    may_exist = status.unreadable or (record is not None and record.state is not AttemptState.PENDING)
    if not (why and may_exist):
        return None
    name, namespace = context.meta.name, context.meta.namespace
    message = (
        f"{refusal(why).message} The job of attempt {status.attempt} may exist, and this run goes when somebody can "
        "tell. If PyTorchJobs are gone for good, so is the job, and this lets the run go; its claim stays: kubectl "
        f'patch trainingrun {name} -n {namespace} --type merge --patch \'{{"metadata":{{"finalizers":null}}}}\''
    )
    return Wait(reason=refusal(why).reason, message=message)


def ended(context: Context) -> Decision | None:
    """Nothing happens to a run that has ended, but that what is left of it is put away."""
    if not settled(context.status):
        return None
    training = context.status.condition(TRAINING)
    reason = training.reason if training else Reason.FINISHED
    alive = [seen for seen in context.observed.attempts if seen.ours and is_alive(seen)]
    effects = tuple(effect for seen in alive for effect in stop(seen.number, context, Reason.TRIMMED))
    claim = () if alive else volume_effects(context, context.status, reason)
    effects += () if alive else (*trimmed(context), *claim)
    news: tuple[Announcement, ...] = ()
    is_unknown = context.observed.volume.unknown
    if not effects and context.meta.held and not is_unknown:
        effects, news = (RemoveFinalizer(reason=reason),), volume_news(context, context.status)
    left = None if is_unknown else _seconds_to_live(context)
    if not effects and left is not None and left <= 0:
        effects, news = (DeleteRun(reason=Reason.EXPIRED),), volume_news(context, context.status)
    again = 0.0 if claim else left or None  # nobody watches claims
    status = _unhindered(context, context.status)
    return Decision(rule="ended", effects=effects, status=status, announcements=news, look_again_seconds=again)


def without_last_status(context: Context, decision: Decision) -> Decision:
    """Return the decision without a new status where its effects end the run: its news must not wait for that write."""
    ends = (DeleteRun, RemoveFinalizer) if context.meta.deleting else (DeleteRun,)
    is_last = any(isinstance(effect, ends) for effect in decision.effects)
    return replace(decision, status=context.status) if is_last else decision


def is_alive(seen: AttemptSeen) -> bool:
    """True if something of the attempt still has a machine, or stands in the books of one that is gone."""
    return not seen.over or seen.stranded or seen.lingers


def trimmed(context: Context) -> tuple[StopAttempt, ...]:
    """Jobs of ended attempts that are more than stay for a look at their logs."""
    old = sorted(seen.number for seen in context.observed.attempts if seen.ours and not seen.deleting)
    return tuple(StopAttempt(number=n, reason=Reason.TRIMMED) for n in old[: -context.timing.kept_jobs])


def stop(number: int, context: Context, reason: Reason) -> tuple[Effect, ...]:
    """Return the effects that stop an existing attempt."""
    seen = context.observed.attempt(number)
    assert seen is not None
    return stop_effects(seen, reason, context.now)


def volume_effects(context: Context, status: RunStatus, reason: Reason) -> tuple[OwnVolume, ...]:
    """Return the effect that makes the run the owner of a claim that goes with it, or frees one that stays."""
    volume, goes = context.observed.volume, _volume_goes(context, status)
    return () if goes is None or volume.owned is goes else (OwnVolume(owned=goes, reason=reason),)


def volume_news(context: Context, status: RunStatus) -> tuple[Announcement, ...]:
    """Return what people should know of a claim that outlives its run."""
    if _volume_goes(context, status) is not False:
        return ()
    name, namespace = context.observed.volume.name, context.meta.namespace
    message = (
        f"the claim {name} stays when this run is deleted: {how_to_go_on(context.meta, name)}. What it holds is given "
        f"up with kubectl delete persistentvolumeclaim {name} -n {namespace}"
    )
    return (Announcement(reason=Reason.VOLUME_KEPT, message=message),)


def _volume_goes(context: Context, status: RunStatus) -> bool | None:
    """True if the claim that Piton has made is deleted with the run; None without one. The user's own always stays.

    A claim that the user names is the user's, also if Piton has made it and the run still owns it.
    """
    volume = context.observed.volume
    if not (volume.exists and (volume.made or volume.owned)):
        return None
    if not volume.made:
        return False
    return volume.reclaim is Reclaim.DELETE or not may_hold_checkpoint(status)


def with_volume_freed(context: Context, decision: Decision) -> Decision:
    """Return the decision, with which a run that has not ended owns no claim: it may save more.

    An attempt starts only after that. To what runs already, a refusal of it does no harm.
    """
    if not context.observed.volume.owned or context.meta.deleting or settled(context.status):
        return decision
    free = OwnVolume(owned=False, reason=Reason.ACCEPTED)
    if any(isinstance(effect, StartAttempt) for effect in decision.effects):
        return replace(decision, effects=(free, *decision.effects))
    return replace(decision, optional_effects=(*decision.optional_effects, free))


def note_refusal(decision: Decision, why: str, *, is_known: bool, volume: str, timing: Timing) -> Decision:
    """Return the decision when the claim of a run that goes on may not be freed: one Event says what that means."""
    waits = (decision.look_again_seconds, timing.refused_seconds_max)
    decision = replace(decision, look_again_seconds=min(seconds for seconds in waits if seconds is not None))
    if is_known:
        return decision
    risk = f"the claim {volume} belongs to this run, so kubectl delete --cascade=foreground would delete it"
    news = Announcement(severity="Warning", reason=refusal(why).reason, message=f"{risk}: {why}")
    return replace(decision, announcements=(*decision.announcements, news))


def _closed(context: Context, status: RunStatus) -> RunStatus:
    """The status with an end for the attempt that the deletion has stopped."""
    if context.flying is None or status.unreadable:
        return status
    return transitions.change(status, ended_time=context.now)


def _stopping(context: Context) -> RunStatus:
    """The status with what the attempt says of itself to the last, such as a checkpoint that it saves as it stops.

    That Piton has stopped it is written down where it is known whether a trainer had begun: see `core.unreported`.
    """
    record, seen = context.flying, context.seen
    if record is None:
        return context.status
    status = with_report(context)
    if seen is None or not seen.ours or not (record.running_time or has_seen_all_wait(seen)):
        return status
    return transitions.change(status, state=AttemptState.STOPPING)


def _seconds_to_live(context: Context) -> float | None:
    """Seconds until an ended run is deleted; None: it stays."""
    if context.spec is None or context.spec.ttl_after_finished is None:
        return None
    ends = (condition for kind in (SUCCEEDED, FAILED) if (condition := context.status.condition(kind)))
    ended_at = next(end.last_transition_time for end in ends if end.status is ConditionStatus.TRUE)
    lives = timedelta(seconds=parse_duration(context.spec.ttl_after_finished))
    return (ended_at + lives - context.now).total_seconds()


def _stop_all(context: Context, reason: Reason) -> tuple[Effect, ...]:
    numbers = [seen.number for seen in context.observed.attempts if seen.ours]
    return tuple(effect for number in numbers for effect in stop(number, context, reason))


def _unhindered(context: Context, status: RunStatus) -> RunStatus:
    """The status when the effects succeed that were refused before: `refused` keeps it as it was if they do not."""
    if not status.is_true(WAITING):
        return status
    return without_waiting(status, now=context.now, generation=context.meta.generation)
