"""The cache on an API server with real watches: what it serves, what it reads live, and what it costs."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from kmock import KubernetesError, Request, action

from piton.kube import kept_fields, reflector
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.kueue import WORKLOADS
from piton.kube.resources import CLAIMS, EVENTS, JOBS, NODES, PODS, QUOTAS, RUNS, SERVICES, Resource
from piton.kube.store import Change, Store
from support import apiserver
from support.builders import a_manifest
from support.cluster import Cluster, a_node
from support.pilot import configuration

RUN = "piton.dev/run"


@asynccontextmanager
async def a_cache(cluster: Cluster) -> AsyncIterator[tuple[Client, ClusterCache]]:
    async with Client(configuration(cluster.server)) as client:
        cache = ClusterCache(client, asyncio.get_running_loop(), watched_kinds(engine=False))
        running = asyncio.create_task(cache.run())
        try:
            await asyncio.wait_for(cache.synced(), 10)
            yield client, cache
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def a_pod(name: str, run: str = "r") -> apiserver.Body:
    return {"metadata": {"name": name, "namespace": "team", "labels": {RUN: run}}, "spec": {}, "status": {}}


async def _until(cluster: Cluster, cache: ClusterCache, resource: Resource, true: Callable[[], bool]) -> None:
    changed = asyncio.Event()
    cache.subscribe(resource, lambda _: changed.set())
    async with asyncio.timeout(10):
        while not true():
            await changed.wait()
            changed.clear()


async def test_what_is_watched_is_read_without_a_request(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    await cluster.server.put(apiserver.PODS, a_pod("a"))
    await cluster.server.put(apiserver.PODS, a_pod("b", "other"))
    await cluster.server.put(apiserver.NODES, a_node("n"))
    async with a_cache(cluster) as (_, cache):
        asked = len(cluster.server.asked)
        assert await cache.get(RUNS, "ragcun", namespace="team") is not None
        assert [pod["metadata"]["name"] for pod in await cache.list(PODS, namespace="team", labels=f"{RUN}=r")] == ["a"]
        assert await cache.list(PODS, namespace="elsewhere", labels=f"{RUN}=r") == []
        assert await cache.get(NODES, "n") is not None
        assert await cache.list(NODES, labels="!absent", most=1) != []
        assert await cache.get(CLAIMS, "none", namespace="team") is None
        assert len(cluster.server.asked) == asked


async def test_a_change_and_a_deletion_arrive(cluster: Cluster) -> None:
    async with a_cache(cluster) as (_, cache):
        await cluster.server.put(apiserver.PODS, a_pod("a"))
        await _until(cluster, cache, PODS, lambda: cache.peek(PODS, "team", "a") is not None)
        await cluster.server.remove(apiserver.PODS, "a", "team")
        await _until(cluster, cache, PODS, lambda: cache.peek(PODS, "team", "a") is None)


async def test_an_own_write_is_read_at_once_and_its_event_is_no_change(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    async with a_cache(cluster) as (client, cache):
        changes: list[Change] = []
        cache.subscribe(RUNS, changes.append)
        body = {"metadata": {"annotations": {"a": "b"}}}
        written = await client.patch(RUNS, "ragcun", body, namespace="team")
        assert await cache.get(RUNS, "ragcun", namespace="team") == written
        await cluster.server.put(apiserver.PODS, a_pod("later"))
        await _until(cluster, cache, PODS, lambda: cache.peek(PODS, "team", "later") is not None)
        assert len(changes) == 1


async def test_a_kind_that_may_not_be_watched_is_read_live(cluster: Cluster) -> None:
    """An operator that was upgraded without the ClusterRole of its version."""

    def refuse(request: Request) -> KubernetesError | None:
        forbidden = request.resource == apiserver.EVENTS and request.params.get("watch")
        return apiserver.refusal(403, "Forbidden", "events is forbidden") if forbidden else None

    event = {"metadata": {"name": "e", "namespace": "team"}, "involvedObject": {"kind": "Pod", "uid": "u"}}
    await cluster.server.put(apiserver.EVENTS, event)
    cluster.server.refuse = refuse
    async with a_cache(cluster) as (_, cache):
        found = await cache.list(EVENTS, namespace="team", fields="involvedObject.uid=u")
        assert [each["metadata"]["name"] for each in found] == ["e"]


async def test_the_cache_says_which_kinds_are_really_watched(cluster: Cluster) -> None:
    cluster.server.refuse = lambda request: (
        apiserver.refusal(403, "Forbidden", "forbidden") if request.resource == apiserver.QUOTAS else None
    )
    async with a_cache(cluster) as (_, cache):
        kinds = (PODS, QUOTAS, SERVICES)
        assert [cache.is_watched(kind, "team") for kind in kinds] == [True, False, False]


async def test_a_kind_that_the_cluster_does_not_know_is_empty(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "ABSENT_SECONDS", 0.01)
    known = False

    def refuse(request: Request) -> KubernetesError | None:
        unknown = request.resource == apiserver.JOBS and not known
        return (
            apiserver.refusal(404, "NotFound", "the server could not find the requested resource") if unknown else None
        )

    job = {"metadata": {"name": "j", "namespace": "team", "labels": {RUN: "r"}}}
    await cluster.server.put(apiserver.JOBS, job)
    cluster.server.refuse = refuse
    async with a_cache(cluster) as (_, cache):
        assert await cache.list(JOBS, namespace="team", labels=f"{RUN}=r") == []
        known = True
        await _until(cluster, cache, JOBS, lambda: cache.peek(JOBS, "team", "j") is not None)


async def test_a_kind_that_a_write_of_our_own_shows_is_watched_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Workloads, of a Kueue that was installed a moment ago."""
    monkeypatch.setattr(reflector, "ABSENT_SECONDS", 3600)
    known = False

    def refuse(request: Request) -> KubernetesError | None:
        unknown = request.resource == apiserver.JOBS and not known
        return (
            apiserver.refusal(404, "NotFound", "the server could not find the requested resource") if unknown else None
        )

    cluster.server.refuse = refuse
    async with a_cache(cluster) as (client, cache):
        known = True
        meta = {"namespace": "team", "labels": {RUN: "r"}}
        await cluster.server.put(apiserver.JOBS, {"metadata": {**meta, "name": "theirs"}})
        await client.create(JOBS, {"metadata": {**meta, "name": "ours"}})
        await _until(cluster, cache, JOBS, lambda: cache.peek(JOBS, "team", "theirs") is not None)


