"""Whom a drain evicts."""

from typing import Any

import pytest

from hack.cluster.drills import evictable


def a_pod(*, phase: str = "Running", owner: str = "PyTorchJob", **metadata: str) -> dict[str, Any]:
    return {"metadata": {"ownerReferences": [{"kind": owner}], **metadata}, "status": {"phase": phase}}


def test_what_runs_or_waits_is_evicted() -> None:
    assert evictable(a_pod())
    assert evictable(a_pod(phase="Pending"))
    assert evictable({"metadata": {"name": "bare"}, "status": {}})


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(phase="Succeeded"),
        a_pod(phase="Failed"),
        a_pod(deletionTimestamp="2026-01-01T00:00:00Z"),
        a_pod(owner="DaemonSet"),
    ],
)
def test_what_has_ended_or_is_going_or_belongs_to_every_node_is_not(pod: dict[str, Any]) -> None:
    assert not evictable(pod)
