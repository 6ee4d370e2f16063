"""Time, money and disk: the arithmetic, and what is said where a figure is not known."""

from dataclasses import dataclass
from typing import Any

import pytest

from piton.api.parse import parse
from piton.api.spec import Spec
from piton.cost.estimate import MeasuredSpeed, estimate, measured_disk, measured_time, price_of
from support.builders import a_manifest


@dataclass(frozen=True)
class Large:
    parameters: int = 1_000_000_000
    checkpoint_bytes: int = 12_000_000_000
    note: str = "for 32 symbols"


def a_spec(**parts: Any) -> Spec:
    found = parse(a_manifest(**parts)).asked
    assert found is not None
    return found


P4D = {"nodes": 2, "gpusPerNode": 8, "instanceTypes": ["p4d.24xlarge"]}


def test_a_training_time_times_nodes_times_a_price_is_the_cost() -> None:
    spec = a_spec(workers=P4D, limits={"trainingTime": "31h"}, checkpoint=shared())
    found = estimate(spec, length=None, size=None, price=price_of(spec, "32"))

    assert found.time.value == 31 * 3600
    assert found.cost.value == 2 * 32 * 31
    assert found.cost.text == "2 p4d.24xlarge x $32.00/h (--price-per-hour) x 31 h = $1,984.00"
    assert not found.cost.is_bound


def test_a_run_on_one_of_eight_gpus_pays_an_eighth() -> None:
    spec = a_spec(workers={**P4D, "nodes": 1, "gpusPerNode": 1}, limits={"deadline": "4h"})
    found = estimate(spec, length="3,500 steps", size=None, price=price_of(spec, "10.40"))

    assert found.cost.value == 5.2
    assert "1/8 of its GPUs" in found.cost.text
    assert found.cost.is_bound
    assert found.time.text == (
        "unknown: 3,500 steps, and piton preflight measures what a step takes; at most 4h (limits.deadline)"
    )


def test_the_highest_price_that_is_paid_gives_a_highest_cost() -> None:
    spec = a_spec(limits={"trainingTime": "2h"}, capacity={"maxPricePerHour": "12.00"})
    found = estimate(spec, length=None, size=None, price=price_of(spec, None))

    assert (found.cost.value, found.cost.is_bound) == (24.0, True)
    assert "capacity.maxPricePerHour" in found.cost.text
    assert price_of(spec, "9") != price_of(spec, None)


def test_what_is_not_known_is_not_made_up() -> None:
    spec = a_spec()
    found = estimate(spec, length="9 steps", size=None, price=price_of(spec, None))

    assert (found.time.value, found.cost.value, found.disk.value) == (None, None, None)
    assert found.cost.text == "unknown: what a node costs per hour is said by --price-per-hour USD"
    assert "nothing ends the run early" in found.time.text
    hourly = estimate(spec, length="9 steps", size=None, price=price_of(spec, "3"))
    assert "= $3.00 for each hour" in hourly.cost.text


def test_a_budget_and_a_deadline_that_are_too_small_are_said() -> None:
    limits = {"trainingTime": "31h", "deadline": "24h", "budget": {"usd": "250"}}
    spec = a_spec(limits=limits)
    found = estimate(spec, length=None, size=None, price=price_of(spec, "32"))

    assert found.time.warning == "limits.deadline ends it after 24h, and it needs 1d7h"
    assert found.cost.warning == "limits.budget is $250"
    enough = a_spec(limits={**limits, "deadline": "31h", "budget": {"usd": "992"}})
    found = estimate(enough, length=None, size=None, price=price_of(enough, "32"))
    assert (found.time.warning, found.cost.warning) == (None, None)


def test_the_volume_has_to_hold_what_is_kept_and_what_is_being_written() -> None:
    keep = {"last": 2, "best": 1, "weightsOnly": 10}
    spec = a_spec(checkpoint={"volume": {"size": "80Gi"}, "keep": keep}, objective={"metric": "val_loss"})
    found = estimate(spec, length=None, size=Large(), price=None).disk

    assert found.value == 4 * 12e9 + 10 * 4e9
    assert found.text == (
        "(2 last + 1 best + 1 in flight) checkpoints x 12.0 GB + 10 of weights x 4.00 GB = 88.0 GB, on volume 80Gi; "
        "1,000,000,000 parameters, for 32 symbols"
    )
    assert found.warning == "the volume holds 85.9 GB: write size: 82Gi, or keep fewer"


