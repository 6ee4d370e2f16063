"""The look at a run that a pass works with, and the memory that all passes share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from piton.kube import kueue
from piton.kube.client import Reads
from piton.kube.last_seen import Sightings
from piton.kube.nodepools import NodePools
from piton.kube.outages import Outages
from piton.kube.prices import Prices
from piton.kube.report_store import Reports
from piton.kube.resources import Body, Resource
from piton.observed import Observed
from piton.ports import PortError


@dataclass(frozen=True, kw_only=True)
class ClusterSnapshot:
    """One look at a run: what the core may see, and what the adapter needs to act on exactly that."""

    manifest: Body
    observed: Observed
    pods: Mapping[int, tuple[Body, ...]] = field(default_factory=dict)
    """The pods of each attempt that is ours."""
    claim: Body | None = None
    """The claim for the checkpoints, whosever it is."""
    workload: Body | None = None
    """The run's Workload, by which it has quota from a queue of Kueue's."""
    changes_at: datetime | None = None
    """The time at which the observation changes without an event: a silent node is about to count as gone."""


def seconds_until(reading: ClusterSnapshot | None, now: datetime) -> float | None:
    """Seconds until time alone changes what was read."""
    if reading is None or reading.changes_at is None:
        return None
    return max(0.0, (reading.changes_at - now) / timedelta(seconds=1))


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
