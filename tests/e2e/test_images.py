"""Piton's two images, built from their Dockerfiles, in pods that may do no more than they have to."""

from collections.abc import Iterator
from typing import Any

import pytest

from hack import images
from hack.cluster import depot, drills
from hack.cluster.layout import Node
from support.boxed import apply, ended, kubectl, logs, make_namespace, remove_namespace

NODE = Node(number=2)
RUNS = """
import os, tempfile, torch, piton_trainer.training.loop
open("/dev/termination-log", "w").write("told")
tempfile.TemporaryFile()
print(os.getuid(), torch.ones(2).sum().item())
"""
SUM = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
print("sum", one.item())
dist.destroy_process_group()  # its threads do not outlive the interpreter unharmed
"""

pytestmark = [
    pytest.mark.box,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("cluster"),
]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    name = make_namespace(request.node.name)
    kubectl("create", "serviceaccount", "none", "-n", name)
    yield name
    remove_namespace(name)


def a_pod(
    name: str, image: str, *, node: Node = NODE, env: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """One that may not be root, may write nowhere but to /tmp, and has no token."""
    container = {
        "name": "pytorch",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **more,
    }
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": "none",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True},
        "nodeSelector": {"kubernetes.io/hostname": node.name},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def test_the_operator_says_its_version_and_needs_no_root(namespace: str) -> None:
    apply(namespace, a_pod("version", images.OPERATOR, args=["--version"]))

    assert ended(namespace, "version")["exitCode"] == 0, logs(namespace, "version")
    assert logs(namespace, "version").startswith("piton, version ")


def test_the_operator_is_what_its_image_starts_and_has_no_torch(namespace: str) -> None:
    find = "import importlib.util as u; import piton.kube.app; print([n for n in ('torch', 'boto3') if u.find_spec(n)])"
    apply(namespace, a_pod("help", images.OPERATOR, args=["operator", "--help"]),
          a_pod("find", images.OPERATOR, command=["python", "-c", find]))  # fmt: skip

    assert ended(namespace, "help")["exitCode"] == 0, logs(namespace, "help")
    assert ended(namespace, "find")["exitCode"] == 0, logs(namespace, "find")
    assert logs(namespace, "find") == "[]\n"


def test_the_trainer_runs_torch_and_tells_how_it_ended_without_root(namespace: str) -> None:
    apply(namespace, a_pod("train", images.TRAINER, command=["python", "-c", RUNS]))

    end = ended(namespace, "train")

    assert (end["exitCode"], end.get("message")) == (0, "told"), logs(namespace, "train")
    assert logs(namespace, "train").split() == ["65532", "2.0"]


def test_nothing_of_the_operator_is_installed_for_the_trainer(namespace: str) -> None:
    find = "import importlib.util as u; print([n for n in ('kopf', 'kubernetes', 'pytest') if u.find_spec(n)])"
    apply(namespace, a_pod("find", images.TRAINER, command=["python", "-c", find]))

    assert ended(namespace, "find")["exitCode"] == 0, logs(namespace, "find")
    assert logs(namespace, "find") == "[]\n"


def test_trainers_on_two_nodes_add_up_their_numbers(namespace: str) -> None:
    master = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "master-0"},
        "spec": {"clusterIP": "None", "selector": {"app": "rank-0"}, "ports": [{"port": 23456}]},
    }
    world = {"MASTER_ADDR": "master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2"}
    ranks = [
        a_pod(f"rank-{rank}", images.TRAINER, node=Node(number=rank + 1), env={**world, "RANK": str(rank)},
              command=["python", "-c", SUM])
        for rank in range(2)
    ]  # fmt: skip
    apply(namespace, master, *ranks)

    for rank in range(2):
        assert ended(namespace, f"rank-{rank}")["exitCode"] == 0, logs(namespace, f"rank-{rank}")
        assert "sum 2.0" in logs(namespace, f"rank-{rank}")


def test_torchrun_is_on_the_path_of_the_trainer(namespace: str) -> None:
    apply(namespace, a_pod("many", images.TRAINER,
                           command=["torchrun", "--nproc-per-node", "2", "--no-python", "true"]))  # fmt: skip

    assert ended(namespace, "many")["exitCode"] == 0, logs(namespace, "many")


def test_a_node_that_is_added_anew_has_the_images_at_once(namespace: str, all_nodes_back: None) -> None:
    drills.kill(NODE)
    drills.add(NODE)

    inside = NODE.images / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    assert all(layer.is_symlink() for layer in inside.iterdir())  # nothing was unpacked
    assert {images.OPERATOR, images.TRAINER} <= set(depot.images())
    apply(namespace, a_pod("version", images.OPERATOR, args=["--version"]))
    assert ended(namespace, "version")["exitCode"] == 0
