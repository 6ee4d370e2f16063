"""Evictions from nodes that run short of memory, of trainers that request none.

Any use of memory is more than a request of 0, so the kubelet's words blame such a pod whoever used the memory. Once is
a disruption. Where the next attempt ends in the same way, the program uses what nobody has kept for it.
"""

from dataclasses import replace

from piton.api.status import RunStatus
from piton.core import transitions
from piton.observed import AttemptSeen, ReplicaSeen


def remember(status: RunStatus, seen: AttemptSeen | None) -> RunStatus:
    """Write down that the current attempt was evicted in this way: the next one is judged by it."""
    record = status.current
    if record is None or seen is None or record.short_of_memory:
        return status
    if not any(replica.short_of_memory for replica in seen.replicas):
        return status
    return transitions.change(status, short_of_memory=True)


def with_blame(seen: AttemptSeen, status: RunStatus) -> AttemptSeen:
    """Return the attempt with such an eviction as out of memory, if the attempt before it ended so as well."""
    if not any(replica.short_of_memory for replica in seen.replicas) or not _is_second(status, seen):
        return seen
    blamed = tuple(_blame(replica) if replica.short_of_memory else replica for replica in seen.replicas)
    return replace(seen, replicas=blamed)


def _blame(replica: ReplicaSeen) -> ReplicaSeen:
    return replace(replica, disruption=None, out_of_memory=True)


def _is_second(status: RunStatus, seen: AttemptSeen) -> bool:
    before = [record for record in status.attempts if record.number < seen.number]
    return bool(before) and before[-1].short_of_memory is True
