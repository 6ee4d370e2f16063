"""Runs in a queue of Kueue's, on a real cluster with the real Kueue: never without quota, and never a failure."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from hack.cluster import drills
from hack.cluster.layout import Node
from hack.neighbours import kueue
from support.live import PACED, TRAINER, DigestOf, LiveCluster, NewTraining, Object, Training, paced, wait_for
from support.live_operator import without_operator
from support.live_sweep import Sweep

pytestmark = [pytest.mark.neighbours, pytest.mark.timeout(900)]

STEPS = 1000
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
API = f"kueue.x-k8s.io/{kueue.VERSION}"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
CLASSES = {"piton-low": 1, "piton-high": 100}


class Queue:
    """A LocalQueue of the test's own, and the ClusterQueue behind it."""

    def __init__(self, cluster: LiveCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def offer(self, gpus: int, **node_labels: str) -> None:
        """Have that many GPUs to give, on nodes with these labels."""
        quotas: list[Object] = [{"name": "cpu", "nominalQuota": 100}, {"name": "memory", "nominalQuota": "1Ti"}]
        quotas.append({"name": "nvidia.com/gpu", "nominalQuota": gpus})
        spec = {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [
                {
                    "coveredResources": [quota["name"] for quota in quotas],
                    "flavors": [{"name": self.namespace, "resources": quotas}],
                }
            ],
        }
        name = {"name": self.namespace}
        local = {"name": "gpus", "namespace": self.namespace}
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        self._apply("ResourceFlavor", name, {"nodeLabels": node_labels, "tolerations": tolerations})
        self._apply("ClusterQueue", name, spec)
        self._apply("LocalQueue", local, {"clusterQueue": self.namespace})

    def _apply(self, kind: str, metadata: Mapping[str, str], spec: Mapping[str, Any]) -> None:
        body = {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}
        self.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))

    def stop(self, policy: str) -> None:
        """None, Hold, or HoldAndDrain."""
        patch = json.dumps({"spec": {"stopPolicy": policy}})
        self.cluster.kubectl("patch", "clusterqueue", self.namespace, "--type=merge", "-p", patch)

    def workload(self, run: str) -> Object:
        """The run's Workload; empty where there is none."""
        path = f"/apis/{API}/namespaces/{self.namespace}/workloads/trainingrun-{run}"
        return self.cluster.get(path) or {}

    def remove(self) -> None:
        """Take it all away, while Kueue is there to let it go."""
        self.cluster.kubectl("-n", self.namespace, "delete", "tsweep,trun", "--all", "--timeout=150s")
        self.cluster.kubectl("-n", self.namespace, "delete", "localqueue", "gpus", "--ignore-not-found")
        self.cluster.kubectl("delete", "clusterqueue,resourceflavor", self.namespace, "--ignore-not-found")


@pytest.fixture(scope="module", autouse=True)
def the_kueue(cluster: LiveCluster) -> Iterator[None]:
    kueue.start()
    for name, value in CLASSES.items():
        body = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))
    yield
    cluster.kubectl("delete", "workloadpriorityclass", *CLASSES)
    kueue.stop()


@pytest.fixture
def queue(cluster: LiveCluster, namespace: str) -> Iterator[Queue]:
    found = Queue(cluster, namespace)
    found.offer(1)
    yield found
    found.remove()


def important(name: str) -> dict[str, str]:
    return {**QUEUE, "kueue.x-k8s.io/priority-class": name}


def message(run: Training) -> str:
    conditions = {c["type"]: c for c in run.status.get("conditions", [])}
    return str(conditions.get("Training", {}).get("message", ""))


def a_gang(nodes: int) -> Object:
    """Several machines that do nothing for a while."""
    spec = paced(STEPS, 0.1)
    spec["trainer"] = {"image": TRAINER, "command": ["sleep", "30"]}
    spec["workers"]["nodes"] = nodes
    return spec


