"""An attempt under way: its progress, and the reason for which its replicas wait."""

from piton.api import stages
from piton.api.conditions import TRAINING, WAITING, without_waiting
from piton.api.reasons import Reason
from piton.api.status import AttemptState, AttemptStatus, RunStatus
from piton.api.status_base import Phase
from piton.core import (
    after_training,
    evictions,
    quota_rules,
    results,
    start_clock,
    start_verdicts,
    transitions,
)
from piton.core.advice import of_node_pools as advice_of_pools
from piton.core.context import Context
from piton.core.effects import Announcement, Decision
from piton.core.report_conditions import (
    note_mirror,
    note_reporting,
    note_resume,
    note_skipped,
    note_volume,
    seconds_to_silence,
)
from piton.core.wait_reasons import Wait, why
from piton.cost import budget, spending
from piton.observed import AttemptSeen


def observe_running(context: Context) -> Decision | None:
    """The attempt is under way: write down how far it is, and why it waits if it does."""
    record, seen = context.flying, context.seen
    if record is None:
        return None
    if seen is None:  # Pending, with a spec that has become unreadable
        return None
    if not seen.running:
        waiting = next((f"{r.name}: {r.waiting}" for r in seen.replicas if r.waiting), "")
        status = transitions.change(with_report(context), state=AttemptState.STARTING, failing_time=None)
        return wait_for_replicas(context, status, waiting or f"{stages.called(record)} was created")
    left = after_training.with_done(seen, record)
    hindrance = _why(context, left, record) if left.incomplete else None
    hindrance = hindrance or quota_rules.unreadable(context)
    status, news = _hindered(context, with_report(context), hindrance)
    status, silence = note_reporting(context, status)
    status, mirror = note_mirror(context, status)
    status, volume = note_volume(context, status)
    status, resume = note_resume(context, status)
    status, skipped = note_skipped(context, status)
    status = transitions.change(status, state=AttemptState.RUNNING, failing_time=None)
    phase, reason = stages.RUNNING[record.stage]
    if (rest := after_training.running_message(context, status)) is not None:
        reason, news = Reason.AFTER_TRAINING, (*news, *after_training.news(context, rest))
    silent = next((f"{r.name} on {r.node}: {r.silent}" for r in seen.replicas if r.silent), None)
    if silent is not None:
        reason, news = Reason.ZONE_SILENT, (*news, *_silence_that_is_new(context, silent))
    message = silent or _running(context, rest or f"{stages.called(record)} is running")
    status = context.phase(status, phase, reason, message, waits=status.is_true(WAITING))
    soon = look_again_seconds(context, record, hindrance) if left.incomplete or hindrance else None
    soon = earliest(soon, after_training.seconds_left(context, status))
    requested = quota_rules.quota_effects(context, seen)
    if not requested and _only_progress(status, context):
        status, soon = context.status, earliest(_next_progress(context), soon)
    unheard = seconds_to_silence(context, status) or None  # once it is said, only a report changes it
    begins = start_clock.next_look_seconds(context, status)
    again = earliest(context.seconds_to_deadline(), begins, unheard, soon)
    return Decision(
        rule="observe_running",
        effects=requested,
        status=status,
        announcements=(*news, *silence, *mirror, *volume, *resume, *skipped, *_advice_that_is_new(context, seen)),
        look_again_seconds=again,
    )


def wait_for_replicas(
    context: Context, status: RunStatus, otherwise: str, *, at_most_seconds: float | None = None
) -> Decision:
    """Handle an attempt that does not run yet: show the reason, or `otherwise`, and look again soon."""
    record, seen = context.flying, context.seen
    assert record is not None
    assert seen is not None
    wait = _why(context, seen, record) or quota_rules.unreadable(context)
    news: tuple[Announcement, ...] = ()
    if wait is None:
        status = context.phase(status, Phase.STARTING, Reason.STARTING, otherwise)
    else:
        status, news = context.waits(status, Phase.STARTING, wait)
    soon = earliest(
        look_again_seconds(context, record, wait),
        context.seconds_to_deadline(),
        start_clock.next_look_seconds(context, status),
        at_most_seconds,
    )
    return Decision(rule="observe_running", status=status, announcements=news, look_again_seconds=soon)


