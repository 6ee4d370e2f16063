"""Attempts that used more memory or disk than they may, and evictions from nodes that run short of memory.

Any use of memory is more than a request of 0, so the kubelet's words blame a pod without one, whoever used the memory.
Once is a disruption. Where the next attempt ends in the same way, the program uses what nobody has kept for it.
"""

from dataclasses import replace

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import path_of
from piton.api.status import RunStatus, Verdict
from piton.core import transitions
from piton.core.evidence import Evidence, Judgement
from piton.observed import AttemptSeen, ReplicaSeen

_BY_LIMIT_RANGE = "its limit of {} is the default of a LimitRange of this namespace"


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


def out_of_disk(evidence: Evidence) -> Judgement | None:
    """The kubelet evicted the pod for its own use of the node's disk."""
    for replica in evidence.seen.replicas:
        if replica.out_of_disk:
            limit, resources = replica.default_limit, path_of("resources", evidence.stage)
            message = (
                f"{replica.name} was evicted for using too much of its node's disk; write less beside the checkpoint "
                f"volume, or raise ephemeral-storage in {resources}"
            )
            if limit is not None:
                message = (
                    f"{replica.name} was evicted for using too much of its node's disk: {_BY_LIMIT_RANGE.format(limit)}"
                    f"; write less beside the checkpoint volume, or set {resources}.limits.ephemeral-storage"
                )
            return Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.OUT_OF_DISK, message=message)
    return None


def out_of_memory(evidence: Evidence) -> Judgement | None:
    """The kernel killed the container at its own limit, or the kubelet evicted its pod for more than it asked for."""
    for replica in evidence.seen.replicas:
        if replica.out_of_memory:
            limit, resources = replica.default_limit, path_of("resources", evidence.stage)
            smaller = " or shrink the batch" if evidence.stage is Stage.TRAIN else ""
            message = f"{replica.name} ran out of memory; raise {resources}{smaller}"
            if limit is not None:
                told = _BY_LIMIT_RANGE.format(limit)
                message = f"{replica.name} ran out of memory: {told}; set {resources}.limits.memory"
            return Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.OUT_OF_MEMORY, message=message)
    return None
