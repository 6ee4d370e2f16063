"""The box itself: pods run, find each other by name, and go away as on real nodes. Built first where it must be."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import box, drills, images
from hack.cluster.layout import VOLUMES, Node
from support import live
from support.boxed import apply, ended, kubectl, logs, make_namespace, remove_namespace, status

pytestmark = [
    pytest.mark.box,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("the_box"),
]
TRAP = "trap 'echo saved > /data/saved; echo told > /dev/termination-log; exit 143' TERM; "
TICK = TRAP + "while true; do echo tick >> /data/ticks; sleep 0.1; done"
SPOT = {"karpenter.sh/capacity-type": "spot"}
OTHER_ZONE = ("didn't match PersistentVolume's node affinity", "volume node affinity conflict")
"""The scheduler's words in Kubernetes 1.33 and newer, and in 1.30."""


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    name = make_namespace(request.node.name)
    wait_for(lambda: kubectl("get", "serviceaccount", "-n", name, "-o", "name").strip(), "a service account")
    apply(name, a_claim("data"))
    yield name
    remove_namespace(name)


def a_claim(name: str, *, kind: str = "shared", mode: str = "ReadWriteMany", size: str = "1Gi") -> dict[str, Any]:
    spec = {"storageClassName": kind, "accessModes": [mode], "resources": {"requests": {"storage": size}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def a_pod(
    name: str, script: str, *, node: dict[str, str], gpus: int = 1, memory: str = "64Mi", claim: str = "data"
) -> dict[str, Any]:
    container = {
        "name": "pytorch",
        "image": images.BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus), "memory": memory}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 20,
        "nodeSelector": node,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def wait_for(true: Callable[[], object], what: str) -> None:
    live.wait_for(true, what, seconds=60)


def ticking(namespace: str) -> Path:
    """The volume of a pod that ticks; returns when it does."""
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/tick", "--timeout=60s")
    volume = kubectl("get", "pvc", "data", "-n", namespace, "-o", "jsonpath={.spec.volumeName}")
    folder = VOLUMES / volume
    wait_for((folder / "ticks").exists, "the first tick")
    return folder


def ticks_on(folder: Path) -> bool:
    """Whether the pod still writes, as it does ten times a second."""
    before = (folder / "ticks").stat().st_size
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if (folder / "ticks").stat().st_size > before:
            return True
        time.sleep(0.1)
    return False


def on(node: Node) -> dict[str, str]:
    return {"kubernetes.io/hostname": node.name}


def test_a_pod_runs_on_a_spot_node_and_tells_how_it_ended(namespace: str) -> None:
    apply(namespace, a_pod("smoke", "echo hello; echo why > /dev/termination-log; exit 7", node=SPOT, gpus=8))

    end = ended(namespace, "smoke")

    assert (end["exitCode"], end["message"]) == (7, "why\n")
    assert logs(namespace, "smoke") == "hello\n"
    assert status(namespace, "smoke")["podIP"].startswith("10.78.")


def test_what_needs_more_gpus_than_a_node_has_is_not_scheduled(namespace: str) -> None:
    apply(namespace, a_pod("greedy", "true", node=SPOT, gpus=9))

    wait_for(
        lambda: "Insufficient nvidia.com/gpu" in json.dumps(status(namespace, "greedy").get("conditions", [])),
        "the scheduler to give up",
    )


def test_pods_on_two_nodes_reach_each_other_by_the_name_of_a_service(namespace: str) -> None:
    def a_service(name: str, **spec: Any) -> dict[str, Any]:
        spec |= {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    serve = "mkdir /tmp/w; echo served > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"
    ask = "until wget -qO- http://web && wget -qO- http://server-0:8080; do sleep 0.2; done"
    apply(namespace, a_service("web"), a_service("server-0", clusterIP="None"),
          a_pod("server", serve, node=on(Node(number=1))), a_pod("client", ask, node=on(Node(number=2))))  # fmt: skip

    assert ended(namespace, "client")["exitCode"] == 0
    assert "served\nserved\n" in logs(namespace, "client")


def test_a_pod_that_takes_too_much_memory_is_killed(namespace: str) -> None:
    apply(namespace, a_pod("hungry", "exec tail -c 300m /dev/zero", node=SPOT, memory="32Mi"))

    assert ended(namespace, "hungry")["reason"] == "OOMKilled"


def test_a_bounded_volume_is_full_at_its_size(namespace: str) -> None:
    apply(namespace, a_claim("small", kind="bounded", size="16Mi"))
    apply(namespace, a_pod("writer", "dd if=/dev/zero of=/data/big bs=1M count=32", node=SPOT, claim="small"))

    assert ended(namespace, "writer")["exitCode"] == 1
    assert "No space left on device" in logs(namespace, "writer")


def test_a_zonal_volume_stays_in_the_zone_of_its_first_node(namespace: str) -> None:
    first, other = Node(number=1), Node(number=2)
    apply(namespace, a_claim("disk", kind="zonal", mode="ReadWriteOnce"))
    apply(namespace, a_pod("first", "echo here > /data/it", node=on(first), claim="disk"))
    assert ended(namespace, "first")["exitCode"] == 0

    apply(namespace, a_pod("again", "cat /data/it", node=on(first), claim="disk"))
    apply(namespace, a_pod("elsewhere", "true", node=on(other), claim="disk"))

    assert ended(namespace, "again")["exitCode"] == 0
    wait_for(
        lambda: any(words in json.dumps(status(namespace, "elsewhere")) for words in OTHER_ZONE),
        "the scheduler to refuse",
    )


def test_a_reclaimed_node_lets_its_pods_save_and_is_gone_at_the_deadline(namespace: str, all_nodes_back: None) -> None:
    node = Node(number=1)
    apply(namespace, a_pod("tick", TICK, node=on(node)))
    folder = ticking(namespace)

    drills.reclaim(node, notice_seconds=20)

    assert (folder / "saved").exists()
    assert node.name not in kubectl("get", "nodes", "-o", "name")
    assert not ticks_on(folder)


def test_a_killed_node_takes_everything_with_it_unsaved(namespace: str, all_nodes_back: None) -> None:
    node = Node(number=2)
    apply(namespace, a_pod("tick", TICK, node=on(node)))
    folder = ticking(namespace)

    drills.kill(node)

    assert not ticks_on(folder)
    assert not (folder / "saved").exists()
    assert node.name in kubectl("get", "nodes", "-o", "name")  # the cluster does not know yet


def test_what_runs_on_a_node_that_is_cut_off_lives_on_unheard(namespace: str, all_nodes_back: None) -> None:
    node = Node(number=2)
    apply(namespace, a_pod("tick", TICK, node=on(node)))
    folder = ticking(namespace)

    drills.cut(node)
    try:
        kubectl("delete", "pod", "tick", "-n", namespace, "--wait=false")
        assert ticks_on(folder)  # nobody could tell it
        assert not (folder / "saved").exists()
    finally:
        drills.heal(node)

    wait_for((folder / "saved").exists, "the save")


def test_pods_do_not_notice_that_the_api_server_crashes(namespace: str) -> None:
    apply(namespace, a_pod("tick", TICK, node=SPOT))
    folder = ticking(namespace)

    box.restart("kube-apiserver")

    assert ticks_on(folder)
    assert status(namespace, "tick")["phase"] == "Running"
