"""Rules for the current attempt, from its number to its end.

Pending --start--> Starting --follow--> Running
|                  |                    |
+----- not wanted, vanished, judged ----+--> Stopping --stop--> --close--> Ended
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from piton.api import stages
from piton.api.conditions import WAITING
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core import (
    after_training,
    attempt_start,
    broken_nodes,
    evictions,
    quota_rules,
    results,
    start_clock,
    start_verdicts,
    stuck_pods,
    transitions,
)
from piton.core.attempt_progress import earliest, observe_running, wait_for_replicas, with_report
from piton.core.context import Context
from piton.core.effects import Announcement, Decision
from piton.core.evidence import Evidence, Judgement, Patience
from piton.core.report_conditions import note_mirror, note_unreported
from piton.core.stopping import stop_effects
from piton.core.unreported import trained_since
from piton.core.verdict import judge
from piton.core.wait_reasons import refusal, waited_seconds
from piton.cost import spending
from piton.observed import AttemptSeen, ReplicaState
from piton.timing import is_ordered


def cancel_pending(context: Context) -> Decision | None:
    """A number was taken, but its job was refused, and by now no attempt is wanted."""
    record = context.flying
    order = _order(context)
    if record is None or record.state is not AttemptState.PENDING or context.seen or order is None:
        return None
    judgement = Judgement(verdict=Verdict.STOPPED, reason=order, message="never started")
    return _close(context, judgement, context.status)


def name_taken(context: Context) -> Decision | None:
    """Somebody else's job has our name. It is left alone, and so is the number."""
    if context.flying is None or context.seen is None or context.seen.ours:
        return None
    message = f"a job named like attempt {context.seen.number} exists and does not belong to this run"
    judgement = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.NAME_TAKEN, message=message)
    return _close(context, judgement, context.status)


def close(context: Context) -> Decision | None:
    """A verdict is written and nothing of the attempt is left running."""
    record = context.flying
    if record is None or record.state is not AttemptState.STOPPING:
        return None
    if context.seen is not None and (not context.seen.over or context.seen.lingers):
        return None
    return _close(context, _final(context, record), with_report(context))


def job_missing(context: Context) -> Decision | None:
    """The job is gone, and nobody here ordered it."""
    record = context.flying
    if record is None or context.seen is not None or record.state is AttemptState.PENDING:
        return None
    if context.observed.jobs_unknown:
        return _wait_for_jobs(context)
    message = f"the job of {stages.called(record)} disappeared"
    judgement = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.JOB_VANISHED, message=message)
    return _close(context, judgement, with_report(context))


def _wait_for_jobs(context: Context) -> Decision:
    """Say that nobody can tell what became of the job. It is there again when the cluster serves PyTorchJobs again."""
    status, news = context.waits(with_report(context), None, refusal(context.observed.jobs_unknown))
    again = context.timing.try_again_seconds(waited_seconds(status, context.now))
    return Decision(rule="job_missing", status=status, announcements=news, look_again_seconds=again)


def stop(context: Context) -> Decision | None:
    """The verdict is written: now the rest of the attempt may go. Those that train get their grace period to save."""
    record, seen = context.flying, context.seen
    if record is None or seen is None or record.state is not AttemptState.STOPPING:
        return None
    reason, status = record.reason or Reason.DELETED, with_report(context)
    reported = status
    wait = stuck_pods.find_wait(context, seen)
    if wait is not None:
        status, _ = context.waits(status, Phase.STOPPING, wait)
    elif status.is_true(WAITING):  # something was refused; what follows here says so again if it still is
        status = context.phase(status, Phase.STOPPING, reason, record.message)
    effects = stop_effects(seen, reason, context.now)
    return Decision(rule="stop", effects=effects, status=status, status_if_refused=reported)


def judged(context: Context) -> Decision | None:
    """There is evidence of an end. It is written down before anything is deleted.

    When every trainer has ended, so has the attempt; a pod that something else keeps is deleted then.
    """
    record, seen = context.flying, context.seen
    if record is None or seen is None:
        return None
    judgement = judge(_evidence(context, seen))
    if judgement is None:
        return None
    status = with_report(context)
    if seen.over and not seen.lingers:
        return broken_nodes.with_accused_start(context, _close(context, judgement, status), judgement)
    failing = _failing_time(context, status, judgement)
    left = judgement.patience.seconds(context.timing) - (context.now - failing).total_seconds()
    if judgement.patience is not Patience.PEERS and judgement.verdict is Verdict.INFRASTRUCTURE:
        left = earliest(left, start_clock.seconds_left(context, status)) or 0.0
    status = transitions.change(status, failing_time=failing)
    if judgement.patient and left > 0 and not seen.over:
        return _be_patient(context, seen, status, judgement, left)
    status = transitions.change(status, state=AttemptState.STOPPING, **transitions.verdict_fields(judgement))
    if judgement.verdict is Verdict.FINISHED:  # now: when the peers have ended, the pod that said it may be gone
        status = results.conclude(status, context.observed.complete, seen)
    status = context.phase(status, Phase.STOPPING, judgement.reason, judgement.message)
    decision = Decision(rule="judged", status=status, look_again_seconds=0)
    return broken_nodes.with_accused_start(context, decision, judgement)


