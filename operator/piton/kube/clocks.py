"""Times that a kubelet has written, by the clock of the control plane. A node's clock may be off by a day.

A kubelet writes soon after something that the control plane has dated, or soon before: it takes a pod that the
scheduler has bound, and sends an event that the API server then creates. Times far apart are clocks that differ by
that. A clock may be set right at any time, so each of two readings may be the right one.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from piton.kube.nodes import moment, scheduled_at

CLOCKS_DIFFER = timedelta(seconds=60)
"""A kubelet sees a pod within seconds; longer than this, and the clocks of node and control plane differ."""
_NONE = timedelta()


def readings(time: datetime, pod: Mapping[str, Any]) -> tuple[datetime, ...]:
    """Return what a time of the pod's kubelet may be by the clock of the control plane.

    As it is written, and with the difference that the kubelet's clock had when it took the pod.
    """
    return time, time + _difference(moment((pod.get("status") or {}).get("startTime")), scheduled_at(pod))


def on_the_clock_of_the_cluster(time: datetime | None, pod: Mapping[str, Any], now: datetime | None) -> datetime | None:
    """Return a time that the pod's kubelet has written by the clock of the control plane; None if that is in doubt.

    It is the later of the two readings that are not in the future: what is billed until then is not too little.
    Without a `now`, the clock counts as never set right.
    """
    if time is None:
        return None
    found = readings(time, pod)
    return found[-1] if now is None else max((each for each in found if each < now + CLOCKS_DIFFER), default=None)


def began_at(pod: Mapping[str, Any], container: Mapping[str, Any], placed_at: datetime | None) -> datetime | None:
    """Return the earliest time at which the container may have begun, by the clock of the control plane.

    The kubelet dates the starts of the pod and of the container by one clock, so the time between them is true. A clock
    that is far off may be set right between them, and the container may have run before: then the placement counts.
    """
    state, accepted_at = container.get("state") or {}, moment((pod.get("status") or {}).get("startTime"))
    begun = moment((state.get("running") or state.get("terminated") or {}).get("startedAt"))
    if placed_at is None or accepted_at is None or begun is None or container.get("restartCount"):
        return placed_at
    is_right = not _difference(accepted_at, placed_at) and begun >= accepted_at
    return placed_at + (begun - accepted_at) if is_right else placed_at


def of_event(event: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    """Return when the event was first and last reported, by the clock of the control plane.

    Events of events.k8s.io, as the scheduler writes them, have only eventTime and series.
    """
    created = moment(event["metadata"].get("creationTimestamp"))
    first = moment(event.get("firstTimestamp") or event.get("eventTime")) or created
    last = moment((event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp")) or first
    off = _difference(first, created)
    return first and first + off, last and last + off


def _difference(written: datetime | None, dated: datetime | None) -> timedelta:
    """Return what has to be added to times of the clock that wrote the one while the control plane dated the other."""
    if written is None or dated is None or abs(written - dated) < CLOCKS_DIFFER:
        return _NONE
    return dated - written
