"""Cost and budget of a sweep: the sum over its runs, each of which counts for itself.

The cost of a deleted run stays in its row. A run that is created again starts at zero and has another uid; the cost of
its predecessor is then kept in a separate field.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from fractions import Fraction

from piton.api.parse import model_of
from piton.api.spec import Spec
from piton.api.status import RunStatus
from piton.cost import spending
from piton.cost.budget import Account, reserve_of
from piton.sweep.expand import PlannedRun
from piton.sweep.observed import RunSeen, SweepObserved
from piton.sweep.status import Row, SweepCost, SweepStatus
from piton.timing import Timing


def of_run(old: Row | None, seen: RunSeen, now: datetime) -> str | None:
    """Return the cost of a run by its row; never less than before."""
    known = spending.dollars(old.cost) if old is not None and old.uid == seen.uid else Fraction(0)
    total = max(known, spending.spent(seen.status, now))
    return spending.as_text(total) if total else None


def summed(observed: SweepObserved, status: SweepStatus) -> SweepStatus:
    """Return the status with the cost of all rows; without a budget or known costs it has none."""
    budget = observed.spec.limits.budget if observed.spec else None
    old, was = observed.status.cost or SweepCost(), {row.name: row for row in observed.status.runs}
    gone = (was[row.name].cost for row in status.runs if row.name in was and _is_another(was[row.name], row))
    earlier = spending.dollars(old.earlier) + sum(map(spending.dollars, gone), Fraction(0))
    total = earlier + sum((spending.dollars(row.cost) for row in status.runs), Fraction(0))
    if budget is None and not total:
        return status
    found = old.model_copy(
        update={
            "spent": spending.as_text(total),
            "per_hour": spending.as_text(_per_hour(observed.runs)),
            "budget": budget.usd if budget else None,
            "earlier": spending.as_text(earlier) if earlier else None,
        }
    )
    return status.model_copy(update={"cost": found})


def account_of(
    observed: SweepObserved, status: SweepStatus, pending: Sequence[PlannedRun], *, timing: Timing
) -> Account | None:
    """Return the account of the sweep's budget, if it has one. With no active run, the reserve is for the next one."""
    budget = observed.spec.limits.budget if observed.spec else None
    if budget is None:
        return None
    alive = [seen for seen in observed.runs if not seen.settled]
    needed = sum((_reserve(seen, timing=timing) for seen in alive), Fraction(0))
    if not alive and pending:
        needed = to_begin(pending[0], timing=timing)
    return Account(
        usd=budget.usd,
        warn_at=budget.warn_at,
        stops=budget.on_exceeded == "Stop",
        spent=spending.dollars(status.cost.spent) if status.cost else Fraction(0),
        per_hour=_per_hour(observed.runs),
        reserve=needed,
    )


def affordable(
    account: Account | None, alive: bool, fresh: Iterable[PlannedRun], *, timing: Timing
) -> list[PlannedRun]:
    """Return those of the given runs that the budget can pay for in addition to the active runs."""
    if account is None:
        return list(fresh)
    left, found = account.left - (account.reserve if alive else 0), []
    for run in fresh:
        left -= to_begin(run, timing=timing)
        if left <= 0:
            break
        found.append(run)
    return found


def to_begin(run: PlannedRun, *, timing: Timing) -> Fraction:
    """Return the amount that has to be left for a run to be worth its start."""
    spec, _ = model_of(Spec, run.spec, "describe a run")
    return reserve_of(spec, RunStatus(), timing=timing)


def without_amounts(status: SweepStatus) -> SweepStatus:
    """Return the status without the amounts that change with time alone."""
    rows = tuple(row.model_copy(update={"cost": None}) for row in status.runs)
    quiet = status.cost.model_copy(update={"spent": "", "per_hour": ""}) if status.cost else None
    return status.model_copy(update={"runs": rows, "cost": quiet})


def _reserve(seen: RunSeen, *, timing: Timing) -> Fraction:
    """Return the amount that a run reserves; for a run with an unreadable status, that of a new one."""
    return reserve_of(seen.spec, RunStatus() if seen.status.unreadable else seen.status, timing=timing)


def _per_hour(runs: Iterable[RunSeen]) -> Fraction:
    return sum((spending.per_hour(seen.status) for seen in runs if not seen.settled), Fraction(0))


def _is_another(old: Row, new: Row) -> bool:
    return old.uid is not None and old.uid != new.uid
