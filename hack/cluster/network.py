"""The cables: one bridge, a network namespace for each node, and routes to its pods.

    the machine, 10.77.0.1 --- bridge --+-- veth --- node-1, 10.77.0.11 --- bridge --- pods, 10.78.1.0/24
                                        +-- veth --- node-2, 10.77.0.12 --- bridge --- pods, 10.78.2.0/24

A node is cut off by pulling its cable. What pods send to the world beyond the box is masqueraded.
"""

import contextlib
from pathlib import Path

from hack.cluster.layout import BRIDGE, GATEWAY, NODE_NET, POD_NET, SERVICE_NET, Node
from hack.cluster.shell import BoxError, run

_IMDS = "169.254.169.254"  # the machine's own cloud is not the box's: a kubelet would ask it, and wait
_OURS = "10.64.0.0/10"  # nodes, pods and services
_RULES = (
    ("nat", "POSTROUTING", "-s", POD_NET, "!", "-d", _OURS, "-j", "MASQUERADE"),
    ("nat", "POSTROUTING", "-s", NODE_NET, "!", "-d", _OURS, "-j", "MASQUERADE"),
    ("filter", "FORWARD", "-i", BRIDGE, "-j", "ACCEPT"),
    ("filter", "FORWARD", "-o", BRIDGE, "-j", "ACCEPT"),
)


def up() -> None:
    """Make the bridge, and let the machine forward."""
    if not _link(BRIDGE).exists():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "addr", "add", f"{GATEWAY}/{NODE_NET.split('/')[1]}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    # A service that kube-proxy does not know yet has to fail at once; on its way to nowhere a connection would hang.
    run(["ip", "route", "replace", "unreachable", SERVICE_NET])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _remove_rules()
    for table, chain, *rule in _RULES:
        run(["iptables", "-w", "-t", table, "-I", chain, *rule])


def down() -> None:
    """Leave nothing of it behind."""
    _remove_rules()
    run(["ip", "route", "flush", "type", "unreachable", "exact", SERVICE_NET])
    if _link(BRIDGE).exists():
        run(["ip", "link", "del", BRIDGE])


def attach(node: Node) -> None:
    """Make the node's namespace and plug it in."""
    inside = ["ip", "-n", node.namespace]
    run(["ip", "netns", "add", node.namespace])
    run(["ip", "link", "add", node.cable, "type", "veth", "peer", "name", "eth0", "netns", node.namespace])
    run(["ip", "link", "set", node.cable, "master", BRIDGE, "up"])
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "addr", "add", f"{node.address}/{NODE_NET.split('/')[1]}", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "route", "add", "default", "via", GATEWAY])
    run([*inside, "route", "add", "unreachable", _IMDS])
    run(["nsenter", f"--net={namespace_file(node)}", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    run(["ip", "route", "replace", node.pod_net, "via", node.address])


def detach(node: Node) -> None:
    """Remove the node's namespace, and with it everything that is plugged in there."""
    if _link(node.cable).exists():
        run(["ip", "link", "del", node.cable])
    if namespace_file(node).exists():
        run(["ip", "netns", "del", node.namespace])


def cut(node: Node) -> None:
    """Pull its cable: the node lives on, and nobody hears of it."""
    run(["ip", "link", "set", node.cable, "down"])


def heal(node: Node) -> None:
    """Plug it in again; the route was lost with the link."""
    run(["ip", "link", "set", node.cable, "up"])
    run(["ip", "route", "replace", node.pod_net, "via", node.address])


def is_cut(node: Node) -> bool:
    """Whether its cable is pulled."""
    flags = int((_link(node.cable) / "flags").read_text(), 16)
    return not flags & 1  # IFF_UP


def namespace_file(node: Node) -> Path:
    """What nsenter takes."""
    return Path("/run/netns") / node.namespace


def _link(name: str) -> Path:
    return Path("/sys/class/net") / name


def _remove_rules() -> None:
    for table, chain, *rule in _RULES:
        with contextlib.suppress(BoxError):  # until there is none left
            while True:
                run(["iptables", "-w", "-t", table, "-D", chain, *rule])