def _failing_time(context: Context, status: RunStatus, judgement: Judgement) -> datetime:
    """Return the time of the first sign of this end. The trouble of a start says nothing of what has run after it."""
    record = status.current
    if record is None or record.failing_time is None:
        return context.now
    formed = record.formed_time if judgement.patience is Patience.PEERS else None
    return max(record.failing_time, formed or record.failing_time)


def _be_patient(
    context: Context, seen: AttemptSeen, status: RunStatus, judgement: Judgement, left: float
) -> Decision | None:
    """Wait before a verdict is final; None where another rule ends the attempt meanwhile."""
    order, starts = _order(context), judgement.patience is not Patience.PEERS
    if order is Reason.BUDGET_EXCEEDED or (starts and order not in (None, Reason.INVALID_SPEC)):
        return None  # nobody pays for the wait; what has not started is not wanted, whosever fault that is
    if not starts:
        phase = Phase.STOPPING if seen.running else status.phase
        status = context.phase(status, phase, judgement.reason, judgement.message)
        return Decision(rule="judged", status=status, look_again_seconds=left)
    running = observe_running(context) if seen.running else None
    if running is None:
        return wait_for_replicas(context, status, judgement.message, at_most_seconds=left)
    assert status.current is not None
    status = transitions.change(running.status, failing_time=status.current.failing_time)
    return replace(running, status=status, look_again_seconds=earliest(running.look_again_seconds, left))


def price_exceeded(context: Context) -> Decision | None:
    """It was placed on a machine that costs more than the user pays."""
    record, seen, most = context.flying, context.seen, spending.highest(context.spec)
    if record is None or seen is None or most is None:
        return None
    for replica in seen.replicas:
        if replica.node_price is not None and replica.node_price > most and not replica.ended:
            asked = f"costs ${spending.as_text(replica.node_price)} per hour, and capacity.maxPricePerHour is"
            other = f"choose other nodes by {stages.path_of('nodeSelector', record.stage)}"
            if record.stage is Stage.TRAIN:
                other = "name other instance types in spec.workers"
            message = f"{replica.name}: the node {replica.node} {asked} ${spending.as_text(most)}; raise it, or {other}"
            judgement = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.PRICE_TOO_HIGH, message=message)
            return _told_to_stop(context, "price_exceeded", judgement, message)
    return None


def script_overdue(context: Context) -> Decision | None:
    """Stop an attempt whose training is finished, and whose script runs on for longer than this world allows."""
    judgement = None if context.flying is None or context.seen is None else after_training.timeout(context)
    return None if judgement is None else _told_to_stop(context, "script_overdue", judgement, judgement.message)


def stop_requested(context: Context) -> Decision | None:
    """The attempt runs, but it is to stop: suspended, past a limit, or for a stage that is not wanted any more."""
    record, order = context.flying, _order(context)
    if record is None or context.seen is None or order is None or order is Reason.INVALID_SPEC:
        return None
    why = quota_rules.why_taken(context) if order is Reason.QUOTA_TAKEN else f"told to stop: {order}"
    judgement = Judgement(verdict=Verdict.STOPPED, reason=order, message=why)
    return _told_to_stop(context, "stop_requested", judgement, f"{stages.called(record)} saves and stops")


def half_a_gang(context: Context) -> Decision | None:
    """Machines wait for the other replicas, or for their own to begin, for longer than they should: they are freed."""
    record, seen = context.flying, context.seen
    if record is None or seen is None or record.formed_time is not None:
        return None
    judgement = start_clock.judge(context, with_report(context))
    if judgement is None:
        return None
    decision = _told_to_stop(context, "half_a_gang", judgement, judgement.message)
    no_room = any(r.state is ReplicaState.WAITING and not r.node for r in seen.replicas)
    stuck = broken_nodes.find_stuck(seen) is not None
    status = transitions.change(decision.status, short_of_room=no_room or None, stuck_on_node=stuck or None)
    return broken_nodes.with_accused_start(context, replace(decision, status=status), judgement)


def _told_to_stop(context: Context, rule: str, judgement: Judgement, message: str) -> Decision:
    status = transitions.change(with_report(context), state=AttemptState.STOPPING, failing_time=context.now)
    status = transitions.change(status, **transitions.verdict_fields(judgement))
    status = context.phase(status, Phase.STOPPING, judgement.reason, message)
    return Decision(rule=rule, status=status, look_again_seconds=0)