def test_runs_wait_their_turn_and_say_which_it_is(queue: Queue, training: NewTraining) -> None:
    first, second, third = (training(name) for name in ("first", "second", "third"))
    first.apply(paced(3000, 0.1), labels=QUEUE)
    first.wait_for_phase("Training")
    for run in (second, third):
        run.apply(paced(10, 0.1), labels=QUEUE)
        run.wait_for_phase("Queued", seconds=20)
        time.sleep(1.1)  # Kueue orders by the time of creation, which has whole seconds

    # Of Workloads that ask for the same, Kueue explains the first.
    said = r"waits for quota in the queue gpus, number 1 in line: .*insufficient unused quota for nvidia.com/gpu"
    wait_for(lambda: re.match(said, message(second)), "the second to say why it waits", seconds=120, say=second.say)
    said = "waits for quota in the queue gpus, number 2 in line"
    wait_for(lambda: message(third).startswith(said), "the third to say where it stands", seconds=120, say=third.say)
    assert third.status["queue"] == {"name": "gpus", "position": 2}
    assert not [*second.pods(), *third.pods()]

    first.patch({"suspend": True})

    ends = [run.wait_for_phase("Succeeded") for run in (second, third)]
    assert [(status["attempt"], status["failures"], status.get("queue")) for status in ends] == [(1, 0, None)] * 2
    assert ends[1]["attempts"][0]["createdTime"] >= ends[0]["attempts"][0]["endedTime"]
    assert (first.phase, first.status["attempt"], queue.workload("first")) == ("Suspended", 1, {})


def test_a_gang_is_admitted_as_a_whole_or_waits(queue: Queue, training: NewTraining) -> None:
    run = training()
    run.apply(a_gang(2), labels=QUEUE)
    run.wait_for_phase("Queued", seconds=20)
    wait_for(lambda: "insufficient" in message(run), "Kueue's words", seconds=60, say=run.say)
    assert not run.pods()

    queue.offer(2)

    run.wait_for_phase("Training")
    wait_for(lambda: len(run.running()) == 2, "two pods", seconds=60, say=run.say)
    assert run.wait_for_phase("Succeeded")["attempt"] == 1


