"""The controller: who is woken, what an error does, and when the process counts as ill."""

import json
import logging
from typing import Any
from unittest.mock import AsyncMock

import kmock
import pytest

from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.drive import reconcile
from piton.kube.log import JsonFormatter
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.report_store import Sender
from piton.kube.resources import Resource
from piton.kube.run_controller import Controller
from piton.kube.run_world import KubeWorld
from piton.kube.settings import PitonSettings
from piton.ports import Refused
from support.apiserver import JOBS, NODES, RUNS, refusal
from support.builders import a_manifest, a_progress
from support.cluster import CRASHES, Cluster, Runs, a_node
from support.pilot import FakeTimer, MortalClient, Pilot, configuration


async def test_an_api_server_that_is_down_for_a_while_costs_only_time(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.STARTING)
    pilot.server.refuse = lambda request: refusal(503, "ServiceUnavailable", "apiserver is shutting down")
    pilot.controller.wake("team", "ragcun")
    for _ in range(5):
        await pilot.settle(resync=False)
        pilot.advance(30)
    pilot.server.refuse = lambda request: None
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert (status.attempt, pilot.creates()["pytorchjobs"]) == (1, 1)


async def test_errors_in_a_row_are_waited_for_longer_each_time(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    pilot.server.refuse = lambda request: refusal(500, "InternalError", "etcdserver: request timed out")
    pilot.controller.wake("team", "ragcun")
    for _ in range(100):
        await pilot.settle(resync=False)
        pilot.advance(1)
    assert 8 <= len(pilot.server.asked) <= 12


async def test_a_bug_that_one_run_meets_does_not_stop_the_others(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(MortalClient):
        async def request(self, method: str, path: str, **options: Any) -> Any:
            if "/trainingruns/cursed" in path:
                raise ZeroDivisionError("a bug")
            return await super().request(method, path, **options)

    await cluster.apply(a_manifest("cursed"))
    await cluster.apply(a_manifest())
    async with Pilot(cluster, Buggy(configuration(cluster.server))) as pilot:
        await pilot.until_phase(Phase.SUCCEEDED)
    failures = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "pass failed"]
    assert {fields["run"] for fields in failures} == {"team/cursed"}
    assert "ZeroDivisionError" in failures[0]["traceback"]


async def test_a_bug_is_tried_again_with_patience(cluster: Cluster) -> None:
    class Buggy(MortalClient):
        broken = True

        async def request(self, method: str, path: str, **options: Any) -> Any:
            if self.broken:
                raise ZeroDivisionError("a bug")
            return await super().request(method, path, **options)

    client = Buggy(configuration(cluster.server))
    await cluster.apply(a_manifest())
    async with Pilot(cluster, client) as pilot:
        pilot.controller.wake("team", "ragcun")
        await pilot.settle(resync=False)
        client.broken = False
        assert pilot.server.writes == []
        pilot.advance(0.15)
        await pilot.settle(resync=False)
        assert pilot.status().phase is Phase.STARTING


async def test_a_run_that_does_not_exist_is_forgotten(pilot: Pilot) -> None:
    pilot.controller.on_pod("team", "ghost", {"metadata": {}, "spec": {"nodeName": "node-1"}})
    await pilot.settle(resync=False)
    pilot.controller.on_node(a_node("node-1"), deleted=False)
    assert len(pilot.controller.queue) == 0


async def test_a_node_wakes_only_the_runs_on_it(pilot: Pilot) -> None:
    for name in ("one", "two"):
        await pilot.cluster.apply(a_manifest(name))
        pilot.controller.on_pod("team", name, {"metadata": {}, "spec": {"nodeName": f"node-of-{name}"}})
    await pilot.settle(resync=False)
    pilot.controller.on_node(a_node("node-of-one"), deleted=False)
    assert await pilot.controller.queue.get() == ("team", "one")
    assert len(pilot.controller.queue) == 0


async def test_a_report_from_a_namespace_that_is_not_served_wakes_nobody(cluster: Cluster) -> None:
    async with MortalClient(configuration(cluster.server)) as client:
        controller = Controller(
            client, cluster.clock, FakeTimer(), PitonSettings(namespaces=("team",)), OperatorMetrics(Registry())
        )
        for namespace in ("elsewhere", "team"):
            controller.on_report(Sender(namespace=namespace, run="ragcun", run_uid="u", attempt=1), a_progress(1))
        assert [await controller.queue.get() for _ in range(len(controller.queue))] == [("team", "ragcun")]


async def test_a_namespace_that_cannot_be_listed_keeps_none_of_another_from_a_resync(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    cluster.server.refuse = lambda request: refusal(403, "Forbidden", "no") if request.namespace == "closed" else None
    async with MortalClient(configuration(cluster.server)) as client:
        settings = PitonSettings(namespaces=("closed", "team"))
        controller = Controller(client, cluster.clock, FakeTimer(), settings, OperatorMetrics(Registry()))
        await controller.resync()
        assert await controller.queue.get() == ("team", "ragcun")
        cluster.server.refuse = lambda request: refusal(403, "Forbidden", "no")
        with pytest.raises(Refused):
            await controller.resync()


async def test_a_back_off_ends_by_itself(pilot: Pilot) -> None:
    """Nobody wakes the run: the operator has remembered when the next attempt is due."""
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.RECOVERING)
    await pilot.settle(resync=False)
    pilot.advance(10)
    await pilot.settle(resync=False)
    assert pilot.status().attempt == 2


async def test_every_decision_that_changes_something_is_one_line_and_others_are_none(
    pilot: Pilot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="piton")
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.settle()
    lines = [json.loads(JsonFormatter().format(r)) for r in caplog.records if r.getMessage() == "decided"]
    assert [line["rule"] for line in lines][:2] == ["add_finalizer", "start"]
    assert lines[1]["effects"] == ["CreateVolume(FirstAttempt)", "StartAttempt(FirstAttempt)"]
    assert {line["run"] for line in lines} == {"team/ragcun"}
    count = len(caplog.records)
    await pilot.settle()
    assert len(caplog.records) == count


async def test_progress_alone_is_no_line_of_the_log(pilot: Pilot, caplog: pytest.LogCaptureFixture) -> None:
    """Of 1,000 runs that would be 100 lines a second."""
    caplog.set_level(logging.INFO, logger="piton")
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.settle()
    sender = Sender(namespace="team", run="ragcun", run_uid=_uid(pilot), attempt=1)
    count = len(caplog.records)
    pilot.controller.on_report(sender, a_progress(step=17))
    pilot.advance(60)
    await pilot.settle(resync=False)
    progress = pilot.status().progress
    assert progress is not None
    assert progress.step == 17
    assert len(caplog.records) == count


@pytest.mark.parametrize(("told", "looks"), [({"progress": {"step": 17}}, 0), ({"phase": "Starting"}, 1)])
async def test_a_status_is_looked_at_again_unless_it_shows_no_more_than_progress(
    pilot: Pilot, told: dict[str, Any], looks: int
) -> None:
    """Of 1,000 runs that report it would be 100 passes a second."""
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    pilot.advance(2)
    await pilot.settle()
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": {**run["status"], **told}})
    pilot.feed.deliver()
    pilot.advance(2)
    assert len(pilot.controller.queue) == looks


async def test_a_first_start_reads_nothing_live(pilot: Pilot) -> None:
    """The answer to the write of its finalizer shows the run as it is."""
    await pilot.cluster.apply(a_manifest())
    pilot.server.asked.clear()
    await pilot.settle(resync=False)
    assert pilot.status().phase is Phase.STARTING
    assert _reads(pilot) == []


async def test_a_first_start_that_another_process_has_prepared_reads_the_run(pilot: Pilot) -> None:
    """It lists nothing: that costs the API server a look at every pod of the namespace."""
    await pilot.cluster.apply(a_manifest())
    await _add_finalizer(pilot)
    pilot.server.asked.clear()
    await pilot.settle(resync=False)
    assert pilot.status().phase is Phase.STARTING
    assert _reads(pilot) == [(RUNS, "ragcun")]


async def test_a_first_start_that_another_process_has_prepared_sees_what_has_changed_since(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await _add_finalizer(pilot)
    pilot.feed.deliver()
    pilot.feed.hold = lambda event: True
    await _suspend(pilot)
    await pilot.settle(resync=False)
    assert "pytorchjobs" not in pilot.creates()


async def test_a_first_start_sees_what_has_changed_before_its_first_write(pilot: Pilot) -> None:
    """The cache does not have it yet, but the write has a precondition."""

    async def suspend(_: Any) -> None:
        pilot.server.before_write = None
        await _suspend(pilot)

    await pilot.cluster.apply(a_manifest())
    pilot.feed.deliver()
    pilot.feed.hold = lambda event: True
    pilot.server.before_write = suspend
    await pilot.settle(resync=False)
    assert pilot.status().phase is Phase.SUSPENDED
    assert "pytorchjobs" not in pilot.creates()


async def test_a_job_of_another_owner_that_the_cache_does_not_show_takes_the_name(pilot: Pilot) -> None:
    """It has no label of Piton's, so that the API server refuses the first job."""
    await pilot.server.put(JOBS, {"metadata": {"name": "ragcun-1", "namespace": "team"}, "spec": {}})
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)
    assert [attempt.reason for attempt in status.attempts] == [Reason.NAME_TAKEN, Reason.FINISHED]


def _reads(pilot: Pilot) -> list[tuple[Resource, str | None]]:
    actions = (kmock.action.FETCH, kmock.action.LIST)
    return [(request.resource, request.name) for request in pilot.server.asked if request.action in actions]


async def _add_finalizer(pilot: Pilot) -> None:
    decision = await reconcile(KubeWorld(pilot.client, pilot.clock, "team", "ragcun"), pilot.clock, AsyncMock())
    assert decision is not None
    assert decision.rule == "add_finalizer"


async def _suspend(pilot: Pilot) -> None:
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "spec": {**run["spec"], "suspend": True}})


