"""Rows of a sweep's status: its runs as remembered, and the counts, results and best run that follow from them.

A row is computed from the current run; only the row of a succeeded run stays after the run is deleted.
"""

from collections.abc import Mapping
from datetime import datetime

from piton.api.status_base import Phase
from piton.sweep import cost, results
from piton.sweep.expand import PlannedRun
from piton.sweep.observed import RunSeen, SweepObserved
from piton.sweep.status import Counts, Row, SweepStatus

_REFUSED_MAX = 256
"""Characters of a refusal in a row. A sweep may have 200 rows."""


def refreshed(observed: SweepObserved, *, now: datetime) -> SweepStatus:
    """Return the status with the rows of the current runs, and the values derived from them."""
    spec = observed.spec
    if spec is None:
        return observed.status
    objective = observed.plan[0].objective
    names = results.metric_names(spec, objective)
    old = {row.name: row for row in observed.status.runs}
    rows = tuple(_row(run, old.get(run.name), observed.run(run.name), names, now) for run in observed.plan)
    baseline = spec.baseline or observed.plan[0].variant
    tabulated = results.tabulate(rows, names, baseline)
    found = results.best(tabulated, objective.metric, objective.goal) if objective else None
    status = observed.status.model_copy(
        update={
            "runs": rows,
            "results": tabulated,
            "baseline": baseline,
            "best": f"{found[0]} {found[1]}" if found else "",
        }
    )
    status = cost.summed(observed, counted(status)).with_unknown_of(observed.status)
    if cost.without_amounts(status).runs == cost.without_amounts(observed.status).runs:
        return status
    return status.model_copy(update={"last_updated_time": now})


def _row(run: PlannedRun, old: Row | None, seen: RunSeen | None, names: tuple[str, ...], now: datetime) -> Row:
    """Return the row of a run. The row of a success is final; other deleted runs start again, and keep their cost.

    A run with an unreadable status keeps its row, and so does a deleted one in an unknown phase. Neither is created
    again.
    """
    if old is not None and (old.succeeded or (seen is None and not old.phase.is_known)):
        return old
    if seen is not None and seen.status.unreadable:
        unknown = Row(name=run.name, variant=run.variant, fold=run.fold, seed=run.seed, phase=Phase.STARTING)
        return unknown if old is None or old.phase is Phase.PENDING else old
    if seen is None:
        kept = {"cost": old.cost, "uid": old.uid, "refused": old.refused} if old else {}
        return Row(name=run.name, variant=run.variant, fold=run.fold, seed=run.seed, **kept)
    status = seen.status
    record = status.current
    return Row(
        name=run.name,
        variant=run.variant,
        fold=run.fold,
        seed=run.seed,
        phase=Phase.STARTING if status.phase is Phase.PENDING else status.phase,
        step=status.result.step if status.result else record.step if record else None,
        preemptions=status.preemptions,
        lost_steps=status.lost.steps,
        cost=cost.of_run(old, seen, now),
        uid=seen.uid or None,
        metrics=results.values_of(status, run.objective, names),
    )


def counted(status: SweepStatus) -> SweepStatus:
    """Return the status with the counts of its rows."""
    phases = [row.phase for row in status.runs]
    pending, succeeded, failed = (phases.count(phase) for phase in (Phase.PENDING, Phase.SUCCEEDED, Phase.FAILED))
    counts = Counts(
        pending=pending, succeeded=succeeded, failed=failed, active=len(phases) - pending - succeeded - failed
    )
    counts = counts.with_unknown_of(status.counts)
    return status.model_copy(update={"counts": counts, "done": f"{counts.done}/{counts.total}"})


def without_refused(status: SweepStatus, refused: Mapping[str, str]) -> SweepStatus:
    """Return the status with these runs as pending, each with the reason for which it was not created."""
    rows = tuple(
        row.model_copy(update={"phase": Phase.PENDING, "refused": refused[row.name][:_REFUSED_MAX] or None})
        if row.name in refused
        else row
        for row in status.runs
    )
    return counted(status.model_copy(update={"runs": rows}))
