"""Pods are told to be in one zone only where every node that may take them says which it is in."""

from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.stages import ARCHITECTURE, OPERATING_SYSTEM
from piton.api.status_base import Phase
from piton.contract import names
from piton.core.effects import StartAttempt
from piton.kube.run_world import KubeWorld
from piton.ports import Unavailable
from piton.rendering.affinity import ZONE
from support.apiserver import JOBS, NODES, WORKLOADS, refusal
from support.builders import a_manifest
from support.cluster import Runs, a_node
from support.kueue import Kueue
from support.pilot import Pilot

START = StartAttempt(number=1, reason=Reason.FIRST_ATTEMPT)
LINUX = {OPERATING_SYSTEM: "linux"}
AMD, ARM = {ARCHITECTURE: "amd64", **LINUX}, {ARCHITECTURE: "arm64", **LINUX}
NAMED, UNNAMED = {**AMD, ZONE: "a"}, AMD


async def put(pilot: Pilot, *nodes: dict[str, str]) -> None:
    for number, labels in enumerate(nodes):
        await pilot.server.put(NODES, a_node(f"n{number}", labels=labels))


async def start(pilot: Pilot, **workers: Any) -> None:
    """The first attempt of a run of two nodes is created."""
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2, **workers}))
    world = KubeWorld(pilot.client, pilot.clock, "team", "ragcun")
    assert await world.observe() is not None
    pilot.server.asked.clear()
    await world.apply(START)


def in_one_zone(pilot: Pilot) -> bool:
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    (told,) = {
        "podAffinity" in replica["template"]["spec"].get("affinity", {})
        for replica in job["spec"]["pytorchReplicaSpecs"].values()
    }
    return told


def questions(pilot: Pilot) -> int:
    return sum(request.resource == NODES for request in pilot.server.asked)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([], False),
        ([UNNAMED], False),
        ([NAMED], True),
        ([NAMED, UNNAMED], False),
        ([NAMED, ARM], True),
        ([ARM | {ZONE: "a"}], True),
    ],
    ids=["no nodes", "no zones", "zones", "a node without one", "one that takes no such pod", "nodes that come later"],
)
async def test_pods_are_told_to_be_in_one_zone_where_all_nodes_that_take_them_name_theirs(
    pilot: Pilot, nodes: list[dict[str, str]], told: bool
) -> None:
    await put(pilot, *nodes)
    await start(pilot)
    assert in_one_zone(pilot) is told


async def test_nodes_that_the_runs_own_selector_leaves_out_need_no_zone(pilot: Pilot) -> None:
    await put(pilot, NAMED | {"pool": "cloud"}, UNNAMED | {"pool": "rack"})
    await start(pilot, template={"nodeSelector": {"pool": "cloud"}})
    assert in_one_zone(pilot)


@pytest.mark.parametrize(
    ("workers", "told"), [({"nodes": 1}, False), ({"zones": ["a"]}, False), ({"zones": ["a", "b"]}, True)]
)
async def test_nobody_looks_at_nodes_where_the_spec_says_it(pilot: Pilot, workers: dict[str, Any], told: bool) -> None:
    """One whose user names zones is on nodes that name theirs, whatever the others do."""
    await put(pilot, UNNAMED)
    await start(pilot, **workers)
    assert (in_one_zone(pilot), questions(pilot)) == (told, 0)


async def test_an_operator_that_may_not_read_nodes_asks_for_no_zone(pilot: Pilot) -> None:
    await put(pilot, NAMED)
    pilot.server.refuse = lambda r: refusal(403, "Forbidden", "no nodes") if r.resource == NODES else None
    await start(pilot)
    assert not in_one_zone(pilot)


async def test_nothing_is_started_while_the_question_is_not_answered(pilot: Pilot) -> None:
    """An attempt keeps its zones or has none for all of its life."""
    await put(pilot, NAMED)
    pilot.server.refuse = lambda r: refusal(500, "InternalError", "busy") if r.resource == NODES else None
    with pytest.raises(Unavailable):
        await start(pilot)
    assert not pilot.server.all(JOBS)


async def test_a_run_with_quota_is_not_asked_for_anew_because_of_its_zone(pilot: Pilot) -> None:
    """And of the nodes without a zone only those count that its flavor allows."""
    kueue = Kueue(pilot.cluster, gpus=16)
    await kueue.install()
    await put(pilot, NAMED | {"pool": "spot-a"}, UNNAMED)
    pilot.cluster.script[1], pilot.cluster.node_labels = Runs(), NAMED
    manifest = a_manifest(workers={"nodes": 2})
    manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
    await pilot.cluster.apply(manifest)
    await pilot.until_phase(Phase.TRAINING)
    for _ in range(3):
        await pilot.turn()

    assert in_one_zone(pilot)
    (body,) = pilot.server.all(WORKLOADS)
    assert "affinity" not in body["spec"]["podSets"][0]["template"]["spec"]
    assert (pilot.creates()["workloads"], pilot.status().attempt) == (1, 1)
