"""Where everything of the box lies, which addresses it has, and what its nodes are called. Pure: it looks at nothing.

10.77.0.1     this machine, on the bridge that the nodes hang on: API server, DNS
10.77.0.1N    node N, a network namespace of its own
10.78.N.0/24  the pods of node N
10.96.0.0/16  services
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piton"
"""What is slow to make and outlives the box."""

STATE = Path("/var/lib/piton-box")
"""Everything else; `down` removes it, except for the logs."""

LOCK = Path("/run/piton-box.lock")
"""Held by whoever uses the box, with their process id in it."""

LOGS = STATE / "logs"
PIDS = STATE / "pids"
PKI = STATE / "pki"
NODES = STATE / "nodes"
VOLUMES = STATE / "volumes"
KUBECONFIG = STATE / "kubeconfig"

BRIDGE = "piton-box"
CGROUP = "/piton-box"
GATEWAY = "10.77.0.1"
NODE_NET = "10.77.0.0/24"
POD_NET = "10.78.0.0/16"
SERVICE_NET = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
API_PORT = 16443
ETCD_PORT = 12379
ETCD_PEER_PORT = 12380
PROMETHEUS_PORT = 19090
CLUSTER_DOMAIN = "cluster.local"

ZONES = ("us-east-1a", "us-east-1b")
_ADDRESS_OF_NODE_0 = 10
_NODES_MAX = 200
_NAME = re.compile(r"node-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the box."""

    number: int
    """Every address and name of the node follows from it. 0 is the one that the cloud does not take away."""
    launched_as: str | None = None
    """The name that a provisioner has given it, with its Node object; None: it registers itself, under its own."""

    def __post_init__(self) -> None:
        """Keep the addresses inside their networks."""
        if not 0 <= self.number <= _NODES_MAX:
            raise ValueError(f"there is no node {self.number}: nodes are numbered from 0 to {_NODES_MAX}")

    @classmethod
    def named(cls, name: str) -> "Node":
        """The node that is called `node-<number>`.

        Raises:
            ValueError: No node has such a name.
        """
        if not (found := _NAME.fullmatch(name)):
            raise ValueError(f"{name!r} is no node of the box: they are called node-0, node-1 and so on")
        return cls(number=int(found[1]))

    @property
    def name(self) -> str:
        """Its name in the box."""
        return f"node-{self.number}"

    @property
    def hostname(self) -> str:
        """Its name in the cluster."""
        return self.launched_as or self.name

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"10.77.0.{_ADDRESS_OF_NODE_0 + self.number}"

    @property
    def pod_net(self) -> str:
        """The addresses of its pods."""
        return f"10.78.{self.number}.0/24"

    @property
    def zone(self) -> str:
        """Neighbours lie in different zones."""
        return ZONES[(self.number + 1) % len(ZONES)]

    @property
    def spot(self) -> bool:
        """Whether it is a spot node with GPUs; node 0 is a plain one, for what runs the cluster."""
        return self.number > 0

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return f"piton-{self.name}"

    @property
    def cable(self) -> str:
        """The end of its veth pair that is plugged into the bridge."""
        return f"piton{self.number}"

    @property
    def folder(self) -> Path:
        """Its disk: containers, volumes, configuration."""
        return NODES / self.name

    @property
    def socket(self) -> Path:
        """Where its containerd listens."""
        return self.folder / "containerd.sock"

    @property
    def images(self) -> Path:
        """Where its containerd keeps images and what runs of them."""
        return self.folder / "containerd"

    @property
    def cgroup(self) -> str:
        """Everything that runs on the node is in this cgroup or below it."""
        return f"{CGROUP}/{self.name}"
