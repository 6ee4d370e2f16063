"""Nodes that an attempt has found broken: which one, by whose words, and how to keep attempts away from it.

Either a device of it is broken, by the trainer's own words, or it starts no containers, by its kubelet's. No affinity
names a node: Karpenter launches nothing then. A taint does, where Piton may write to nodes; else an Event tells it.
"""

from dataclasses import replace
from datetime import timedelta
from textwrap import shorten

from piton.api.reasons import Reason
from piton.contract import names
from piton.contract.devices import names_own_broken_device
from piton.contract.duration import format_duration
from piton.contract.termination import Outcome
from piton.core import programs
from piton.core.context import Context
from piton.core.effects import Announcement, Decision, TaintNode
from piton.core.evidence import Judgement
from piton.core.start_verdicts import find_unstartable
from piton.core.start_words import names_node
from piton.core.verdict import NEVER
from piton.core.wait_reasons import find_hindrance
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState

_WORDS_MAX = 300
STARTS_NOTHING = (Reason.START_FAILED, Reason.SANDBOX_FAILED)
"""Ends for which a node or its container runtime is to blame."""


def found(seen: AttemptSeen | None, judgement: Judgement) -> ReplicaSeen | None:
    """The replica that fell first of those whose own words name a device of their machine; None: there is none.

    At most one for each attempt. A peer that only saw its connection break names no device, and a time-out is none.
    """
    if seen is None or judgement.reason is not Reason.DEVICE_LOST:
        return None
    accusing = [replica for replica in seen.replicas if replica.node and not replica.node_gone and _accuses(replica)]
    return min(accusing, key=lambda replica: (replica.ended_at or NEVER, replica.name), default=None)


def announcements(context: Context, judgement: Judgement) -> tuple[Announcement, ...]:
    """An Event with the node, what was said there, and what keeps pods away from it."""
    replica = found(context.seen, judgement)
    if replica is None or replica.termination is None:
        return ()
    message = (
        f"node {replica.node} has a broken device: {replica.name} said {_short(replica.termination.detail)!r}; "
        f"{_what_keeps_pods_away(context, replica)}"
    )
    return (Announcement(severity="Warning", reason=Reason.DEVICE_LOST, message=message),)


def _short(words: str) -> str:
    """The command comes after them, and an Event is cut off at 1024 characters."""
    return shorten(words, _WORDS_MAX, placeholder=" ...")


def tainted(context: Context, judgement: Judgement) -> tuple[TaintNode, ...]:
    """The taint for its node, where Piton may write to nodes."""
    replica, seconds = found(context.seen, judgement), context.timing.device_taint_seconds
    if replica is None or replica.node is None or seconds is None:
        return ()
    until = context.now + timedelta(seconds=seconds)
    return (TaintNode(node=replica.node, value=_value(context), until=until, reason=Reason.DEVICE_LOST),)


def with_accused_start(context: Context, decision: Decision, judgement: Judgement) -> Decision:
    """The decision with an Event on the node that starts no containers, and a taint where Piton may put one.

    Nothing is tainted for a silence, nor for words that may be about the run, nor after another attempt that ended so:
    then it is hardly the node.
    """
    replica = _find_unstarted(context.seen, judgement)
    if replica is None or replica.node is None:
        return decision
    words = _short(judgement.message.partition("cannot start: ")[2] or judgement.message)
    seconds = context.timing.device_taint_seconds
    taints: tuple[TaintNode, ...] = ()
    is_known = judgement.reason is not Reason.START_FAILED or _is_the_nodes(context, replica)
    if seconds is not None and judgement.reason in STARTS_NOTHING and is_known and not _ended_so_before(context):
        until = context.now + timedelta(seconds=seconds)
        taints = (TaintNode(node=replica.node, value=_value(context), until=until, reason=judgement.reason),)
    away = _what_keeps_pods_away(context, replica, is_tainted=bool(taints))
    message = f"node {replica.node} did not start {replica.name}: {words!r}; {away}"
    news = Announcement(severity="Warning", reason=judgement.reason, message=message)
    return replace(decision, effects=(*decision.effects, *taints), announcements=(*decision.announcements, news))


def find_stuck(seen: AttemptSeen) -> ReplicaSeen | None:
    """Return a replica whose node does not start it, while nothing but the node explains that; None: there is none."""
    waiting = [r for r in seen.replicas if r.node and r.state is ReplicaState.WAITING and not r.cannot_start]
    found = [(replica, find_hindrance(replica)) for replica in waiting]
    if any(why is not None and why[0] is not Reason.SANDBOX_FAILED for _, why in found):
        return None  # it pulls an image or waits for a volume; in a gang the events of few replicas are read
    blamed = [replica for replica, why in found if why is not None]
    silent = [replica for replica in waiting if not replica.words_unread]
    return next(iter([*blamed, *silent, *waiting]), None)


def _find_unstarted(seen: AttemptSeen | None, judgement: Judgement) -> ReplicaSeen | None:
    if seen is None or judgement.reason not in (*STARTS_NOTHING, Reason.GANG_INCOMPLETE):
        return None
    if judgement.reason is not Reason.START_FAILED:
        return find_stuck(seen) if not any(r.exit_code for r in seen.replicas) else None
    judged = find_unstartable(seen)
    return judged if judged and judged.node and not judged.node_gone else None


def _is_the_nodes(context: Context, replica: ReplicaSeen) -> bool:
    """True if the program has run, or the words name a part of the node. Words that nobody knows may be of the run."""
    return programs.program_has_run(context.status) or names_node(replica.waiting or "")


def _ended_so_before(context: Context) -> bool:
    earlier = context.status.attempts[:-1]
    return bool(earlier) and earlier[-1].reason in STARTS_NOTHING


def _what_keeps_pods_away(context: Context, replica: ReplicaSeen, *, is_tainted: bool = True) -> str:
    command = f"kubectl taint node {replica.node} {names.TAINT_DEVICE_FAULT}={_value(context)}:NoSchedule"
    seconds = context.timing.device_taint_seconds
    if seconds is None or not is_tainted:
        return f"to keep pods away from it until it is mended: {command}"
    return (
        f"it gets the taint {names.TAINT_DEVICE_FAULT} for {format_duration(seconds)}, unless one in ten nodes with "
        f"GPUs has it; by hand: {command}"
    )


def _value(context: Context) -> str:
    return names.attempt_name(context.meta.name, context.status.attempt)


def _accuses(replica: ReplicaSeen) -> bool:
    end = replica.termination
    return end is not None and end.outcome is Outcome.DEVICE_LOST and names_own_broken_device(end.detail)
