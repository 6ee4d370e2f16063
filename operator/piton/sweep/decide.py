"""Next actions for a sweep. Rules in order; the first that returns a decision wins.

Level-triggered, as for a run: what is to be done follows from the runs that exist and the rows that are remembered.
What the sweep began with is written to the status before its first run is created, so it cannot change unnoticed.

Pending -> Starting -> Training -> Succeeded | Failed
|                      |
Refused               Stopping -> Suspended | Failed
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from piton.api.conditions import STATUS_UNREADABLE, settled
from piton.api.problems import in_brief
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import RUNNING
from piton.api.status_base import Phase
from piton.core.decide import UNREADABLE
from piton.core.effects import Announcement
from piton.cost.budget import exhausted, warning
from piton.sweep import cost
from piton.sweep.context import SweepContext, answer
from piton.sweep.expand import digest, seconds_for
from piton.sweep.observed import (
    CreateRun,
    MoveDeadline,
    ResumeRun,
    SuspendRun,
    SweepDecision,
    SweepEffect,
    SweepObserved,
)
from piton.sweep.refusals import created
from piton.sweep.rows import counted
from piton.sweep.status import SweepStatus
from piton.timing import Timing

DEADLINE_TOLERANCE_SECONDS = 5.0
"""A run's deadline counts from its creation, which the API server dates in whole seconds by its own clock."""


Rule = Callable[[SweepContext], SweepDecision | None]


def decide(observed: SweepObserved, *, now: datetime, timing: Timing | None = None) -> SweepDecision:
    """The effects, the status and the announcements that this moment asks for."""
    context = SweepContext(observed=observed, now=now, timing=timing or Timing())
    decision = next(decision for rule in RULES if (decision := rule(context)) is not None)
    if decision.rule != UNREADABLE:
        status = context.with_trouble(decision.status, STATUS_UNREADABLE, Reason.STATUS_UNREADABLE, None)
        decision = answer(context, replace(decision, status=status))
    return _sparing(context, decision)


def is_binding(observed: SweepObserved, decision: SweepDecision) -> bool:
    """True if the decision cannot be taken back: it creates or changes a run, or the sweep ends."""
    return bool(decision.effects) or settled(decision.status) != settled(observed.status)


# --- the sweep as a whole --------------------------------------------------------------------------------------------


def unreadable(context: SweepContext) -> SweepDecision | None:
    """Another version wrote the status, and this one cannot know what it means: say so, and touch no run."""
    observed = context.observed
    gone = (row for row in observed.status.runs if not row.phase.is_known and observed.run(row.name) is None)
    unknown = (f"status.runs[{row.name}].phase is {row.phase}, a word that this version does not know" for row in gone)
    why = observed.status.unreadable or next(unknown, None)
    if why is None or observed.meta.deleting:
        return None
    status = context.with_trouble(observed.status, STATUS_UNREADABLE, Reason.STATUS_UNREADABLE, why)
    news = Announcement(severity="Warning", reason=Reason.STATUS_UNREADABLE, message=why)
    return SweepDecision(rule=UNREADABLE, status=status, announcements=(news,))


def left_alone(context: SweepContext) -> SweepDecision | None:
    """Nothing happens to a sweep that is being deleted (its runs go with it) or has ended."""
    if context.observed.meta.deleting or settled(context.observed.status):
        return SweepDecision(rule="left_alone", status=context.observed.status)
    return None


def unacceptable(context: SweepContext) -> SweepDecision | None:
    """The spec cannot work as written, or is not what the sweep began with. Runs that exist go on."""
    observed = context.observed
    if observed.spec is not None:
        return None
    message = in_brief(observed.problems)
    status = context.phase(observed.status, Phase.REFUSED, Reason.INVALID_SPEC, message)
    news = Announcement(severity="Warning", reason=Reason.INVALID_SPEC, message=message)
    return SweepDecision(rule="unacceptable", status=status, announcements=(news,))


def planned(context: SweepContext) -> SweepDecision | None:
    """Write down what the sweep begins with, before anything is created; again when the user words it anew."""
    begun, now = context.status.plan, digest(context.spec)
    if begun == now:
        return None
    status = context.status.model_copy(update={"plan": now})
    if begun:
        return SweepDecision(rule="planned", status=status, look_again_seconds=0)
    status = context.phase(status, Phase.PENDING, Reason.ACCEPTED, f"{status.counts.total} runs are planned")
    return SweepDecision(rule="planned", status=status, look_again_seconds=0)


def finished(context: SweepContext) -> SweepDecision | None:
    """Every run has come to its end."""
    counts = context.status.counts
    if counts.done < counts.total:
        return None
    if counts.failed:
        return _fail(context, Reason.RUNS_FAILED, _failures(context))
    message = f"all {counts.total} runs have succeeded" + (f"; best: {best}" if (best := context.status.best) else "")
    status = context.phase(context.status, Phase.SUCCEEDED, Reason.FINISHED, message)
    news = Announcement(reason=Reason.FINISHED, message=f"Finished: {message}")
    return SweepDecision(rule="finished", status=status, announcements=(*_ends(context), news))


