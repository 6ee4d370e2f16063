"""The small systems as sweeps on a real cluster, through `kubectl apply` alone: minutes of training on real data.

They ask for a GPU each, which they do not use: that is what brings them onto the box's spot nodes.
"""

import csv
import io
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from hack import images
from hack.cluster import drills
from hack.cluster.layout import Node
from support.live import LiveCluster, NewTraining, wait_for
from support.live_sweep import Sweep

SEEDS = Path(__file__).parents[2] / "manifests" / "seeds"

pytestmark = [pytest.mark.seeds, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def _datasets(the_box: None) -> None:
    """The image that the manifests name."""
    images.load_datasets(print)


def on_spot(manifest: str) -> dict[str, Any]:
    """The spec of a manifest's sweep."""
    spec: dict[str, Any] = yaml.safe_load((SEEDS / manifest).read_text())["spec"]
    spec["template"]["spec"]["workers"]["gpusPerNode"] = 1
    return spec


def test_three_experiments_of_ragcun_share_a_node_and_lose_it(
    drilled: None, cluster: LiveCluster, namespace: str, training: NewTraining
) -> None:
    sweep = Sweep(cluster, namespace, "ragcun-small")
    runs = {name: training(f"{sweep.name}-{name}") for name in ("baseline", "isotropy", "frozen")}
    sweep.apply(on_spot("ragcun-small-sweep.yaml"))
    nodes = {run.wait_for_node(1) for run in runs.values()}
    assert len(nodes) == 1, "they are not on one node"
    runs["isotropy"].wait_for_commit(10, seconds=600)

    drills.reclaim(Node.named(nodes.pop()), notice_seconds=60)

    status = sweep.wait_for_end(seconds=1200)
    assert (status["phase"], status["done"]) == ("Succeeded", "3/3"), status
    rows = {row["variant"]: row for row in status["runs"]}
    assert rows["isotropy"]["preemptions"] == 1
    assert {row["lostSteps"] for row in rows.values()} == {0}
    table = list(csv.DictReader(io.StringIO(sweep.results("csv"))))
    by_metric = {(line["variant"], line["metric"]): float(line["mean"]) for line in table}
    assert by_metric["isotropy", "iso_score"] > 1.2 * by_metric["baseline", "iso_score"]
    assert all(by_metric[name, "ndcg_10"] > 0.36 for name in runs)  # zero-shot: 0.3816


def test_ten_folds_of_the_two_towers_are_ten_runs_and_one_mean(cluster: LiveCluster, namespace: str) -> None:
    sweep = Sweep(cluster, namespace, "two-tower-small")
    sweep.apply(on_spot("two-tower-small-sweep.yaml"))
    wait_for(lambda: sweep.status.get("runs"), "its runs", seconds=60)

    status = sweep.wait_for_end(seconds=1500)

    assert (status["phase"], status["done"]) == ("Succeeded", "10/10"), status
    table = {line["metric"]: line for line in csv.DictReader(io.StringIO(sweep.results("csv")))}
    assert int(table["ndcg_10"]["runs"]) == 10
    assert mean([float(table["ndcg_10"]["low"]), float(table["ndcg_10"]["high"])]) == pytest.approx(
        float(table["ndcg_10"]["mean"]), abs=1e-3
    )
    assert float(table["ndcg_10"]["mean"]) > float(table["baseline_ndcg_10"]["mean"])
