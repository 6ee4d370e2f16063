"""A storm over the box, from a seed: what goes wrong, where and when. The same seed plans the same storm.

Every node has its own thread, so that one may be away while another goes; so has the control plane.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from hack.cluster import box, drills, processes
from hack.cluster.layout import Node
from hack.install.chart import NAMESPACE
from support.live import LiveCluster


class Kind(StrEnum):
    """What may go wrong."""

    KILL = "kill"
    RECLAIM = "reclaim"
    CUT = "cut"
    OPERATOR = "operator"
    API_SERVER = "kube-apiserver"


ON_NODES = (Kind.KILL, Kind.RECLAIM, Kind.CUT)
_WEIGHTS = {Kind.KILL: 4, Kind.RECLAIM: 4, Kind.CUT: 3, Kind.OPERATOR: 3, Kind.API_SERVER: 2}
_PAUSE_SECONDS = (2.0, 6.0)
_AWAY_SECONDS = (2.0, 10.0)
_BOOT_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Blow:
    """One thing that goes wrong."""

    at_seconds: float
    kind: Kind
    node: int | None = None
    away_seconds: float = 0.0
    """How long the node is gone or cut off; for a reclaim, the notice before."""

    def __str__(self) -> str:
        where = f" node-{self.node} for {self.away_seconds:.1f} s" if self.node else ""
        return f"{self.kind}{where}"


def plan(seed: int, *, seconds: float, nodes: int) -> tuple[Blow, ...]:
    """The storm of this seed: a blow every few seconds, on nodes only while they are there."""
    random = Random(seed)
    back_at = dict.fromkeys(range(1, nodes + 1), 0.0)
    blows: list[Blow] = []
    at = 0.0
    while (at := at + random.uniform(*_PAUSE_SECONDS)) < seconds:
        kind = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        node, away = random.choice(list(back_at)), random.uniform(*_AWAY_SECONDS)
        if kind not in ON_NODES:
            blows.append(Blow(at_seconds=at, kind=kind))
        elif back_at[node] <= at:
            blows.append(Blow(at_seconds=at, kind=kind, node=node, away_seconds=away))
            back_at[node] = at + away + _BOOT_SECONDS
    return tuple(blows)


def strike(blows: Sequence[Blow], cluster: LiveCluster, say: Callable[[str], None]) -> None:
    """Let the storm pass; returns when every node is back."""
    began = time.monotonic()
    calm = threading.Event()

    def follow(lane: Sequence[Blow]) -> None:
        for blow in lane:
            calm.wait(max(0.0, began + blow.at_seconds - time.monotonic()))
            say(f"{time.monotonic() - began:5.1f} s  {blow}")
            _strike(blow, cluster, calm)

    lanes = [[blow for blow in blows if blow.node == node] for node in {blow.node for blow in blows}]
    with ThreadPoolExecutor(len(lanes) or 1) as pool:
        errors = [error for done in [pool.submit(follow, lane) for lane in lanes] if (error := done.exception())]
    if errors:
        raise BaseExceptionGroup("the storm itself went wrong", errors)


def _strike(blow: Blow, cluster: LiveCluster, calm: threading.Event) -> None:
    node = Node(number=blow.node or 0)
    match blow.kind:
        case Kind.KILL:
            drills.kill(node)
            calm.wait(blow.away_seconds)
            drills.add(node)
        case Kind.RECLAIM:
            drills.reclaim(node, notice_seconds=blow.away_seconds)
            drills.add(node)
        case Kind.CUT:
            drills.cut(node)
            calm.wait(blow.away_seconds)
            drills.heal(node)
        case Kind.OPERATOR:
            kill_operator(cluster)
        case Kind.API_SERVER:
            box.restart(blow.kind)


def kill_operator(cluster: LiveCluster) -> None:
    """SIGKILL, and its pod's object goes as well, so that the kubelet does not wait before it starts another."""
    for pid, command in processes.members(Node(number=0).cgroup).items():
        if "piton operator" in command:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    cluster.kubectl("-n", NAMESPACE, "delete", "pods", "--all", "--force", "--grace-period=0", check=False)
