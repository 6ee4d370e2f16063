"""A node whose device an attempt has found broken: which one, by whose words, and how to keep attempts away from it."""

from datetime import timedelta
from textwrap import shorten

from piton.api.reasons import Reason
from piton.contract import names
from piton.contract.devices import names_own_broken_device
from piton.contract.duration import format_duration
from piton.contract.termination import Outcome
from piton.core.context import Context
from piton.core.effects import Announcement, TaintNode
from piton.core.evidence import Judgement
from piton.core.verdict import NEVER
from piton.observed import AttemptSeen, ReplicaSeen

_WORDS_MAX = 300


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


def _what_keeps_pods_away(context: Context, replica: ReplicaSeen) -> str:
    command = f"kubectl taint node {replica.node} {names.TAINT_DEVICE_FAULT}={_value(context)}:NoSchedule"
    seconds = context.timing.device_taint_seconds
    if seconds is None:
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
