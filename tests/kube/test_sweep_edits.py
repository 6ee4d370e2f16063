"""Edits of a sweep whose runs train: one that is refused stops nothing, and what saves money acts all the same."""

import json
import re
from typing import Any

import pytest

from piton.api import validation
from piton.api.status_base import Phase
from piton.contract.names import ANNOTATION_OLDER_RULES
from piton.sweep import rules
from piton.sweep.parse import parse
from support.apiserver import EVENTS, RUNS, SWEEPS
from support.cluster import Ends, Runs
from support.pilot import Pilot
from support.sweeps import VARIANTS, a_sweep

MISTAKES: dict[str, dict[str, Any]] = {
    "misspelt": {"paralellism": 3},
    "wrong type": {"folds": "two"},
    "changed template": {"template": {"spec": {"trainer": {"image": "trainer:2", "recipe": "charlm"}}}},
    "changed variants": {"variants": [{"name": "baseline"}]},
    "no template": {"template": None},
    "bad beside good": {"limits": {"budget": {"usd": "20"}, "deadlin": "1h"}},
}


def sweep_of(pilot: Pilot) -> dict[str, Any]:
    found = pilot.server.find(SWEEPS, "abl", "team")
    assert found is not None
    return found


def condition(pilot: Pilot, kind: str) -> dict[str, Any]:
    return next(c for c in sweep_of(pilot)["status"]["conditions"] if c["type"] == kind)


def phases(pilot: Pilot) -> set[str]:
    return {run["status"]["phase"] for run in pilot.server.all(RUNS)}


async def trains(pilot: Pilot, *, parallelism: int = 2, **spec: Any) -> None:
    pilot.cluster.fates |= {f"abl-{variant}-{number}": Runs() for variant in VARIANTS for number in (1, 2)}
    pilot.cluster.price = "20"
    template = {"capacity": {"maxPricePerHour": "20"}}
    await pilot.cluster.apply(a_sweep("abl", parallelism=parallelism, template=template, **spec))
    for _ in range(6):
        await pilot.settle_sweeps()
        await pilot.turn(10)
    assert phases(pilot) == {Phase.TRAINING}


async def change(pilot: Pilot, turns: int, **spec: Any) -> None:
    sweep = sweep_of(pilot)
    sweep["spec"] = {key: value for key, value in {**sweep["spec"], **spec}.items() if value is not None}
    await pilot.server.put(SWEEPS, sweep)
    for _ in range(turns):
        await pilot.settle_sweeps()
        await pilot.turn(60)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_budget_is_kept_beside_a_mistake(pilot: Pilot, mistake: str) -> None:
    await trains(pilot, limits={"budget": {"usd": "10"}})
    await change(pilot, 22, **MISTAKES[mistake])
    assert condition(pilot, "Accepted")["status"] == "False"
    if mistake == "bad beside good":
        assert phases(pilot) == {Phase.TRAINING}, "the raised budget counts"
    else:
        assert phases(pilot) == {Phase.SUSPENDED}
        assert sweep_of(pilot)["status"]["phase"] == Phase.SUSPENDED
    told = [event for event in pilot.server.all(EVENTS) if event["reason"] == "InvalidSpec"]
    assert [event["count"] for event in told] == [1]


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_suspend_and_deadline_are_heard_beside_a_mistake(pilot: Pilot, mistake: str) -> None:
    await trains(pilot)
    await change(pilot, 4, **MISTAKES[mistake], suspend=True)
    assert phases(pilot) == {Phase.SUSPENDED}
    await change(pilot, 4, suspend=False)
    assert phases(pilot) == {Phase.TRAINING}
    await change(pilot, 10, limits={"deadline": "12m", "budgt": "1"})
    assert Phase.TRAINING not in phases(pilot)


async def test_the_other_runs_are_made_from_the_spec_that_was_accepted_last(pilot: Pilot) -> None:
    await trains(pilot, parallelism=1)
    pilot.cluster.fates |= {f"abl-{variant}-1": Ends() for variant in VARIANTS}
    await change(pilot, 20, **MISTAKES["changed template"])
    assert sweep_of(pilot)["status"]["phase"] == Phase.SUCCEEDED
    assert {run["spec"]["trainer"]["image"] for run in pilot.server.all(RUNS)} == {"trainer:1"}


async def test_a_mended_spec_is_accepted_again(pilot: Pilot) -> None:
    await trains(pilot)
    template = sweep_of(pilot)["spec"]["template"]
    await change(pilot, 2, **MISTAKES["changed template"])
    assert "stays in effect" in condition(pilot, "Accepted")["message"]
    await change(pilot, 2, template=template, parallelism=3)
    assert condition(pilot, "Accepted")["status"] == "True"
    assert len(pilot.server.all(RUNS)) == 3


OLD_TEMPLATES: dict[str, dict[str, Any]] = {
    "a long duration": {"limits": {"stalled": "9999d"}},
    "a long patience": {"checkpoint": {"volume": {"size": "1Gi"}, "patience": "9999999d"}},
    "a null interval": {"checkpoint": {"volume": {"size": "1Gi"}, "every": {"minutes": None, "steps": 5}}},
    "a timeout of zero": {"limits": {"startTimeout": "0s", "hangTimeout": "0m"}},
    "a large config": {
        "trainer": {"image": "trainer:1", "recipe": "charlm", "config": {"data": {"text": "a" * 210_000}}}
    },
}


@pytest.mark.parametrize("template", OLD_TEMPLATES)
async def test_a_sweep_that_has_begun_is_not_asked_what_younger_rules_say(
    pilot: Pilot, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(validation, "RULES", tuple(r for r in validation.RULES if r not in validation.YOUNGER))
        pilot.cluster.fates |= {f"abl-{variant}-1": Runs() for variant in VARIANTS}
        await pilot.cluster.apply(a_sweep("abl", template=OLD_TEMPLATES[template]))
        for _ in range(6):
            await pilot.settle_sweeps()
            await pilot.turn(10)
        assert phases(pilot) == {Phase.TRAINING}
    sweep = sweep_of(pilot)
    del sweep["status"]["accepted"]  # the operator before did not keep it
    await pilot.server.put(SWEEPS, sweep)
    pilot.cluster.fates |= {f"abl-{variant}-1": Ends() for variant in VARIANTS}
    await change(pilot, 20)

    assert sweep_of(pilot)["status"]["phase"] == Phase.SUCCEEDED
    assert len(pilot.server.all(RUNS)) == 3
    assert not validation_problems(pilot), "the API server takes them"


async def test_a_deadline_of_a_sweep_from_before_counts_as_ten_years(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(rules, "RULES", tuple(r for r in rules.RULES if r not in rules.YOUNGER))
        await trains(pilot, parallelism=1, limits={"deadline": "9999d"})
    pilot.cluster.fates |= {f"abl-{variant}-1": Ends() for variant in VARIANTS}
    await change(pilot, 20)
    assert sweep_of(pilot)["status"]["phase"] == Phase.SUCCEEDED


def test_a_new_sweep_is_asked() -> None:
    assert parse(a_sweep("abl", template=OLD_TEMPLATES["a long duration"])).problems
    assert parse(a_sweep("abl", limits={"deadline": "9999d"})).problems


def validation_problems(pilot: Pilot) -> list[str]:
    """The durations of runs made after the upgrade that the API server would refuse."""
    made = [
        run for run in pilot.server.all(RUNS) if ANNOTATION_OLDER_RULES in (run["metadata"].get("annotations") or {})
    ]
    assert len(made) == 2
    return [text for run in made for text in re.findall(r'9{4,}d|"0[sm]"', json.dumps(run["spec"]))]
