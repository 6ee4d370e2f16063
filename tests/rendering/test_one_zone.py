"""The replicas of an attempt are in one zone, where nodes say which they are in."""

from typing import Any

import pytest

from piton.api.spec import Stage
from piton.contract import names
from piton.engine import render
from piton.engine.job import Job
from piton.rendering.affinity import ZONE
from piton.rendering.pytorchjob import pytorchjob
from piton.rendering.workload import Granted, placed, workload
from support.builders import a_spec, meta

SHARED = {"volume": {"size": "500Gi", "storageClassName": "fsx", "accessModes": ["ReadWriteMany"]}}
SEVERAL = {"workers": {"nodes": 3}, "checkpoint": SHARED}
OURS = {names.LABEL_RUN: "ragcun", names.LABEL_ATTEMPT: "3"}
IN_ONE_ZONE = [{"labelSelector": {"matchLabels": OURS}, "topologyKey": ZONE}]


def job(*, named: bool = True, **parts: Any) -> dict[str, Any]:
    return pytorchjob(meta(), a_spec(**{**SEVERAL, **parts}), 3, zones_are_named=named)


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod, as the bundled engine makes it."""
    manifest["metadata"]["uid"] = "job"
    found = Job.read(manifest)
    return [render.pod(found, replicas, index) for replicas in found.replicas for index in range(replicas.count)]


def affinity(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"].get("affinity", {})
    return found


def test_every_pod_has_to_be_in_the_zone_of_the_attempts_pods_and_is_one_of_them() -> None:
    """The scheduler lets the first one in because it has the labels itself."""
    made = pods(job())

    assert len(made) == 3
    for pod in made:
        assert affinity(pod)["podAffinity"] == {"requiredDuringSchedulingIgnoredDuringExecution": IN_ONE_ZONE}
        assert OURS.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("named", "workers"),
    [(False, {"nodes": 3}), (True, {"nodes": 1}), (True, {"nodes": 3, "zones": ["us-east-1a"]})],
    ids=["nodes name no zone", "one pod", "the user names one zone"],
)
def test_no_pod_is_told_to_be_in_a_zone_where_none_is_named_or_it_could_be_in_no_other(
    named: bool, workers: dict[str, Any]
) -> None:
    assert all("podAffinity" not in affinity(pod) for pod in pods(job(named=named, workers=workers)))


@pytest.mark.parametrize(("policy", "kind"), [("Pack", "podAffinity"), ("Spread", "podAntiAffinity")])
def test_a_group_keeps_its_preference_beside_the_zone(policy: str, kind: str) -> None:
    group = {"placement": {"group": "ablation", "policy": policy}}
    (pod, *_) = pods(job(workers={"nodes": 3, "zones": ["a", "b"], "template": group}))
    found = affinity(pod)

    assert found["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == IN_ONE_ZONE
    (preferred,) = found[kind]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["labelSelector"] == {"matchLabels": {names.LABEL_GROUP: "ablation"}}
    assert "nodeAffinity" in found


def test_quota_is_asked_for_without_a_word_about_other_pods() -> None:
    """Kueue knows no attempt. What it is asked for is the same for each, and says nothing of zones but the user's."""
    (pod_set,) = workload(meta(), a_spec(**SEVERAL), Stage.TRAIN)["spec"]["podSets"]

    assert (pod_set["count"], "affinity" in pod_set["template"]["spec"]) == (3, False)
    granted = placed(job(), Granted(node_selector={"pool": "spot-a"}))
    assert all(affinity(pod) == affinity(other) for pod, other in zip(pods(granted), pods(job()), strict=True))
