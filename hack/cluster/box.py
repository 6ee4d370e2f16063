"""The box as a whole: up, down, and how it is."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from hack.cluster import (
    addons,
    api,
    controlplane,
    dns,
    drills,
    folders,
    images,
    network,
    nodes,
    packages,
    pki,
    processes,
    prometheus,
    release,
)
from hack.cluster.layout import CGROUP, KUBECONFIG, LOCK, LOGS, STATE, Node
from hack.cluster.programs import Say
from hack.cluster.shell import BoxError


@contextmanager
def use_alone() -> Iterator[None]:
    """Keep everybody else from bringing the box up, taking it down, or testing on it, until the block ends.

    There is one box on a machine, so the tests of two checkouts would lose each other's nodes.

    Raises:
        BoxError: Somebody else uses it, or we are not root.
    """
    require_root()
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BoxError(f"the box: process {lock.read()} uses it; wait for it, or stop it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def up(*, spot_nodes: int, say: Say, kubernetes: str | None = None) -> None:
    """Bring it up, or what of it is not up; node 0 is always there. Returns when every node is Ready.

    `kubernetes` is a minor version, or a folder of programs: see `release.choose`.
    """
    require_root()
    if not processes.running("etcd"):
        down()  # a box that nobody stopped, such as of a machine that was switched off, has its data here still
        shutil.rmtree(LOGS, ignore_errors=True)
    packages.install(packages.RUNTIME)
    release.choose(kubernetes, say)
    pki.create()
    network.up()
    nodes.prepare()
    folders.prepare()
    images.keep_basics()
    controlplane.start()
    say("the control plane is ready")
    addons.start()
    wanted = [Node(number=number) for number in range(spot_nodes + 1)]
    fresh = [node for node in wanted if not nodes.alive(node)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(drills.add, fresh))
    say(f"{', '.join(node.name for node in wanted)}: Ready")


def down() -> None:
    """Stop everything that the box started, and leave nothing behind but logs and the cache."""
    require_root()
    prometheus.stop()
    nodes.remove_all()
    addons.stop()
    controlplane.stop()
    network.down()
    folders.remove_all()
    processes.remove_cgroup(CGROUP)
    for path in STATE.glob("*"):
        if path != LOGS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_up() -> bool:
    """Whether the API server is ready."""
    return bool(processes.running("kube-apiserver")) and api.ready()


def restart(name: str) -> None:
    """Kill one part of the control plane, as a crash would, and start it again.

    Raises:
        BoxError: There is no such part, or it does not come back.
    """
    require_root()
    if name not in controlplane.NAMES:
        raise BoxError(f"{name!r} is no part of the control plane: {', '.join(controlplane.NAMES)}")
    processes.stop(name, seconds=0)
    controlplane.start()


def status() -> str:
    """What runs and what does not, for people."""
    parts = (*controlplane.NAMES, addons.PROCESS, dns.PROCESS, prometheus.PROCESS, prometheus.DISCOVERY)
    words = {name: _word(processes.running(name)) for name in parts}
    words |= {node.name: _node_word(node) for node in nodes.all_nodes()}
    words["kubeconfig"] = str(KUBECONFIG)
    return "\n".join(f"{name:24} {word}" for name, word in words.items())


def require_root() -> None:
    """Say it early and plainly.

    Raises:
        BoxError: We are not root on Linux.
    """
    if os.name != "posix" or os.geteuid() != 0:
        raise BoxError(
            "the box needs root on Linux: it makes network namespaces and runs containers. "
            "Without, point KUBECONFIG at a cluster that you have (kind, EKS)"
        )


def _word(pid: int | None) -> str:
    return f"running, pid {pid}" if pid else "not running"


def _node_word(node: Node) -> str:
    if not nodes.alive(node):
        return "dead"
    if network.is_cut(node):
        return "cut off"
    return "Ready" if nodes.is_ready(node) else "not Ready"