async def test_a_server_that_is_down_is_asked_again_and_nothing_is_believed_to_be_empty(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def refuse(_: Request) -> KubernetesError | None:
        nonlocal tries
        tries += 1
        return apiserver.refusal(503, "ServiceUnavailable", "apiserver is shutting down") if tries < 20 else None

    monkeypatch.setattr(reflector, "BACKOFF_SECONDS", 0.001)
    await cluster.apply(a_manifest())
    cluster.server.refuse = refuse
    async with a_cache(cluster) as (_, cache):
        assert await cache.get(RUNS, "ragcun", namespace="team") is not None


async def test_one_kind_that_always_fails_is_read_live_and_holds_up_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Workloads while Kueue's conversion webhook is down."""

    def refuse(request: Request) -> KubernetesError | None:
        failing = request.resource == apiserver.WORKLOADS and request.params.get("watch")
        return apiserver.refusal(500, "InternalError", "conversion webhook failed") if failing else None

    monkeypatch.setattr(reflector, "BACKOFF_SECONDS", 0.001)
    workload = {"metadata": {"name": "w", "namespace": "team", "labels": {RUN: "r"}}}
    await cluster.server.put(apiserver.WORKLOADS, workload)
    cluster.server.refuse = refuse
    async with a_cache(cluster) as (_, cache):
        assert await cache.get(WORKLOADS, "w", namespace="team") is not None


async def test_a_listener_that_fails_stops_no_watch(cluster: Cluster) -> None:
    async with a_cache(cluster) as (_, cache):

        def fail(change: Change) -> None:
            raise ZeroDivisionError(change)

        cache.subscribe(PODS, fail)
        for name in ("a", "b"):
            await cluster.server.put(apiserver.PODS, a_pod(name))
            await _until(cluster, cache, PODS, lambda name=name: cache.peek(PODS, "team", name) is not None)  # type: ignore[misc]


async def test_each_kind_is_listed_once_and_watched(cluster: Cluster) -> None:
    async with a_cache(cluster):
        actions = [request.action for request in cluster.server.asked]
        assert set(actions) == {action.WATCH}
        assert len(actions) == len(watched_kinds(engine=False))


# --- a streamed list --------------------------------------------------------------------------------------------------


class Stream(Client):
    """Answers the first watch with these events, and none of the others."""

    def __init__(self, cluster: Cluster, *events: apiserver.Body) -> None:
        super().__init__(configuration(cluster.server))
        self.watches: list[dict[str, str]] = []
        self.again = asyncio.Event()
        self._events = list(events)

    async def watch(
        self, resource: Resource, *, namespace: str | None, query: Mapping[str, str], silent_seconds: float
    ) -> AsyncGenerator[apiserver.Body, None]:
        self.watches.append(dict(query))
        if len(self.watches) > 1:
            self.again.set()
        while self._events:
            yield self._events.pop(0)
        if len(self.watches) > 1:
            await asyncio.Event().wait()


def an_event(kind: str, name: str, version: int) -> apiserver.Body:
    body = a_pod(name)
    body["metadata"] |= {"resourceVersion": str(version), "uid": name}
    return {"type": kind, "object": body}


COMPLETE = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}


@asynccontextmanager
async def a_reflector(client: Stream, store: Store) -> AsyncIterator[reflector.Reflector]:
    loop = asyncio.get_running_loop()
    found = reflector.Reflector(client, PODS, store, lambda _: None, timer=loop)
    running = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await client.close()


async def test_what_goes_while_a_list_is_streamed_is_not_in_it_and_the_watch_goes_on_from_its_end(
    cluster: Cluster,
) -> None:
    store = Store(kept_fields.of_pod)
    events = [an_event("ADDED", "a", 1), an_event("ADDED", "b", 2), an_event("DELETED", "a", 8)]
    client = Stream(cluster, *events, {"type": "BOOKMARK", "object": {"metadata": COMPLETE}})
    async with a_reflector(client, store) as found:
        await asyncio.wait_for(found.synced.wait(), 5)
        await asyncio.wait_for(client.again.wait(), 5)
    assert (store.get("team", "a"), store.get("team", "b") is not None) == (None, True)
    assert client.watches[1]["resourceVersion"] == "9"


async def test_a_list_that_breaks_off_is_not_believed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_SECONDS", 0.001)
    store = Store(kept_fields.of_pod)
    client = Stream(cluster, an_event("ADDED", "a", 1))
    async with a_reflector(client, store) as found:
        await asyncio.wait_for(client.again.wait(), 5)
        assert not found.synced.is_set()
    assert len(store) == 0
