"""Runs that wait for room in a ResourceQuota: who is tried when, and what waiting costs."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from kmock import resource

from piton.api.conditions import WAITING
from piton.api.parse import parse
from piton.api.reasons import Reason
from piton.kube.controller_base import Worker
from piton.kube.job_controller import JobController
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.quota_waits import QuotaWaits, gives_room
from piton.kube.resources import QUOTAS
from piton.kube.run_controller import Controller
from piton.kube.settings import Engine, PitonSettings
from piton.kube.store import Change
from piton.kube.workqueue import WorkQueue
from piton.ports import Refused
from support import apiserver
from support.apiserver import CLAIMS, JOBS, PODS, RUNS, Body
from support.builders import a_manifest
from support.cluster import Cluster, Runs
from support.feed import Feed
from support.pilot import FakeTimer, MortalClient, configuration
from support.quota import Quota

Key = tuple[str, str]
STEP_SECONDS = 5.0


class Crowd:
    """An operator with its bundled engine in virtual time, and many runs that want the same."""

    def __init__(self, cluster: Cluster) -> None:
        self.server, self.clock, self.timer = cluster.server, cluster.clock, FakeTimer()
        self.cluster = cluster
        self.client = MortalClient(configuration(cluster.server), timer=self.timer)
        self.feed = Feed(cluster.server, self.client, self.timer, engine=True)
        settings, meter = PitonSettings(engine=Engine.BUNDLED), OperatorMetrics(Registry())
        cache, parts = self.feed.cache, (self.client, cluster.clock, self.timer, settings, meter)
        self.runs, self.jobs = Controller(*parts, cache=cache), JobController(*parts, cache=cache)
        self.workers: tuple[Worker, ...] = (self.runs, self.jobs)
        for worker in self.workers:
            worker.subscribe(cache)

    def forbid_watching(self) -> None:
        """As with a ClusterRole of before."""
        for reflector in self.feed.cache._of(QUOTAS, None):
            reflector.unusable = Refused("resourcequotas is forbidden")

    async def work(self) -> None:
        """Let the operator do all that it wants to do now."""
        while self.feed.deliver() or any(len(worker.queue) for worker in self.workers):
            for worker in self.workers:
                while len(worker.queue):
                    await worker.handle(await worker.queue.get())
                    self.feed.deliver()

    async def go_on(self, seconds: float) -> None:
        """Work for so long, with a resync every 10 minutes."""
        end = self.timer.time() + seconds
        while self.timer.time() < end:
            if self.timer.time() % 600 < STEP_SECONDS:
                for worker in self.workers:
                    await worker.resync(seconds=600)
            self.clock.advance(STEP_SECONDS)
            self.timer.advance(STEP_SECONDS)
            await self.work()

    async def wait(self, count: int, *, namespace: str = "team") -> None:
        """Create so many runs, and let them get to where they wait."""
        for number in range(count):
            manifest = a_manifest()
            manifest["metadata"] |= {"name": f"run{number}", "namespace": namespace}
            await self.cluster.apply(manifest)
        await self.work()
        await self.go_on(30)

    def reasons(self) -> set[Reason | None]:
        """What all the runs wait for."""
        found = [parse(body).status.condition(WAITING) for body in self.server.all(RUNS)]
        return {condition.reason if condition and condition.status == "True" else None for condition in found}

    def waiting(self) -> int:
        """How many objects the controllers remember to wait."""
        return sum(len(line) for worker in self.workers for line in worker._waits._lines.values())


@asynccontextmanager
async def a_crowd(cluster: Cluster) -> AsyncIterator[Crowd]:
    crowd = Crowd(cluster)
    try:
        yield crowd
    finally:
        crowd.feed.close()
        await crowd.client.close()


@pytest.fixture
async def crowd(cluster: Cluster) -> AsyncIterator[Crowd]:
    async with a_crowd(cluster) as found:
        yield found


KINDS = [pytest.param(kind, id=str(kind.plural)) for kind in (PODS, JOBS, CLAIMS)]
RUNS_MADE = 40


async def cost(crowd: Crowd, seconds: float = 3600.0) -> float:
    """Requests per second of a thousand runs, during the next hour in which all wait for room."""
    asked = len(crowd.server.asked)
    await crowd.go_on(seconds)
    assert crowd.reasons() == {Reason.QUOTA_EXCEEDED}
    return (len(crowd.server.asked) - asked) / seconds * 1000 / len(crowd.server.all(RUNS))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_thousand_runs_that_wait_for_room_cost_few_requests(crowd: Crowd, kind: resource) -> None:
    await Quota(crowd.server, kind, 0).publish()
    await crowd.wait(RUNS_MADE)
    assert 0 < await cost(crowd) < 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_quota_that_is_none_of_the_namespace_is_tried_again_soon(
    crowd: Crowd, kind: resource, elsewhere: bool
) -> None:
    """OpenShift's ClusterResourceQuota refuses in a ResourceQuota's words. Another namespace may have its name."""
    quota = Quota(crowd.server, kind, 0)
    if elsewhere:
        await crowd.server.put(apiserver.QUOTAS, {"metadata": {"name": "gpus", "namespace": "another"}})
    await crowd.wait(1)
    assert crowd.reasons() == {Reason.QUOTA_EXCEEDED}
    quota.hard = 1
    await crowd.go_on(300)
    assert crowd.reasons() != {Reason.QUOTA_EXCEEDED}
    assert quota.used == 1


async def test_so_do_a_thousand_whose_next_attempt_waits(crowd: Crowd) -> None:
    """They are read live before each try."""
    crowd.cluster.script[1] = Runs()
    quota = Quota(crowd.server, JOBS, RUNS_MADE)
    await crowd.wait(RUNS_MADE)
    quota.hard = 0
    await quota.publish()
    for _ in range(2):
        await crowd.cluster._schedule()
        await crowd.cluster._run_kubelet()
        await crowd.work()
    for pod in crowd.server.all(PODS):
        await crowd.cluster.disrupt(pod["metadata"]["name"], "EvictionByEvictionAPI", "team")
    for _ in range(4):
        await crowd.cluster._collect_garbage()
        await crowd.cluster._run_kubelet()
        await crowd.go_on(20)
    assert {parse(body).status.attempt for body in crowd.server.all(RUNS)} == {2}
    assert 0 < await cost(crowd) < 5


@pytest.mark.parametrize("kind", KINDS)
async def test_three_freed_places_are_filled_in_four_tries_by_those_that_have_waited_longest(
    crowd: Crowd, kind: resource
) -> None:
    quota = Quota(crowd.server, kind, 0)
    await quota.publish()
    await crowd.wait(20)
    await crowd.go_on(60)
    quota.hard, before = 3, quota.tries
    await quota.publish()
    await crowd.go_on(60)

    assert (quota.used, quota.tries - before) == (3, 4)
    assert crowd.waiting() == 17
    assert {body["metadata"]["labels"]["piton.dev/run"] for body in crowd.server.all(kind)} == {"run0", "run1", "run2"}


@pytest.mark.parametrize("change", ["less room", "another use of the same room", "room elsewhere"])
async def test_a_quota_without_more_room_wakes_nobody(crowd: Crowd, change: str) -> None:
    quota = Quota(crowd.server, PODS, 0)
    found = await quota.publish()
    await crowd.wait(10)
    other = await Quota(crowd.server, PODS, 0, namespace="other").publish()
    crowd.server.refuse = quota._refuse
    await crowd.go_on(30)
    before = quota.tries
    amounts = {"hard": {"count/pods": "9"}, "used": {"count/pods": "9"}}
    if change == "less room":
        amounts = {"hard": {"count/pods": "0"}, "used": {"count/pods": "4"}}
    subject = other if change == "room elsewhere" else found
    used = {"count/pods": "0"} if change == "room elsewhere" else amounts["used"]
    await crowd.server.put(apiserver.QUOTAS, {**subject, "status": {**amounts, "used": used}})
    await crowd.go_on(60)

    assert quota.tries == before


async def test_without_the_right_to_watch_quotas_the_back_off_is_as_for_any_refusal(crowd: Crowd) -> None:
    quota = Quota(crowd.server, PODS, 0)
    await quota.publish()
    await crowd.wait(10)
    crowd.forbid_watching()
    await crowd.go_on(1800)  # those that were to wait longer come, and are told
    before = quota.tries
    await crowd.go_on(900)

    assert quota.tries - before >= 10 * 900 / 95
    assert crowd.reasons() == {Reason.QUOTA_EXCEEDED}
    quota.hard = 10
    await crowd.go_on(120)  # the quota's change is not noticed
    assert quota.used == 10


async def test_a_quota_that_is_deleted_frees_all(crowd: Crowd) -> None:
    quota = Quota(crowd.server, PODS, 0)
    await quota.publish()
    await crowd.wait(10)
    quota.hard = 1000
    await crowd.server.remove(apiserver.QUOTAS, "gpus", "team")
    await crowd.go_on(30)

    assert (quota.used, crowd.waiting()) == (10, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_is_deleted_while_it_waits_is_forgotten(crowd: Crowd, kind: resource) -> None:
    quota = Quota(crowd.server, kind, 0)
    await quota.publish()
    await crowd.wait(5)
    assert crowd.waiting() == 5
    for number in range(4):
        await crowd.client.request("DELETE", f"/apis/piton.dev/v1alpha1/namespaces/team/trainingruns/run{number}")
    for _ in range(3):
        await crowd.go_on(10)
        await crowd.cluster._collect_garbage()
    await crowd.go_on(10)

    assert [body["metadata"]["name"] for body in crowd.server.all(RUNS)] == ["run4"]
    assert crowd.waiting() == 1
    assert not any(worker._waits._tried or worker._waits._passes for worker in crowd.workers)


async def test_pods_of_a_gang_are_not_tried_one_by_one_when_the_first_has_no_room(crowd: Crowd) -> None:
    quota = Quota(crowd.server, PODS, 0)
    await quota.publish()
    await crowd.cluster.apply(a_manifest(workers={"nodes": 8}))
    await crowd.work()
    await crowd.go_on(10)
    assert quota.tries == 2  # the second one second later
    quota.hard = 8
    await quota.publish()
    await crowd.go_on(10)
    assert (quota.used, quota.tries) == (8, 10)


# --- the order of tries -----------------------------------------------------------------------------------------------


class Line:
    """Objects that wait, and what is tried of them."""

    def __init__(self, *names: str) -> None:
        self.timer = FakeTimer()
        self.queue: WorkQueue[Key] = WorkQueue(self.timer, random=lambda: 0.0)
        self.waits = QuotaWaits(self.queue)
        for name in names:
            self.begin(name)
            self.end(name, refused=True)

    def begin(self, name: str, namespace: str = "team") -> None:
        self.waits.pass_began((namespace, name))

    def end(self, name: str, *, refused: bool = False, failed: bool = False, namespace: str = "team") -> None:
        if refused:
            self.waits.was_refused((namespace, name))
        self.waits.pass_ended((namespace, name), failed=failed)

    async def next(self) -> str | None:
        """The object that is tried now."""
        self.timer.advance(2)
        if not len(self.queue):
            return None
        key = await self.queue.get()
        self.queue.done(key)
        self.begin(key[1])
        return key[1]


async def test_who_was_refused_again_goes_to_the_end_of_the_line() -> None:
    line = Line("a", "b", "c")
    for expected in ("a", "b", "c", "a"):
        line.waits.room_came("team")
        assert await line.next() == expected
        line.end(expected, refused=True)
        assert await line.next() is None


async def test_who_got_room_hands_on_to_the_next_until_one_is_refused() -> None:
    line = Line("a", "b", "c", "d")
    line.waits.room_came("team")
    for expected in ("a", "b"):
        assert await line.next() == expected
        line.end(expected)
    assert await line.next() == "c"
    line.end("c", refused=True)
    assert await line.next() is None
    assert list(line.waits._lines["team"]) == [("team", "d"), ("team", "c")]


async def test_a_look_for_another_reason_costs_nobody_its_place() -> None:
    line = Line("a", "b")
    line.begin("a")
    line.end("a", refused=True)
    line.waits.room_came("team")
    assert await line.next() == "a"


async def test_room_that_comes_while_somebody_is_refused_is_not_missed() -> None:
    """Its refusal may be older than the room, also if it did not wait before."""
    line = Line()
    line.begin("a")
    line.waits.room_came("team")
    line.end("a", refused=True)
    assert await line.next() == "a"
    line.waits.room_came("elsewhere")
    line.end("a", refused=True)
    assert await line.next() is None


async def test_news_of_room_while_one_is_about_to_be_tried_do_not_try_another() -> None:
    line = Line("a", "b")
    line.waits.room_came("team")
    line.waits.room_came("team")
    assert await line.next() == "a"
    line.end("a", refused=True)
    assert await line.next() is None


async def test_news_of_room_while_one_is_tried_are_for_the_next_alone() -> None:
    line = Line("a", "b", "c")
    line.waits.room_came("team")
    assert await line.next() == "a"
    line.waits.room_came("team")
    line.end("a", refused=True)
    assert await line.next() == "b"
    line.end("b", refused=True)
    assert await line.next() is None


async def test_a_try_that_fails_for_another_reason_blocks_nobody_and_stays_in_line() -> None:
    line = Line("a", "b")
    line.waits.room_came("team")
    assert await line.next() == "a"
    line.end("a", failed=True)
    assert await line.next() is None
    line.waits.room_came("team")
    assert await line.next() == "b"
    assert ("team", "a") in line.waits


async def test_a_failure_of_one_that_does_not_wait_puts_it_in_no_line() -> None:
    line = Line()
    line.begin("a")
    line.end("a", failed=True)
    assert not line.waits._lines


def amounts(hard: Mapping[str, str] | None, used: Mapping[str, str] | None = None) -> Body | None:
    name = {"name": "q", "namespace": "team", "uid": "u"}
    return None if hard is None else {"metadata": name, "status": {"hard": dict(hard), "used": dict(used or {})}}


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        (amounts({"pods": "3"}, {"pods": "3"}), amounts({"pods": "4"}, {"pods": "3"}), True),
        (amounts({"pods": "3"}, {"pods": "3"}), amounts({"pods": "3"}, {"pods": "2"}), True),
        (amounts({"memory": "1Gi"}, {"memory": "1000Mi"}), amounts({"memory": "1Gi"}, {"memory": "1G"}), True),
        (amounts({"memory": "1Gi"}, {"memory": "1024Mi"}), amounts({"memory": "1024Mi"}, {"memory": "1Gi"}), False),
        (amounts({"cpu": "1"}, {"cpu": "900m"}), amounts({"cpu": "2"}, {"cpu": "1950m"}), False),
        (amounts({"pods": "3"}, {"pods": "9"}), amounts({"pods": "3"}, {"pods": "4"}), False),
        (amounts({"pods": "3"}, {"pods": "2"}), amounts({"pods": "2"}, {"pods": "2"}), False),
        (amounts({"pods": "3", "cpu": "1"}, {"pods": "3"}), amounts({"cpu": "1"}), True),
        (amounts({"pods": "3"}, {"pods": "3"}), None, True),
        (None, amounts({"pods": "3"}), False),
        (amounts({}), amounts({"pods": "3"}), False),
    ],
)
def test_a_quota_gives_room_when_more_is_left_of_anything(before: Body | None, after: Body | None, more: bool) -> None:
    texts = [None if body is None else json.dumps(body) for body in (before, after)]
    assert gives_room(Change(*texts)) is more
