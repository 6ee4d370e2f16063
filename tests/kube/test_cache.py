"""The cache on an API server with real watches: what it serves, what it reads live, and what it costs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from kmock import KubernetesError, Request, action

from piton.kube import reflector
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.resources import CLAIMS, EVENTS, JOBS, NODES, PODS, RUNS, Resource
from piton.kube.store import Change
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


async def test_each_kind_is_listed_once_and_watched(cluster: Cluster) -> None:
    async with a_cache(cluster):
        actions = [request.action for request in cluster.server.asked]
        assert set(actions) == {action.WATCH}
        assert len(actions) == len(watched_kinds(engine=False))
