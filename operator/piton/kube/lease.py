"""One candidate's view of a Lease of coordination.k8s.io/v1, after client-go's semantics.

Times that are compared are this process's own, monotonic: another holder's lease is over so many seconds after its last
change was *seen* here. The times in the object are for people; clocks of machines differ. Each write names the version
that it replaces, so of two candidates one gets a conflict.
"""

import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

from piton.kube.client import Client
from piton.kube.errors import NotFound
from piton.kube.resources import LEASES, Body
from piton.kube.settings import LeaseSettings
from piton.kube.workqueue import Timer
from piton.ports import Clock, Conflict

_RELEASED_SECONDS = 1
"""Duration of a lease that was released. Not 0, which the API server refuses."""
_TRIES = 2
"""Writes of one renewal or release: the answer of an earlier one may have been lost, and its version with it."""


class Lease:
    """The Lease, as one candidate has last seen it. No call waits here; the caller limits their time."""

    def __init__(self, client: Client, clock: Clock, timer: Timer, settings: LeaseSettings) -> None:
        self.identity = f"{settings.pod}_{uuid.uuid4()}"
        self.renewed_at = float("-inf")
        """Moment at which the last write that succeeded was sent. Nobody else can have seen it earlier."""
        self._client = client
        self._clock = clock
        self._timer = timer
        self._settings = settings
        self._spec: Body = {}
        self._seen_at = float("-inf")
        self._version = ""

    @property
    def holder(self) -> str:
        """Identity of the holder, as last seen; empty: nobody."""
        return str(self._spec.get("holderIdentity") or "")

    @property
    def held(self) -> bool:
        """True if this candidate is the holder, as last seen."""
        return self.holder == self.identity

    @property
    def free_at(self) -> float:
        """Moment from which on this candidate may take the lease, unless it changes until then."""
        same_pod = self.holder.rpartition("_")[0] == self._settings.pod
        if not self.holder or same_pod:  # the holder in the same pod was this container's last process, and has ended
            return self._seen_at
        return self._seen_at + float(self._spec.get("leaseDurationSeconds") or self._settings.lease_seconds)

    async def acquire_or_renew(self) -> bool:
        """Take the lease if it is free, renew it if it is held. True if it is held then.

        Raises:
            PortError: The API server refuses or does not answer; whether the write took effect is not known.
        """
        led = self.held
        if led:
            with suppress(Conflict, NotFound):  # an earlier answer was lost, or somebody else wrote or deleted it
                return await self._write(self._version, self._renewed())
        if not await self._look():
            return await self._create()
        if not self.held and (self._timer.time() < self.free_at or (led and self.holder)):
            return False  # who led, and finds another holder, has lost the lease, even if that one is gone again
        try:
            return await self._write(self._version, self._renewed() if self.held else self._taken())
        except (Conflict, NotFound):  # somebody was quicker
            return False

    async def release(self) -> None:
        """Give the lease up, so that another candidate takes it at its next look; nothing if it is not held.

        Raises:
            PortError: As above; the lease is free when it expires.
        """
        for _ in range(_TRIES):
            if not self.held:
                return
            try:
                await self._write(self._version, self._released())
            except (Conflict, NotFound):
                await self._look()

    async def _look(self) -> bool:
        """Read the Lease. False if there is none."""
        found = await self._client.get(LEASES, self._settings.name, namespace=self._settings.namespace)
        if found is None:
            self._spec = {}
            return False
        self._see(found)
        return True

    async def _create(self) -> bool:
        metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": self._taken()}
        sent_at = self._timer.time()
        try:
            self._see(await self._client.create(LEASES, body))
        except Conflict:
            return False
        self.renewed_at = sent_at
        return True

    async def _write(self, version: str, spec: Body) -> bool:
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        sent_at = self._timer.time()
        self._see(await self._client.patch(LEASES, self._settings.name, body, namespace=self._settings.namespace))
        self.renewed_at = sent_at
        return True

    def _see(self, found: Body) -> None:
        """Remember the Lease. Only a change of its spec counts as a renewal, not one of its metadata."""
        spec: dict[str, Any] = found.get("spec") or {}
        self._version = found["metadata"]["resourceVersion"]
        if spec != self._spec:
            self._spec, self._seen_at = spec, self._timer.time()

    def _renewed(self) -> Body:
        return {"holderIdentity": self.identity, "renewTime": _text(self._clock.now())}

    def _taken(self) -> Body:
        now = _text(self._clock.now())
        transitions = int(self._spec.get("leaseTransitions") or 0) + bool(self._spec)
        seconds = self._settings.lease_seconds
        return self._renewed() | {
            "leaseDurationSeconds": seconds, "acquireTime": now, "renewTime": now, "leaseTransitions": transitions,
        }  # fmt: skip

    def _released(self) -> Body:
        now = _text(self._clock.now())
        return {"holderIdentity": "", "leaseDurationSeconds": _RELEASED_SECONDS, "acquireTime": now, "renewTime": now}


def _text(time: datetime) -> str:
    """A metav1.MicroTime: exactly six digits after the point."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
