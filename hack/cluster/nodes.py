"""One node: containerd, kubelet and kube-proxy of its own, in a network and a mount namespace and a cgroup of its own.

The mount namespace gives each node its own /run/containerd and /var/log/pods: a kubelet removes the logs of pods that
it does not know, and those would be its neighbour's. It also takes all mounts of the node with it when it ends.
"""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from hack.cluster import api, depot, mounts, network, nodeconfig, pki, processes
from hack.cluster.layout import NODES, STATE, Node
from hack.cluster.release import program
from hack.cluster.shell import run

_DAEMONS = ("containerd", "kubelet", "kube-proxy")
_OWN = {
    "run": "/run/containerd",
    "log-pods": "/var/log/pods",
    "log-containers": "/var/log/containers",
    "cni-cache": "/var/lib/cni",
}
_MOUNTS = STATE / "mounts"


def all_nodes() -> list[Node]:
    """Every node of the box, also the dead."""
    return sorted((Node.named(path.name) for path in NODES.glob("node-*")), key=lambda node: node.number)


def start(node: Node) -> None:
    """Boot a node that is not there; returns when its parts were started, see `wait_until_ready`."""
    if alive(node):
        return
    discard(node)  # what is left of a dead one with this name: a machine that comes back comes back empty
    node.folder.mkdir(parents=True)
    network.attach(node)
    _make_mounts(node)
    _configure(node)
    kubeconfig = node.folder / "kubelet.kubeconfig"
    depot.stock(node.images)
    _daemon(node, "containerd", [program("containerd"), "--config", node.folder / "containerd.toml"])
    containerd = _process(node, "containerd")
    processes.wait_for(f"containerd of {node.name}", lambda: depot.serves(node.socket), seconds=30, of=containerd)
    refresh_images(node)  # what the depot got in the meantime
    _daemon(node, "kubelet", [program("kubelet"), *_kubelet_flags(node, kubeconfig)])
    _daemon(node, "kube-proxy", [program("kube-proxy"), "--config", node.folder / "kube-proxy.yaml"])


def refresh_images(node: Node) -> None:
    """Bring a node that runs what the depot has got since it started."""
    depot.refresh(node.socket, node.images)


def refresh_all_images() -> None:
    """The same for every node that runs."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(refresh_images, [node for node in all_nodes() if alive(node)]))


def wait_until_ready(node: Node, *, seconds: float = 60) -> None:
    """Wait until the cluster says Ready, then give the node its GPUs, as a device plugin would.

    Raises:
        BoxError: It never was.
    """
    kubelet = _process(node, "kubelet")
    processes.wait_for(f"{node.name} to be Ready", lambda: is_ready(node), seconds=seconds, of=kubelet)
    if node.spot:
        gpus = {nodeconfig.GPU: str(nodeconfig.GPUS)}
        api.patch(f"/api/v1/nodes/{node.hostname}/status", {"status": {"capacity": gpus, "allocatable": gpus}})


def is_ready(node: Node) -> bool:
    """What the cluster thinks of it."""
    try:
        found = api.call("GET", f"/api/v1/nodes/{node.hostname}")
    except api.ApiError:
        return False
    conditions = found["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def alive(node: Node) -> bool:
    """Whether its kubelet runs, whatever the cluster knows."""
    return bool(processes.running(_process(node, "kubelet")))


def power_off(node: Node) -> None:
    """SIGKILL to everything on it, at one moment. Its disk and its Node object stay."""
    processes.kill_cgroup(node.cgroup)
    for daemon in _DAEMONS:
        processes.stop(_process(node, daemon))
    mounts.unmount_all(_namespace(node))
    network.detach(node)


def discard(node: Node) -> None:
    """Power it off and leave nothing behind but its logs."""
    power_off(node)
    processes.remove_cgroup(node.cgroup)
    _namespace(node).unlink(missing_ok=True)
    shutil.rmtree(node.folder, ignore_errors=True)


def prepare() -> None:
    """A folder whose mounts nobody else sees: the kernel keeps a mount namespace only there."""
    mounts.bind_to_itself(_MOUNTS, "private")


def remove_all() -> None:
    """Discard every node, and undo what was prepared."""
    for node in all_nodes():
        discard(node)
    mounts.unmount_all(_MOUNTS)


def _make_mounts(node: Node) -> None:
    _namespace(node).touch()
    binds = []
    for folder, place in _OWN.items():
        (node.folder / folder).mkdir(parents=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        binds.append(f"mount --bind {node.folder / folder} {place}")
    script = " && ".join([*binds, "mount --make-rshared /"])
    run(["unshare", f"--mount={_namespace(node)}", "--propagation", "slave", "sh", "-c", script])


def _namespace(node: Node) -> Path:
    return _MOUNTS / node.name


def _configure(node: Node) -> None:
    _make_identity(node)
    proxy = pki.kubeconfig("proxy", node.folder / "kube-proxy.kubeconfig")
    (node.folder / "cni").mkdir()
    (node.folder / "cni" / "box.conflist").write_text(json.dumps(nodeconfig.cni(node)))
    (node.folder / "containerd.toml").write_text(nodeconfig.containerd(node, program("containerd-shim-runc-v2")))
    (node.folder / "kubelet.yaml").write_text(yaml.safe_dump(nodeconfig.kubelet(node, str(pki.CA))))
    (node.folder / "kube-proxy.yaml").write_text(yaml.safe_dump(nodeconfig.kube_proxy(node, str(proxy))))


def _make_identity(node: Node) -> None:
    kubeconfig = node.folder / "kubelet.kubeconfig"
    if node.launched_as:
        pki.kubeconfig(pki.ADMIN, kubeconfig, node=node.launched_as)
        return
    pki.issue(node.name, f"/O=system:nodes/CN=system:node:{node.name}")
    pki.kubeconfig(node.name, kubeconfig)


def _kubelet_flags(node: Node, kubeconfig: Path) -> list[str]:
    return [
        f"--config={node.folder / 'kubelet.yaml'}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={node.folder / 'kubelet'}",
        f"--cert-dir={node.folder / 'kubelet-pki'}",
        f"--container-runtime-endpoint=unix://{node.socket}",
        f"--hostname-override={node.hostname}",
        f"--node-ip={node.address}",
        f"--provider-id={nodeconfig.provider_id(node)}",
        f"--node-labels={','.join(f'{key}={value}' for key, value in nodeconfig.labels(node).items())}",
        f"--register-with-taints={nodeconfig.taints(node)}",
    ]


def _daemon(node: Node, daemon: str, command: Sequence[str | Path]) -> None:
    enter = ["nsenter", f"--net={network.namespace_file(node)}", f"--mount={_namespace(node)}", "--"]
    processes.start(_process(node, daemon), [*enter, *command], cgroup=node.cgroup)


def _process(node: Node, daemon: str) -> str:
    return f"{node.name}-{daemon}"
