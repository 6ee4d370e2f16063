"""The engine on an API server: whole lives of jobs, deaths in between, strangers, refusals."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import kmock
import pytest
from kmock import resource

from piton.contract import names
from piton.kube.app import serve
from piton.kube.job_controller import JobController
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.settings import Engine, PitonSettings
from piton.rendering.pytorchjob import pytorchjob
from support.apiserver import EVENTS, JOBS, PODS, QUOTAS, RUNS, SERVICES, ApiServer, refusal
from support.builders import a_manifest, a_spec, meta
from support.cluster import Cluster
from support.feed import Feed
from support.jobs import Body, a_job, replicas
from support.pilot import Death, FakeTimer, MortalClient, a_cluster, configuration, url

MASTER, WORKER = "ragcun-1-master-0", "ragcun-1-worker-0"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with a_cluster() as found:
        yield found


class Hand:
    """One operator process's engine, and the hand that moves the pods."""

    def __init__(self, cluster: Cluster, *, dies_after: int | None = None) -> None:
        self.cluster = cluster
        self.server: ApiServer = cluster.server
        self.timer = FakeTimer()
        self.client = MortalClient(configuration(cluster.server), dies_after=dies_after)
        self.meter = OperatorMetrics(Registry())
        self.feed = Feed(cluster.server, self.client, self.timer, engine=True)
        settings = PitonSettings(engine=Engine.BUNDLED)
        self.jobs = JobController(self.client, cluster.clock, self.timer, settings, self.meter, cache=self.feed.cache)
        self.jobs.subscribe(self.feed.cache)

    async def __aenter__(self) -> "Hand":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.feed.close()
        await self.client.close()

    async def settle(self) -> None:
        """Let the engine do all that it wants to do now."""
        self.feed.deliver()
        await self.jobs.resync()
        await self.work()

    async def work(self) -> None:
        """Settle, without a look at what wants none."""
        for _ in range(100):
            self.feed.deliver()
            if not len(self.jobs.queue):
                return
            await self.jobs.handle(await self.jobs.queue.get())
        raise AssertionError(f"still busy after 100 passes: {self.server.writes[-10:]}")

    async def calm(self) -> None:
        """Settle, also after an error that is waited for."""
        await self.settle()
        self.timer.advance(1)
        await self.settle()

    def advance(self, seconds: float) -> None:
        self.cluster.clock.advance(seconds)
        self.timer.advance(seconds)

    async def phase(self, phase: str, *pods: str) -> None:
        """What the kubelet says of these pods; those that are gone, or have it already, say nothing."""
        for name in pods:
            pod = self.server.find(PODS, name, "team")
            if pod is not None and pod.get("status", {}).get("phase") != phase:
                await self.server.put(PODS, {**pod, "status": {"phase": phase}})

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.server.all(PODS)]

    def conditions(self, name: str = "ragcun-1") -> list[str]:
        job = self.server.find(JOBS, name, "team")
        found = (job or {}).get("status", {}).get("conditions", [])
        return [c["type"] if c["status"] == "True" else f"not {c['type']}" for c in found]

    def written(self, method: str = "POST") -> list[tuple[str, str]]:
        """What was written over HTTP."""
        writes = [w for w in self.server.writes if w.method == method and w.done]
        return [(str(w.resource.plural), w.name) for w in writes]


async def _apply(cluster: Cluster, nodes: int = 2) -> Body:
    """The job that Piton makes of a run, as the API server keeps it."""
    spec = a_spec(workers={"nodes": nodes})
    return await cluster.server.put(JOBS, pytorchjob(meta(), spec, 1))


