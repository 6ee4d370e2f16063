"""The real trainer in real processes: machines are lost, and not a bit of the model is."""

from pathlib import Path
from typing import Any

import pytest

from local.helpers import spec_of, train
from piton.api.spec import Spec
from piton.api.status_base import Phase

TINY = {
    "depth": 1,
    "aspectRatio": 32,
    "headDim": 16,
    "sequenceLength": 32,
    "deviceBatchSize": 2,
    "totalBatchTokens": 128,
    "referenceBatchTokens": None,
    "steps": 150,
    "evalEvery": 50,
    "evalTokens": 256,
    "dropout": 0.1,
    "ema": 0.9,
}
ONE_THREAD = {"name": "OMP_NUM_THREADS", "value": "1"}
"""A model this small only waits for further threads."""


def a_charlm(ranks: int) -> Spec:
    parts: dict[str, Any] = {
        "trainer": {"image": "none", "recipe": "charlm", "config": TINY, "env": [ONE_THREAD]},
        "workers": {"nodes": ranks, "gpusPerNode": 0},
        "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}, "every": {"steps": 10}},
        "objective": {"metric": "val_loss"},
    }
    return spec_of(parts)


@pytest.mark.crash  # processes start seven times
@pytest.mark.parametrize(
    ("ranks", "drills"), [(1, ("preempt@50%",)), (2, ("kill@30%", "kill@60%"))], ids=["one-rank", "two-ranks"]
)
def test_the_weights_are_those_of_an_undrilled_run(ranks: int, drills: tuple[str, ...], tmp_path: Path) -> None:
    undrilled, _ = train(tmp_path / "undrilled", spec=a_charlm(ranks))
    drilled, _ = train(tmp_path / "drilled", spec=a_charlm(ranks), drills=drills)

    one, other = undrilled.summary, drilled.summary
    assert (one.phase, one.attempts, one.final_step) == (Phase.SUCCEEDED, 1, 150)
    assert (other.phase, other.preemptions, other.attempts) == (Phase.SUCCEEDED, len(drills), len(drills) + 1)
    assert other.final_step == 150
    assert (other.failures, other.infrastructure_failures) == (0, 0)
    assert other.weights_digest == one.weights_digest
    assert (other.best_step, other.best_metric) == (one.best_step, one.best_metric)
    assert other.best_checkpoint is not None
    if drills[0].startswith("preempt"):
        assert other.lost_steps == 0