def _why(context: Context, seen: AttemptSeen, record: AttemptStatus) -> Wait | None:
    """Return why the attempt does not run, by its words and by what has run before."""
    proven = start_verdicts.proven(start_verdicts.remember(context.status, seen))
    return why(seen, now=context.now, since=record.created_time, proven=proven)


def _hindered(context: Context, status: RunStatus, wait: Wait | None) -> tuple[RunStatus, tuple[Announcement, ...]]:
    """Note why the other replicas wait while some are running."""
    if wait is None:
        return without_waiting(status, now=context.now, generation=context.meta.generation), ()
    return context.waits(status, None, wait)


def look_again_seconds(context: Context, record: AttemptStatus, wait: Wait | None) -> float:
    """Return the seconds until an attempt that waits is looked at again.

    A known reason changes by what the cluster reports, which is looked at at once, or at a time that it states. Without
    one they grow with the attempt's age.
    """
    timing = context.timing
    if wait is None:
        return timing.look_again_seconds((context.now - record.created_time).total_seconds())
    step = timing.look_seconds_max if wait.next_step_seconds is None else wait.next_step_seconds
    return min(step, timing.look_seconds_max)


def earliest(*seconds: float | None) -> float | None:
    """Return the smallest of these, None aside."""
    return min((found for found in seconds if found is not None), default=None)


def _running(context: Context, state: str) -> str:
    account = context.account()
    warned = f"; {budget.warning(account)}" if account and account.warns else ""
    advice = advice_of_pools(context.seen) if context.seen else None
    return f"{state}{warned}" + (f"; {advice}" if advice else "")


def _advice_that_is_new(context: Context, seen: AttemptSeen) -> tuple[Announcement, ...]:
    """Return the advice that is new in this pass."""
    advice, condition = advice_of_pools(seen) if seen.running else None, context.status.condition(TRAINING)
    if advice is None or (condition is not None and advice in condition.message):
        return ()
    return (Announcement(severity="Warning", reason=Reason.NODE_POOL_WARNING, message=advice),)


def _silence_that_is_new(context: Context, message: str) -> tuple[Announcement, ...]:
    condition = context.status.condition(TRAINING)
    if condition is not None and condition.reason is Reason.ZONE_SILENT:
        return ()
    return (Announcement(severity="Warning", reason=Reason.ZONE_SILENT, message=message),)


def with_report(context: Context) -> RunStatus:
    """Return the status with the newest report and the replicas of the attempt."""
    status = transitions.report(context.status, context.observed.progress, context.seen, now=context.now)
    status = results.learn(status, context.observed, context.seen, now=context.now)
    status = transitions.form(transitions.place(status, context.seen, now=context.now), context.seen, now=context.now)
    status = evictions.remember(start_verdicts.remember(status, context.seen), context.seen)
    status = start_clock.advance(status, context.seen, now=context.now)
    return spending.bill(status, context.seen, context.spec, now=context.now)


def _only_progress(status: RunStatus, context: Context) -> bool:
    """True if the new status says nothing new but a few more steps, too soon after the last write."""
    old = context.status
    if _next_progress(context) <= 0 or status.checkpoint != old.checkpoint or old.progress is None:
        return False
    record, known = status.current, old.current
    assert record is not None
    assert known is not None
    quiet = status.model_copy(
        update={
            "progress": old.progress,
            "attempts": (*status.attempts[:-1], record.model_copy(update={"step": known.step})),
        }
    )
    return quiet == old


def _next_progress(context: Context) -> float:
    """Seconds until progress alone is worth a write again."""
    shown = context.status.progress
    if shown is None or shown.last_updated_time is None:
        return 0.0
    return context.timing.progress_seconds - (context.now - shown.last_updated_time).total_seconds()
