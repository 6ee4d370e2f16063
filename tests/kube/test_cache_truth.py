"""The cache tells the truth: no trouble of the API server makes it forget, or ask in a rush."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import kmock
import pytest
from kmock import KubernetesError, Request

from piton.kube import reflector
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.resources import CLAIMS, JOBS, NODES, PODS, RUNS, Resource
from piton.kube.store import Change
from piton.rendering.affinity import ZONE
from support import apiserver
from support.apiserver import ApiServer, refusal
from support.builders import a_manifest
from support.cluster import Cluster, a_node
from support.pilot import a_cluster, configuration

NOT_SERVED = (404, "NotFound", "the server could not find the requested resource")
FORBIDDEN = (403, "Forbidden", "trainingruns.piton.dev is forbidden: User cannot watch resource")
AWAY = (503, "ServiceUnavailable", "apiserver is starting")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits are a hundred times shorter; their ratio is the real one."""
    for name, seconds in {
        "BACKOFF_SECONDS": 0.001,
        "BACKOFF_SECONDS_MAX": 0.2,
        "ABSENT_SECONDS": 0.2,
        "AGAIN_SECONDS": 0.01,
        "LIST_AGAIN_SECONDS": 0.02,
        "WATCH_SECONDS": 1,
        "SILENT_SECONDS": 0.3,
    }.items():
        monkeypatch.setattr(reflector, name, seconds)


@asynccontextmanager
async def a_cache(server: ApiServer, *namespaces: str) -> AsyncIterator[tuple[Client, ClusterCache]]:
    async with Client(configuration(server)) as client:
        loop = asyncio.get_running_loop()
        cache = ClusterCache(client, loop, watched_kinds(engine=False), namespaces=namespaces)
        running = asyncio.create_task(cache.run())
        try:
            await asyncio.wait_for(cache.synced(), 20)
            yield client, cache
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def refuse(server: ApiServer, answer: tuple[int, str, str], *kinds: kmock.resource) -> None:
    """Answer all requests about these kinds so, or about all."""
    server.refuse = lambda request: refusal(*answer) if not kinds or request.resource in kinds else None


def mend(server: ApiServer) -> None:
    server.refuse = lambda _: None


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - also what no event says, such as the end of a failure
            await asyncio.sleep(0.01)


def trouble(cache: ClusterCache, resource: Resource) -> bool:
    return cache.trouble(resource, "team") is not None


def lists(server: ApiServer) -> int:
    """How often everything of a kind was asked for; a look at the newest version asks for one object."""
    return sum(
        (request.action is kmock.action.LIST and request.params.get("limit") != "1")
        or "sendInitialEvents" in request.params
        for request in server.asked
    )


@pytest.mark.parametrize("answer", [NOT_SERVED, FORBIDDEN], ids=["404", "403"])
async def test_a_kind_that_is_refused_for_a_while_is_as_it_was(cluster: Cluster, answer: tuple[int, str, str]) -> None:
    await cluster.apply(a_manifest())
    await cluster.apply(a_manifest("gone"))
    async with a_cache(cluster.server) as (_, cache):
        changes: list[Change] = []
        cache.subscribe(RUNS, changes.append)
        refuse(cluster.server, answer, apiserver.RUNS)
        await until(lambda: trouble(cache, RUNS))
        assert cache.peek(RUNS, "team", "ragcun") is not None
        assert not changes

        await cluster.server.remove(apiserver.RUNS, "gone", "team")
        mend(cluster.server)
        await until(lambda: not trouble(cache, RUNS))
        await until(lambda: cache.peek(RUNS, "team", "gone") is None)
        assert [run["metadata"]["name"] for run in await cache.list(RUNS)] == ["ragcun"]

        manifest = cluster.server.find(apiserver.RUNS, "ragcun", "team")
        assert manifest is not None
        manifest["spec"]["suspend"] = True
        await cluster.server.put(apiserver.RUNS, manifest)
        await until(lambda: bool((cache.peek(RUNS, "team", "ragcun") or {})["spec"].get("suspend")))


async def test_a_kind_that_was_replaced_while_it_was_not_served_is_listed_anew(cluster: Cluster) -> None:
    """As when its CRD is deleted and created again: the versions before that are forgotten."""
    await cluster.apply(a_manifest())
    async with a_cache(cluster.server) as (_, cache):
        refuse(cluster.server, NOT_SERVED, apiserver.RUNS)
        await until(lambda: trouble(cache, RUNS))
        cluster.server._events.clear()
        await cluster.server.remove(apiserver.RUNS, "ragcun", "team")
        await cluster.server.cut_watches(forget=True)
        await cluster.apply(a_manifest("other"))
        mend(cluster.server)
        await until(lambda: cache.peek(RUNS, "team", "other") is not None)
        assert cache.peek(RUNS, "team", "ragcun") is None


async def test_a_label_that_is_taken_off_and_put_back_brings_the_object_back(cluster: Cluster) -> None:
    """A watch with a selector says DELETED, and then ADDED of the same uid."""
    async with a_cache(cluster.server) as (_, cache):
        pod = {
            "metadata": {"name": "p", "namespace": "team", "labels": {"piton.dev/run": "r"}},
            "spec": {},
            "status": {},
        }
        put = await cluster.server.put(apiserver.PODS, pod)
        await until(lambda: cache.peek(PODS, "team", "p") is not None)
        (store,) = (each.store for each in cache._reflectors[PODS])
        version = int(put["metadata"]["resourceVersion"])
        for later, known in ((1, False), (2, True)):
            body = {**put, "metadata": {**put["metadata"], "resourceVersion": str(version + later)}}
            store.put(body) if known else store.remove(body)
            assert (cache.peek(PODS, "team", "p") is not None) is known


