"""Effects that stop an attempt: delete its job, and replicas that need no grace period, or cannot have one."""

from collections.abc import Iterator

from piton.api.reasons import Reason
from piton.core.effects import Effect, RemoveReplica, StopAttempt
from piton.observed import AttemptSeen, ReplicaSeen
from piton.timing import UNSTARTED_GRACE_SECONDS


def stop_effects(seen: AttemptSeen, reason: Reason) -> tuple[Effect, ...]:
    """Delete the job, whose running replicas then save; remove what has nothing to save. Empty once that is done."""
    job = () if seen.deleting else (StopAttempt(number=seen.number, reason=reason),)
    return (*job, *_removals(seen))


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
