"""Rules for a run that waits for quota in a queue of Kueue's, and for one that has it.

No label   -> none of this
Queued --admitted--> attempts, one after the other, on the same quota --evicted--> the attempt saves and stops
  ^                                                                                            |
  +--------------------------- nothing runs any more: the quota is returned <-----------------+

The quota is released when nothing of the run runs and none is about to: suspended, refused, ended, out of budget.
"""

from dataclasses import replace

from piton.api import stages
from piton.api.conditions import TRAINING
from piton.api.reasons import Reason
from piton.api.status import AttemptState, QueueStatus, RunStatus
from piton.api.status_base import Phase
from piton.core.context import Context
from piton.core.effects import Decision, Effect, LeaveQueue, ReportPodsReady, RequestQuota, ReturnQuota
from piton.core.wait_reasons import Wait, waited_seconds
from piton.observed import AttemptSeen, ReplicaState, ReservationSeen
from piton.rendering.workload import asks_alike, workload_name

WITHOUT_QUOTA = frozenset({Phase.SUSPENDED, Phase.REFUSED, Phase.SUCCEEDED, Phase.FAILED})
"""In these nothing is about to start, so quota would be kept from others for nothing."""

_EACH_PLACE = 10
"""In the first places of a queue each step is shown; further back a change by a tenth, or each admission would cause a
write of every run that waits."""


def taken(context: Context) -> bool:
    """True if no pod of the run may run: its quota is wanted back, gone, or was never given."""
    found = context.observed.reservation
    if found is None or found.usable or found.unreadable:
        return False
    return bool(context.meta.queue) or (found.exists and found.ours and found.evicted)


def why_taken(context: Context) -> str:
    """Return the reason for which an attempt is stopped over quota, as a sentence."""
    found = context.observed.reservation
    text = found.message if found is not None and found.evicted else "the run has no quota"
    return f"the queue {_queue(context)} takes its quota back: {text}".removesuffix(": ")


def unreadable(context: Context) -> Wait | None:
    """Return why nobody can tell what quota the run has. What was admitted goes on; nothing begins meanwhile.

    Without the label the run waits for no quota, whatever its Workload says once it can be read again.
    """
    found = context.observed.reservation
    if found is None or not found.unreadable or not context.meta.queue:
        return None
    message = f"the quota of the run in the queue {_queue(context)} is not known: {found.unreadable}"
    return Wait(reason=Reason.QUEUE_UNREADABLE, message=f"{message}. What was admitted goes on, and nothing new starts")


def hold(context: Context) -> Decision | None:
    """Start nothing for a run in a queue while nobody can tell whether it has quota."""
    wait = unreadable(context)
    if wait is None:
        return None
    status, news = context.waits(context.status, Phase.QUEUED, wait)
    waits = (context.timing.try_again_seconds(waited_seconds(status, context.now)), context.seconds_to_deadline())
    again = min(seconds for seconds in waits if seconds is not None)
    return Decision(rule="queued", status=status, announcements=news, look_again_seconds=again)


def quota_effects(context: Context, seen: AttemptSeen) -> tuple[Effect, ...]:
    """Tell Kueue once that all pods run; it may be told to evict what does not start in time."""
    found = context.observed.reservation
    running = sum(replica.state is ReplicaState.RUNNING for replica in seen.replicas)
    if found is None or not found.usable or found.ready or running < seen.expected_replicas:
        return ()
    return (ReportPodsReady(ready=True, reason=Reason.TRAINING),)


def returned(context: Context) -> Decision | None:
    """Return the quota to Kueue as soon as no pod runs; the run is in the queue again."""
    found = context.observed.reservation
    if found is None or not (found.exists and found.ours and found.evicted and found.held):
        return None
    effects = () if _alive(context) else (ReturnQuota(reason=Reason.QUOTA_TAKEN),)
    status = _waiting(context, found, found.message) if effects else context.status
    return Decision(rule="returned", effects=effects, status=status, look_again_seconds=1)


def queued(context: Context) -> Decision | None:
    """No attempt without quota: ask for it, and wait for it."""
    found = context.observed.reservation
    if found is None or not context.meta.queue:
        return None
    if found.unreadable:
        return hold(context)
    if found.exists and found.ours and (found.finished or not _asks_alike(context, found)) and not found.deleting:
        return _wait(context, found, LeaveQueue(reason=Reason.QUEUED), "asks for other quota than before")
    if found.usable and found.ready:
        effect = ReportPodsReady(ready=False, reason=Reason.RETRYING)
        return Decision(rule="queued", effects=(effect,), status=context.status, look_again_seconds=0)
    if found.usable:
        return None
    if found.exists and not found.ours:
        name = workload_name(context.meta.name)
        return _wait(context, found, None, f"the Workload {name} exists and does not belong to this run; delete it")
    if found.exists:
        return _wait(context, found, None, found.message)
    assert context.spec is not None
    stage = stages.next_stage(context.spec, context.status)
    assert stage is not None
    return _wait(context, found, RequestQuota(stage=stage, reason=Reason.QUEUED), "")


