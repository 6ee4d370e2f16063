"""Nodes with a broken device are tainted: a few, for a while, and no taint of anybody else's is touched."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.contract import names
from piton.contract.termination import Outcome
from piton.core.effects import TaintNode
from piton.kube.taints import NodeTaints
from piton.ports import Conflict
from piton.timing import Timing
from support.apiserver import EVENTS, NODES, refusal
from support.builders import NOW, a_manifest
from support.cluster import Cluster, Ends, Runs, a_node
from support.pilot import Pilot, a_pilot

DAY = 86_400.0
ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
THEIRS = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
OURS = {"key": names.TAINT_DEVICE_FAULT, "value": "ragcun-1", "effect": "NoSchedule"}


@pytest.fixture
async def pilot(cluster: Cluster) -> AsyncIterator[Pilot]:
    async with a_pilot(cluster, timing=Timing(device_taint_seconds=DAY)) as found:
        yield found


@pytest.fixture
def nodes(pilot: Pilot) -> NodeTaints:
    return NodeTaints(pilot.client, pilot.clock)


def taint(node: str = "gpu-0") -> TaintNode:
    return TaintNode(node=node, value="ragcun-1", until=NOW + timedelta(seconds=DAY), reason=Reason.DEVICE_LOST)


async def put(pilot: Pilot, *names_: str, **spec: Any) -> None:
    """Nodes with GPUs."""
    for name in names_:
        node = a_node(name, **spec)
        node["status"]["capacity"] = {"nvidia.com/gpu": "8"}
        await pilot.server.put(NODES, node)


def taints(pilot: Pilot, node: str = "gpu-0") -> list[dict[str, str]]:
    found = pilot.server.find(NODES, node, None)
    assert found is not None
    return list(found["spec"].get("taints") or ())


def writes(pilot: Pilot) -> int:
    return sum(write.resource == NODES for write in pilot.server.writes)


async def test_a_taint_is_put_beside_others_once_and_taken_back_when_its_time_has_come(
    pilot: Pilot, nodes: NodeTaints
) -> None:
    await put(pilot, "gpu-0", taints=[THEIRS])
    await nodes.put(taint())
    await nodes.put(taint())
    assert taints(pilot) == [THEIRS, OURS]
    assert writes(pilot) == 1

    pilot.clock.advance(DAY - 1)
    await nodes.expire()
    assert taints(pilot) == [THEIRS, OURS]
    pilot.clock.advance(1)
    await nodes.expire()
    assert taints(pilot) == [THEIRS]
    await nodes.expire()
    assert writes(pilot) == 2, "nothing is left of it by which it would be found again"


async def test_a_taint_that_somebody_puts_in_between_is_not_lost(pilot: Pilot, nodes: NodeTaints) -> None:
    await put(pilot, "gpu-0")

    async def first(_: object) -> None:
        pilot.server.before_write = None
        node = pilot.server.find(NODES, "gpu-0", None)
        assert node is not None
        node["spec"]["taints"] = [THEIRS]
        await pilot.server.put(NODES, node)

    pilot.server.before_write = first
    with pytest.raises(Conflict):
        await nodes.put(taint())
    assert taints(pilot) == [THEIRS]
    await nodes.put(taint())
    assert taints(pilot) == [THEIRS, OURS]


async def test_a_taint_of_a_persons_stays(pilot: Pilot, nodes: NodeTaints) -> None:
    await put(pilot, "gpu-0", taints=[OURS])
    pilot.clock.advance(10 * DAY)
    await nodes.expire()
    assert taints(pilot) == [OURS]


@pytest.mark.parametrize(("there", "tainted"), [(1, 1), (9, 1), (19, 1), (20, 2), (39, 3)])
async def test_no_more_than_a_tenth_of_the_nodes_with_gpus_is_tainted(
    pilot: Pilot, nodes: NodeTaints, there: int, tainted: int
) -> None:
    await put(pilot, *(f"gpu-{n}" for n in range(there)))
    for n in range(10):
        await pilot.server.put(NODES, a_node(f"cpu-{n}"))
    for n in range(there):
        await nodes.put(taint(f"gpu-{n}"))
    assert sum(bool(taints(pilot, f"gpu-{n}")) for n in range(there)) == tainted


async def test_an_attempt_that_finds_a_broken_device_has_its_node_tainted_and_says_so(
    pilot: Pilot, cluster: Cluster
) -> None:
    cluster.script[1] = Ends(outcome=Outcome.DEVICE_LOST, step=3, detail=ECC)
    cluster.script[2] = Runs()
    await cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().attempt == 2)

    assert taints(pilot, "node-of-ragcun-1-master-0") == [OURS]
    told = [event["message"] for event in pilot.server.all(EVENTS)]
    assert any("node node-of-ragcun-1-master-0 has a broken device" in message and ECC in message for message in told)

    pilot.advance(DAY)
    await pilot.settle()
    assert taints(pilot, "node-of-ragcun-1-master-0") == []


async def test_a_run_goes_on_where_the_operator_may_not_write_to_nodes(pilot: Pilot, cluster: Cluster) -> None:
    forbidden = refusal(403, "Forbidden", "nodes is forbidden")
    pilot.server.refuse = lambda request: forbidden if (request.method, request.resource) == ("PATCH", NODES) else None
    cluster.script[1] = Ends(outcome=Outcome.DEVICE_LOST, step=3, detail=ECC)
    cluster.script[2] = Runs()
    await cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().attempt == 2)
    assert taints(pilot, "node-of-ragcun-1-master-0") == []


async def test_without_the_setting_no_node_is_written_to(cluster: Cluster) -> None:
    cluster.script[1] = Ends(outcome=Outcome.DEVICE_LOST, step=3, detail=ECC)
    cluster.script[2] = Runs()
    async with a_pilot(cluster) as pilot:
        await cluster.apply(a_manifest())
        await pilot.until(lambda: pilot.status().attempt == 2)
        assert writes(pilot) == 0
        told = [event["message"] for event in pilot.server.all(EVENTS)]
    assert any("kubectl taint node node-of-ragcun-1-master-0 piton.dev/device-fault=ragcun-1" in m for m in told)
