"""The rule that starts an attempt: its volume, its job, and what both have to know of the attempts before."""

from collections.abc import Iterator
from math import ceil

from piton.api import stages
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, RunStatus
from piton.api.status_base import Phase
from piton.core import answers, programs, quota_rules, stalled, transitions
from piton.core.context import Context
from piton.core.effects import Announcement, CreateVolume, Decision, Effect, StartAttempt
from piton.core.wait_reasons import Wait, waited_seconds
from piton.rendering.volume_claim import claim_name, how_to_go_on

LAST_RESORT_SECONDS = 600
"""So much later than a limit of the run's the kubelet ends what has neither heard the operator nor keeps it itself."""

_BAD_ZONE = "have lost their machines, found too few, or did not start"


def start(context: Context) -> Decision | None:
    """Create what the attempt needs, then the attempt."""
    record = context.flying
    if record is None or record.state is not AttemptState.PENDING or context.spec is None:
        return None
    if record.stage not in stages.wanted(context.spec.stages):  # its job is there already, and is told to stop
        return None
    if (held := quota_rules.hold(context)) is not None:
        return held
    if context.observed.volume.unknown:
        return Decision(rule="start", status=context.status)
    if context.observed.volume.exists and not context.observed.volume.ours:
        message = _whose_claim(context)
        wait = Wait(reason=Reason.NAME_TAKEN, message=message)
        status, announcements = context.waits(context.status, context.status.phase, wait)
        again = context.timing.try_again_seconds(waited_seconds(status, context.now))
        return Decision(rule="start", status=status, announcements=announcements, look_again_seconds=again)
    reason = stages.reason_to_begin(context.status, record.stage)
    short_of_memory = record.stage is Stage.TRAIN and _ran_out_of_memory(context.status)
    elsewhere = stalled.zones_to_avoid(context.status)
    start_it = StartAttempt(
        number=record.number,
        stage=record.stage,
        checkpoint_step=_checkpoint_step(context, context.spec, record.stage),
        go_on_after=context.status.goes_on_after if record.stage is Stage.TRAIN else None,
        blocking_saves=short_of_memory,
        stop_after=context.stop_after(),
        active_deadline_seconds=_active_deadline(context),
        avoid_zones=elsewhere,
        reason=reason,
    )
    effects: tuple[Effect, ...] = (start_it,)
    if not context.observed.volume.exists:
        effects = (CreateVolume(reason=reason), *effects)
    program = programs.identify(context.spec, record.stage, context.status)
    status = transitions.change(
        context.status,
        state=AttemptState.STARTING,
        program=program,
        spec_generation=context.meta.generation,
        spec_digests=answers.digests(context.spec, record.stage),
        reports=None if context.observed.silent_seconds is not None else False,
    )
    status = context.phase(status, Phase.STARTING, Reason.STARTING, f"{stages.called(record)} was created")
    saves = "; it keeps no second copy of the state in memory, since training ran out of memory before"
    zones = f"; outside {', '.join(elsewhere)} if it can be, where attempts {_BAD_ZONE}"
    message = f"Created {stages.called(record)}: {reason}" + (saves if short_of_memory else "")
    message += zones if elsewhere else ""
    news = Announcement(reason=Reason.STARTING, message=message)
    return Decision(rule="start", effects=effects, status=status, announcements=(news,), look_again_seconds=0)


def claim_warnings(context: Context) -> Iterator[str]:
    """Yield what people should know of the claim before the first attempt: that it has another run's checkpoints."""
    volume = context.observed.volume
    if volume.made_for not in ("", context.meta.name):
        yield (
            f"spec.checkpoint.volume.claimName: {volume.name} was made for the run {volume.made_for}. This run does "
            "not go on from the checkpoints of that one: it has a folder of its own there, and goes on only from what "
            f"is in it. To go on from those of {volume.made_for}, give the run that name"
        )


def _whose_claim(context: Context) -> str:
    """Explain why Piton does not use the claim with its own name, and what the user can do."""
    name = claim_name(context.meta, context.spec) if context.spec else ""
    if not context.observed.volume.of_earlier_run:
        return (
            f"the claim {name} exists and belongs to somebody else; to use it, write spec.checkpoint.volume: "
            f"{{claimName: {name}}}, with nothing else in it: no size, accessModes, storageClassName or reclaim"
        )
    return (
        f"the claim {name} keeps the checkpoints of an earlier run of this name: {how_to_go_on(context.meta, name)}. "
        f"To begin anew under this name, delete it (kubectl delete persistentvolumeclaim {name} -n "
        f"{context.meta.namespace})"
    )


def _checkpoint_step(context: Context, spec: Spec, stage: Stage) -> int | None:
    """The checkpoint that an attempt at this stage is about."""
    match stage:
        case Stage.EVALUATE:
            return stages.checkpoint_to_evaluate(spec, context.status.result)
        case Stage.TRAIN:
            return None if context.status.checkpoint is None else context.status.checkpoint.step
        case Stage.PREPARE:
            return None


def _ran_out_of_memory(status: RunStatus) -> bool:
    """True if the training did, in an attempt that the status remembers: then the next ones save without memory."""
    trained = [record for record in status.attempts if record.stage is Stage.TRAIN]
    return any(record.reason is Reason.OUT_OF_MEMORY for record in trained)


def _active_deadline(context: Context) -> int | None:
    """Return the pods' activeDeadlineSeconds: later than the operator, or the trainer, would stop."""
    if context.spec is None or not context.spec.trainer.command:
        return None
    left = (context.seconds_to_deadline(), context.budget_seconds_to_come())
    known = [seconds for seconds in left if seconds is not None]
    return ceil(max(0.0, min(known))) + LAST_RESORT_SECONDS if known else None