def kept(context: Context, decision: Decision) -> Decision:
    """The decision, with the queue in its status, and with the end of the Workload where that is of no use any more."""
    found = context.observed.reservation
    if found is None or found.unreadable:  # the Workload may be there, and is to be returned when it is seen again
        return decision
    if _alive(context) or not (_over(context, decision) or not context.meta.queue):
        asks = any(isinstance(effect, RequestQuota) for effect in decision.effects)
        name = found.queue or context.meta.queue
        there = asks or (found.exists and found.ours)
        return _shown(context, decision, QueueStatus(name=name, position=_place(context, found)) if there else None)
    if found.exists and found.ours and not found.deleting and not _leaves(decision):
        decision = replace(decision, effects=(LeaveQueue(reason=Reason.TRIMMED), *decision.effects))
    return _shown(context, decision, None)


def _shown(context: Context, decision: Decision, queue: QueueStatus | None) -> Decision:
    queue = queue.with_unknown_of(decision.status.queue) if queue else None
    if context.meta.deleting or decision.status.queue == queue:
        return decision
    return replace(decision, status=decision.status.model_copy(update={"queue": queue}))


def _over(context: Context, decision: Decision) -> bool:
    """True if nothing of the run is about to start."""
    current = decision.status.current
    flying = current is not None and current.state is not AttemptState.ENDED
    return context.meta.deleting or (decision.status.phase in WITHOUT_QUOTA and not flying)


def _leaves(decision: Decision) -> bool:
    return any(isinstance(effect, LeaveQueue) for effect in decision.effects)


def _alive(context: Context) -> bool:
    """True if anything of the run may still use what it was granted. A run that is deleted closes no records."""
    if context.meta.deleting:
        return any(seen.ours for seen in context.observed.attempts)
    return context.flying is not None or any(seen.ours and not seen.over for seen in context.observed.attempts)


def _asks_alike(context: Context, found: ReservationSeen) -> bool:
    assert context.spec is not None
    stage = stages.next_stage(context.spec, context.status)
    assert stage is not None
    return asks_alike(found.asked, context.meta, context.spec, stage)


def _wait(context: Context, found: ReservationSeen, effect: Effect | None, text: str) -> Decision:
    status = _waiting(context, found, text)
    message = f"waits for quota in the queue {_queue(context)}"
    news = context.announce_once(status, Reason.QUEUED, message)
    waits = (_look_seconds(context, found), context.seconds_to_deadline())
    again = 0 if isinstance(effect, LeaveQueue) else min(seconds for seconds in waits if seconds is not None)
    effects = () if effect is None else (effect,)
    return Decision(rule="queued", effects=effects, status=status, announcements=news, look_again_seconds=again)


def _look_seconds(context: Context, found: ReservationSeen) -> float:
    """Return the seconds until the next query for the position. Kueue names no more than the first 1,000 of a queue."""
    timing = context.timing
    if found.position is not None:
        return timing.queue_look_seconds(found.position / _EACH_PLACE)
    condition = context.status.condition(TRAINING)
    waited = (context.now - condition.last_transition_time).total_seconds() if condition else 0.0
    return timing.queue_look_seconds(waited / timing.queue_seconds)


def _waiting(context: Context, found: ReservationSeen, text: str) -> RunStatus:
    position = _place(context, found)
    place = f", number {position} in line" if position else ""
    because = f": {text}" if text else ""
    message = f"waits for quota in the queue {_queue(context)}{place}{because}"
    return context.phase(context.status, Phase.QUEUED, Reason.QUEUED, message)


def _place(context: Context, found: ReservationSeen) -> int | None:
    """Return the position to show: the one that is shown, while the run is far back and has moved little."""
    shown = context.status.queue.position if context.status.queue else None
    if found.position is None or shown is None or found.position <= _EACH_PLACE:
        return found.position
    return found.position if abs(found.position - shown) * 10 >= shown else shown


def _queue(context: Context) -> str:
    found = context.observed.reservation
    shown = context.status.queue.name if context.status.queue else ""
    return context.meta.queue or (found.queue if found else "") or shown