def over(context: SweepContext) -> SweepDecision | None:
    """The deadline has passed: the runs have it as their own, and no more begin."""
    if context.until is None or context.now < context.until:
        return None
    message = f"limits.deadline of {context.spec.limits.deadline} has passed; {_failures(context)}"
    if context.alive:
        moved = tuple(_moved(context))  # by somebody who has moved it into the past
        return _stopping(context, Reason.DEADLINE_EXCEEDED, message, moved)
    return _fail(context, Reason.DEADLINE_EXCEEDED, message)


def given_up(context: SweepContext) -> SweepDecision | None:
    """A run has failed, and the user wants no more then. The others save, and could be resumed by hand."""
    if context.spec.on_failure != "Stop" or not context.status.counts.failed:
        return None
    if all(seen.quiet for seen in context.observed.runs):
        return _fail(context, Reason.RUNS_FAILED, _failures(context))
    return _stopping(context, Reason.RUNS_FAILED, _failures(context), _hold_back(context, Reason.RUNS_FAILED))


def suspended(context: SweepContext) -> SweepDecision | None:
    """The user wants it to hold."""
    if not context.spec.suspend:
        return None
    effects = _hold_back(context, Reason.SUSPENDED)
    if effects or not all(seen.quiet for seen in context.observed.runs):
        return _stopping(context, Reason.SUSPENDED, "the runs save and stop", effects)
    status = context.phase(context.status, Phase.SUSPENDED, Reason.SUSPENDED, f"suspended; {_sum(context)}")
    return SweepDecision(
        rule="suspended", status=status, announcements=_ends(context), look_again_seconds=_seconds_left(context)
    )


def overspent(context: SweepContext) -> SweepDecision | None:
    """The budget is spent but for what a stop of all that runs costs, or does not pay for another start."""
    account = context.account
    if account is None or not account.used_up:
        return None
    effects = _hold_back(context, Reason.BUDGET_EXCEEDED)
    if effects or not all(seen.quiet for seen in context.observed.runs):
        message = f"limits.budget (${account.usd}) is spent, but for what it costs to stop: the runs save and stop"
        return _stopping(context, Reason.BUDGET_EXCEEDED, message, effects)
    message = f"{exhausted(account)}; {_failures(context)}"
    if account.stops:
        return _fail(context, Reason.BUDGET_EXCEEDED, message)
    status = context.phase(context.status, Phase.SUSPENDED, Reason.BUDGET_EXCEEDED, message)
    news = Announcement(severity="Warning", reason=Reason.BUDGET_EXCEEDED, message=message)
    told = context.observed.status.phase is Phase.SUSPENDED
    return SweepDecision(
        rule="overspent",
        status=status,
        announcements=(*_ends(context), *(() if told else (news,))),
        look_again_seconds=_seconds_left(context),
    )


def going(context: SweepContext) -> SweepDecision:
    """Create what there is room and money for, let go what was held, and write down how far the runs are."""
    room = max(0, context.spec.parallelism - len(context.alive))
    fresh = cost.affordable(context.account, bool(context.alive), context.pending[:room], timing=context.timing)
    effects: list[SweepEffect] = [ResumeRun(name=s.name, reason=Reason.RESUMED) for s in context.steered if s.held]
    effects += _moved(context)
    effects += [CreateRun(run=run, until=context.until, reason=Reason.FIRST_ATTEMPT) for run in fresh]
    names = {run.name for run in fresh}
    rows = tuple(
        row.model_copy(update={"phase": Phase.STARTING, "refused": None}) if row.name in names else row
        for row in context.status.runs
    )
    status = counted(context.status.model_copy(update={"runs": rows}))
    status = context.phase(status, *_progress(status))
    news = created([run.name for run in fresh])
    status, warned = _warned(context, status)
    waits = (_seconds_left(context), context.account.seconds if context.account else None)
    return SweepDecision(
        rule="going",
        effects=tuple(effects),
        status=status,
        announcements=(*_ends(context), *news, *warned),
        look_again_seconds=min((wait for wait in waits if wait is not None), default=None),
    )


def _warned(context: SweepContext, status: SweepStatus) -> tuple[SweepStatus, tuple[Announcement, ...]]:
    """People are told once that most of a budget is spent."""
    account = context.account
    if account is None or status.cost is None or not account.warns or status.cost.warned_of == account.usd:
        return status, ()
    told = status.cost.model_copy(update={"warned_of": account.usd})
    news = Announcement(severity="Warning", reason=Reason.BUDGET_WARNING, message=warning(account))
    return status.model_copy(update={"cost": told}), (news,)


