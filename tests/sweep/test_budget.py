"""A sweep's budget: one for all of its runs, spent by those that train, and kept when they are deleted."""

from dataclasses import replace
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status import CostStatus, RunStatus
from piton.api.status_base import Phase
from piton.sweep.decide import decide
from piton.sweep.expand import PlannedRun
from piton.sweep.observed import CreateRun, ResumeRun, RunSeen, SuspendRun, SweepDecision
from piton.sweep.parse import ParsedSweep
from piton.sweep.status import SweepStatus
from piton.timing import Timing
from support.builders import NOW, a_record, a_spec, a_status, an_ended, later
from support.sweeps import begun, observed_of, parsed

TIMING = Timing(stop_seconds=100, worth_seconds=200, progress_seconds=10)
RATE = "36"
"""A dollar in 100 seconds: a stop costs $1, a start has to have $3."""
CAPACITY = {"maxPricePerHour": RATE}
SPEC = a_spec(workers={"gpusPerNode": 0}, capacity=CAPACITY)


def a_budget(usd: str = "20", **parts: Any) -> ParsedSweep:
    budget = {"usd": usd, **parts.pop("budget", {})}
    template = {"workers": {"gpusPerNode": 0}, "capacity": CAPACITY}
    return parsed(template=template, limits={"budget": budget}, **{"parallelism": 2, **parts})


def training(sweep: ParsedSweep, number: int, *, since: float = 0, earlier: str | None = None) -> RunSeen:
    """A run that is billed since then."""
    record = a_record(billed_from=later(since), price_per_hour=RATE, billed_machines=1)
    cost = CostStatus(earlier=earlier) if earlier else None
    return _seen(sweep.plan[number], a_status(record, cost=cost))


def paid(sweep: ParsedSweep, number: int, seconds: float, phase: Phase = Phase.SUSPENDED, **fields: Any) -> RunSeen:
    """A run of which nothing is paid any more."""
    record = an_ended(billed_from=NOW, billed_until=later(seconds), price_per_hour=RATE, billed_machines=1)
    suspended = {"suspend": phase is Phase.SUSPENDED, "held": phase is Phase.SUSPENDED}
    return _seen(sweep.plan[number], a_status(record, phase=phase), **{**suspended, **fields})


def _seen(run: PlannedRun, status: RunStatus, **fields: Any) -> RunSeen:
    return RunSeen(name=run.name, created=NOW, spec=SPEC, uid=f"uid-of-{run.name}", status=status, **fields)


def look(sweep: ParsedSweep, *runs: RunSeen, after: float = 0, status: SweepStatus | None = None) -> SweepDecision:
    return decide(observed_of(sweep, *runs, status=status or begun(sweep)), now=later(after), timing=TIMING)


def spent(decision: SweepDecision) -> str | None:
    return decision.status.cost.spent if decision.status.cost else None


def names(decision: SweepDecision, kind: type) -> list[str]:
    """Whom the effects of that kind are about."""
    found = [effect for effect in decision.effects if isinstance(effect, kind)]
    return [effect.run.name if isinstance(effect, CreateRun) else effect.name for effect in found]


def test_the_sweep_costs_what_its_runs_cost_together() -> None:
    sweep = a_budget()
    found = look(sweep, training(sweep, 0), training(sweep, 1, since=200), after=300)
    assert spent(found) == "4.00"
    assert found.status.cost is not None
    assert (found.status.cost.per_hour, found.status.cost.budget) == ("72.00", "20")
    assert [row.cost for row in found.status.runs] == ["3.00", "1.00", None]


def test_a_run_that_is_deleted_or_made_anew_leaves_what_it_has_cost() -> None:
    sweep = a_budget()
    before = look(sweep, training(sweep, 0), after=300)
    gone = look(sweep, after=400, status=before.status)
    assert (spent(gone), gone.status.runs[0].cost) == ("3.00", "3.00")
    anew = replace(training(sweep, 0, since=400), uid="another")
    assert spent(look(sweep, anew, after=500, status=gone.status)) == "4.00"
    assert spent(look(sweep, training(sweep, 0), after=500, status=gone.status)) == "5.00"


