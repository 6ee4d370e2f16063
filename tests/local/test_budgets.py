"""Budgets on this machine: what it costs is said, what is spent is kept over commands, and a limit holds."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from local.helpers import QUICK, Listener, fake_parts, spec_of, train
from piton.api.reasons import Reason
from piton.api.spec import Spec
from piton.api.status import AttemptState, CostStatus
from piton.api.status_base import Phase
from piton.core.effects import Announcement
from piton.local import resume, sweep_runner
from piton.local.run_folder import opened
from piton.local.sweep_runner import SweepRequest
from piton.sweep.parse import ParsedSweep
from piton.sweep.parse import parse as parse_sweep
from support.builders import NOW, a_record, a_status, later
from support.sweeps import a_sweep

SECONDS = Fraction(3600)
"""A price per hour that is a dollar per second."""
TIMING = replace(QUICK, stop_seconds=0.5, worth_seconds=0.1)


def a_budget(usd: str, *arguments: str, price: str = "3600.00", **budget: Any) -> Spec:
    limits = {"budget": {"usd": usd, **budget}}
    return spec_of(fake_parts(*arguments, capacity={"maxPricePerHour": price}, limits=limits))


def test_a_budget_holds_the_run_with_its_steps_saved_and_a_raised_one_goes_on_to_the_same_weights(
    tmp_path: Path,
) -> None:
    undisturbed, _ = train(tmp_path / "undisturbed")
    root = tmp_path / "run"
    held, listener = train(root, spec=a_budget("1.50", "--hold-at", "7", warnAt=50), timing=TIMING)

    summary = held.summary
    assert (summary.phase, summary.reason, held.interrupted) == (Phase.SUSPENDED, Reason.BUDGET_EXCEEDED, None)
    assert "raise limits.budget.usd above" in summary.message
    assert (summary.cost["budget"], summary.cost["isBound"]) == ("1.50", True)
    assert 1.0 <= float(summary.cost["spent"]) < 5.0
    assert any("50% of limits.budget ($1.50) are spent" in said for said in listener.said)

    raised, _ = train(root, spec=a_budget("900", "--hold-at", "7"), timing=TIMING)
    assert (raised.summary.phase, raised.summary.lost_steps) == (Phase.SUCCEEDED, 0)
    assert raised.summary.weights_digest == undisturbed.summary.weights_digest
    assert float(raised.summary.cost["spent"]) > float(summary.cost["spent"])


def test_a_budget_that_stops_fails_the_run_and_one_that_is_raised_gives_it_another_chance(tmp_path: Path) -> None:
    ending, _ = train(tmp_path, spec=a_budget("1.50", "--hold-at", "7", onExceeded="Stop"), timing=TIMING)
    assert (ending.summary.phase, ending.summary.reason) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)

    again, _ = train(tmp_path, spec=a_budget("1.60", "--hold-at", "7", onExceeded="Stop"), timing=TIMING)
    assert (again.summary.phase, again.summary.attempts) == (Phase.FAILED, 1)
    assert float(again.summary.cost["spent"]) >= float(ending.summary.cost["spent"])


def test_a_price_that_is_known_is_no_bound_and_nodes_of_a_run_share_the_machine(tmp_path: Path) -> None:
    checkpoint = {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    spec = spec_of(fake_parts(nodes=2, checkpoint=checkpoint))
    ending, _ = train(tmp_path, spec=spec, price=SECONDS)

    assert ending.summary.cost["isBound"] is False
    assert ending.summary.phase == Phase.SUCCEEDED
    with opened(tmp_path, "fake") as folder:
        state = folder.load()
    assert state is not None
    assert [record.price_per_hour for record in state.status.attempts] == ["3600.000000"]


def test_without_a_price_nothing_is_said_of_a_cost(tmp_path: Path) -> None:
    ending, _ = train(tmp_path)
    assert ending.summary.cost == {}


def test_a_machine_that_costs_more_than_the_run_may_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--price-per-hour: 3600.00 is more than spec.capacity.maxPricePerHour, 12.00"
    ):
        train(tmp_path, spec=a_budget("9", price="12.00"), price=SECONDS)


def test_a_command_that_was_killed_is_billed_until_it_was_last_heard_of(tmp_path: Path) -> None:
    spec = a_budget("9")
    record = a_record(state=AttemptState.RUNNING, billed_from=NOW, price_per_hour="3600", billed_machines=1)
    status = a_status(record)
    with opened(tmp_path, "fake") as folder:
        state = resume.state_of(folder, name="fake", spec=spec, now=NOW)
        counted = status.model_copy(update={"cost": CostStatus(spent="3.00", time=later(3))})
        folder.save(state.model_copy(update={"status": counted}))
        found = resume.state_of(folder, name="fake", spec=spec, now=later(86_400))

    assert found.status.current is not None
    assert found.status.current.billed_until == later(3)


class Deaf:
    """Nobody watches."""

    async def announce(self, announcement: Announcement) -> None:
        """Say nothing."""

    def of(self, name: str) -> Listener:
        return Listener()


def a_sweep_of(usd: str) -> ParsedSweep:
    run = fake_parts("--hold-at", "7", capacity={"maxPricePerHour": "3600.00"}, checkpoint={"volume": {"size": "1Gi"}})
    parts = {"variants": [{"name": "a"}, {"name": "b"}], "limits": {"budget": {"usd": usd}}}
    manifest = a_sweep("pair", template=run, **parts)
    del manifest["spec"]["template"]["spec"]["objective"]
    manifest["spec"]["template"]["spec"]["trainer"].pop("config", None)
    found = parse_sweep(manifest)
    assert not found.problems, found.problems
    return found


def test_a_sweeps_budget_ends_the_command_and_the_next_counts_what_the_first_has_spent(tmp_path: Path) -> None:
    first = sweep_runner.run(SweepRequest(sweep=a_sweep_of("1.50"), root=tmp_path, timing=TIMING), Deaf())
    assert first.status.phase is Phase.SUSPENDED
    assert first.status.cost is not None
    spent = float(first.status.cost.spent)
    assert 1.0 <= spent < 6.0
    assert [run.phase for run in first.runs] == [Phase.SUSPENDED]

    same = sweep_runner.run(SweepRequest(sweep=a_sweep_of("1.60"), root=tmp_path, timing=TIMING), Deaf())
    assert same.status.phase is Phase.SUSPENDED
    assert same.status.cost is not None
    assert float(same.status.cost.spent) == spent
