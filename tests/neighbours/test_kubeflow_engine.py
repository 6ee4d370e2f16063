"""Piton with `engine: kubeflow`: the stories of the bundled engine that are about jobs, and what only they show."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.test_orders import (
    test_deleted_while_it_trains_it_leaves_nothing,
    test_suspended_it_saves_and_resumed_it_goes_on,
)
from e2e.test_recovery import (
    counts,
    test_a_noticed_reclaim_loses_no_step,
)
from e2e.test_restricted_namespace import restricted
from e2e.test_sharing import test_a_command_on_two_nodes_whose_master_ends_first_runs_once
from e2e.test_sharing import test_the_quickstart_trains_on_two_nodes as the_quickstart_trains_on_two_nodes
from e2e.test_why_it_waits import told
from hack.cluster import api
from hack.cluster.layout import KUBECONFIG
from hack.install import chart
from hack.neighbours import kubeflow
from support.live import DigestOf, LiveCluster, NewTraining, paced

__all__ = [
    "restricted",
    "test_a_command_on_two_nodes_whose_master_ends_first_runs_once",
    "test_a_noticed_reclaim_loses_no_step",
    "test_deleted_while_it_trains_it_leaves_nothing",
    "test_suspended_it_saves_and_resumed_it_goes_on",
]

pytestmark = [pytest.mark.neighbours, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STEPS = 1000
"""At five or ten steps a second: time for what a test does. Then the run hurries to its end."""


@pytest.fixture(scope="module", autouse=True)
def engine(cluster: LiveCluster) -> Iterator[None]:
    """Kubeflow's training operator, and a Piton that leaves the jobs to it."""
    try:
        kubeflow.start(init_container=init_container())
        with chart.changed(KUBECONFIG, {"engine": "kubeflow"}):
            yield
    finally:
        kubeflow.stop()


def init_container() -> str:
    """The documented one, which a restricted namespace takes."""
    manifest = yaml.safe_load((ROOT / "manifests" / "kubeflow-init-container.yaml").read_text())
    template: str = manifest["data"]["initContainer.yaml"]
    return template


@pytest.mark.usefixtures("restricted")
def test_a_gang_of_two_nodes_trains_in_a_restricted_namespace(training: NewTraining) -> None:
    the_quickstart_trains_on_two_nodes(training)


def test_its_pods_are_kubeflows(training: NewTraining, digest_of: DigestOf) -> None:
    """Who made them shows in the init container of a worker, and in what the operator may not do: create pods."""
    run = training()
    run.apply(paced(STEPS, 0.1))
    run.wait_for_node(1)

    (pod,) = run.pods(1)
    managers = {entry["manager"] for entry in pod["metadata"]["managedFields"]}

    assert "training-operator" in " ".join(managers), managers
    run.wait_for_commit(10)
    run.hurry()
    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)


def test_an_evicted_pod_is_a_preemption_and_loses_no_step(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    run.apply(paced(STEPS, 0.2))
    run.wait_for_node(1)
    run.wait_for_commit(20)

    (pod,) = run.running()
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": run.namespace}}
    api.call("POST", f"/api/v1/namespaces/{run.namespace}/pods/{pod}/eviction", eviction)

    run.wait_for_node(2)
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert counts(status) == (2, 1, 0, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_while_its_webhook_is_away_the_run_waits_and_then_trains(training: NewTraining, digest_of: DigestOf) -> None:
    run = training()
    kubeflow.pause()
    try:
        run.apply(paced(STEPS, 0.0, save_every=STEPS))
        assert "training-operator.kubeflow.svc" in told(run, "WebhookUnavailable")["message"]
    finally:
        kubeflow.start(init_container=init_container())

    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)
