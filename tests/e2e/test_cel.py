"""A real API server refuses at once what `piton validate` refuses, in the same words, where CEL can say it."""

import json
from typing import Any

import pytest

from support.judged import RUNS, SWEEPS, Judged
from support.live import LiveCluster

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


def ids(judged: Judged) -> str:
    return judged.id.replace(" ", "-")


def answered(cluster: LiveCluster, namespace: str, manifest: dict[str, Any]) -> str:
    """Return what the API server says to the manifest: an error, or nothing. `kubectl apply` would leave out nulls."""
    metadata = {"name": manifest["metadata"]["name"], "namespace": namespace}
    document = json.dumps({**manifest, "metadata": metadata})
    return cluster.refusal("create", "--dry-run=server", "-f", "-", stdin=document)


@pytest.mark.parametrize("judged", RUNS, ids=ids)
def test_a_run_is_judged_at_once(cluster: LiveCluster, namespace: str, judged: Judged) -> None:
    judges(judged, answered(cluster, namespace, judged.run))


@pytest.mark.parametrize("judged", SWEEPS, ids=ids)
def test_a_sweep_is_judged_at_once(cluster: LiveCluster, namespace: str, judged: Judged) -> None:
    judges(judged, answered(cluster, namespace, judged.sweep))


def judges(judged: Judged, answer: str) -> None:
    if judged.policy:
        assert judged.policy in answer
    elif judged.operator_only or not judged.says:
        assert answer == ""
    for sentence in () if judged.operator_only else judged.says:
        assert sentence in answer


def test_what_is_twice_in_a_list_is_refused_in_the_servers_own_words(cluster: LiveCluster, namespace: str) -> None:
    variables = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    run = Judged("", parts={"trainer": {"image": "i", "recipe": "charlm", "env": variables}}).run
    sweep = Judged("", parts={"seeds": [1, 1]}).sweep

    assert 'spec.trainer.env[1]: Duplicate value: {"name":"A"}' in answered(cluster, namespace, run)
    assert "spec.seeds[1]: Duplicate value: 1" in answered(cluster, namespace, sweep)


def test_a_sweep_that_has_begun_stays_comparable(cluster: LiveCluster, namespace: str) -> None:
    manifest = {**Judged("", parts={"suspend": True, "folds": 2}).sweep}
    manifest["metadata"] = {"name": "sweep", "namespace": namespace}
    kubectl = ("-n", namespace, "patch", "tsweep", "sweep", "--type=merge", "-p")
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    cluster.kubectl(*kubectl, json.dumps({"status": {"plan": "begun"}}), "--subresource=status")

    answer = cluster.refusal(*kubectl, json.dumps({"spec": {"folds": 3}}))

    assert "baseline, metrics and placement cannot be changed once the sweep has begun" in answer
    assert cluster.refusal(*kubectl, json.dumps({"spec": {"parallelism": 2}})) == ""
