"""Two operators: the leader is killed or stopped in each phase of a preemption, and the other one goes on.

Five times in one run; `PITON_LEADER_KILLS=50` does it fifty times, five in each run.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from hack.cluster import drills
from hack.cluster.layout import KUBECONFIG, Node
from hack.install import chart
from hack.install.chart import DEPLOYMENT, NAMESPACE
from support.audit import creations
from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

STEPS = 400
ROUNDS = max(1, int(os.environ.get("PITON_LEADER_KILLS", "5")) // 5)
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{DEPLOYMENT}"
KILLED_SECONDS, STOPPED_SECONDS = 20.0, 3.0
"""Within these another one leads."""

pytestmark = [pytest.mark.box, pytest.mark.timeout(300 * (1 + ROUNDS))]


@pytest.fixture(scope="module")
def two_operators(cluster: LiveCluster) -> Iterator[None]:
    with chart.changed(KUBECONFIG, {"operator.replicas": 2}):
        yield


def _leader(cluster: LiveCluster) -> str:
    lease = cluster.get(LEASE) or {}
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _pid(identity: str) -> int:
    """The process of the leader's pod, on this machine."""
    pod = f"PITON_OPERATOR_POD_NAME={identity.rpartition('_')[0]}".encode()
    for found in Path("/proc").glob("[0-9]*/environ"):
        try:
            if pod in found.read_bytes().split(b"\0"):
                return int(found.parent.name)
        except OSError:  # it has just ended
            continue
    raise AssertionError(f"no process of {identity}")


def _ready(cluster: LiveCluster) -> int:
    """Operators that work or stand by."""
    pods = cluster.items(f"/api/v1/namespaces/{NAMESPACE}/pods")
    conditions = (
        c for p in pods if "deletionTimestamp" not in p["metadata"] for c in p["status"].get("conditions", [])
    )
    return sum(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _end_leader(cluster: LiveCluster, *, kill: bool) -> float:
    """Seconds until another process leads. The pod is replaced: a container that ends often waits for its restart."""
    before = wait_for(lambda: _leader(cluster), "a leader", seconds=60)
    wait_for(lambda: _ready(cluster) == 2, "one operator stands by", seconds=60)
    began = time.monotonic()
    if kill:
        os.kill(_pid(before), signal.SIGKILL)
    else:
        _delete_pod(cluster, before)
    wait_for(lambda: _leader(cluster) not in ("", before), f"another leader than {before}", seconds=60)
    seconds = time.monotonic() - began
    if kill:
        _delete_pod(cluster, before)
    return seconds


def _delete_pod(cluster: LiveCluster, identity: str) -> None:
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", identity.rpartition("_")[0], "--wait=false")


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_leader_that_goes_in_any_phase_of_a_preemption_is_replaced_and_nothing_is_done_twice(
    drilled: None,
    cluster: LiveCluster,
    two_operators: None,
    training: NewTraining,
    digest_of: DigestOf,
    namespace: str,
    number: int,
) -> None:
    del drilled, two_operators, number
    killed, stopped = [], []
    run = training()
    run.apply(paced(STEPS, 0.1, save_every=10))
    run.wait_for_phase("Starting", "Training")
    killed.append(_end_leader(cluster, kill=True))
    first = run.wait_for_node(1)
    run.wait_for_commit(20)
    stopped.append(_end_leader(cluster, kill=False))
    wait_for(lambda: run.status.get("progress"), "a report", seconds=60, say=run.say)
    run.wait_for_progress(seconds=60)
    reclaim = Thread(target=drills.reclaim, args=(Node.named(first),), kwargs={"notice_seconds": 20})
    reclaim.start()
    try:
        run.wait_for_phase("Stopping", "Recovering", "Starting")
        killed.append(_end_leader(cluster, kill=True))
        run.wait_for_phase("Recovering", "Starting", "Training")
        stopped.append(_end_leader(cluster, kill=False))
    finally:
        reclaim.join()
    assert run.wait_for_node(2) != first
    killed.append(_end_leader(cluster, kill=True))

    status = run.wait_for_phase("Succeeded")
    print(f"another led after: SIGKILL {killed}, SIGTERM {stopped} s")
    assert max(killed) < KILLED_SECONDS, killed
    assert max(stopped) < STOPPED_SECONDS, stopped
    assert (status["attempt"], status["preemptions"], status["failures"]) == (2, 1, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
    created = creations(namespace)
    assert set(created["pytorchjobs"].values()) == {1}
    assert set(created["pods"].values()) == {1}
