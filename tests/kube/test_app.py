"""The whole operator with kopf's watches, in this process; the cluster is moved by hand, the operator moves itself."""

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kmock import KubernetesError, Request

from piton.api.parse import parse
from piton.api.reasons import Reason
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract import names
from piton.kube.app import serve
from piton.kube.leader_election import LeaseLost
from piton.kube.settings import LeaseSettings, PitonSettings
from piton_trainer.config import Server
from piton_trainer.telemetry.operator_client import push
from support import certificates
from support.apiserver import JOBS, LEASES, NODES, PODS, RUNS, refusal, to_json
from support.builders import a_manifest, a_progress
from support.cluster import Cluster, Disrupted, Runs, a_node
from support.pilot import url
from support.ports import free_port
from support.tokens import Token

NEVER = 3600.0
WATCHES = 10
"""Runs, sweeps, jobs, pods, claims, Workloads, nodes, and Events of pods and of jobs."""


@asynccontextmanager
async def _operator(cluster: Cluster, **options: Any) -> AsyncIterator[None]:
    """The operator, ready; stopped in the end as by a signal.

    In a thread, because kopf takes every task of its loop for its own when it ends, the API server's as well.
    """
    stop, ready = threading.Event(), threading.Event()
    defaults: dict[str, Any] = {
        "api_url": url(cluster.server),
        "probe_port": None,
        "metrics_port": None,
        "resync_seconds": NEVER,
    }
    settings = PitonSettings(**(defaults | options))
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, serve(settings, stop=stop, ready=ready)))
    try:
        await cluster.server.until(lambda: cluster.server.watchers >= WATCHES * len(settings.namespaces or "*"))
        yield
    finally:
        stop.set()
        await running


def _status(cluster: Cluster, name: str = "ragcun") -> RunStatus | None:
    run = cluster.server.find(RUNS, name, "team")
    return parse(run).status if run else None


async def _until(cluster: Cluster, true: Callable[[RunStatus], bool]) -> None:
    def so() -> bool:
        status = _status(cluster)
        return status is not None and true(status)

    await cluster.server.until(so)


async def _reach_training(cluster: Cluster) -> None:
    await cluster.apply(a_manifest())
    await _until(cluster, lambda status: status.phase is Phase.STARTING)
    await cluster.step()
    await cluster.step()
    await _until(cluster, lambda status: status.phase is Phase.TRAINING)


async def test_watches_alone_bring_a_run_through_a_preemption_to_its_end(cluster: Cluster) -> None:
    cluster.script[1] = Disrupted()
    async with _operator(cluster):
        await _reach_training(cluster)
        await cluster.step()
        await _until(cluster, lambda status: status.phase is Phase.STOPPING)
        for _ in range(3):
            await cluster.step()
        await _until(cluster, lambda status: status.attempt == 2 and status.phase is Phase.STARTING)
        for _ in range(4):
            await cluster.step()
        await _until(cluster, lambda status: status.phase is Phase.SUCCEEDED)
        status = _status(cluster)
        assert status is not None
        assert (status.preemptions, status.failures) == (1, 0)


async def test_kopf_leaves_no_finalizer_and_no_annotation_on_anything(cluster: Cluster) -> None:
    async with _operator(cluster):
        await _reach_training(cluster)
        for _ in range(3):
            await cluster.step()
        await _until(cluster, lambda status: status.phase is Phase.SUCCEEDED)
        await cluster.server.until(lambda: '"finalizers": []' in to_json(cluster.server.all(RUNS)[0]))
    versions = [version for found in cluster.server.objects.values() for version in found.history if version]
    assert len(versions) > 15
    finalizers = {name for version in versions for name in version["metadata"].get("finalizers", [])}
    assert finalizers == {names.FINALIZER}
    assert not [text for version in versions if "kopf" in (text := to_json(version.raw))]
    assert {w.resource.plural for w in cluster.server.writes if w.method == "PATCH"} == {"trainingruns"}


async def test_a_node_that_goes_wakes_the_run_on_it(cluster: Cluster) -> None:
    cluster.script[1] = Runs()
    async with _operator(cluster):
        await _reach_training(cluster)
        await cluster.server.remove(NODES, "node-of-ragcun-1-master-0", None)
        await _until(cluster, lambda status: status.attempt == 2)
        await cluster.server.until(lambda: cluster.server.find(PODS, "ragcun-1-master-0", "team") is None)


