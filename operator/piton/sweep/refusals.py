"""The decision for effects of a sweep that the world has not carried out."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from piton.api.conditions import WAITING, as_before
from piton.api.reasons import Reason
from piton.core import wait_reasons
from piton.core.decide import REFUSED
from piton.core.effects import Announcement
from piton.sweep.context import SweepContext, answer
from piton.sweep.observed import CreateRun, Refusals, SweepDecision, SweepObserved, run_of
from piton.sweep.rows import without_refused
from piton.sweep.status import SweepStatus
from piton.timing import Timing


def refused(
    observed: SweepObserved,
    decision: SweepDecision,
    refusals: Refusals,
    *,
    now: datetime,
    timing: Timing | None = None,
) -> SweepDecision:
    """The world did not carry out effects, as for a quota or a policy: say which, and try again later.

    What was carried out stays written down: a run that cannot be created holds none of the others. A failure that has
    not lasted is noted in the row of its run, which then comes after the others, and nowhere else.
    """
    context = SweepContext(observed=observed, now=now, timing=timing or Timing())
    failed = {refusal.effect.run.name: refusal.why for refusal in refusals if isinstance(refusal.effect, CreateRun)}
    status = without_refused(decision.status, failed)
    is_under_way = status.counts.active > 0 or len(refusals) < len(decision.effects)
    fresh = [effect.run.name for effect in decision.effects if isinstance(effect, CreateRun)]
    news = [each for each in decision.announcements if each.reason is not Reason.STARTING]
    news += created([name for name in fresh if name not in failed])
    final = [refusal for refusal in refusals if refusal.is_final]
    if not final:
        if not is_under_way:
            old = observed.status
            status = _answered(context, status.model_copy(update={"phase": old.phase, "conditions": old.conditions}))
        return replace(decision, effects=(), status=status, announcements=tuple(news))
    phase = None if is_under_way else observed.status.phase
    first, generation = final[0], observed.meta.generation
    others = f" (and {len(final) - 1} more)" if len(final) > 1 else ""
    wait = wait_reasons.refusal(first.why)
    wait = replace(wait, message=f"{run_of(first.effect)}{others}: {wait.message}")
    status = as_before(status, observed.status, WAITING)  # the decision was of an end of the wait
    status, waits = wait_reasons.waits(status, phase, wait, now=now, generation=generation)
    again = context.timing.try_again_seconds(wait_reasons.waited_seconds(status, now))
    status = _answered(context, status)
    return SweepDecision(rule=REFUSED, status=status, announcements=(*news, *waits), look_again_seconds=again)


def _answered(context: SweepContext, status: SweepStatus) -> SweepStatus:
    """Return the status with the answers to the current spec, of which the Events are in the decision."""
    return answer(context, SweepDecision(rule=REFUSED, status=status)).status


def created(names: Sequence[str]) -> tuple[Announcement, ...]:
    """Return the Event that tells which runs were created; none without any."""
    return (Announcement(reason=Reason.STARTING, message=f"Created {', '.join(names)}"),) if names else ()
