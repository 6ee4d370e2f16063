"""The decision for one run at one moment: rules in order; the first that returns a decision wins.

Level-triggered: a rule looks at what is, never at what has just happened, so lost, repeated and reordered events change
nothing and a crash between any two effects is repaired by the next pass. Two things make that so:

* an attempt's number is part of its job's name, and a job that the status does not know is adopted;
* a verdict is written to the status before the job is deleted, so evidence is never lost.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from piton.api import spec_warnings, stages
from piton.api.conditions import STATUS_UNREADABLE, WAITING, as_before, settled
from piton.api.problems import in_brief
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core import (
    adoption,
    after_training,
    answers,
    attempt_rules,
    attempt_start,
    cleanup,
    future_times,
    quota_rules,
    report_conditions,
    retries,
    stalled,
    stuck_pods,
    transitions,
    wait_reasons,
)
from piton.core.context import Context
from piton.core.effects import AddFinalizer, Announcement, Decision
from piton.core.unreported import is_in_doubt, with_doubt
from piton.cost import budget, spending
from piton.observed import Observed
from piton.timing import Timing, delay_seconds

Rule = Callable[[Context], Decision | None]
REFUSED = "refused"
"""Name of what is decided when the world refuses an effect."""
NO_ROOM = "no_room"
"""The same, when it has no room in a ResourceQuota, and the next try is made when there is some."""
UNREADABLE = "unreadable"
"""Name of what is decided about a status that is not understood."""


def decide(observed: Observed, *, now: datetime, timing: Timing | None = None) -> Decision:
    """The effects, the status and the announcements that this moment asks for."""
    observed = replace(observed, status=future_times.without_future_times(observed.status, now=now))
    context = Context(observed=observed, now=now, timing=timing or Timing())
    decision = next(decision for rule in RULES if (decision := rule(context)) is not None)
    if decision.rule == UNREADABLE:
        return decision
    decision = stalled.note_stalled(context, quota_rules.kept(context, decision))
    decision = cleanup.with_volume_freed(context, stuck_pods.note_stuck(context, decision))
    if context.status.unreadable:
        return cleanup.without_last_status(context, decision)
    status = report_conditions.end_silence(context, decision.status)
    status = context.with_trouble(status, STATUS_UNREADABLE, Reason.STATUS_UNREADABLE, None)
    decision = _accounted(context, answers.answer(context, replace(decision, status=status)))
    return cleanup.without_last_status(context, decision)


def refused(
    observed: Observed,
    why: str,
    *,
    status: RunStatus | None = None,
    stands: bool = False,
    now: datetime,
    timing: Timing | None = None,
) -> Decision:
    """The world refused an effect for good reasons of its own (a quota, a policy): say so, and try again later.

    It is said in that status, or in the one that was observed; only in its condition Waiting if the decision stands.
    """
    context = Context(observed=observed, now=now, timing=timing or Timing())
    status = as_before(status or observed.status, observed.status, WAITING)
    wait = wait_reasons.refusal(why, context.stage or Stage.TRAIN)
    status, news = context.waits(status, None if stands or status.unreadable else status.phase, wait)
    rule, again = REFUSED, context.timing.try_again_seconds(wait_reasons.waited_seconds(status, now))
    if wait.ends_with_room and context.timing.room_seconds is not None:
        ends = [seconds for seconds in [context.seconds_to_deadline()] if seconds is not None and seconds > 0]
        rule, again = NO_ROOM, min([context.timing.room_seconds, *ends])
    decision = Decision(rule=rule, status=status, announcements=news, look_again_seconds=again)
    return decision if status.unreadable else answers.answer(context, decision)


# --- the run as a whole ----------------------------------------------------------------------------------------------


def unreadable(context: Context) -> Decision | None:
    """Another version wrote the status, and this one cannot know what it means: say so, and touch nothing."""
    why = context.status.unreadable
    if why is None:
        return None
    status = context.with_trouble(context.status, STATUS_UNREADABLE, Reason.STATUS_UNREADABLE, why)
    news = Announcement(severity="Warning", reason=Reason.STATUS_UNREADABLE, message=why)
    return Decision(rule=UNREADABLE, status=status, announcements=(news,))


def add_finalizer(context: Context) -> Decision | None:
    """Hold the run before anything is started for it."""
    if context.meta.held or context.observed.volume.unknown or (context.spec is None and not context.observed.attempts):
        return None
    hold = AddFinalizer(reason=Reason.ACCEPTED)
    return Decision(rule="add_finalizer", effects=(hold,), status=context.status, look_again_seconds=0)


def stop_stale(context: Context) -> Decision | None:
    """An older attempt that is still alive is stopped; the fence keeps it from doing harm until then."""
    flying = context.flying
    old = [seen for seen in context.observed.attempts if not flying or seen.number != flying.number]
    alive = [seen for seen in old if seen.ours and cleanup.is_alive(seen)]
    effects = tuple(effect for seen in alive for effect in cleanup.stop(seen.number, context, Reason.FENCED))
    return (
        Decision(rule="stop_stale", effects=effects, status=context.status, look_again_seconds=0) if effects else None
    )


# --- between attempts ------------------------------------------------------------------------------------------------


def succeeded(context: Context) -> Decision | None:
    """Every stage that the run has is finished, the training by proof."""
    last, spec, status = context.current, context.spec, context.status
    if last is None or spec is None or stages.next_stage(spec, status) is not None:
        return None
    reason = last.reason or Reason.FINISHED if last.verdict is Verdict.FINISHED else Reason.FINISHED
    result = last.message if last.stage is Stage.TRAIN else _trained(status)
    if last.stage is Stage.EVALUATE and last.verdict is Verdict.FINISHED:
        result = f"{result}; {last.message}"
    message = f"Finished after {status.attempt} attempt(s) and {status.preemptions} preemption(s): {result}"
    return Decision(
        rule="succeeded",
        status=context.phase(status, Phase.SUCCEEDED, reason, result),
        announcements=(Announcement(reason=Reason.FINISHED, message=message),),
        look_again_seconds=0,
    )


def failed_permanently(context: Context) -> Decision | None:
    """Another attempt would fail the same way, or the limits are reached: the run's, or those of its stage."""
    last, status = context.current, context.status
    if last is None or last.verdict is Verdict.FINISHED:
        return None
    if last.permanent:
        return _fail(context, last.reason or Reason.CRASHED, f"another attempt would end the same way: {last.message}")
    if context.spec is not None and (exceeded := stages.failure_limit(context.spec, status, last.stage)):
        return _fail(context, Reason.FAILURE_LIMIT, f"{exceeded}; the last: {last.message}")
    if context.timing.fails_when_stalled and stalled.is_stalled(status, context.timing):
        rows = stalled.attempts(status)
        message = f"{rows} attempts in a row without a newer checkpoint; the last: {last.message}"
        return _fail(context, Reason.NO_PROGRESS, message)
    return None