@pytest.mark.parametrize("answer", [AWAY, (500, "InternalError", "etcdserver: no leader")], ids=["503", "500"])
async def test_a_server_that_is_away_for_minutes_costs_no_list_and_no_live_read(
    cluster: Cluster, answer: tuple[int, str, str]
) -> None:
    await cluster.apply(a_manifest())
    async with a_cache(cluster.server) as (_, cache):
        before = [each._version for each in cache._all()]
        refuse(cluster.server, answer)
        await until(lambda: all(each._failures > reflector.FAILURES_MAX + 1 for each in cache._all()))
        assert [each for each in cache._all() if each.unusable] == []
        assert [each._version for each in cache._all()] == before

        await cluster.apply(a_manifest("later"))
        asked = len(cluster.server.asked)
        for _ in range(10):
            await cache.get(RUNS, "ragcun", namespace="team")
            await cache.list(PODS, namespace="team", labels="piton.dev/run=ragcun")
            await cache.get(CLAIMS, "x", namespace="team")
        assert len(cluster.server.asked) == asked
        cluster.server.asked.clear()
        mend(cluster.server)
        await until(lambda: cache.peek(RUNS, "team", "later") is not None and all(e.works() for e in cache._all()))
        assert lists(cluster.server) == 0


async def test_one_kind_that_fails_alone_is_read_live_until_it_works_and_is_not_listed_anew(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    async with a_cache(cluster.server) as (_, cache):

        def failing(request: Request) -> KubernetesError | None:
            watch = request.resource == apiserver.RUNS and request.params.get("watch")
            return refusal(500, "InternalError", "conversion webhook failed") if watch else None

        cluster.server.refuse = failing
        for _ in range(200):  # the others get something to say, as a server's bookmarks do
            await cluster.server.put(apiserver.NODES, a_node("n", labels={"at": str(_)}))
            await asyncio.sleep(0.02)
            if trouble(cache, RUNS):
                break
        await cluster.apply(a_manifest("later"))
        assert await cache.get(RUNS, "later", namespace="team") is not None
        cluster.server.asked.clear()
        mend(cluster.server)
        await until(lambda: not trouble(cache, RUNS) and cache.peek(RUNS, "team", "later") is not None)
        assert lists(cluster.server) == 0


async def test_a_restore_of_etcd_is_noticed_by_a_watch_that_stays_silent(cluster: Cluster) -> None:
    """The server's versions are lower than ours: it tells nothing until they are as high again."""
    server = cluster.server
    await cluster.apply(a_manifest("old"))
    backup = server.find(apiserver.RUNS, "old", "team")
    version = server.version
    assert backup is not None
    async with a_cache(server) as (_, cache):
        await server.remove(apiserver.RUNS, "old", "team")
        for number in range(5):
            await cluster.apply(a_manifest(f"new-{number}"))
        await until(lambda: cache.peek(RUNS, "team", "new-4") is not None and cache.peek(RUNS, "team", "old") is None)

        for key in [key for key in server.objects if key[0] == apiserver.RUNS]:
            del server.objects[key]
        server._events.clear()
        server.objects[apiserver.RUNS, "team", "old"] = backup
        server._versions = version

        await until(lambda: cache.peek(RUNS, "team", "old") is not None)
        assert [run["metadata"]["name"] for run in await cache.list(RUNS)] == ["old"]


@pytest.mark.parametrize("number", [30])
async def test_so_many_namespaces_are_watched_by_one_operator(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kinds in each: no watch may wait for the connection of another, and no call for theirs."""
    monkeypatch.setattr(reflector, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(reflector, "WATCH_SECONDS", 60)
    namespaces = [f"team-{each}" for each in range(number)]
    async with a_cluster() as cluster, a_cache(cluster.server, *namespaces) as (client, cache):
        assert cluster.server.watchers >= 9 * number
        manifest = a_manifest()
        manifest["metadata"]["namespace"] = namespaces[-1]
        await cluster.apply(manifest)
        await until(lambda: cache.peek(RUNS, namespaces[-1], "ragcun") is not None)
        async with asyncio.timeout(5):
            assert await client.get(RUNS, "ragcun", namespace=namespaces[-1]) is not None


async def test_nodes_are_found_by_whether_they_have_a_zone_without_reading_the_others(cluster: Cluster) -> None:
    await cluster.server.put(apiserver.NODES, a_node("zone", labels={ZONE: "a"}))
    await cluster.server.put(apiserver.NODES, a_node("none", labels={"pool": "x"}))
    async with a_cache(cluster.server) as (_, cache):
        for labels, names in (
            (ZONE, ["zone"]),
            (f"!{ZONE}", ["none"]),
            (f"{ZONE}=a", ["zone"]),
            (f"!{ZONE},pool=y", []),
        ):
            assert [node["metadata"]["name"] for node in await cache.list(NODES, labels=labels)] == names


async def test_a_kind_that_was_never_served_is_empty_and_its_objects_are_not_said_to_be_absent(
    cluster: Cluster,
) -> None:
    refuse(cluster.server, NOT_SERVED, apiserver.JOBS)
    async with a_cache(cluster.server) as (client, cache):
        assert await cache.list(JOBS, namespace="team") == []
        with pytest.raises(Exception, match="does not serve pytorchjobs"):
            await client.get(JOBS, "j", namespace="team")
