"""The effects of a decision, as values. Every effect is idempotent and carries its reason.

Adapters `match` on `Effect` and end with `assert_never`, so a new effect fails type-checking until each handles it.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, TypeVar

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import RunStatus
from piton.api.status_base import Conditioned
from piton.contract.termination import StopAfter

EffectT = TypeVar("EffectT")
StatusT = TypeVar("StatusT", bound=Conditioned)


@dataclass(frozen=True, kw_only=True)
class AddFinalizer:
    """Put our finalizer on the run, so that it cannot vanish under its own attempt."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class RemoveFinalizer:
    """Take our finalizer off: nothing of the run is left to stop."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class DeleteRun:
    """Delete the run itself, if it is still as it was observed. Already gone is success."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class CreateVolume:
    """Create the claim for the checkpoints. Already existing and ours is success."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class OwnVolume:
    """Make the run the owner of the claim that was made for it, so that it goes with the run; or make it no owner."""

    owned: bool
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class StartAttempt:
    """Create the attempt's job. Already existing and ours is success."""

    number: int
    stage: Stage = Stage.TRAIN
    checkpoint_step: int | None = None
    """Of an evaluation: the checkpoint that it is about, where that is known. Of training: the newest durable one."""
    go_on_after: int | None = None
    """An attempt's number: a `break` of that one, or one before it, ends no training."""
    blocking_saves: bool = False
    """Training waits for each save, which then needs no second copy of the state in memory."""
    stop_after: StopAfter | None = None
    """For how long it may train, by a limit that the trainer keeps by itself; None: there is no known limit."""
    active_deadline_seconds: int | None = None
    """Of the pods of a `command:`, as the last resort: the kubelet ends them so long after their start."""
    avoid_zones: tuple[str, ...] = ()
    """Zones that its nodes should avoid, as long as there are others."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class StopAttempt:
    """Delete the attempt's job with its grace period: replicas get SIGTERM and may save. Already gone is success.

    Where that is done, and the job gone or kept by a finalizer, delete the replicas themselves in the same way.
    """

    number: int
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class RemoveReplica:
    """Delete a replica without the grace period of its pod. Already gone is success."""

    number: int
    name: str
    uid: str
    grace_seconds: int = 0
    """0 takes the object away without asking the machine, which is right only when the machine is gone."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class TaintNode:
    """Keep pods away from a node with a broken device. Already tainted is success, and so is one too many."""

    node: str
    value: str
    """Of the taint: the attempt that has found it."""
    until: datetime
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class RequestQuota:
    """Create the run's Workload in its queue, for attempts at this stage. Already existing and ours is success."""

    stage: Stage
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ReturnQuota:
    """Tell Kueue that nothing of an evicted run runs any more: others may have its quota, and it waits again."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ReportPodsReady:
    """Tell Kueue whether all pods of the run are running."""

    ready: bool
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class LeaveQueue:
    """Delete the run's Workload, and with it the quota that it holds. Already gone is success."""

    reason: Reason


QuotaEffect = RequestQuota | ReturnQuota | ReportPodsReady | LeaveQueue
RunEffect = AddFinalizer | RemoveFinalizer | DeleteRun
VolumeEffect = CreateVolume | OwnVolume
AttemptEffect = StartAttempt | StopAttempt | RemoveReplica | TaintNode
Effect = RunEffect | VolumeEffect | AttemptEffect | QuotaEffect


def depends(effect: Effect, undone: Effect) -> bool:
    """True if the effect must not be carried out after that one before it was not.

    A gang stops in order, a job needs its claim, and nothing is given up after a failure: no claim, no finalizer, no
    pod, no run.
    """
    match effect:
        case StopAttempt(number=number):
            return isinstance(undone, StopAttempt | RemoveReplica) and undone.number == number
        case StartAttempt():
            return not isinstance(undone, TaintNode) and not is_aside(undone)
        case TaintNode() | LeaveQueue():
            return False
        case _:
            return True


def is_aside(effect: Effect) -> bool:
    """True if the decision stands without the effect: whatever asks for it asks again in the next pass."""
    match effect:
        case LeaveQueue() | ReportPodsReady(ready=True) | StopAttempt(reason=Reason.TRIMMED):
            return True
        case _:
            return False


def name_of(effect: Effect) -> str:
    """Return the same name for the effect in each pass that decides it."""
    match effect:
        case StartAttempt(number=number) | StopAttempt(number=number):
            subject = str(number)
        case RemoveReplica(name=name) | TaintNode(node=name):
            subject = name
        case _:
            subject = ""
    return f"{type(effect).__name__} {subject}"


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """One sentence for people, told after the status that makes it true was written."""

    severity: Literal["Normal", "Warning"] = "Normal"
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class AnyDecision(Generic[EffectT, StatusT]):
    """The outcome of one pass: effects in order, then the status, then the announcements."""

    rule: str
    """Name of the rule that spoke."""
    effects: tuple[EffectT, ...] = ()
    optional_effects: tuple[EffectT, ...] = ()
    """Effects on which nothing depends, carried out last: a refusal of one is told, and holds up nothing else."""
    status: StatusT
    announcements: tuple[Announcement, ...] = field(default=())
    look_again_seconds: float | None = None
    """Seconds until the next reconcile without an event; None: only an event causes one."""
    status_if_refused: StatusT | None = None
    """The status to which the reason is added when an effect is refused; None: the one that was observed."""


Decision = AnyDecision[Effect, RunStatus]
"""The decision for a run: effects, status, announcements."""