def test_without_an_objective_there_is_no_best_one_to_keep() -> None:
    spec = a_spec(checkpoint={"volume": {"size": "100Gi"}})
    found = estimate(spec, length=None, size=Large(), price=None).disk

    assert (found.value, found.warning) == (3 * 12e9, None)


def test_an_average_is_kept_with_the_weights() -> None:
    trainer = {"image": "none", "recipe": "charlm", "config": {"ema": 0.9}}
    checkpoint = {"volume": {"claimName": "mine"}, "keep": {"last": 2, "weightsOnly": 1}}
    found = estimate(a_spec(trainer=trainer, checkpoint=checkpoint), length=None, size=Large(), price=None).disk

    assert found.value == 3 * 12e9 + 2 * 4e9
    assert "the claim mine, whose size the cluster knows" in found.text


def shared() -> dict[str, Any]:
    return {"volume": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}


@pytest.mark.parametrize("price", ["0.3", "10.50", "1000"])
def test_cents_are_not_lost(price: str) -> None:
    spec = a_spec(limits={"trainingTime": "10h"})
    assert estimate(spec, length=None, size=None, price=price_of(spec, price)).cost.value == 10 * float(price)


def measured(**changes: Any) -> MeasuredSpeed:
    seen: dict[str, Any] = {"step_seconds": 2.0, "steps": 1000, "evaluation_seconds": 30.0, "evaluation_every": 250}
    return MeasuredSpeed(**{**seen, "stall_seconds": 0.5, **changes})


def test_the_time_of_a_run_is_that_of_its_steps_its_evaluations_and_its_saves() -> None:
    spec = a_spec(checkpoint={"volume": {"size": "1Gi"}, "every": {"steps": 100}}, limits={"deadline": "30m"})
    found = measured_time(spec, measured())

    assert found.value == 1000 * 2 + 4 * 30 + 10 * 0.5
    assert found.text == "1,000 steps x 2 s + 4 evaluations x 30 s + 10 saves x 0.5 s = 35m25s"
    assert found.warning == "limits.deadline ends it after 30m, and it needs 35m25s"


def test_saves_are_counted_by_whatever_interval_passes_first_and_not_where_it_is_chosen_on_the_way() -> None:
    def saves(every: Any) -> str:
        spec = a_spec(checkpoint={"volume": {"size": "1Gi"}, "every": every})
        return measured_time(spec, measured(evaluation_seconds=None)).text

    assert "50 saves" in saves({"minutes": 1, "steps": 20})
    assert "33 saves" in saves({"minutes": 1})
    assert saves("auto") == "1,000 steps x 2 s = 33m20s"


def test_a_training_time_says_how_many_steps_there_will_be() -> None:
    found = measured_time(a_spec(limits={"trainingTime": "1h"}), measured(steps=None))
    assert (found.value, found.text) == (3600, "1h (limits.trainingTime), some 1,800 steps of 2 s")


def test_a_run_without_an_end_or_without_a_timed_step_takes_nobody_knows_how_long() -> None:
    assert measured_time(a_spec(), measured(steps=None)).value is None
    assert measured_time(a_spec(), measured(step_seconds=None)).text.startswith("unknown: no step was timed")


def test_a_checkpoint_that_was_saved_says_what_the_volume_needs() -> None:
    spec = a_spec(checkpoint={"volume": {"size": "1Gi"}, "keep": {"last": 3, "weightsOnly": 2}})
    found = measured_disk(spec, 400e6)

    assert found.value == 4 * 400e6
    assert found.text == "(3 last + 1 in flight) checkpoints x 400 MB = 1.60 GB, and 2 of weights alone, on volume 1Gi"
    assert found.warning == "the volume holds 1.07 GB: write size: 2Gi, or keep fewer"
