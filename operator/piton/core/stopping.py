"""Effects that stop an attempt: delete its job, and replicas that need no grace period, or cannot have one.

The pods of a job follow it when it is gone. Where somebody's finalizer keeps it, they are deleted by themselves.
"""

from collections.abc import Iterator
from datetime import datetime

from piton.api.reasons import Reason
from piton.core.effects import Effect, RemoveReplica, StopAttempt
from piton.observed import AttemptSeen, ReplicaSeen
from piton.timing import UNSTARTED_GRACE_SECONDS

JOB_LEAVES_SECONDS = 30.0
"""Seconds that a job may take to go, and the garbage collector to come for its pods."""


def stop_effects(seen: AttemptSeen, reason: Reason, now: datetime) -> tuple[Effect, ...]:
    """Delete the job, whose running replicas then save; remove what has nothing to save. Empty once that is done."""
    is_due = not seen.deleting or pods_wait_seconds(seen, now) == 0
    job = (StopAttempt(number=seen.number, reason=reason),) if is_due else ()
    return (*job, *_removals(seen))


def pods_wait_seconds(seen: AttemptSeen, now: datetime) -> float | None:
    """Return the seconds until the pods of a job that is deleted, and stays, are deleted too; None: there are none."""
    if seen.deleted_at is None or not seen.left_alone:
        return None
    return max(0.0, JOB_LEAVES_SECONDS - (now - seen.deleted_at).total_seconds())


def _removals(seen: AttemptSeen) -> Iterator[RemoveReplica]:
    for replica in seen.replicas:
        if replica.node_gone:
            yield _removal(seen, replica, 0, Reason.NODE_GONE)
        elif replica.never_started and not replica.ended and not _leaves_soon(replica):
            yield _removal(seen, replica, UNSTARTED_GRACE_SECONDS, Reason.NEVER_STARTED)


def _leaves_soon(replica: ReplicaSeen) -> bool:
    return replica.grace_seconds is not None and replica.grace_seconds <= UNSTARTED_GRACE_SECONDS


def _removal(seen: AttemptSeen, replica: ReplicaSeen, grace_seconds: int, reason: Reason) -> RemoveReplica:
    return RemoveReplica(
        number=seen.number, name=replica.name, uid=replica.uid, grace_seconds=grace_seconds, reason=reason
    )
