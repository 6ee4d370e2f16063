"""Memories that outlive a pass, and reads that cost the API server nothing: all passes over runs share them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from piton.kube import kueue
from piton.kube.client import Reads
from piton.kube.last_seen import Sightings
from piton.kube.nodepools import NodePools
from piton.kube.outages import Outages
from piton.kube.prices import Prices
from piton.kube.report_store import Reports
from piton.kube.resources import Resource
from piton.ports import PortError


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """Memory that all passes of an operator share. Without a part of it less is known."""

    reports: Reports | None = None
    listens: Callable[[], bool] = lambda: False
    """True if trainers are told where to report."""
    prices: Prices = field(default_factory=Prices)
    sightings: Sightings = field(default_factory=Sightings)
    pools: NodePools | None = None
    outages: Outages | None = None
    positions: kueue.QueuePositions | None = None
    events: Reads | None = None
    """Reads of Events, also for a pass that reads all else live: nothing irrevocable follows from them, and a list of
    those about one object costs the API server a look at every Event of the namespace, in etcd."""
    nodes: Reads | None = None
    """Reads of all nodes, also for a pass that reads all else live: in a large cluster each such list is megabytes, or
    a look at each of thousands."""
    trouble: Callable[[Resource, str], PortError | None] | None = None
    """Returns the error that keeps a kind from being watched in a namespace."""
