"""The sweeps among the manifests are what they say."""

from pathlib import Path

import pytest
import yaml

from piton.sweep.parse import ParsedSweep, parse_file
from piton_trainer.recipes import catalog
from support.builders import NOW

SEEDS = Path(__file__).parents[2] / "manifests" / "seeds"


def sweep_of(name: str) -> ParsedSweep:
    return parse_file(yaml.safe_load((SEEDS / f"{name}-sweep.yaml").read_text()), now=NOW)


@pytest.mark.parametrize(("name", "runs"), [("ragcun-small", 3), ("two-tower-small", 10)])
def test_each_of_their_runs_is_one_that_can_work(name: str, runs: int) -> None:
    plan = sweep_of(name).plan

    assert len(plan) == runs
    for run in plan:
        trainer = run.spec["trainer"]
        if trainer["recipe"] in catalog.RECIPES:
            catalog.check(trainer["recipe"], trainer["config"])


def test_a_small_twins_sweep_trains_what_the_twin_does_one_fold_at_a_time() -> None:
    twin = yaml.safe_load((SEEDS / "two-tower-small.yaml").read_text())["spec"]["trainer"]["config"]

    configs = [run.spec["trainer"]["config"] for run in sweep_of("two-tower-small").plan]

    assert configs == [{**twin, "fold": fold} for fold in range(10)]