def test_preempted_by_a_higher_priority_it_saves_stops_and_waits_its_turn(
    queue: Queue, training: NewTraining, digest_of: DigestOf
) -> None:
    run, urgent = training(), training("urgent")
    run.apply(paced(STEPS, 0.1), labels=important("piton-low"))
    run.wait_for_commit(20)

    urgent.apply(paced(30, 0.1), labels=important("piton-high"))

    status = run.wait_for_phase("Queued", seconds=120)
    (record,) = status["attempts"]
    assert (record["verdict"], record["reason"], record["state"]) == ("Stopped", "QuotaTaken", "Ended")
    assert "Preempted to accommodate a workload" in record["message"]
    assert record["checkpointStep"] == record["step"], "it was stopped without a save"
    assert run.cluster.get(f"/apis/kubeflow.org/v1/namespaces/{run.namespace}/pytorchjobs/run-1") is None
    urgent.wait_for_node(1)
    assert not run.running()  # the pod itself is there until its kubelet has cleaned up
    wait_for(lambda: not run.pods(), "its pod is gone", seconds=120, say=run.say)
    run.hurry()

    urgent.wait_for_phase("Succeeded")
    status = run.wait_for_phase("Succeeded")
    assert (status["attempt"], status.get("failures", 0), status.get("preemptions", 0)) == (2, 0, 0)
    assert status.get("infrastructureFailures", 0) == 0
    assert status["lost"]["steps"] == 0
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_after_a_spot_preemption_it_goes_on_before_one_that_waits(
    drilled: None, queue: Queue, training: NewTraining, digest_of: DigestOf
) -> None:
    run, waiting = training(), training("waiting")
    run.apply(paced(STEPS, 0.1), labels=QUEUE)
    first = run.wait_for_node(1)
    run.wait_for_commit(20)
    admitted = queue.workload("run")["metadata"]["uid"]
    waiting.apply(paced(10, 0.1), labels=QUEUE)
    waiting.wait_for_phase("Queued", seconds=20)

    drills.reclaim(Node.named(first), notice_seconds=20)

    assert run.wait_for_node(2) != first
    assert (queue.workload("run")["metadata"]["uid"], waiting.phase) == (admitted, "Queued")
    run.hurry()
    status = run.wait_for_phase("Succeeded")
    assert (status["attempt"], status["preemptions"], status["lost"]["steps"]) == (2, 1, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
    ended = status["attempts"][-1]["endedTime"]
    assert waiting.wait_for_phase("Succeeded")["attempts"][0]["createdTime"] >= ended


def test_evicted_while_the_operator_is_away_it_keeps_its_quota_and_trains_until_the_operator_is_back(
    cluster: LiveCluster, queue: Queue, training: NewTraining
) -> None:
    run = training()
    run.apply(paced(3000, 0.1), labels=QUEUE)
    run.wait_for_commit(20)

    with without_operator(cluster):
        queue.stop("HoldAndDrain")
        wait_for(lambda: _is(queue.workload("run"), "Evicted"), "Kueue evicts it", seconds=30)
        run.wait_for_commit(max(run.commits()) + 20)
        assert _is(queue.workload("run"), "QuotaReserved")

    run.wait_for_phase("Queued", seconds=120)
    assert not run.running()
    wait_for(lambda: not _is(queue.workload("run"), "QuotaReserved"), "the quota is returned", seconds=20)
    run.hurry()
    queue.stop("None")
    status = run.wait_for_phase("Succeeded")
    assert (status["attempt"], status.get("failures", 0), status["lost"]["steps"]) == (2, 0, 0)


def test_each_stage_waits_for_its_own_quota_on_the_nodes_of_its_flavor(queue: Queue, training: NewTraining) -> None:
    node = Node(number=1)
    queue.offer(1, **{"kubernetes.io/hostname": node.name})
    run = training()
    spec = paced(30, 0.1)
    side = {"command": ["sleep", "2"], "resources": {"requests": {"cpu": "50m"}}}
    spec["stages"] = {"prepare": side, "evaluate": side}
    run.apply(spec, labels=QUEUE)
    asked = set()
    while run.phase not in ("Succeeded", "Failed"):
        pods = queue.workload("run").get("spec", {}).get("podSets", [{}])
        asked.add("nvidia.com/gpu" in str(pods))
        assert {pod["spec"].get("nodeName", node.name) for pod in run.pods()} <= {node.name}
    assert run.phase == "Succeeded", run.say()
    assert run.status["attempt"] == 3
    assert asked == {True, False}


def test_the_runs_of_a_sweep_wait_for_one_another(
    cluster: LiveCluster, queue: Queue, namespace: str, training: NewTraining
) -> None:
    template = {**paced(30, 0.1), "objective": {"metric": "loss"}}
    variants = [
        {"name": name, "patch": {"trainer": {"command": ["python", "-c", PACED, steps, "0.1"]}}}
        for name, steps in (("a", "30"), ("b", "40"))
    ]
    sweep = Sweep(cluster, namespace, "pair")
    sweep.apply({"template": {"spec": template}, "variants": variants, "parallelism": 2}, labels=QUEUE)
    runs = [training("pair-a"), training("pair-b")]
    wait_for(lambda: sorted(run.phase for run in runs)[0] == "Queued", "one of the two waits", seconds=60)
    most = 0
    while sweep.status.get("phase") not in ("Succeeded", "Failed"):
        pods = cluster.items(f"/api/v1/namespaces/{namespace}/pods")  # of both at one moment
        most = max(most, sum(pod["status"].get("phase") == "Running" for pod in pods))
    assert (sweep.status["phase"], sweep.status["done"], most) == ("Succeeded", "2/2", 1)


def _is(workload: Object, kind: str) -> bool:
    conditions = workload.get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)