async def test_a_taint_on_its_node_wakes_the_run_and_its_job_is_deleted(cluster: Cluster) -> None:
    cluster.script[1] = Runs()
    async with _operator(cluster):
        await _reach_training(cluster)
        taints = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
        await cluster.server.put(NODES, a_node("node-of-ragcun-1-master-0", taints=taints))
        await cluster.server.until(lambda: cluster.server.find(JOBS, "ragcun-1", "team") is None)


async def test_what_a_watch_shows_of_a_pod_that_went_with_its_node_is_the_reason(cluster: Cluster) -> None:
    """The operator can read nothing until pod and node are gone and it has tried for a while; its watches work."""
    enough, tries = asyncio.Event(), itertools.count(1)

    def refuse(request: Request) -> KubernetesError | None:
        if request.resource != RUNS:
            return None
        if next(tries) == 3:  # a second or more after the pod went: each try is further from the last
            enough.set()
        return refusal(503, "ServiceUnavailable", "busy")

    cluster.script[1] = Runs()
    name, node = "ragcun-1-master-0", "node-of-ragcun-1-master-0"
    async with _operator(cluster):
        await _reach_training(cluster)
        cluster.server.refuse = refuse
        await cluster.disrupt(name, "EvictionByEvictionAPI", "team")
        await cluster.server.remove(PODS, name, "team")
        await cluster.server.remove(NODES, node, None)
        await enough.wait()
        cluster.server.refuse = lambda request: None
        await _until(cluster, lambda status: status.attempts[0].reason is not None)
        status = _status(cluster)
        assert status is not None
        first = status.attempts[0]
        assert (first.verdict, first.reason) == (Verdict.PREEMPTED, Reason.DISRUPTED)
        assert "EvictionByEvictionAPI" in first.message


@pytest.mark.parametrize("forget", [False, True], ids=["goes on", "too old"])
async def test_what_happens_while_the_watches_are_cut_is_seen_afterwards(cluster: Cluster, forget: bool) -> None:
    """Deaf first: what happens then is in no watch. Also the deletion of a node, of which only a list can tell."""
    cluster.script[1] = Runs()
    async with _operator(cluster):
        await _reach_training(cluster)
        cluster.server.deaf = True
        await cluster.server.remove(NODES, "node-of-ragcun-1-master-0", None)
        cluster.server.deaf = False
        await cluster.server.cut_watches(forget=forget)
        await _until(cluster, lambda status: status.attempt == 2)
        await cluster.server.until(lambda: cluster.server.find(PODS, "ragcun-1-master-0", "team") is None)


async def test_a_server_that_streams_no_lists_is_listed_and_watched(cluster: Cluster) -> None:
    cluster.server.streams_lists = False
    async with _operator(cluster):
        await _reach_training(cluster)
        await cluster.step()
        await _until(cluster, lambda status: status.phase is Phase.SUCCEEDED)


async def test_only_the_namespaces_that_were_named_are_served(cluster: Cluster) -> None:
    async with _operator(cluster, namespaces=("team",), resync_seconds=0.05):
        other = a_manifest()
        other["metadata"]["namespace"] = "elsewhere"
        await cluster.apply(other)
        await _reach_training(cluster)
        assert "status" not in (cluster.server.find(RUNS, "ragcun", "elsewhere") or {})


async def test_metrics_are_served_until_the_operator_ends(cluster: Cluster) -> None:
    port = free_port()
    async with aiohttp.ClientSession() as session:
        async with _operator(cluster, metrics_port=port):
            await _reach_training(cluster)
            assert 'piton_attempts_started_total{stage="Train"} 1.0' in await _text(session, port)
        with pytest.raises(aiohttp.ClientConnectionError):
            await _text(session, port)


async def _text(session: aiohttp.ClientSession, port: int) -> str:
    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        return await answer.text()


