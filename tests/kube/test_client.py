"""The client and what it makes of the API server's answers."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client import ApiException, Configuration

from piton.kube.app import credentials
from piton.kube.client import Client, load_configuration
from piton.kube.errors import AlreadyExists, Busy, Expired, NoAnswer, NotFound, translate
from piton.kube.resources import JOBS, NODES, PODS, RUNS
from piton.ports import Conflict, PortError, Refused, Unavailable
from support.apiserver import refusal
from support.builders import a_manifest
from support.cluster import Cluster
from support.pilot import configuration


def _error(status: int, body: str = "") -> ApiException:
    return ApiException(status=status, reason="Because", body=body)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_error(409, '{"reason": "AlreadyExists", "message": "it exists"}'), AlreadyExists),
        (_error(409, '{"reason": "Conflict", "message": "the object has been modified"}'), Conflict),
        (_error(404, '{"reason": "NotFound", "message": "not found"}'), NotFound),
        (_error(404, '{"message": "admission webhook \\"g\\" denied the request: no team found"}'), Refused),
        (_error(403, '{"reason": "Forbidden", "message": "exceeded quota"}'), Refused),
        (_error(500, '{"reason": "InternalError", "message": "failed calling webhook \\"a\\": EOF"}'), Refused),
        (_error(422, '{"reason": "Invalid", "message": "spec.x: Required value"}'), Refused),
        (_error(400, '{"reason": "BadRequest", "message": "bad"}'), Refused),
        (_error(401, '{"reason": "Unauthorized", "message": "Unauthorized"}'), Unavailable),
        (_error(410, '{"reason": "Expired", "message": "too old"}'), Expired),
        (_error(429, "Too many requests, please try again later."), Busy),
        (_error(429, '{"reason": "TooManyRequests", "message": "later"}'), Unavailable),
        (_error(500, '{"reason": "InternalError", "message": "etcdserver: leader changed"}'), Unavailable),
        (_error(503, "<html>no upstream</html>"), Unavailable),
        (TimeoutError(), NoAnswer),
        (ConnectionResetError(104, "reset"), NoAnswer),
    ],
)
def test_every_answer_has_one_meaning(error: Exception, kind: type[PortError]) -> None:
    assert type(translate(error)) is kind


def test_a_refusal_keeps_the_servers_sentence() -> None:
    assert str(translate(_error(403, '{"message": "exceeded quota: gpus"}'))) == "exceeded quota: gpus"


def test_a_refusal_without_a_sentence_still_says_something() -> None:
    assert str(translate(_error(403))) == "403 Because"


def test_paths_are_spelled_as_the_api_does() -> None:
    assert (
        RUNS.path("team", "ragcun", "status") == "/apis/piton.dev/v1alpha1/namespaces/team/trainingruns/ragcun/status"
    )
    assert PODS.path("team") == "/api/v1/namespaces/team/pods"
    assert JOBS.path() == "/apis/kubeflow.org/v1/pytorchjobs"
    assert NODES.path("team", "node-1") == "/api/v1/nodes/node-1", "nodes have no namespace"


async def test_what_does_not_exist_is_none(cluster: Cluster) -> None:
    async with Client(configuration(cluster.server)) as client:
        assert await client.get(RUNS, "ragcun", namespace="team") is None


async def test_lists_are_read_page_by_page(cluster: Cluster) -> None:
    pages: list[dict[str, Any]] = [
        {"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "more"}},
        {"items": [{"metadata": {"name": "b"}}], "metadata": {}},
    ]
    asked: list[Any] = []

    class Paged(Client):
        async def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
            asked.append(options["query"].get("continue"))
            return pages[len(asked) - 1]

    async with Paged(configuration(cluster.server)) as client:
        found = await client.list(PODS, namespace="team")
    assert [body["metadata"]["name"] for body in found] == ["a", "b"]
    assert asked == [None, "more"]


@pytest.mark.parametrize(("first", "pages"), [([], 2), ([{"metadata": {"name": "a"}}], 1)])
async def test_a_list_of_which_one_will_do_ends_with_the_first_that_is_found(
    cluster: Cluster, first: list[Any], pages: int
) -> None:
    """The server may look at many that do not match, and answer with an empty page."""
    asked: list[Any] = []

    class Paged(Client):
        async def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
            asked.append(options["query"]["limit"])
            found = first if len(asked) == 1 else [{"metadata": {"name": "b"}}]
            return {"items": found, "metadata": {"continue": "more"}}

    async with Paged(configuration(cluster.server)) as client:
        assert len(await client.list(PODS, labels="a", most=1)) == 1
    assert asked == ["1"] * pages


async def test_a_server_that_does_not_answer_in_time_is_unavailable(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    forever = asyncio.Event()

    async def hang(request: Any) -> None:
        await forever.wait()

    cluster.server.before_write = hang
    async with Client(configuration(cluster.server), timeout_seconds=0.05) as client:
        with pytest.raises(NoAnswer):
            await client.patch(RUNS, "ragcun", {"metadata": {"labels": {"a": "b"}}}, namespace="team")
    forever.set()


async def test_no_server_at_all_is_unavailable() -> None:
    async with Client(Configuration(host="http://127.0.0.1:1")) as client:
        with pytest.raises(NoAnswer):
            await client.get(RUNS, "ragcun", namespace="team")


async def test_no_call_is_repeated_behind_our_back(cluster: Cluster) -> None:
    cluster.server.refuse = lambda request: refusal(500, "InternalError", "etcdserver: leader changed")
    async with Client(await load_configuration(configuration(cluster.server).host)) as client:
        with pytest.raises(Unavailable, match="leader changed"):
            await client.get(RUNS, "ragcun", namespace="team")
    assert len(cluster.server.asked) == 1


async def test_the_credentials_of_a_kubeconfig_are_used(cluster: Cluster, monkeypatch: Any, tmp_path: Any) -> None:
    file = tmp_path / "config"
    file.write_text(f"""
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "{configuration(cluster.server).host}"}}}}]
users: [{{name: me, user: {{token: t0ken}}}}]
""")
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    async with Client(await load_configuration()) as client:
        await client.list(RUNS)
    assert cluster.server.asked[0].headers["Authorization"] == "Bearer t0ken"
    for_kopf = await credentials(await load_configuration())
    assert for_kopf.as_http_headers() == {"Authorization": "Bearer t0ken"}
    assert for_kopf.server == configuration(cluster.server).host


async def test_of_an_object_whose_status_is_written_only_that_is_sent(cluster: Cluster) -> None:
    async with Client(configuration(cluster.server)) as client:
        run = await client.create(RUNS, a_manifest())
        await client.replace_status(RUNS, {**run, "status": {"phase": "Pending"}})
        request = cluster.server.asked[-1]
        kept = await client.get(RUNS, "ragcun", namespace="team")

    assert request.data.keys() == {"apiVersion", "kind", "metadata", "status"}
    assert request.data["metadata"].keys() == {"name", "namespace", "uid", "resourceVersion"}
    assert request.headers["User-Agent"].startswith("piton-operator/")
    assert kept is not None
    assert (kept["spec"], kept["status"]) == (run["spec"], {"phase": "Pending"})


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
async def test_no_status_is_written_over_another_object_or_version(cluster: Cluster, field: str) -> None:
    async with Client(configuration(cluster.server)) as client:
        run = await client.create(RUNS, a_manifest())
        other = {**run, "metadata": {**run["metadata"], field: "12345"}, "status": {}}
        with pytest.raises(Conflict):
            await client.replace_status(RUNS, other)
