"""The reason why an attempt does not run yet: rules over messages of the cluster, most decisive first. Pure.

A word is a condition of a pod, the state of a container, or an event. Events stay for an hour, so a word counts only
until a later one shows that it is over: a volume that was mounted, an image that is there.

Numbers in such sentences change all the time (nodes, quotas, identifiers of requests). A sentence that differs from the
one in the status by its numbers alone is not written again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar

from piton.api.conditions import WAITING, in_phase, settled, with_waiting
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status_base import Conditioned, Phase
from piton.contract import names
from piton.contract.duration import format_duration
from piton.core import wait_causes as causes
from piton.core.effects import Announcement
from piton.core.start_words import (
    CREATE_REASONS,
    INIT_CRASHES,
    NOTHING_PROVEN,
    PULL_REASONS,
    SIDECAR_STARTS,
    Culprit,
    Proven,
    find_culprit,
)
from piton.core.wait_causes import Cause, Recognized, recognize
from piton.observed import AttemptSeen, ClusterMessage, ReplicaSeen, ReplicaState

StatusT = TypeVar("StatusT", bound=Conditioned)

SILENT_SECONDS = 15.0
"""After so long a job without a pod and without a word has no controller."""
KUBELET_SILENT_SECONDS = 120.0
"""After so long a pod that has its node, and of which nothing was said since, is told."""
_STEPS = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400)
"""Seconds at which a sentence says anew how long something has taken: a dozen writes a day at most."""
_QUOTE_MAX = 330
"""An Event has room for 1024 bytes: two quotations, or a refusal that is as long, and the advice."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The reason why a run waits, with a message."""

    reason: Reason
    message: str
    """The cluster's words, and what helps."""
    severity: Literal["Normal", "Warning"] = "Warning"
    elapsed: str = ""
    """The waiting time in coarse steps; a part of the message."""
    next_step_seconds: float | None = None
    """Seconds until that changes; None: the reason only changes with what the cluster reports."""
    ends_with_room: bool = False
    """True if it is over as soon as a ResourceQuota has room, and not before."""


@dataclass(frozen=True, kw_only=True)
class _Sign:
    """A kind of word: what it means, and what ends it."""

    reasons: frozenset[str]
    """The cluster's own name of the cause."""
    causes: tuple[Cause, ...]
    over: frozenset[str] = frozenset()
    """Words that show that it is over, if they are not older."""
    normal: bool = False
    """It is a part of every start, and only worth its time."""


_CREATED = frozenset({"Pulling", "Pulled", "Created", "Started"})
_PLACED = "Scheduled"
_BEFORE_ITS_KUBELET = frozenset({_PLACED, "SuccessfulAttachVolume"})
"""Steps of a start that others do, once, and that a kubelet waits for."""
_KUBELET = "kubelet"
_LAUNCHED = frozenset({"Nominated", "TriggeredScaleUp"})
_NOT_LAUNCHED = frozenset({"NotTriggerScaleUp", "FailedScaleUp"})
"""Words of autoscalers alone. GKE's says the second when a launch that it has announced fails."""
_AUTOSCALERS = frozenset({"karpenter", "cluster-autoscaler", "eks-auto-mode/compute"})
"""Those whose FailedScheduling says the same. Schedulers have one as well; theirs is in the pod's condition."""
_NOW = datetime.max.replace(tzinfo=UTC)