def overdue(context: Context) -> Decision | None:
    """A deadline has passed."""
    deadline = context.deadline
    if deadline is None or deadline.time > context.now:
        return None
    return _fail(
        context, Reason.DEADLINE_EXCEEDED, f"{deadline.path} of {deadline.after} has passed; its checkpoints are kept"
    )


def unacceptable(context: Context) -> Decision | None:
    """The spec cannot work as written."""
    if context.spec is not None:
        return None
    message = in_brief(context.observed.problems)
    status = context.phase(context.status, Phase.REFUSED, Reason.INVALID_SPEC, message)
    news = context.announce_once(status, Reason.INVALID_SPEC, message, severity="Warning")
    return Decision(rule="unacceptable", status=status, announcements=news)


def suspended(context: Context) -> Decision | None:
    """The user wants it to hold."""
    if context.spec is None or not context.spec.suspend:
        return None
    step = context.status.checkpoint.step if context.status.checkpoint else None
    message = "suspended" if step is None else f"suspended; step {step} is saved"
    status = context.phase(transitions.forgive(context.status), Phase.SUSPENDED, Reason.SUSPENDED, message)
    news = context.announce_once(status, Reason.SUSPENDED, message)
    return Decision(
        rule="suspended", status=status, announcements=news, look_again_seconds=context.seconds_to_deadline()
    )


def overspent(context: Context) -> Decision | None:
    """Hold the run if the remaining budget does not pay for a start. A higher budget resumes it."""
    account = context.account()
    if account is None or not account.used_up:
        return None
    message = budget.exhausted(account, context.status)
    if account.stops:
        return _fail(context, Reason.BUDGET_EXCEEDED, message)
    status = context.phase(context.status, Phase.SUSPENDED, Reason.BUDGET_EXCEEDED, message)
    news = context.announce_once(status, Reason.BUDGET_EXCEEDED, message, severity="Warning")
    return Decision(
        rule="overspent", status=status, announcements=news, look_again_seconds=context.seconds_to_deadline()
    )


def backing_off(context: Context) -> Decision | None:
    """The next attempt waits: the longer, the more often nothing came of the last ones."""
    last = context.current
    if last is None or last.ended_time is None:
        return None
    fruitless = 0 if is_in_doubt(last, context.spec, context.timing) else stalled.attempts(context.status)
    delay = delay_seconds(last, fruitless, context.timing)
    left = delay - (context.now - last.ended_time).total_seconds()
    if left <= 0:
        return None
    message = f"attempt {context.status.attempt + 1} starts {delay:g}s after the end of the last: {last.message}"
    status = context.phase(context.status, Phase.RECOVERING, Reason.WAITING, message)
    return Decision(rule="backing_off", status=status, look_again_seconds=left)