# --- what several of them say ----------------------------------------------------------------------------------------


def _fail(context: SweepContext, reason: Reason, message: str) -> SweepDecision:
    status = context.phase(context.status, Phase.FAILED, reason, message)
    news = Announcement(severity="Warning", reason=reason, message=f"Failed: {message}")
    return SweepDecision(rule="failed", status=status, announcements=(*_ends(context), news))


def _stopping(
    context: SweepContext, reason: Reason, message: str, effects: tuple[SweepEffect, ...] = ()
) -> SweepDecision:
    status = context.phase(context.status, Phase.STOPPING, reason, message)
    return SweepDecision(rule="stopping", effects=effects, status=status, announcements=_ends(context))


def _hold_back(context: SweepContext, reason: Reason) -> tuple[SweepEffect, ...]:
    return tuple(SuspendRun(name=seen.name, reason=reason) for seen in context.steered if not seen.suspend)


def _moved(context: SweepContext) -> Iterator[SweepEffect]:
    """Runs whose deadline is not what the sweep's asks for: somebody has moved that."""
    steered = {seen.name: seen for seen in context.steered}
    for run in context.observed.plan:
        seen = steered.get(run.name)
        if seen is None:
            continue
        seconds = seconds_for(run, context.until, seen.created)
        ends_at = None if seconds is None else seen.created + timedelta(seconds=seconds)
        if (ends_at is None) != (seen.ends_at is None) or (
            ends_at and seen.ends_at and abs((ends_at - seen.ends_at).total_seconds()) > DEADLINE_TOLERANCE_SECONDS
        ):
            yield MoveDeadline(name=run.name, seconds=seconds, reason=Reason.ACCEPTED)


def _progress(status: SweepStatus) -> tuple[Phase, Reason, str]:
    """The phase of a sweep that is under way, and why: what the run that is furthest from waiting does."""
    phases = [row.phase for row in status.runs]
    text = (
        f"{phases.count(Phase.TRAINING)} of {status.counts.active} runs under way are training, {status.done} are done"
    )
    starting, queued = (Phase.STARTING, Reason.STARTING), (Phase.QUEUED, Reason.QUEUED)
    doing = (*(RUNNING[stage] for stage in (Stage.TRAIN, Stage.EVALUATE, Stage.PREPARE)), starting, queued)
    phase, reason = next((found for found in doing if found[0] in phases), starting)
    return phase, reason, text


def _failures(context: SweepContext) -> str:
    failed = [row.name for row in context.status.runs if row.phase is Phase.FAILED]
    names = f": {', '.join(failed[:5])}" + (" and others" if len(failed) > 5 else "") if failed else ""
    return f"{_sum(context)}{names}"


def _sum(context: SweepContext) -> str:
    counts = context.status.counts
    return f"{counts.succeeded} of {counts.total} runs have succeeded, {counts.failed} have failed"


def _ends(context: SweepContext) -> tuple[Announcement, ...]:
    """The runs that have failed since the last pass; that one has succeeded is told by the run itself."""
    old = {row.name: row.phase for row in context.observed.status.runs}
    fresh = [r.name for r in context.status.runs if r.phase is Phase.FAILED and old.get(r.name) is not Phase.FAILED]
    return tuple(
        Announcement(severity="Warning", reason=Reason.RUNS_FAILED, message=f"The run {name} has failed")
        for name in fresh
    )


def _seconds_left(context: SweepContext) -> float | None:
    return None if context.until is None else max(0.0, (context.until - context.now).total_seconds())


def _sparing(context: SweepContext, decision: SweepDecision) -> SweepDecision:
    """Steps and metrics alone are worth a write now and then, not whenever one of many runs reports."""
    old, new = context.observed.status, decision.status
    if not decision.effects and cost.without_amounts(old) == cost.without_amounts(new):
        return replace(decision, status=old)
    written = old.last_updated_time
    left = 0.0 if written is None else context.timing.progress_seconds - (context.now - written).total_seconds()
    if decision.effects or left <= 0 or _quiet(old) != _quiet(new):
        return decision
    waits = [s for s in (decision.look_again_seconds, left if new != old else None) if s is not None]
    return SweepDecision(rule=decision.rule, status=old, look_again_seconds=min(waits, default=None))


def _quiet(status: SweepStatus) -> SweepStatus:
    rows = tuple(row.model_copy(update={"step": None, "metrics": ()}) for row in status.runs)
    status = cost.without_amounts(status.model_copy(update={"runs": rows}))
    return status.model_copy(update={"last_updated_time": None})


RULES: tuple[Rule, ...] = (
    unreadable,  # nothing that follows can be right about a status that is not understood
    left_alone,  # nothing is written to what has ended
    unacceptable,
    planned,  # what it begins with is known before anything begins
    finished,
    over,  # the deadline goes before everything that waits
    given_up,
    suspended,
    overspent,
    going,
)