_SIGNS = (
    _Sign(reasons=frozenset({"Suspended"}), causes=causes.HELD_BACK, normal=True),
    _Sign(
        reasons=frozenset({"FailedAttachVolume"}),
        causes=causes.ATTACHING,
        over=_CREATED | {"SuccessfulAttachVolume"},
    ),
    _Sign(reasons=frozenset({"FailedMount", "FailedMapVolume"}), causes=causes.MOUNTING, over=_CREATED),
    _Sign(reasons=frozenset({"FailedCreatePodSandBox", "NetworkNotReady"}), causes=causes.SANDBOX, over=_CREATED),
    _Sign(reasons=frozenset({INIT_CRASHES}), causes=causes.INIT_CRASHING),
    _Sign(reasons=PULL_REASONS, causes=causes.PULL_FAILED),
    _Sign(reasons=CREATE_REASONS, causes=causes.CONTAINER_CONFIG),
    _Sign(reasons=_LAUNCHED, causes=causes.LAUNCHING, normal=True),
    _Sign(reasons=frozenset({"Unschedulable", "SchedulerError"}), causes=causes.PLACEMENT),
    _Sign(reasons=frozenset({"SchedulingGated"}), causes=causes.GATED, normal=True),
    _Sign(reasons=frozenset({"Pulling"}), causes=causes.PULLING, normal=True),
    _Sign(reasons=frozenset({"InitContainer"}), causes=causes.INITIALIZING, normal=True),
)
"""The first that is found among the words of any replica that waits is what is told."""


def why(
    seen: AttemptSeen,
    *,
    now: datetime,
    since: datetime,
    proven: Proven = NOTHING_PROVEN,
) -> Wait | None:
    """Return the reason why the attempt, created at `since`, does not run; None without any sign of one.

    What is proven to be right is not what is wrong with a container that cannot start.
    """
    if len(seen.replicas) < seen.expected_replicas and (wait := _no_pods(seen, now, since)):
        return wait
    waiting = [replica for replica in seen.replicas if replica.state is ReplicaState.WAITING]
    known = [found for replica in waiting if (found := _of_replica(replica))]
    if not known:
        return _silent_kubelet(seen, waiting, now, since)
    sign, replica, word = min(known, key=lambda found: _SIGNS.index(found[0]))
    zone = next((f" ({other.zone})" for other in seen.replicas if other.zone), "")
    culprit = find_culprit(word, replica, proven)
    quoted = _quoted(word, replica)
    return _wait_for(sign, replica.name, quoted, word, now, stage=seen.stage, zone=zone, culprit=culprit)


def _silent_kubelet(seen: AttemptSeen, waiting: list[ReplicaSeen], now: datetime, since: datetime) -> Wait | None:
    """Name the replica that has its node for the longest without a start; None: none has it for long.

    A step of its start begins the time anew, the first time that it is said: one that is repeated leads nowhere.
    """
    steps = {
        replica.name: max(
            [
                replica.placed_at or since,
                *(first for w in replica.words if _is_step(w, replica) if (first := _first(w))),
            ]
        )
        for replica in waiting
        if replica.node is not None and not replica.deleting and not replica.words_unread
    }
    silent = min((replica for replica in waiting if replica.name in steps), key=lambda r: steps[r.name], default=None)
    seconds = 0.0 if silent is None else (now - steps[silent.name]).total_seconds()
    if silent is None or seconds < KUBELET_SILENT_SECONDS:
        return None
    elapsed = _coarse(seconds)
    return Wait(
        reason=Reason.KUBELET_SILENT,
        message=f"{silent.name}: {_why_silent(silent, elapsed, is_unknown=seen.words_unknown)}",
        elapsed=elapsed,
        next_step_seconds=_seconds_to_next_step(seconds),
    )


def _first(word: ClusterMessage) -> datetime | None:
    """Return the time of the first report of a word; None for a current state, which has no times."""
    return (word.first_time or word.last_time) if word.last_time else None


def _is_step(word: ClusterMessage, replica: ReplicaSeen) -> bool:
    """True if the word is a step of the replica's start: its kubelet's, or one for which its kubelet waits.

    A warning is none: it is repeated. What others say of the pod is none either, and they may repeat it for ever.
    """
    if word.reason in _BEFORE_ITS_KUBELET:
        return True
    return word.source == _KUBELET and word.host in ("", replica.node) and not word.is_warning


