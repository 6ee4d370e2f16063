"""The state of a budget: whether an attempt may continue, whether one may start, and the next time to check.

So much is kept back that an attempt can save and stop within the budget: what the time for an orderly stop costs. One
begins only where what is left pays for some minutes beyond that.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from piton.api.spec import Budget, Spec, Stage
from piton.api.stages import next_stage, staged, wanted
from piton.api.status import AttemptState, RunStatus
from piton.cost import spending
from piton.rendering.instance_types import gpus_of
from piton.timing import Timing

_MILLISECONDS = 1000


@dataclass(frozen=True, kw_only=True)
class Account:
    """A budget, and what was spent of it."""

    usd: str
    """The budget, as it is written."""
    warn_at: int
    stops: bool
    """True: the run fails at the limit. False: it is suspended."""
    spent: Fraction
    per_hour: Fraction
    """The current price in dollars per hour."""
    reserve: Fraction
    """The amount that has to remain for an attempt to continue, or to start."""

    @property
    def left(self) -> Fraction:
        """The unspent amount."""
        return spending.dollars(self.usd) - self.spent

    @property
    def used_up(self) -> bool:
        """True if no attempt may go on, or begin."""
        return self.left <= self.reserve

    @property
    def warns(self) -> bool:
        """True if so much is spent that people should know."""
        return self.spent >= self._warning

    @property
    def seconds(self) -> float | None:
        """Seconds until it says something new; 0.0 when it has; None while nothing is paid."""
        if not self.per_hour:
            return None
        end = spending.dollars(self.usd) - self.reserve
        target = end if self.warns else min(end, self._warning)
        left = max(Fraction(0), target - self.spent) / self.per_hour * spending.HOUR
        return math.ceil(left * _MILLISECONDS) / _MILLISECONDS

    @property
    def _warning(self) -> Fraction:
        return spending.dollars(self.usd) * self.warn_at / 100


def account(
    spec: Spec | None, status: RunStatus, stage: Stage | None, *, now: datetime, timing: Timing
) -> Account | None:
    """The run's budget at this moment; None where it has none. A spec that cannot be read had the one it showed.

    Args:
        spec: the accepted spec, or None.
        status: the status as of `now`.
        stage: the stage of the attempt in flight, or of the next.
        now: the moment.
        timing: how long an orderly stop takes, and for how long a start has to be worth it.
    """
    found = spec.limits.budget if spec else _shown(status)
    if found is None:
        return None
    return Account(
        usd=found.usd,
        warn_at=found.warn_at,
        stops=found.on_exceeded == "Stop",
        spent=spending.spent(status, now),
        per_hour=spending.per_hour(status),
        reserve=reserve(spec, status, stage, timing=timing),
    )


def reserve(spec: Spec | None, status: RunStatus, stage: Stage | None, *, timing: Timing) -> Fraction:
    """Return the amount that has to remain for a run to continue, or for its next attempt to be worth its start."""
    rate = spending.per_hour(status)
    if rate or spec is None or stage is None:
        return rate * _hours(timing.stop_seconds)
    return _price_to_come(spec, status, stage) * _hours(timing.stop_seconds + timing.worth_seconds)


def reserve_of(spec: Spec | None, status: RunStatus, *, timing: Timing) -> Fraction:
    """The same of a run that somebody else looks at, at the stage that it is at."""
    flying = status.current
    if flying is not None and flying.state is not AttemptState.ENDED:
        return reserve(spec, status, flying.stage, timing=timing)
    return reserve(spec, status, None if spec is None else next_stage(spec, status), timing=timing)


def seconds_to_come(found: Account, spec: Spec, status: RunStatus, stage: Stage) -> float | None:
    """Seconds for which the budget pays for the next attempt; None where its price is not known."""
    price = _price_to_come(spec, status, stage)
    return float(max(Fraction(0), found.left) / price * spending.HOUR) if price else None


def stop_at(found: Account, now: datetime) -> datetime | None:
    """Return the time at which the budget is spent entirely, at the current price; None while nothing is paid.

    The operator stops the attempt earlier, by what an orderly stop costs; this is the trainer's own limit.
    """
    if not found.per_hour:
        return None
    return now + timedelta(seconds=float(max(Fraction(0), found.left) / found.per_hour * spending.HOUR))


def exhausted(found: Account, status: RunStatus | None = None) -> str:
    """Explain that the budget is spent, and what to change."""
    saved = f"; step {status.checkpoint.step} is saved" if status and status.checkpoint else ""
    needed = spending.as_text(found.spent + found.reserve)
    instead = "" if found.stops else f"; raise limits.budget.usd above {needed} to go on"
    return (
        f"${spending.as_text(found.spent)} of limits.budget (${found.usd}) are spent, and a start needs "
        f"${spending.as_text(found.reserve)}{saved}{instead}"
    )


def warning(found: Account) -> str:
    """Return the warning for a budget above its warning threshold. The text contains no changing amount."""
    return f"{found.warn_at}% of limits.budget (${found.usd}) are spent"


def _shown(status: RunStatus) -> Budget | None:
    usd = status.cost.budget if status.cost else None
    return None if usd is None else Budget(usd=usd)


def _price_to_come(spec: Spec, status: RunStatus, stage: Stage) -> Fraction:
    """Return the price per hour of the next attempt: the last price of this stage, at most the user's highest.

    A stage that was taken out of the spec has no next attempt, and one that is in flight at it is about to be stopped.
    """
    if stage not in wanted(spec.stages):
        return Fraction(0)
    most = _most(staged(spec, stage), spending.highest(spec) or Fraction(0))
    last = next((r for r in reversed(status.attempts) if r.stage is stage and r.price_per_hour is not None), None)
    return most if last is None else min(most, spending.dollars(last.price_per_hour))


def _most(spec: Spec, price: Fraction) -> Fraction:
    return spec.workers.nodes * share_of(spec) * price


def share_of(spec: Spec) -> Fraction:
    """The part of a node that the run uses; it pays for the whole where nobody knows how many GPUs that has."""
    wanted, there = spec.workers.gpus_per_node, gpus_of(spec)
    return Fraction(wanted, there) if wanted and there and wanted < there else Fraction(1)


def _hours(seconds: float) -> Fraction:
    return Fraction(seconds) / spending.HOUR
