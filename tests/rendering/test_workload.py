"""The Workload that asks for a run's quota: what an upgrade of the operator leaves as it is."""

from typing import Any

import pytest

from piton.api.spec import Stage
from piton.rendering.workload import asked, asks_alike
from support.builders import a_spec
from support.builders import meta as a_meta

SHARED = {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}

SINCE_FIRST: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("19c0242fe8002300", {}),
    "spot": ("16ecf1c0b974e67b", {"capacity": {"tiers": ["Spot"]}}),
    "on demand": ("6323356ec7ad74ff", {"capacity": {"tiers": ["OnDemand"]}}),
    "a gang": (
        "4f77f557326d6057",
        {
            "workers": {"nodes": 2, "gpusPerNode": 8, "instanceTypes": ["p5.48xlarge"], "zones": ["a", "b"]},
            "capacity": {"tiers": ["Spot"]},
        },
    ),
    "the user's own selector": (
        "0e5ea46850bca987",
        {"workers": {"template": {"nodeSelector": {"kubernetes.io/os": "linux", "pool": "a"}}}},
    ),
    "the user's own toleration": (
        "a4840092d8b4bbc6",
        {
            "capacity": {"tiers": ["Spot"]},
            "workers": {
                "template": {
                    "tolerations": [{"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}]
                }
            },
        },
    ),
}
"""Digests as an operator wrote them before it knew GKE, AKS and the label of the operating system."""


@pytest.mark.parametrize("kind", SINCE_FIRST)
def test_a_workload_of_an_older_operator_asks_for_the_same(kind: str) -> None:
    """Where this fails the pods of a quota have changed: each waiting run would lose its place. Extend `_as_before`."""
    digest, parts = SINCE_FIRST[kind]
    meta, spec = a_meta().model_copy(update={"queue": "gpus"}), a_spec(**parts)
    assert asks_alike(digest, meta, spec, Stage.TRAIN)
    assert asks_alike(asked(meta, spec, Stage.TRAIN), meta, spec, Stage.TRAIN)
    assert not asks_alike(digest, meta.model_copy(update={"queue": "cpus"}), spec, Stage.TRAIN)
    more = parts | {"workers": {**parts.get("workers", {}), "nodes": 3}, "checkpoint": SHARED}
    assert not asks_alike(digest, meta, a_spec(**more), Stage.TRAIN)
