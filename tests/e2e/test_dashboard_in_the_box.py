"""Every query of the dashboard returns data while a run trains and loses its node: a real Prometheus in the box."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hack.cluster import drills, processes, prometheus
from hack.cluster.layout import Node
from support.dashboard import ask, load, queries, unanswered
from support.live import LiveCluster, NewTraining, wait_for

QUICKSTART = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


@pytest.fixture
def scraped(cluster: LiveCluster, drilled: None) -> Iterator[str]:
    """The address of a Prometheus in the box."""
    was_running = processes.running(prometheus.PROCESS)
    prometheus.start()
    yield prometheus.URL
    if not was_running:
        prometheus.stop()


def test_every_query_returns_data_while_a_run_trains_and_none_about_a_run_that_is_gone(
    scraped: str, training: NewTraining
) -> None:
    run = training()
    spec = yaml.safe_load(QUICKSTART.read_text())["spec"]
    spec["trainer"]["config"] |= {"steps": 5000, "evalEvery": 1000}
    spec |= {"workers": {"nodes": 1, "gpusPerNode": 1}, "checkpoint": spec["checkpoint"] | {"every": {"steps": 10}}}
    variables = {"namespace": run.namespace, "run": run.name, "__rate_interval": "10s", "__range": "10m"}
    asked = queries(load(), variables)
    run.apply(spec)
    run.wait_for_commit(10)
    lost = Node.named(run.wait_for_node(1))

    drills.reclaim(lost, notice_seconds=10)

    wait_for(
        lambda: not unanswered(scraped, asked),
        "data for every query",
        seconds=240,
        say=lambda: "\n".join([*unanswered(scraped, asked), run.say()]),
    )
    mine = f'namespace="{run.namespace}",run="{run.name}"'
    (series,) = ask(scraped, f"piton_trainer_step{{{mine}}}")
    assert json.loads(series)["attempt"] == "2"
    run.delete()
    wait_for(lambda: not ask(scraped, f'{{__name__=~"piton_.*",{mine}}}'), "its series to end", seconds=60)
