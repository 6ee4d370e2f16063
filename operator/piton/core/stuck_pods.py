"""Pods that are being deleted and do not go, though their machines answer.

A process that hangs in the kernel, in a driver or in a network file system cannot be killed. Its pod keeps the machine,
and an attempt that waits for its end waits for ever. People are told; without their consent nothing is forced, since
the process may still write.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from textwrap import shorten

from piton.api.conditions import POD_STUCK, settled, with_trouble
from piton.api.reasons import Reason
from piton.api.spec import StuckPods
from piton.core.context import Context
from piton.core.effects import Decision, RemoveReplica
from piton.core.stopping import pods_wait_seconds
from piton.core.wait_reasons import Wait, without_numbers
from piton.observed import AttemptSeen, LeavingPod
from piton.timing import Timing

_WORDS_MAX = 300


def find_wait(context: Context, *attempts: AttemptSeen) -> Wait | None:
    """Return what keeps these attempts from their end; None: nothing that has lasted for too long."""
    stuck = [pod for _, pod in _leaving(attempts) if _is_stuck(context, pod)]
    return Wait(reason=Reason.POD_STUCK, message=_message(context, stuck)) if stuck else None


def note_stuck(context: Context, decision: Decision) -> Decision:
    """Return the decision with the condition PodStuck as it is now, and with the deletions that the user allows."""
    leaving = _leaving(context.observed.attempts)
    stuck = [(seen, pod) for seen, pod in leaving if _is_stuck(context, pod)]
    waits = (_seconds_left(context, pod) for _, pod in leaving if not _is_stuck(context, pod))
    pods = (pods_wait_seconds(seen, context.now) or None for seen in context.observed.attempts if seen.ours)
    known = [seconds for seconds in (decision.look_again_seconds, *waits, *pods) if seconds is not None]
    message = _message(context, [pod for _, pod in stuck]) if stuck else None
    news = () if message is None else context.warn_once(POD_STUCK, Reason.POD_STUCK, message)
    return replace(
        decision,
        status=context.with_trouble(decision.status, POD_STUCK, Reason.POD_STUCK, message),
        announcements=(*decision.announcements, *news),
        optional_effects=(*decision.optional_effects, *_forced(context, stuck)),
        look_again_seconds=min(known, default=None),
    )


def note_refusal(decision: Decision, why: str, *, now: datetime, timing: Timing) -> Decision:
    """Return the decision when a pod may not be forced: people are told, and all else goes on as decided."""
    condition = decision.status.condition(POD_STUCK)
    assert condition is not None
    generation = condition.observed_generation or 0
    message = f"{condition.message}. limits.stuckPods does not act: {why}"
    status = with_trouble(decision.status, POD_STUCK, Reason.POD_STUCK, message, now=now, generation=generation)
    again = timing.try_again_seconds((now - condition.last_transition_time).total_seconds())
    known = [seconds for seconds in (decision.look_again_seconds, again) if seconds is not None]
    return replace(decision, status=status, look_again_seconds=min(known))


def _leaving(attempts: Iterable[AttemptSeen]) -> list[tuple[AttemptSeen, LeavingPod]]:
    return [(seen, pod) for seen in attempts if seen.ours for pod in seen.leaving]


def _forced(context: Context, stuck: list[tuple[AttemptSeen, LeavingPod]]) -> Iterator[RemoveReplica]:
    for seen, pod in stuck:
        if not pod.has_ended and _is_forceable(context) and _hindrance(context, pod) is None:
            yield RemoveReplica(
                number=seen.number, name=pod.name, uid=pod.uid, grace_seconds=0, reason=Reason.POD_STUCK
            )


def _is_forceable(context: Context) -> bool:
    """True if the user wants the operator to delete such pods. A spec that is refused allows no more than both do."""
    return context.spec is not None and context.spec.limits.stuck_pods is StuckPods.FORCE_DELETE


def _hindrance(context: Context, pod: LeavingPod) -> str | None:
    """Return why the pod may not be forced although the user wants it; None: it may."""
    if pod.unshared_claims:
        claim = pod.unshared_claims[0]
        return f"the claim {claim} that it mounts is not ReadWriteMany alone, so its process could still write there"
    starts_no_other = context.meta.deleting or settled(context.status)
    if not (pod.is_node_closed or starts_no_other):
        return f"the next attempt could land on that node; kubectl cordon {pod.node} keeps it away"
    return None


def _is_stuck(context: Context, pod: LeavingPod) -> bool:
    return _seconds_left(context, pod) <= 0


def _seconds_left(context: Context, pod: LeavingPod) -> float:
    return (pod.leaves_by + timedelta(seconds=context.timing.stuck_seconds) - context.now).total_seconds()


def _message(context: Context, stuck: list[LeavingPod]) -> str:
    first = min(stuck, key=lambda pod: (pod.leaves_by, pod.name))
    others = f" (and {len(stuck) - 1} more)" if len(stuck) > 1 else ""
    until = f"since {first.leaves_by:%Y-%m-%d %H:%M:%S} UTC"
    if first.has_ended:
        names = ", ".join(first.finalizers)
        return f"{first.name}{others} is to be gone {until}, and is kept by {names}; its controller has to remove that"
    force = f"kubectl delete pod {first.name} -n {context.meta.namespace} --force --grace-period=0"
    why = (
        "its kubelet, which answers, has not ended it; a process may hang in the kernel, a driver or a network file "
        "system. It keeps its machine. Restart or replace the node"
    )
    if first.not_ready:
        said = shorten(without_numbers(first.not_ready), _WORDS_MAX, placeholder=" ...")  # seconds change at each look
        why = (
            f"its node says that it is not ready ({said}), so nothing ends it. It keeps its machine. The wait is over "
            "when the node is repaired or removed"
        )
    message = (
        f"{first.name}{others} is to be gone from {first.node} {until}, and {why}; when nothing of it can run any "
        f"more: {force}"
    )
    why_not = _hindrance(context, first) if _is_forceable(context) else None
    return f"{message}. limits.stuckPods does not act: {why_not}" if why_not else message