def _why_silent(replica: ReplicaSeen, elapsed: str, *, is_unknown: bool) -> str:
    """Return what is known of a container that does not start, and what to look at."""
    state = f" ({replica.waiting})" if replica.waiting else ""
    fact = f"the container {names.CONTAINER} does not start on {replica.node}{state}"
    sidecar = next((word for word in replica.words if word.reason == SIDECAR_STARTS), None)
    words = (word for word in replica.words if word.last_time and (word.is_warning or _is_step(word, replica)))
    newest = max(words, key=_time, default=None)
    if newest is not None and (newest.reason == _PLACED or (replica.placed_at and _time(newest) < replica.placed_at)):
        newest = None  # nobody has said anything since it has its node
    told = [_quoted(word, replica) for word in (sidecar, newest) if word and (word is sidecar or word.is_warning)]
    if told:
        return f"{fact}{elapsed}: {'; '.join(told)}. If that lasts, look at the log of what it names"
    look = "Look at the log of that kubelet, and of its container runtime"
    if is_unknown:
        return f"{fact}, and its Events cannot be read{elapsed}. {look}"
    said = f"the kubelet of {replica.node} has not said why the container {names.CONTAINER} does not start{state}"
    return f"{said}{elapsed}. {look}" + ("" if newest else "; if it stays so, replace the node")


def find_hindrance(replica: ReplicaSeen) -> tuple[Reason, str] | None:
    """Return why the replica does not start, and the cluster's words for it; None without a sign."""
    found = _of_replica(replica)
    if found is None:
        return None
    sign, _, word = found
    quoted = _quoted(word, replica)
    cause = recognize(quoted, sign.causes, Stage.TRAIN, zone="")
    assert cause is not None, "the last cause of every table matches all"
    return cause.reason, quoted


def refusal(sentence: str, stage: Stage = Stage.TRAIN) -> Wait:
    """Return the reason for a refusal by the API server, of something for this stage."""
    found = recognize(sentence, causes.REFUSALS, stage) or Recognized(reason=Reason.REFUSED)
    message = _joined(sentence[: _QUOTE_MAX * 2], found.advice)
    return Wait(reason=found.reason, message=message, ends_with_room=found.ends_with_room)


def waits(
    status: StatusT, phase: Phase | None, wait: Wait, *, now: datetime, generation: int
) -> tuple[StatusT, tuple[Announcement, ...]]:
    """The status that says why it waits, and the Event about it: one for each new reason.

    Without a phase, and where the run has ended, only the condition Waiting says so: the others have more to say.
    """
    old = status.condition(WAITING)
    again = old is not None and status.is_true(WAITING) and old.reason == wait.reason
    message = old.message if old and again and _is_unchanged(old.message, wait) else wait.message
    news = () if again else (Announcement(severity=wait.severity, reason=wait.reason, message=wait.message),)
    if phase is None or settled(status):
        return with_waiting(status, wait.reason, message, now=now, generation=generation), news
    return in_phase(status, phase, wait.reason, message, now=now, generation=generation), news


def waited_seconds(status: Conditioned, now: datetime) -> float:
    """For how long it has waited."""
    waits = status.condition(WAITING)
    return (now - waits.last_transition_time).total_seconds() if waits and status.is_true(WAITING) else 0.0


def _no_pods(seen: AttemptSeen, now: datetime, since: datetime) -> Wait | None:
    """The job's controller has not made all pods: an event about the job says why, or nobody serves the job."""
    newest = max(seen.words, key=_time, default=None)
    if newest is not None and newest.reason == "Suspended":
        return _wait_for(_SIGNS[0], "the job", newest.message, newest, now, stage=seen.stage)
    if newest is not None:
        return refusal(newest.message, seen.stage)
    waited = (now - since).total_seconds()
    if seen.replicas or seen.deleting or waited < SILENT_SECONDS:
        return None
    return Wait(
        reason=Reason.ENGINE_SILENT,
        message=f"no pod has been created for the job of attempt {seen.number}, and no event says why. Check that the"
        " controller that serves PyTorchJobs runs: Kubeflow's training operator, or Piton with engine: bundled.",
    )


