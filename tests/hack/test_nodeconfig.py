"""What nodes are told, and how they look."""

import tomllib
from pathlib import Path

from hack.cluster import nodeconfig
from hack.cluster.layout import Node

SPOT, PLAIN = Node(number=1), Node(number=0)


def test_a_spot_node_says_so_in_all_three_spellings() -> None:
    labels = nodeconfig.labels(SPOT)

    assert labels["karpenter.sh/capacity-type"] == "spot"
    assert labels["eks.amazonaws.com/capacityType"] == "SPOT"
    assert labels["node.kubernetes.io/lifecycle"] == "spot"
    assert labels["node.kubernetes.io/instance-type"] == "p4d.24xlarge"


def test_node_0_is_neither_spot_nor_for_gpus() -> None:
    assert "spot" not in {value.lower() for value in nodeconfig.labels(PLAIN).values()}
    assert nodeconfig.taints(PLAIN) == ""
    assert nodeconfig.taints(SPOT) == "nvidia.com/gpu=true:NoSchedule"


def test_the_provider_names_the_zone() -> None:
    assert nodeconfig.provider_id(SPOT) == f"aws:///{SPOT.zone}/i-00000000000000001"


def test_a_machine_that_a_provisioner_has_launched_has_the_name_that_it_gave_and_says_nothing_else_of_itself() -> None:
    """What it is and which taints it has is on the Node object, which is there before the machine."""
    launched = Node(number=7, launched_as="kwok-spot-abcde-1")

    assert launched.hostname == "kwok-spot-abcde-1"
    assert nodeconfig.provider_id(launched) == "kwok://kwok-spot-abcde-1"
    assert nodeconfig.kube_proxy(launched, "kubeconfig")["hostnameOverride"] == "kwok-spot-abcde-1"
    assert (nodeconfig.labels(launched), nodeconfig.taints(launched)) == ({}, "")
    assert launched.folder == Node(number=7).folder, "paths of sockets have to be short"


def test_containerd_reads_its_configuration() -> None:
    found = tomllib.loads(nodeconfig.containerd(SPOT, Path("/bin/shim")))
    runtime = found["plugins"]["io.containerd.cri.v1.runtime"]

    assert found["grpc"]["address"] == str(SPOT.socket)
    assert runtime["restrict_oom_score_adj"] is True
    assert runtime["containerd"]["runtimes"]["runc"]["runtime_path"] == "/bin/shim"


def test_all_containers_of_a_node_are_below_its_cgroup() -> None:
    found = nodeconfig.kubelet(SPOT, "/ca.crt")

    assert found["cgroupRoot"] == SPOT.cgroup
    assert found.get("cgroupsPerQOS", True)  # without, the kubelet ignores the root


def test_pods_get_addresses_of_their_node() -> None:
    bridge = nodeconfig.cni(SPOT)["plugins"][0]

    assert bridge["ipam"]["ranges"] == [[{"subnet": SPOT.pod_net}]]