async def test_passes_over_jobs_are_measured_apart_from_those_over_runs(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        hand.server.refuse = lambda request: refusal(403, "Forbidden", "no") if request.resource == PODS else None
        await hand.calm()
        hand.server.refuse = lambda request: None
        await hand.calm()
        ask = hand.meter.registry.get_sample_value
        assert ask("piton_reconcile_errors_total", {"controller": "job", "fault": "api"}) == 3
        assert (ask("piton_reconcile_seconds_count", {"controller": "job"}) or 0) > 2
        assert ask("piton_reconcile_seconds_count", {"controller": "run"}) == 0


async def _succeed(hand: Hand) -> None:
    await hand.calm()
    await hand.phase("Running", MASTER, WORKER)
    await hand.calm()
    assert hand.conditions()[-1] == "Running"
    await hand.phase("Succeeded", MASTER)


async def _suspend(hand: Hand) -> None:
    await hand.calm()
    await hand.phase("Running", MASTER, WORKER)
    await hand.calm()
    await _set_policy(hand, suspend=True)


async def _resume(hand: Hand) -> None:
    await hand.calm()
    assert (hand.pods(), hand.conditions()) == ([], ["Created", "not Running", "Suspended"])
    await _set_policy(hand, suspend=False)


async def _set_policy(hand: Hand, **policy: Any) -> None:
    job = hand.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    run_policy = {**job["spec"]["runPolicy"], **policy}
    await hand.server.put(JOBS, {**job, "spec": {**job["spec"], "runPolicy": run_policy}})


async def _clean_up(hand: Hand) -> None:
    await hand.calm()


REPLICAS = [("services", MASTER), ("services", WORKER), ("pods", MASTER), ("pods", WORKER)]
LIFE: tuple[Callable[[Hand], Awaitable[None]], ...] = (_suspend, _resume, _succeed, _clean_up)
WRITES = 21
"""Writes of that life when nothing disturbs it; the first test keeps the number honest."""


async def _live(hand: Hand, done: list[Any]) -> None:
    """Go on with the life where the hand before has left it."""
    for chapter in LIFE[len(done) :]:
        await chapter(hand)
        done.append(chapter)


def _check_life(hand: Hand) -> None:
    assert sorted(hand.written()) == sorted(REPLICAS * 2)
    assert hand.conditions() == ["Created", "not Suspended", "not Running", "Succeeded"]
    assert hand.pods() == [MASTER]


async def test_a_job_of_pitons_own_runs_to_its_end(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        await _succeed(hand)
        await hand.settle()
        assert hand.conditions() == ["Created", "not Running", "Succeeded"]
        assert hand.written() == REPLICAS
        assert hand.written("DELETE") == [("services", WORKER), ("pods", WORKER)]
        job = hand.server.find(JOBS, "ragcun-1", "team")
        assert job is not None
        assert job["status"]["completionTime"] == "2026-11-21T12:00:00Z"
        assert job["status"]["replicaStatuses"]["Worker"]["succeeded"] == 1


async def test_a_settled_job_causes_no_write(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        for phase in ("Pending", "Running", "Succeeded"):
            await hand.phase(phase, MASTER)
            await hand.settle()
            count = len(cluster.server.writes)
            hand.advance(3600)
            await hand.settle()
            assert len(cluster.server.writes) == count, phase


async def test_an_undisturbed_life_takes_so_many_writes(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        await _live(hand, [])
        _check_life(hand)
    assert len(cluster.server.writes) == WRITES


@pytest.mark.parametrize("write", range(1, WRITES + 1))
async def test_an_engine_that_dies_after_a_write_is_replaced_without_a_trace(cluster: Cluster, write: int) -> None:
    await _apply(cluster)
    done: list[Any] = []
    async with Hand(cluster, dies_after=write) as first:
        with pytest.raises(Death):
            await _live(first, done)
    async with Hand(cluster) as second:
        await _live(second, done)
        _check_life(second)


@pytest.mark.parametrize("write", range(1, WRITES + 1))
async def test_a_write_whose_answer_is_lost_is_not_done_twice(cluster: Cluster, write: int) -> None:
    await _apply(cluster)
    cluster.server.lose_answers_of = {write}
    async with Hand(cluster) as hand:
        await _live(hand, [])
        _check_life(hand)
    assert cluster.server.lost == 1


# --- strangers --------------------------------------------------------------------------------------------------------


async def test_jobs_without_pitons_label_are_left_alone(cluster: Cluster) -> None:
    stranger = a_job()
    stranger["metadata"]["labels"] = {"app": "somebody-elses"}
    before = await cluster.server.put(JOBS, stranger)
    async with Hand(cluster) as hand:
        hand.jobs.wake("team", "ragcun-1")
        await hand.settle()
        assert cluster.server.writes == []
        assert cluster.server.find(JOBS, "ragcun-1", "team") == before
        assert cluster.server.asked == []


async def test_a_pod_of_somebody_else_is_not_adopted_and_the_job_says_what_is_in_its_way(cluster: Cluster) -> None:
    foreign = {"metadata": {"name": MASTER, "namespace": "team"}, "spec": {}, "status": {"phase": "Succeeded"}}
    before = await cluster.server.put(PODS, foreign)
    await _apply(cluster, nodes=1)
    async with Hand(cluster) as hand:
        await hand.settle()
        assert hand.conditions() == ["Created"]
        assert cluster.server.find(PODS, MASTER, "team") == before
        (event,) = cluster.server.all(EVENTS)
        assert (event["reason"], event["involvedObject"]["kind"]) == ("FailedCreatePod", "PyTorchJob")
        assert f"pods '{MASTER}' exists and does not belong to this job" in event["message"]
        await cluster.server.remove(PODS, MASTER, "team")
        hand.advance(1)
        await hand.settle()
        assert hand.written()[-1] == ("pods", MASTER)


async def test_a_pod_of_an_earlier_job_of_the_name_is_waited_for(cluster: Cluster) -> None:
    old = await _apply(cluster)
    async with Hand(cluster) as hand:
        await hand.settle()
        await cluster.server.remove(JOBS, "ragcun-1", "team")
        new = await _apply(cluster)
        await hand.settle()
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert hand.conditions() == ["Created"]
        for name in (MASTER, WORKER):
            await cluster.server.remove(PODS, name, "team")
            await cluster.server.remove(SERVICES, name, "team")
        hand.advance(1)
        await hand.settle()
        pod = cluster.server.find(PODS, MASTER, "team")
        assert pod is not None
        assert pod["metadata"]["ownerReferences"][0]["uid"] == new["metadata"]["uid"]


# --- refusals and errors ----------------------------------------------------------------------------------------------


async def test_a_quota_is_told_once_and_waited_for(cluster: Cluster) -> None:
    await _apply(cluster)
    message = f'pods "{MASTER}" is forbidden: exceeded quota: gpus'

    def no_pods(request: Any) -> Any:
        created = request.resource == PODS and request._raw_request.method == "POST"
        return refusal(403, "Forbidden", message) if created else None

    cluster.server.refuse = no_pods
    full = {"hard": {"pods": "0"}, "used": {"pods": "0"}}
    quota = await cluster.server.put(QUOTAS, {"metadata": {"name": "gpus", "namespace": "team"}, "status": full})
    async with Hand(cluster) as hand:
        for _ in range(5):
            await hand.settle()
            hand.advance(60)
        (event,) = cluster.server.all(EVENTS)
        assert (event["type"], event["reason"]) == ("Warning", "FailedCreatePod")
        assert event["message"] == f"Error creating: {message}"
        assert hand.conditions() == ["Created"]
        assert hand.written()[:2] == [("services", MASTER), ("services", WORKER)]
        cluster.server.refuse = lambda request: None
        await cluster.server.put(QUOTAS, {**quota, "status": {"hard": {"pods": "2"}, "used": {"pods": "0"}}})
        await hand.calm()
        assert hand.pods() == [MASTER, WORKER]


def _refusing(words: list[str]) -> Callable[[Any], Any]:
    """Pods are refused with the first of these words."""

    def refuse(request: Any) -> Any:
        creates = request.resource == PODS and request.method == "POST"
        return refusal(403, "Forbidden", words[0]) if creates and words else None

    return refuse


@pytest.mark.parametrize(
    ("refused", "created"),
    [(MASTER, []), ("ragcun-1-worker-1", [MASTER, WORKER])],
    ids=["the master's", "a worker's"],
)
@pytest.mark.parametrize("why", ["a policy", "a server in trouble", "the name of a stranger's pod"])
async def test_no_pod_of_a_gang_is_created_after_one_was_refused(
    cluster: Cluster, refused: str, created: list[str], why: str
) -> None:
    """Seven machines of eight train nothing."""
    await _apply(cluster, nodes=8)
    answers = {
        "a policy": refusal(403, "Forbidden", 'admission webhook "ports.example" denied the request: no port 9400'),
        "a server in trouble": refusal(500, "InternalError", "an error on the server"),
    }
    if why in answers:
        cluster.server.refuse = lambda request: (
            answers[why]
            if request.method == "POST" and request.resource == PODS and request.data["metadata"]["name"] == refused
            else None
        )
    else:
        await cluster.server.put(PODS, {"metadata": {"name": refused, "namespace": "team"}})
        created = sorted([*created, refused])
    async with Hand(cluster) as hand:
        for _ in range(6):
            await hand.calm()
            hand.advance(30)
        assert sorted(hand.pods()) == created
        cluster.server.refuse = lambda _: None
        if why not in answers:
            await cluster.server.remove(PODS, refused, "team")
        for _ in range(4):
            hand.advance(120)
            await hand.calm()
        assert len(hand.pods()) == 8


def _told(cluster: Cluster) -> int:
    """How often an Event was posted, or counted once more."""
    return sum(w.resource == EVENTS and w.done for w in cluster.server.writes)


async def test_an_event_that_says_the_same_but_for_numbers_is_told_again_after_20_minutes(cluster: Cluster) -> None:
    await _apply(cluster, nodes=1)
    words = ['admission webhook "a" denied the request: 7 of 8']
    cluster.server.refuse = _refusing(words)
    async with Hand(cluster) as hand:
        await hand.settle()
        words[0] = 'admission webhook "a" denied the request: 6 of 8'
        for _ in range(19):
            hand.advance(60)
            await hand.settle()
        assert _told(cluster) == 1
        hand.advance(60)
        await hand.settle()
        assert _told(cluster) == 2
        words[0] = 'admission webhook "b" denied the request: 6 of 8'
        hand.advance(100)
        await hand.settle()
        assert _told(cluster) == 3


async def test_an_event_that_could_not_be_posted_is_tried_again(cluster: Cluster) -> None:
    await _apply(cluster, nodes=1)
    cluster.server.refuse = lambda request: (
        refusal(403, "Forbidden", "no") if request.resource in (PODS, EVENTS) else None
    )
    async with Hand(cluster) as hand:
        await hand.settle()
        assert _told(cluster) == 0
        cluster.server.refuse = _refusing(["no"])
        hand.advance(100)
        await hand.settle()
        assert _told(cluster) == 1


@pytest.mark.parametrize("end", ["it is gone", "its pods are there"])
async def test_what_was_told_of_a_job_is_forgotten_with_its_trouble(cluster: Cluster, end: str) -> None:
    await _apply(cluster, nodes=1)
    words = ["no"]
    cluster.server.refuse = _refusing(words)
    async with Hand(cluster) as hand:
        await hand.settle()
        assert hand.jobs._repeats._told
        words.clear()
        if end == "it is gone":
            await cluster.server.remove(JOBS, "ragcun-1", "team")
        hand.advance(100)
        await hand.settle()
        assert not hand.jobs._repeats._told


async def test_another_job_of_the_name_tells_what_is_refused_to_it(cluster: Cluster) -> None:
    await _apply(cluster, nodes=1)
    cluster.server.refuse = _refusing(["no"])
    async with Hand(cluster) as hand:
        await hand.settle()
        await cluster.server.remove(JOBS, "ragcun-1", "team")
        await _apply(cluster, nodes=1)
        hand.advance(100)
        await hand.settle()
        assert len(cluster.server.all(EVENTS)) == 2


async def test_an_api_server_that_is_down_for_a_while_costs_only_time(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        cluster.server.refuse = lambda request: refusal(503, "ServiceUnavailable", "apiserver is shutting down")
        hand.jobs.wake("team", "ragcun-1")
        await hand.jobs.handle(await hand.jobs.queue.get())
        cluster.server.refuse = lambda request: None
        assert len(hand.jobs.queue) == 0
        hand.advance(0.15)
        assert len(hand.jobs.queue) == 1
        await hand.settle()
        assert hand.written() == REPLICAS


async def test_a_job_that_changed_meanwhile_is_looked_at_again(cluster: Cluster) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:

        async def somebody_writes(request: Any) -> None:
            if request.subresource == "status":
                cluster.server.before_write = None
                await _set_policy(hand, cleanPodPolicy="All")

        cluster.server.before_write = somebody_writes
        await hand.settle()
        assert hand.conditions() == ["Created"]
        assert [w.done for w in cluster.server.writes if w.subresource == "status"] == [False, True]


async def test_a_job_that_goes_while_it_is_looked_at_is_no_error(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:

        async def somebody_deletes(request: Any) -> None:
            if request.subresource == "status":
                cluster.server.before_write = None
                await cluster.server.remove(JOBS, "ragcun-1", "team")

        cluster.server.before_write = somebody_deletes
        await hand.settle()
        assert caplog.records == []


@pytest.mark.parametrize("comes_again", [True, False])
async def test_only_the_pod_that_was_meant_is_deleted(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, comes_again: bool
) -> None:
    await _apply(cluster)
    async with Hand(cluster) as hand:
        await _succeed(hand)
        other = {"metadata": {"name": WORKER, "namespace": "team"}, "spec": {}, "status": {"phase": "Running"}}

        async def somebody_is_quicker(request: Any) -> None:
            if (request.resource, request.name) == (PODS, WORKER):
                cluster.server.before_write = None
                await cluster.server.remove(PODS, WORKER, "team")
                if comes_again:
                    await cluster.server.put(PODS, other)

        cluster.server.before_write = somebody_is_quicker
        await hand.settle()
        assert (WORKER in hand.pods()) is comes_again
        assert caplog.records == []


async def test_a_deadline_ends_a_job_that_nothing_else_wakes(cluster: Cluster) -> None:
    await _apply(cluster, nodes=1)
    async with Hand(cluster) as hand:
        await _set_policy(hand, activeDeadlineSeconds=60)
        await hand.settle()
        hand.advance(59)
        assert len(hand.jobs.queue) == 0
        hand.advance(1)
        await hand.jobs.handle(await hand.jobs.queue.get())
        assert hand.conditions() == ["Created", "Failed"]


async def test_a_deadline_ends_a_job_whose_pods_wait_for_room(cluster: Cluster) -> None:
    await _apply(cluster, nodes=1)
    message = f'pods "{MASTER}" is forbidden: exceeded quota: gpus'
    cluster.server.refuse = lambda request: (
        refusal(403, "Forbidden", message) if request.resource == PODS and request.method == "POST" else None
    )
    async with Hand(cluster) as hand:
        await _set_policy(hand, activeDeadlineSeconds=60)
        await hand.settle()
        hand.advance(10)
        await hand.work()
        hand.advance(50)
        await hand.work()
        assert hand.conditions() == ["Created", "Failed"]


async def test_a_bug_that_one_job_meets_does_not_stop_the_others(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cursed = a_job(pytorchReplicaSpecs={"Master": {**replicas(), "replicas": "many"}})
    cursed["metadata"]["name"] = "cursed-1"
    await cluster.server.put(JOBS, cursed)
    await _apply(cluster)
    async with Hand(cluster) as hand:
        await hand.settle()
        assert [(kind, name) for kind, name in hand.written() if kind != "events"] == REPLICAS
        told = [event for event in cluster.server.all(EVENTS) if event["reason"] == "OperatorError"]
        assert [event["involvedObject"]["name"] for event in told] == ["cursed-1"]
    failures = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "pass failed"]
    assert {fields["job"] for fields in failures} == {"team/cursed-1"}


# --- with watches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PODS, SERVICES])
async def test_every_pod_and_every_service_that_changes_wakes_its_job(cluster: Cluster, kind: resource) -> None:
    labels = {"training.kubeflow.org/job-name": "ragcun-1", names.LABEL_RUN: "ragcun"}
    async with Hand(cluster) as hand:
        await cluster.server.put(kind, {"metadata": {"name": "replica", "namespace": "team", "labels": labels}})
        hand.feed.deliver()
        assert await hand.jobs.queue.get() == ("team", "ragcun-1")


async def test_the_first_pods_of_a_job_need_no_read_of_it_and_later_ones_do(cluster: Cluster) -> None:
    """Pods that the garbage collector has taken after their job must not come back; a new job has had none."""

    def reads() -> list[str]:
        asked = (request for request in cluster.server.asked if request.action is kmock.action.FETCH)
        return [str(request.name) for request in asked if request.resource == JOBS]

    await _apply(cluster)
    async with Hand(cluster) as hand:
        await hand.settle()
        assert (hand.written(), reads()) == (REPLICAS, [])
        await cluster.server.remove(PODS, MASTER, "team")
        await hand.settle()
        assert (sorted(hand.pods()), set(reads())) == ([MASTER, WORKER], {"ragcun-1"})


class Machines(Cluster):
    """A cluster without a training operator."""

    async def _reconcile_job(self, job: Body) -> None:
        pass


async def _until_run(cluster: Cluster, phase: str) -> None:
    def so() -> bool:
        run = cluster.server.find(RUNS, "ragcun", "team")
        return run is not None and run.get("status", {}).get("phase") == phase

    await cluster.server.until(so)


def _state(cluster: Cluster) -> str | None:
    """What `kubectl get pytorchjobs` shows."""
    job = cluster.server.find(JOBS, "ragcun-1", "team")
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return conditions[-1]["type"] if conditions else None


@pytest.mark.parametrize("engine", [Engine.BUNDLED, Engine.KUBEFLOW])
async def test_only_the_bundled_engine_makes_pods(cluster: Cluster, engine: Engine) -> None:
    """The whole operator, with its watches, from the run to its end; nobody but Piton makes pods."""
    machines = Machines(cluster.server, cluster.clock)
    stop, ready = threading.Event(), threading.Event()
    settings = PitonSettings(
        api_url=url(cluster.server), probe_port=None, metrics_port=None, resync_seconds=3600.0, engine=engine
    )
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, serve(settings, stop=stop, ready=ready)))
    try:
        watches = 11 if engine is Engine.BUNDLED else 10
        await cluster.server.until(lambda: cluster.server.watchers >= watches)
        await machines.apply(a_manifest())
        await _until_run(cluster, "Starting")
        if engine is Engine.KUBEFLOW:
            assert cluster.server.all(PODS) == []
            return
        await cluster.server.until(lambda: bool(cluster.server.all(PODS)))
        for _ in range(2):
            await machines.step()
        await _until_run(cluster, "Training")
        await cluster.server.until(lambda: _state(cluster) == "Running")
        await machines.step()
        await _until_run(cluster, "Succeeded")
        created = [(str(w.resource.plural), w.name) for w in cluster.server.writes if w.method == "POST" and w.done]
        assert created.count(("pods", MASTER)) == 1
    finally:
        stop.set()
        await running
