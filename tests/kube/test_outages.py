"""Zones that turn silent: what counts as an outage, and that silence alone restarts nothing for ten minutes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import kmock
import pytest

from piton.api.reasons import Reason
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Phase
from piton.kube import outages
from piton.rendering.affinity import ZONE
from support.apiserver import EVENTS, JOBS, NODES, PODS, Body
from support.builders import a_manifest, later
from support.cluster import Runs, a_node
from support.pilot import Pilot

RUNS = [f"r{number}" for number in range(5)]


def nodes(zone: str, *, silent: int, of: int, at: float = 0, labels: bool = True) -> list[Body]:
    """So many nodes of a zone, of which some are silent since then, in seconds from noon."""
    found: dict[str, str] = {ZONE: zone} if labels else {}
    since = later(at).isoformat()
    return [
        a_node(f"{zone}-{number}", ready="Unknown" if number < silent else "True", since=since, labels=found)
        for number in range(of)
    ]


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        pytest.param(nodes("a", silent=2, of=3), None, id="two are too few"),
        pytest.param(nodes("a", silent=3, of=9), None, id="a third of the zone"),
        pytest.param(nodes("a", silent=3, of=8), (3, 8, "zone a"), id="more than a third of the zone"),
        pytest.param(nodes("a", silent=3, of=8) + nodes("b", silent=0, of=50), (3, 8, "zone a"), id="of one zone"),
        pytest.param(nodes("a", silent=1, of=1) + nodes("b", silent=0, of=20), None, id="the only node of a zone"),
        pytest.param(
            nodes("a", silent=1, of=3) + nodes("b", silent=1, of=3) + nodes("c", silent=1, of=2),
            (3, 8, "the cluster"),
            id="a few in each zone, and many of all",
        ),
        pytest.param(
            nodes("a", silent=1, of=3) + nodes("b", silent=1, of=3) + nodes("c", silent=1, of=3),
            None,
            id="a few in each zone, and a third of all",
        ),
        pytest.param(
            nodes("a", silent=1, of=1) + nodes("a", silent=2, of=2, at=1200), None, id="the others twenty minutes later"
        ),
        pytest.param(
            nodes("a", silent=1, of=1) + nodes("a", silent=2, of=2, at=290), (3, 3, "zone a"), id="within five minutes"
        ),
        pytest.param(
            nodes("", silent=4, of=5, labels=False), (4, 5, "the cluster"), id="a cluster whose nodes name no zone"
        ),
    ],
)
def test_an_outage_is_many_nodes_of_a_zone_or_of_all_within_minutes(
    some: list[Body], expected: tuple[int, int, str] | None
) -> None:
    found = outages.silence(some[0], some)

    assert (found and (found.silent, found.nodes, found.where)) == expected


def test_a_node_that_answers_is_part_of_no_outage() -> None:
    some = nodes("a", silent=4, of=5)

    assert outages.silence(some[-1], some) is None


# --- runs in a zone ---------------------------------------------------------------------------------------------------


async def set_silent(pilot: Pilot, *, silent: bool, which: Callable[[str], bool] = lambda name: True) -> None:
    """As the node controller does 50 s after the last heartbeat: Ready is Unknown."""
    for node in pilot.server.all(NODES):
        name = node["metadata"]["name"]
        if which(name):
            since, ready = pilot.clock.now().isoformat(), "Unknown" if silent else "True"
            await pilot.server.put(NODES, a_node(name, ready=ready, since=since, labels=_labels(node)))


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    return dict(node["metadata"].get("labels") or {})


async def train(pilot: Pilot, names: list[str], zone: str = "us-east-1a") -> None:
    pilot.cluster.node_labels = {ZONE: zone}
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    for name in names:
        await pilot.cluster.apply(a_manifest(name))
    await pilot.until(lambda: all(_phase(pilot, name) is Phase.TRAINING for name in names))


def _phase(pilot: Pilot, name: str) -> Phase | None:
    return None if pilot.run(name) is None else pilot.status(name).phase


def attempts(pilot: Pilot) -> list[int]:
    return [pilot.status(name).attempt for name in RUNS]


async def pass_time(pilot: Pilot, seconds: float) -> None:
    """In steps of at most half a minute: what the operator has to do earlier, its own alarms tell it."""
    while seconds > 0:
        await pilot.turn(min(seconds, 30.0))
        seconds -= 30
    await pilot.settle(resync=False)


async def test_the_only_node_of_a_zone_that_dies_is_a_preemption_within_90_s(pilot: Pilot) -> None:
    for node in nodes("us-east-1b", silent=0, of=20):
        await pilot.server.put(NODES, node)
    await train(pilot, ["r0"])
    await set_silent(pilot, silent=True, which=lambda name: name.startswith("node-of-"))
    silent_at = pilot.clock.now()

    await pilot.until(lambda: pilot.status("r0").preemptions == 1)

    assert pilot.clock.now() - silent_at <= timedelta(seconds=35), "the node controller has waited up to 55 s before"
    assert pilot.status("r0").attempts[0].reason is Reason.NODE_GONE


async def test_silence_alone_restarts_nothing_for_ten_minutes_and_then_one_attempt_a_minute(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)

    await pass_time(pilot, 595)
    assert attempts(pilot) == [1] * 5
    assert pilot.count("DELETE") == {}

    restarted = []
    for _ in range(6):
        await pass_time(pilot, 60)
        restarted.append(sum(number > 1 for number in attempts(pilot)))
    assert restarted == [1, 2, 3, 4, 5, 5]
    first = [pilot.status(name).attempts[0] for name in RUNS]
    assert {(record.verdict, record.reason) for record in first} == {(Verdict.PREEMPTED, Reason.ZONE_SILENT)}


async def test_a_zone_that_answers_again_restarts_nothing(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    await pass_time(pilot, 540)
    assert said(pilot.status("r0")).reason is Reason.ZONE_SILENT

    await set_silent(pilot, silent=False)
    await pass_time(pilot, 900)

    assert attempts(pilot) == [1] * 5
    assert said(pilot.status("r0")).reason is Reason.TRAINING


async def test_those_that_stay_silent_when_the_zone_is_back_have_their_ten_minutes_and_no_turns_before_theirs(
    pilot: Pilot,
) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    await pass_time(pilot, 120)

    await set_silent(pilot, silent=False, which=lambda name: "r4" not in name)
    await pass_time(pilot, 475)
    assert attempts(pilot) == [1] * 5

    await pass_time(pilot, 10)
    assert attempts(pilot) == [1, 1, 1, 1, 2]


async def test_nodes_that_are_launched_meanwhile_do_not_make_the_outage_smaller(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    pilot.advance(60)
    await set_silent(pilot, silent=True)
    for number in range(40):
        node = a_node(f"new-{number}", labels={ZONE: "us-east-1a"})
        node["metadata"]["creationTimestamp"] = (pilot.clock.now() + timedelta(seconds=30)).isoformat()
        await pilot.server.put(NODES, node)

    await pass_time(pilot, 540)

    assert attempts(pilot) == [1] * 5


async def test_a_new_operator_in_the_middle_of_it_decides_the_same(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    await pass_time(pilot, 300)

    pilot.controller._shared = replace(pilot.controller._shared, outages=outages.Outages(pilot.client, pilot.timer))
    await pass_time(pilot, 295)
    assert attempts(pilot) == [1] * 5

    await pass_time(pilot, 50)
    assert sorted(attempts(pilot)) == [1, 1, 1, 1, 2]


async def test_a_pod_that_the_taint_manager_deletes_meanwhile_is_waited_for_as_well(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    await pass_time(pilot, 60)
    for pod in pilot.server.all(PODS):
        target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        pod["status"]["conditions"] = [target]
        pod["metadata"]["deletionTimestamp"] = pilot.clock.now().isoformat()
        await pilot.server.put(PODS, pod)

    await pass_time(pilot, 480)

    assert attempts(pilot) == [1] * 5


async def test_a_machine_that_is_known_to_be_gone_is_not_waited_for(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    await pass_time(pilot, 60)
    await pilot.server.remove(NODES, "node-of-r3-1-master-0", None)

    await pass_time(pilot, 20)

    assert attempts(pilot) == [1, 1, 1, 2, 1]


async def test_people_read_what_happened_and_what_comes_next_and_the_zone_is_left(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await set_silent(pilot, silent=True)
    began = pilot.clock.now()
    await pass_time(pilot, 120)

    assert said(pilot.status("r0")).message == (
        "r0-1-master-0 on node-of-r0-1-master-0: 5 of 5 nodes of zone us-east-1a have turned silent at "
        f"{began:%H:%M:%S} UTC; they are waited for until {began + timedelta(seconds=600):%H:%M:%S} UTC at least"
    )
    told = [event for event in pilot.server.all(EVENTS) if event["reason"] == "ZoneSilent"]
    assert sum(event["involvedObject"]["name"] == "r0" for event in told) == 1

    await pass_time(pilot, 500)
    job = pilot.server.find(JOBS, "r0-2", "team")
    assert job is not None
    (avoided,) = _preferences(job)
    assert avoided["preference"]["matchExpressions"] == [{"key": ZONE, "operator": "NotIn", "values": ["us-east-1a"]}]


async def test_all_nodes_are_listed_once_for_all_runs_and_never_while_they_answer(pilot: Pilot) -> None:
    await train(pilot, RUNS)
    await pass_time(pilot, 120)
    assert lists_of_nodes(pilot) == 0

    await set_silent(pilot, silent=True)
    await pass_time(pilot, 540)

    assert lists_of_nodes(pilot) <= 540 / outages.FRESH_SECONDS


def said(status: RunStatus) -> Any:
    condition = status.condition("Training")
    assert condition is not None
    return condition


def _preferences(job: Body) -> list[Body]:
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    found: list[Body] = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    return found


def lists_of_nodes(pilot: Pilot) -> int:
    return sum(request.resource == NODES and request.action == kmock.action.LIST for request in pilot.server.asked)