def _of_replica(replica: ReplicaSeen) -> tuple[_Sign, ReplicaSeen, ClusterMessage] | None:
    """The most decisive word about a replica that still holds."""
    for sign in _SIGNS:
        words = [word for word in replica.words if word.reason in sign.reasons and _holds(word, sign, replica)]
        if words:
            return sign, replica, max(words, key=_time)
    return None


def _holds(word: ClusterMessage, sign: _Sign, replica: ReplicaSeen) -> bool:
    """True if nothing that was said later, or in the same second, shows that it is over."""
    if word.reason in _LAUNCHED:
        given_up = any(_time(other) > _time(word) for other in _of_autoscaler(replica))
        return replica.node is None and not given_up
    later = [other for other in replica.words if other is not word and _time(other) >= _time(word)]
    if word.reason == "Pulling" and any(_image(other) == _image(word) for other in later):
        return False
    return not any(other.reason in sign.over for other in later)


def _time(word: ClusterMessage) -> datetime:
    """The time of the latest report; a state that is no event counts as reported now."""
    return word.last_time or _NOW


def _image(word: ClusterMessage) -> str | None:
    """The image that an event of the kubelet's is about."""
    found = re.search(r'image "([^"]+)"', word.message)
    return found[1] if found else None


def _quoted(word: ClusterMessage, replica: ReplicaSeen) -> str:
    """The word as the cluster says it. Of a pod without a machine the autoscaler may know more than the scheduler."""
    others = [] if word.reason not in ("Unschedulable", "SchedulerError") else _of_autoscaler(replica)
    quotes = [f"{other.source}: {other.message}"[:_QUOTE_MAX] for other in others]
    return "; ".join([f"{word.reason}: {word.message}".removesuffix(": ")[:_QUOTE_MAX], *quotes])


def _says_no_launch(word: ClusterMessage) -> bool:
    """True if an autoscaler says that it launches no node for the pod, or that a launch has failed."""
    return word.reason in _NOT_LAUNCHED or (word.reason == "FailedScheduling" and word.source in _AUTOSCALERS)


def _of_autoscaler(replica: ReplicaSeen) -> Iterator[ClusterMessage]:
    """Its newest word about why it launches no node."""
    words = [word for word in replica.words if _says_no_launch(word)]
    if words:
        yield max(words, key=_time)


def _wait_for(
    sign: _Sign,
    name: str,
    quoted: str,
    word: ClusterMessage,
    now: datetime,
    *,
    stage: Stage,
    zone: str = "",
    culprit: Culprit = Culprit.RUN,
) -> Wait:
    found = recognize(quoted, sign.causes, stage, zone=zone, culprit=culprit)
    assert found is not None, "the last cause of every table matches all"
    if not sign.normal:
        return Wait(reason=found.reason, message=_joined(f"{name}: {quoted}", found.advice))
    seconds = None if word.first_time is None else (now - word.first_time).total_seconds()
    elapsed = "" if seconds is None else _coarse(seconds)
    return Wait(
        reason=found.reason,
        message=_joined(f"{name}: {quoted}{elapsed}", found.advice),
        severity="Normal",
        elapsed=elapsed,
        next_step_seconds=None if seconds is None else _seconds_to_next_step(seconds),
    )


def _coarse(seconds: float) -> str:
    step = max((step for step in _STEPS if step <= seconds), default=None)
    return "" if step is None else f", for more than {format_duration(step)}"


def _seconds_to_next_step(seconds: float) -> float | None:
    return min((step - seconds for step in _STEPS if step > seconds), default=None)


def _joined(sentence: str, advice: str) -> str:
    return f"{sentence.rstrip('. ')}. {advice}" if advice else sentence


def _is_unchanged(old: str, wait: Wait) -> bool:
    return without_numbers(old) == without_numbers(wait.message) and wait.elapsed in old


def without_numbers(text: str) -> str:
    """Return the text with each word that has a digit in it, a name say, as the same sign."""
    return re.sub(r"\S*\d\S*", "#", text)
