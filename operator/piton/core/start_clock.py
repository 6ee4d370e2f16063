"""The clock of `limits.startTimeout`: for how long machines may be paid for before all replicas run.

It starts when all replicas have a machine; before that, once a replica runs and waits for the others. A replica that
has a machine and does not run, while others wait for one, gets three times the limit. The clock stands still while the
kubelet reports that it pulls an image, or an init container runs, for at most twice the limit: a large image is no
fault, and a pull that never ends is one. Where nobody can read what it reports, it may be pulling. All times are the
operator's own, of its first look, or the API server's: nodes' clocks may be wrong.

A start that is slow is slow in each attempt: a mount of many files takes its time. So the limit learns. An attempt that
it has ended doubles it for the next one, until one comes together; what that one took is not too long for the next,
even when the attempts before it are not listed any more.

A run that began before zero was refused may have a limit of zero. It means what it meant then: no limit until a
replica runs, and no time for the others after that. So one node never meets it.
"""

from datetime import datetime

from piton.api import stages
from piton.api.reasons import Reason
from piton.api.spec import Spec
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.contract.duration import format_duration, parse_duration
from piton.core import transitions
from piton.core.context import Context
from piton.core.evidence import Judgement
from piton.core.wait_reasons import find_hindrance
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState

_PULLS_MAX = 2
"""So many times the limit it may stand still."""


def advance(status: RunStatus, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """Write down when all replicas had a machine, and when images are pulled for them."""
    record = status.current
    if record is None or seen is None or record.state is AttemptState.STOPPING:
        return status
    if record.placed_time is None and seen.placed and seen.replicas:
        status = transitions.change(status, placed_time=now, pull_time=None, pull_seconds=None)
        record = status.current
        assert record is not None
    may_pull = seen.words_unknown or any(map(_pulls, seen.replicas))
    pulling = _began(record) is not None and record.formed_time is None and may_pull
    if pulling and record.pull_time is None:
        return transitions.change(status, pull_time=now)
    if not pulling and record.pull_time is not None:
        return transitions.change(status, pull_time=None, pull_seconds=int(_pulled(record, now)))
    return status


def seconds_left(context: Context, status: RunStatus) -> float | None:
    """Return the seconds until all replicas should have run; None where they have, or the clock has not started."""
    record, seen, spec = status.current, context.seen, context.spec
    if record is None or seen is None or spec is None or record.formed_time is not None or seen.formed:
        return None
    began = _began(record)
    if record.state is AttemptState.STOPPING:
        return None
    if not _least(spec):
        known = context.flying  # as the pass before left it: a gang that is first seen running is looked at once more
        first_run = known.running_time if known is not None else None
        return None if first_run is None else -(context.now - first_run).total_seconds()
    if began is None:
        first = _first_placed(seen)
        return None if first is None else _half_placed_limit(spec) - (context.now - first).total_seconds()
    return _limit(status, spec) - _counted(record, began, context.now, _limit(status, spec))


def next_look_seconds(context: Context, status: RunStatus) -> float | None:
    """Return the seconds until the clock may run out, if nothing is reported before; None once it has."""
    left, record = seconds_left(context, status), status.current
    if left is None or record is None or context.spec is None or left <= 0:
        return None
    if record.pull_time is None:
        return left
    limit = _limit(status, context.spec)
    return left + max(0.0, _PULLS_MAX * limit - _pulled(record, context.now))


def judge(context: Context, status: RunStatus) -> Judgement | None:
    """Return the verdict on an attempt that has not come together in time; None while it has time, or none is set."""
    record, seen, left = status.current, context.seen, seconds_left(context, status)
    if record is None or seen is None or context.spec is None or left is None or left > 0:
        return None
    limit = _describe_limit(status, context.spec)
    if _began(record) is None:
        three_times = format_duration(_half_placed_limit(context.spec))
        limit = f"{three_times}, three times {limit}, and {sum(r.node is None for r in seen.replicas)} have no machine"
    message = (
        f"{sum(r.has_run for r in seen.replicas)} of {seen.expected_replicas} replicas of {stages.called(record)} have "
        f"run within {limit}{_explain_late(seen)}"
    )
    return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.GANG_INCOMPLETE, message=message)


def _limit(status: RunStatus, spec: Spec) -> float:
    """Return the seconds that the current attempt may take to start, by the spec and by what earlier ones took."""
    limit = least = _least(spec)
    current = status.current
    if not least or current is None or current.placed_time is None:
        return least
    for record in status.attempts[:-1]:
        if record.stage is not current.stage or record.placed_time is None:
            continue
        if record.formed_time is not None:
            limit = least
            while _counted(record, record.placed_time, record.formed_time, limit) > limit:
                limit *= 2
        elif record.reason is Reason.GANG_INCOMPLETE and record.ended_time is not None:
            limit *= 2 if _counted(record, record.placed_time, record.ended_time, limit) >= limit else 1
    return limit


def _half_placed_limit(spec: Spec) -> float:
    return (1 + _PULLS_MAX) * _least(spec)


def _least(spec: Spec) -> float:
    """Return the limit as the spec has it, in seconds; zero in a run from before zero was refused."""
    return parse_duration(spec.limits.start_timeout)


def _first_placed(seen: AttemptSeen) -> datetime | None:
    """Return when the first replica that has a machine got it, by the clock of the control plane."""
    return min((r.placed_at for r in seen.replicas if r.node is not None and r.placed_at is not None), default=None)


def _describe_limit(status: RunStatus, spec: Spec) -> str:
    limit, least = _limit(status, spec), f"limits.startTimeout of {spec.limits.start_timeout}"
    if limit <= _least(spec):
        return least
    return f"{format_duration(limit)}, as {least} was too short for the attempt before"


def _explain_late(seen: AttemptSeen) -> str:
    """Return the cluster's words on a replica that has not run, to be appended to a sentence; empty without any.

    Of a gang the events of few replicas are read. One whose words say why is told before one that only waits.
    """
    late = [replica for replica in seen.replicas if not replica.has_run]
    why = [(replica.name, found[1]) for replica in late for found in [find_hindrance(replica)] if found]
    waits = [(replica.name, replica.waiting) for replica in late]
    return next((f": {name}: {words}" for name, words in (*why, *waits) if words), "")


def _began(record: AttemptStatus) -> datetime | None:
    return record.placed_time or record.running_time


def _counted(record: AttemptStatus, began: datetime, until: datetime, limit: float) -> float:
    """Seconds that the clock has run, without those for which it has stood still."""
    return (until - began).total_seconds() - min(_pulled(record, until), _PULLS_MAX * limit)


def _pulled(record: AttemptStatus, now: datetime) -> float:
    """Seconds for which images have been pulled."""
    pulling = 0.0 if record.pull_time is None else (now - record.pull_time).total_seconds()
    return (record.pull_seconds or 0) + max(0.0, pulling)


def _pulls(replica: ReplicaSeen) -> bool:
    if replica.state is not ReplicaState.WAITING or replica.cannot_start:
        return False
    found = find_hindrance(replica)
    return found is not None and found[0] in (Reason.IMAGE_PULLING, Reason.INIT_CONTAINER)