# --- health -----------------------------------------------------------------------------------------------------------


async def test_a_watch_that_hangs_makes_the_process_ill(pilot: Pilot) -> None:
    pilot.advance(300)
    assert pilot.feed.cache.ailment() is None
    pilot.advance(1)
    assert pilot.feed.cache.ailment() == "the watch on trainingruns has done nothing for 301 s"


async def test_a_pass_that_hangs_makes_the_controller_ill(pilot: Pilot) -> None:
    seen: list[str | None] = []

    async def hang(request: Any) -> None:
        pilot.timer.advance(301)
        seen.append(pilot.controller.ailment())

    await pilot.cluster.apply(a_manifest())
    pilot.server.before_write = hang
    pilot.feed.deliver()
    await pilot.controller.handle(await pilot.controller.queue.get())
    assert seen[0] == "a pass over the run team/ragcun has taken 301 s"


async def test_nodes_are_not_read_for_pods_that_have_long_ended(pilot: Pilot) -> None:
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    before = len(pilot.server.asked)
    await KubeWorld(pilot.client, pilot.clock, "team", "ragcun").observe()
    nodes = [r.name for r in pilot.server.asked[before:] if r.resource == NODES]
    assert nodes == ["node-of-ragcun-2-master-0"]


async def test_a_pass_that_changes_nothing_costs_the_api_server_nothing(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    await pilot.settle()
    before = len(pilot.server.asked)
    for _ in range(10):
        await pilot.settle()
        pilot.advance(30)
    assert pilot.server.asked[before:] == []


def _uid(pilot: Pilot) -> str:
    run = pilot.run()
    assert run is not None
    return str(run["metadata"]["uid"])
