"""What containerd, the CNI plugins, kubelet and kube-proxy of a node are told. Pure: values in, documents out."""

from pathlib import Path
from typing import Any

from hack.cluster.images import PAUSE
from hack.cluster.layout import CLUSTER_DOMAIN, GATEWAY, POD_NET, Node

GPU = "nvidia.com/gpu"
GPUS = 8
_INSTANCE_TYPE = "p4d.24xlarge"
_SYSTEM_INSTANCE_TYPE = "m5.xlarge"

_CONTAINERD = """\
version = 3
root = "{images}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
                    "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
# Its socket has one place on a machine, which the containerds of several nodes would fight for.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE this score cannot be lowered, and every sandbox would fail to start.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{shim}"
"""


def containerd(node: Node, shim: Path) -> str:
    """Its configuration; the paths under /run are the node's own, see `nodes.py`. `shim` is of the same build."""
    return _CONTAINERD.format(images=node.images, folder=node.folder, socket=node.socket, shim=shim, pause=PAUSE)


def cni(node: Node) -> dict[str, Any]:
    """Pods hang on a bridge; the node routes."""
    address_management = {
        "type": "host-local",
        "dataDir": str(node.folder / "addresses"),
        "ranges": [[{"subnet": node.pod_net}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": address_management}
    return {
        "cniVersion": "0.4.0",
        "name": "box",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def kubelet(node: Node, authority: str) -> dict[str, Any]:
    """Containers go straight below the node's cgroup, so that the node can be killed as one."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": authority}},
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "failCgroupV1": False,
        "clusterDNS": [GATEWAY],
        "clusterDomain": CLUSTER_DOMAIN,
        "evictionHard": {"memory.available": "100Mi"},  # the disk is the machine's, and not ours to judge
        "imageGCHighThresholdPercent": 100,  # images that were loaded cannot be pulled again
        "nodeStatusUpdateFrequency": "1s",  # looks this often, …
        "nodeStatusReportFrequency": "5m",  # … and tells when something changed; the default would be Ready 10 s late
        "volumePluginDir": str(node.folder / "plugins"),
    }


def kube_proxy(node: Node, kubeconfig: str) -> dict[str, Any]:
    """Services in iptables, in the node's own tables."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "mode": "iptables",
        "clusterCIDR": POD_NET,
        "hostnameOverride": node.hostname,
        # A network namespace may not write the machine's connection-tracking limits.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def labels(node: Node) -> dict[str, str]:
    """What a cloud writes on its nodes; spot in all three spellings. A provisioner has written them already."""
    if node.launched_as:
        return {}
    capacity = ("spot", "SPOT", "spot") if node.spot else ("on-demand", "ON_DEMAND", "normal")
    return {
        "karpenter.sh/capacity-type": capacity[0],
        "eks.amazonaws.com/capacityType": capacity[1],
        "node.kubernetes.io/lifecycle": capacity[2],
        "node.kubernetes.io/instance-type": _INSTANCE_TYPE if node.spot else _SYSTEM_INSTANCE_TYPE,
        "topology.kubernetes.io/region": node.zone[:-1],
        "topology.kubernetes.io/zone": node.zone,
    }


def taints(node: Node) -> str:
    """Only what asks for GPUs belongs on a GPU node. A provisioner has written them already."""
    return f"{GPU}=true:NoSchedule" if node.spot and not node.launched_as else ""


def provider_id(node: Node) -> str:
    """As AWS writes it, or Karpenter's kwok provider."""
    return f"kwok://{node.launched_as}" if node.launched_as else f"aws:///{node.zone}/i-{node.number:017x}"