def _order(context: Context) -> Reason | None:
    """Return the reason why no attempt should run now, or None."""
    account = context.account()
    if context.spec is None:  # what runs goes on, as far as budget and quota allow
        if account and account.used_up:
            return Reason.BUDGET_EXCEEDED
        return Reason.QUOTA_TAKEN if quota_rules.taken(context) else Reason.INVALID_SPEC
    if context.spec.suspend:
        return Reason.SUSPENDED
    if context.stage is not None and context.stage not in stages.wanted(context.spec.stages):
        return Reason.NOT_WANTED
    left = context.seconds_to_deadline()
    if left is not None and left <= 0:
        return Reason.DEADLINE_EXCEEDED
    if account and account.used_up:
        return Reason.BUDGET_EXCEEDED
    return Reason.QUOTA_TAKEN if quota_rules.taken(context) else None


def _evidence(context: Context, seen: AttemptSeen) -> Evidence:
    record = context.flying
    stopped = record is not None and record.state is AttemptState.STOPPING and record.verdict is Verdict.STOPPED
    stage = Stage.TRAIN if record is None else record.stage
    trains = stage is Stage.TRAIN
    known = start_verdicts.remember(context.status, seen)
    known = spending.bill(known, seen, context.spec, now=context.now)
    if seen.job is None and context.spec is not None:  # nobody says any more how many there were
        seen = replace(seen, expected_replicas=max(seen.expected_replicas, _nodes(context.spec, stage)))
    seen = after_training.with_done(seen, record)
    return Evidence(
        seen=evictions.with_blame(seen, context.status),
        proven=start_verdicts.proven(known),
        complete=after_training.known_proof(context) if trains else None,
        proof_needed=trains and (context.spec is None or context.spec.trainer.recipe is not None),
        stage=stage,
        formed=seen.formed or (record is not None and record.formed_time is not None),
        ordered=record.reason if stopped and record else None,
        limits=_limits(context, transitions.form(known, seen, now=context.now)),
    )


def _limits(context: Context, status: RunStatus) -> Mapping[Reason, bool]:
    """Return the limits of the run, with True for those that may have ended the attempt.

    One that is not reached may have, if the attempt trained for long: Piton assumes a price before a machine has one,
    and a limit that is raised does not reach every trainer.
    """
    since, limits = trained_since(status.current) if status.current else None, context.limits(status)
    if since is None or (context.now - since).total_seconds() <= context.timing.doubt_seconds:
        return limits
    return dict.fromkeys(limits, True)


def _nodes(spec: Spec, stage: Stage) -> int:
    return spec.workers.nodes if stage is Stage.TRAIN else 1


def _final(context: Context, record: AttemptStatus) -> Judgement:
    """The verdict that was written, unless the last words prove that the training finished after all."""
    written = Judgement(
        verdict=record.verdict or Verdict.INFRASTRUCTURE,
        reason=record.reason or Reason.NO_EVIDENCE,
        message=record.message,
        permanent=record.permanent,
    )
    seen = context.seen or AttemptSeen(number=record.number, job=None)
    found = judge(_evidence(context, seen))
    return found if found and found.verdict is Verdict.FINISHED and found.reason is Reason.FINISHED else written


def _close(context: Context, judgement: Judgement, status: RunStatus) -> Decision:
    status = transitions.end(
        spending.stop(status, context.seen, now=context.now),
        judgement,
        now=context.now,
        timing=context.timing,
        spec=context.spec,
    )
    status, mirror = note_mirror(context, note_unreported(context, status))
    record = status.current
    assert record is not None
    if judgement.verdict is Verdict.FINISHED:
        status = results.conclude(status, context.observed.complete, context.seen)
    phase = Phase.PENDING if judgement.verdict is Verdict.FINISHED else Phase.RECOVERING
    status = context.phase(status, phase, judgement.reason, judgement.message)
    at = "" if record.step is None else f" at step {record.step}"
    known = status.checkpoint if record.stage is Stage.TRAIN else None
    saved = "" if known is None else f"; step {known.step} is saved"
    good = judgement.verdict is Verdict.FINISHED or is_ordered(record)
    news = Announcement(
        severity="Normal" if good else "Warning",
        reason=judgement.reason,
        message=f"{stages.called(record, 'Attempt')} ended{at} ({judgement.verdict}): {judgement.message}{saved}",
    )
    return Decision(
        rule="close",
        effects=broken_nodes.tainted(context, judgement),
        status=status,
        announcements=(*mirror, news, *broken_nodes.announcements(context, judgement)),
        look_again_seconds=0,
    )


RULES: tuple[Callable[[Context], Decision | None], ...] = (
    cancel_pending,
    name_taken,
    attempt_start.start,
    close,
    job_missing,
    stop,
    judged,
    price_exceeded,
    stop_requested,
    script_overdue,
    half_a_gang,
    observe_running,
)