async def test_a_port_that_is_taken_is_said_at_once(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        settings = PitonSettings(api_url=url(cluster.server), probe_port=None, metrics_port=taken.getsockname()[1])
        with pytest.raises(ValueError, match="metrics cannot be served on port"):
            await serve(settings)


@pytest.mark.parametrize(("stuck_seconds", "status"), [(300.0, 200), (-NEVER, 500)])
async def test_the_probe_says_whether_the_controller_works(cluster: Cluster, stuck_seconds: float, status: int) -> None:
    """With less than no patience, everything that takes time is stuck."""
    port = free_port()
    options = {"probe_port": port, "stuck_seconds": stuck_seconds, "resync_seconds": 0.05}
    async with (
        _operator(cluster, **options),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/healthz") as answer,
    ):
        assert answer.status == status


async def test_trainers_report_to_the_operator(cluster: Cluster, tmp_path: Path) -> None:
    """The pod has all that it takes: where to, whom to trust, and who it is."""
    cluster.script[1] = Runs()
    port, folder = free_port(), certificates.make(tmp_path / "tls")
    options = {"progress_url": f"https://127.0.0.1:{port}", "progress_port": port, "progress_host": "127.0.0.1"}
    async with _operator(cluster, tls_dir=folder, **options):
        await _reach_training(cluster)
        pod = cluster.server.find(PODS, "ragcun-1-master-0", "team")
        assert pod is not None
        variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
        (tmp_path / "ca.crt").write_text(pod["metadata"]["annotations"][names.ANNOTATION_CA])
        token = Token(
            pod="ragcun-1-master-0", pod_uid=pod["metadata"]["uid"], expires=datetime.now(UTC) + timedelta(hours=1)
        )
        (tmp_path / "token").write_text(token.text())
        cluster.clock.advance((datetime.now(UTC) - cluster.clock.now()).total_seconds())
        target = Server(url=variables[names.ENV_SERVER_URL], ca_cert=tmp_path / "ca.crt", token_file=tmp_path / "token")
        await asyncio.to_thread(push, target, a_progress(70, checkpoint=50))
        await _until(cluster, lambda status: status.checkpoint is not None and status.checkpoint.step == 50)


def _lease(pod: str) -> LeaseSettings:
    return LeaseSettings(name="piton-operator", namespace="piton-system", pod=pod, look_seconds=0.05)


def _holder(cluster: Cluster) -> str:
    found = cluster.server.find(LEASES, "piton-operator", "piton-system")
    return str(found["spec"]["holderIdentity"]) if found else ""


async def test_of_two_operators_one_works_and_the_other_goes_on_where_it_stops(cluster: Cluster) -> None:
    cluster.script[1] = Runs()
    port = free_port()
    async with aiohttp.ClientSession() as session, AsyncExitStack() as second:
        async with _operator(cluster, lease=_lease("a")):
            await cluster.server.until(lambda: _holder(cluster).startswith("a_"))
            await second.enter_async_context(_operator(cluster, lease=_lease("b"), metrics_port=port))
            await cluster.server.until(lambda: cluster.server.watchers >= 2 * WATCHES)
            await _reach_training(cluster)
            assert "piton_leader 0.0" in await _text(session, port)
        await cluster.server.until(lambda: _holder(cluster).startswith("b_"))
        await cluster.server.remove(NODES, "node-of-ragcun-1-master-0", None)
        await _until(cluster, lambda status: status.attempt == 2)
        assert "piton_leader 1.0" in await _text(session, port)
    assert _holder(cluster) == "", "who stops releases the lease"
    assert [w.name for w in cluster.server.writes if w.resource == JOBS and w.method == "POST" and w.done] == [
        "ragcun-1",
        "ragcun-2",
    ]


async def test_an_operator_stands_for_election_once_its_cache_is_filled(cluster: Cluster) -> None:
    asked = cluster.server.asked

    def no_pods_at_first(request: Request) -> KubernetesError | None:
        tries = sum(each.resource == PODS for each in asked)
        return refusal(503, "ServiceUnavailable", "busy") if request.resource == PODS and tries < 4 else None

    cluster.server.refuse = no_pods_at_first
    async with _operator(cluster, lease=_lease("a")):
        await cluster.server.until(lambda: _holder(cluster).startswith("a_"))
    resources = [request.resource for request in asked]
    assert resources[: resources.index(LEASES)].count(PODS) >= 4


async def test_an_operator_that_has_lost_its_lease_ends_with_an_error(cluster: Cluster) -> None:
    lease = replace(_lease("a"), retry_seconds=0.05)
    settings = PitonSettings(api_url=url(cluster.server), probe_port=None, metrics_port=None, lease=lease)
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, serve(settings)))
    await cluster.server.until(lambda: _holder(cluster).startswith("a_"))
    found = cluster.server.find(LEASES, "piton-operator", "piton-system")
    assert found is not None
    found["spec"]["holderIdentity"] = "b_1"
    await cluster.server.put(LEASES, found)

    with pytest.raises(LeaseLost, match="b_1 holds the lease"):
        await running


async def test_without_its_certificate_the_operator_does_not_start(cluster: Cluster, tmp_path: Path) -> None:
    settings = PitonSettings(
        api_url=url(cluster.server), metrics_port=None, progress_url="https://piton:8443", tls_dir=tmp_path
    )
    with pytest.raises(ValueError, match=r"tls\.crt: No such file"):
        await serve(settings)


async def test_without_a_cluster_the_operator_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no cluster"):
        await serve(PitonSettings(metrics_port=None))