@pytest.mark.parametrize(("after", "held"), [(899, 0), (900, 2)])
def test_what_is_kept_back_pays_for_the_stop_of_all_that_train(after: float, held: int) -> None:
    sweep = a_budget()
    runs = training(sweep, 0), training(sweep, 1)
    found = look(sweep, *runs, after=after)
    assert len(names(found, SuspendRun)) == held
    assert not names(found, CreateRun)
    if held:
        assert found.status.phase is Phase.STOPPING


def test_a_sweep_whose_budget_is_spent_holds_says_so_once_and_goes_on_when_it_is_raised() -> None:
    sweep = a_budget()
    runs = paid(sweep, 0, 920), paid(sweep, 1, 930)
    held = look(sweep, *runs, after=1000)
    assert (held.status.phase, held.effects) == (Phase.SUSPENDED, ())
    assert [news.reason for news in held.announcements] == [Reason.BUDGET_EXCEEDED]
    assert "$18.50 of limits.budget ($20) are spent, and a start needs $6.00" in held.announcements[0].message
    again = look(sweep, *runs, after=5000, status=held.status)
    assert (again.status, again.effects, again.announcements) == (held.status, (), ())

    for usd, goes_on in (("24.50", False), ("24.51", True)):
        raised = look(a_budget(usd), *runs, after=6000, status=held.status)
        assert bool(names(raised, ResumeRun)) is goes_on


def test_a_budget_that_stops_ends_the_sweep_and_keeps_what_there_is() -> None:
    sweep = a_budget(budget={"onExceeded": "Stop"})
    done = paid(sweep, 0, 900, Phase.SUCCEEDED)
    first = look(sweep, done, training(sweep, 1), after=1000)
    assert names(first, SuspendRun) == [sweep.plan[1].name]
    ended = look(sweep, done, paid(sweep, 1, 1050), after=1100, status=first.status)
    failed = ended.status.condition("Failed")
    assert failed is not None
    assert (ended.status.phase, failed.reason) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)
    assert "1 of 3 runs have succeeded" in failed.message
    assert ended.status.runs[0].succeeded


@pytest.mark.parametrize(("usd", "created"), [("3", 0), ("3.01", 1), ("6", 1), ("6.01", 2), ("99", 2)])
def test_no_more_runs_begin_than_the_budget_pays_for(usd: str, created: int) -> None:
    assert len(names(look(a_budget(usd)), CreateRun)) == created


def test_a_run_that_trains_is_paid_before_another_begins() -> None:
    sweep = a_budget("10")
    assert len(names(look(sweep, training(sweep, 0), after=599), CreateRun)) == 1
    later_on = look(sweep, training(sweep, 0), after=600)
    assert names(later_on, CreateRun) == []
    assert later_on.status.phase is Phase.TRAINING


def test_time_alone_writes_nothing_and_the_budget_wakes_the_sweep() -> None:
    sweep = a_budget(parallelism=1)
    run = training(sweep, 0)
    first = look(sweep, run)
    assert first.look_again_seconds == 1600
    still = look(sweep, run, after=1000, status=first.status)
    assert (still.status, still.look_again_seconds) == (first.status, 600)
    warned = look(sweep, run, after=1600, status=still.status)
    assert [news.reason for news in warned.announcements] == [Reason.BUDGET_WARNING]
    assert warned.look_again_seconds == 300
    assert look(sweep, run, after=1700, status=warned.status).announcements == ()


def test_a_sweep_of_which_no_price_is_known_says_nothing_of_a_cost() -> None:
    sweep = parsed()
    assert look(sweep, _seen(sweep.plan[0], a_status(a_record())), after=300).status.cost is None
