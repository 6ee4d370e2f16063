"""A run that gets nowhere: attempts end one after the other, and none of them leaves a newer durable step.

Each may have a good reason: a machine that was taken, a kubelet that refuses pods, a volume that does not answer. None
of these ends a run. The run waits longer before each attempt (`timing.py`), the condition Stalled says what was seen
and what would help, and after `limits.stalled` the run holds: machines that are paid for do not go round in circles.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

from piton.api import stages
from piton.api.conditions import STALLED, settled
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage, Tier
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract import names
from piton.contract.duration import parse_duration
from piton.core import transitions
from piton.core.broken_nodes import STARTS_NOTHING
from piton.core.context import Context
from piton.core.effects import Decision
from piton.timing import Timing

_LOST_TWICE = 2
"""So many preemptions say something about a zone."""
_HELP: Mapping[Reason, str] = {
    Reason.VOLUME_LOST: "look at the events of the checkpoint volume's claim, and at its storage",
    Reason.NOT_MIRRORED: "look at the bucket, and at the rights of the pods to it",
    Reason.DATA_UNAVAILABLE: "look at the bucket of trainer.config.data, and at AWS_ENDPOINT_URL and the credentials",
    Reason.DEVICE_LOST: "cordon the node if it is always the same, and look at its kernel's log",
    Reason.HUNG: "read the stacks in .hangs on the checkpoint volume; raise limits.hangTimeout if steps take so long",
    Reason.NODE_REFUSED: "cordon the node if it is always the same; look at its kubelet's log and device plugin",
    Reason.IMAGE_PULL_FAILED: "look at the registry, and at its credentials (imagePullSecrets of the service account)",
    Reason.START_FAILED: "cordon the node if it is always the same, and look at its container runtime's log; if other "
    "nodes say the same, look at the image and the command",
    Reason.SANDBOX_FAILED: "cordon the node if it is always the same; look at its network plugin (CNI)",
    Reason.INIT_CONTAINER_FAILED: "look at the log of that init container, and at the webhook that adds it",
    Reason.STOPPED_EARLY: "look at the clock of its node, and at the webhooks and policies that shape pods",
    Reason.JOB_SUSPENDED: "look at the controller that suspends jobs; docs/kueue.md says how Kueue leaves them alone",
    Reason.NO_PROOF: "look at the end of the last attempt's log: it ended before its training did",
}
"""Remedies, by the reason of the last end. Those that depend on the spec are in `_advice`."""
_ELSEWHERE = frozenset(
    {
        Reason.DISRUPTED,
        Reason.NODE_GONE,
        Reason.NODE_RECLAIMED,
        Reason.ZONE_SILENT,
        Reason.GANG_INCOMPLETE,
        Reason.PRICE_TOO_HIGH,
    }
)
"""Other machines may do better after these ends."""
_LOOK = "look at the log of the last attempt, and at the events of its pods and nodes"


def attempts(status: RunStatus) -> int:
    """Count the attempts in a row without a newer durable step; 0 as soon as the current one has one."""
    current = status.current
    if current is None or settled(status):
        return 0
    if current.state is not AttemptState.ENDED and transitions.has_saved(status, current):
        return 0
    return status.stage(current.stage).fruitless_attempts


def zones_to_avoid(status: RunStatus) -> tuple[str, ...]:
    """The zones in which attempts since the newest durable step have lost their machines, or did not find enough.

    One preemption says nothing about a zone. A gang that found no room has waited for all of `limits.startTimeout`, and
    one that has turned silent is left at once, whatever the attempt had saved. Nor is one gone back to for a node that
    starts no containers.
    """
    ended = [record for record in status.attempts if record.verdict not in (None, Verdict.STOPPED)]
    recent = ended[max(0, len(ended) - attempts(status)) :]
    lost = [record.zone for record in recent if record.verdict is Verdict.PREEMPTED and record.zone]
    zones = {zone for zone in lost if lost.count(zone) >= _LOST_TWICE}
    zones |= {record.zone for record in recent if record.zone and (record.short_of_room or _is_nodes_fault(record))}
    zones |= {last.zone for last in ended[-1:] if last.reason is Reason.ZONE_SILENT and last.zone}
    return tuple(sorted(zones))


def _is_nodes_fault(record: AttemptStatus) -> bool:
    """True if its node started no container. No affinity names a node, so its zone is avoided."""
    return record.reason in STARTS_NOTHING or bool(record.stuck_on_node)


def is_stalled(status: RunStatus, timing: Timing) -> bool:
    """True if so many have that something has to be said."""
    return attempts(status) >= timing.stalled_attempts


def note_stalled(context: Context, decision: Decision) -> Decision:
    """Return the decision with the condition Stalled as it is now, and with an Event when that begins."""
    message = _message(decision.status, context.spec) if is_stalled(decision.status, context.timing) else None
    news = () if message is None else context.warn_once(STALLED, Reason.NO_PROGRESS, message)
    status = context.with_trouble(decision.status, STALLED, Reason.NO_PROGRESS, message)
    return replace(decision, status=status, announcements=(*decision.announcements, *news))


def held(context: Context) -> Decision | None:
    """It has got nowhere for `limits.stalled`: nothing more is paid for until the user says so."""
    status, spec = context.status, context.spec
    condition = status.condition(STALLED)
    if spec is None or condition is None or not status.is_true(STALLED) or not is_stalled(status, context.timing):
        return None
    if context.now < condition.last_transition_time + timedelta(seconds=parse_duration(spec.limits.stalled)):
        return None
    message = (
        f"limits.stalled of {spec.limits.stalled} has passed: {_message(status, spec)}; "
        f"to go on, raise limits.stalled, or annotate the run with {names.ANNOTATION_RETRY}"
    )
    status = context.phase(status, Phase.SUSPENDED, Reason.NO_PROGRESS, message)
    news = context.announce_once(status, Reason.NO_PROGRESS, message, severity="Warning")
    return Decision(rule="held", status=status, announcements=news, look_again_seconds=context.seconds_to_deadline())


def _message(status: RunStatus, spec: Spec | None) -> str:
    last = _last_ended(status)
    last_end = f"; the last: {last.message}" if last else ""
    advice = _advice(last, spec) if last else _LOOK
    return f"{attempts(status)} attempts in a row ended without {_what_is_missing(status)}{last_end}; {advice}"


def _advice(last: AttemptStatus, spec: Spec | None) -> str:
    """Return what would help after such an end, by settings that its stage has."""
    if last.reason is Reason.OUT_OF_MEMORY:
        smaller = ", or make the batch smaller" if last.stage is Stage.TRAIN else ""
        return f"raise {stages.path_of('resources', last.stage)}{smaller}"
    if last.reason in _ELSEWHERE and spec is not None and last.stage in stages.wanted(spec.stages):
        return ", or ".join(_ways_elsewhere(last, spec, stages.staged(spec, last.stage))) or _LOOK
    return _HELP.get(last.reason, _LOOK) if last.reason else _LOOK


def _ways_elsewhere(last: AttemptStatus, spec: Spec, used: Spec) -> Iterator[str]:
    """Yield what gets the attempt other machines, or lets it need them for less time. `used` is the stage's part."""
    if last.reason is Reason.PRICE_TOO_HIGH:
        yield "raise capacity.maxPricePerHour"
    choices = {"zones": used.workers.zones, "instance types": used.workers.instance_types}
    narrow = [name for name, given in choices.items() if given]
    if narrow:
        yield f"allow more {' or '.join(narrow)} in spec.workers"
    if last.reason is Reason.GANG_INCOMPLETE:
        if used.workers.nodes > 1:
            yield "train on fewer spec.workers.nodes, which come together sooner"
        yield "raise limits.startTimeout"
    elif last.reason is not Reason.PRICE_TOO_HIGH:
        if used.capacity is spec.capacity and spec.capacity.tiers != (Tier.ON_DEMAND,):
            yield "set capacity.tiers to [OnDemand]"
        if last.stage is Stage.TRAIN:
            yield "save more often with checkpoint.every"


def _what_is_missing(status: RunStatus) -> str:
    stage = Stage.TRAIN if status.current is None else status.current.stage
    if stage is not Stage.TRAIN:
        return f"an end of the stage {stage}"
    return f"a checkpoint newer than step {status.checkpoint.step}" if status.checkpoint else "a checkpoint"


def _last_ended(status: RunStatus) -> AttemptStatus | None:
    return next((record for record in reversed(status.attempts) if record.state is AttemptState.ENDED), None)