def begin_attempt(context: Context) -> Decision:
    """Take a number for the next attempt and create its job. Where that is refused, the number is kept."""
    assert context.spec is not None
    stage = stages.next_stage(context.spec, context.status)
    assert stage is not None
    volume = context.observed.volume
    known = with_doubt(context.status, (volume.made or volume.unknown) and not context.status.attempts)
    status = transitions.begin(known, context.observed.attempts, stage, now=context.now, timing=context.timing)
    assert status.current is not None
    reason = stages.reason_to_begin(status, stage)
    phase = Phase.RECOVERING if reason is Reason.RETRYING else Phase.PENDING
    status = context.phase(status, phase, reason, f"{stages.called(status.current)} is about to start")
    decision = attempt_start.start(replace(context, observed=replace(context.observed, status=status)))
    assert decision is not None
    return replace(
        decision,
        effects=(*cleanup.trimmed(context), *decision.effects),
        announcements=(*_warnings(context), *decision.announcements),
        status_if_refused=status,
    )


def _warnings(context: Context) -> tuple[Announcement, ...]:
    """Warn, before the first attempt, of settings of the spec that may surprise."""
    if context.spec is None or context.status.attempt:
        return ()
    sentences = [*spec_warnings.warnings(context.spec), *attempt_start.claim_warnings(context)]
    return tuple(Announcement(severity="Warning", reason=Reason.SPEC_WARNING, message=text) for text in sentences)


def _fail(context: Context, reason: Reason, message: str) -> Decision:
    """Fail the run with this reason. The message also tells of a finished training, whatever followed it."""
    result = context.status.result
    if context.status.stage(Stage.TRAIN).end_time is not None:
        message = f"{_trained(context.status)}, and not evaluated: {message}"
    elif result is not None and result.step is not None and after_training.known_proof(context) is not None:
        message = f"the training {_trained(context.status)}; its script did not come to its end: {message}"
    status = context.phase(context.status, Phase.FAILED, reason, message)
    news = (Announcement(severity="Warning", reason=reason, message=f"Failed: {message}"),)
    return Decision(rule="failed", status=status, announcements=news, look_again_seconds=0)


def _trained(status: RunStatus) -> str:
    result = status.result
    return f"finished at step {result.step}: {result.reason}" if result and result.step is not None else "trained"


RULES: tuple[Rule, ...] = (
    adoption.adopt_before_deletion,
    cleanup.deleted,  # deletion goes before everything, also for a spec that cannot be read
    unreadable,  # nothing that follows can be right about a status that is not understood
    retries.restart_on_request,  # the user's word brings back what has failed
    cleanup.ended,  # Succeeded is for ever, and so is Failed without that
    add_finalizer,  # nothing is started before the finalizer is on
    adoption.adopt_unknown_job,  # jobs that the status has forgotten
    stop_stale,  # older attempts that still live
    *attempt_rules.RULES,  # the current attempt, until it has ended
    quota_rules.returned,  # from here on no attempt is in flight
    succeeded,
    failed_permanently,
    unacceptable,
    overdue,
    suspended,
    overspent,
    stalled.held,
    backing_off,
    quota_rules.queued,
    begin_attempt,
)


def _accounted(context: Context, decision: Decision) -> Decision:
    """Return the decision with the cost as of now, if the status is written anyway, and with the budget's next look.

    This comes last, because only then is it known whether the status is written.
    """
    if context.meta.deleting or settled(context.status):
        return decision
    account = context.account(decision.status)
    status, news = decision.status, decision.announcements
    if account and account.warns and not account.used_up and not (status.cost and status.cost.warned_of == account.usd):
        status = spending.warned(status, account.usd)
        news += (Announcement(severity="Warning", reason=Reason.BUDGET_WARNING, message=budget.warning(account)),)
    if status != context.status:
        status = spending.shown(status, account.usd if account else None, now=context.now)
    wait = account.seconds if account else None
    if wait == 0.0 and status == context.status:
        wait = None  # it has spoken, and what follows from that is under way
    waits = (decision.look_again_seconds, wait)
    return replace(
        decision,
        status=status,
        announcements=news,
        look_again_seconds=min((seconds for seconds in waits if seconds is not None), default=None),
    )


def still(decision: Decision, status: RunStatus) -> bool:
    """True if nothing is to be done and nothing to be written."""
    return not decision.effects and decision.status == status
