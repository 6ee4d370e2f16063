"""Leader election: of several operator processes the one works that holds a Lease of coordination.k8s.io.

    standby --lease free or expired--> leader --renewed every 2 s--> leader
                                         |--- not renewed for 10 s, or taken ---> the process ends
                                         +--- told to stop ---> lease released ---> the process ends

The rules and durations of client-go. A lease has expired when it has not changed for its duration by the observer's own
clock: the clocks of two machines are never compared. A leader stops 5 s before another may begin. `kubernetes.aio`
has a leader election too; decision 57 says why it is not used.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from piton.contract import names
from piton.kube.client import Client
from piton.kube.errors import NotFound
from piton.kube.resources import LEASES, PODS, Body
from piton.kube.workqueue import Timer
from piton.ports import Clock, Conflict, PortError

DURATION_SECONDS = 15
"""Seconds without a renewal after which another process may take the lease."""
RENEW_SECONDS = 10.0
"""Seconds without a renewal after which the leader stops working."""
RETRY_SECONDS = 2.0
"""Seconds between two renewals, and between two looks of a standby."""

MARK_SECONDS = 300.0
"""Seconds between two looks at the label of the leader's pod, which may be changed by hand."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """The lease, and the process that wants it."""

    name: str
    namespace: str
    pod: str
    """Name of this process' pod."""
    identity: str
    """Another one for each process, also for two in one pod after the other."""


class LeaseLost(Exception):  # noqa: N818 - a situation, not an error
    """Another process leads now, or may soon."""


class LeaderElection:
    """One candidate, with a client of its own: neither a busy leader's calls nor its patience delay a renewal."""

    def __init__(
        self, client: Client, clock: Clock, timer: Timer, settings: LeaseSettings, *, show: Callable[[bool], None]
    ) -> None:
        """Take no step yet. `show` is called with whether this process leads, when that changes."""
        self._client = client
        self._clock = clock
        self._timer = timer
        self._settings = settings
        self._show = show
        self._seen: tuple[str, float] = ("", float("-inf"))
        """The version of another's lease, and when it was first seen."""

    async def lead(self, work: Callable[[], Awaitable[object]]) -> None:
        """Wait for the lease, then work while it is held; release it at the end.

        Raises:
            LeaseLost: the lease could not be renewed in time. Nothing of the work runs any more.
        """
        await self._acquire()
        self._show(True)
        marking = asyncio.create_task(self._mark_forever(), name="label the leader's pod")
        renewing = asyncio.create_task(self._renew(), name="renew lease")
        working = asyncio.create_task(_run(work), name="work of the leader")
        try:
            await asyncio.wait((renewing, working), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(marking)
            await _end(working)
            self._show(False)
            await _end(renewing)
            if not (renewing.done() and not renewing.cancelled() and renewing.exception()):
                await self._release()
        for task in (renewing, working):
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def _acquire(self) -> None:
        while not await self._try():  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(RETRY_SECONDS)
        _log.info("leading", extra={"fields": {"lease": self._settings.name, "identity": self._settings.identity}})

    async def _renew(self) -> None:
        renewed_at = self._timer.time()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            began = self._timer.time()
            if await self._try(seconds=renewed_at + RENEW_SECONDS - began):
                renewed_at = began
            elif self._timer.time() - renewed_at >= RENEW_SECONDS - RETRY_SECONDS:
                raise LeaseLost(f"the lease {self._settings.name!r} was not renewed for {RENEW_SECONDS:.0f} s")

    async def _try(self, *, seconds: float = RENEW_SECONDS) -> bool:
        """Take or renew the lease. False if it is another's, or nobody knows."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                found = await self._client.get(LEASES, self._settings.name, namespace=self._settings.namespace)
                if found is None:
                    await self._client.create(LEASES, self._lease())
                    return True
                return self._may_take(found) and await self._take(found)
        except Conflict:  # another was quicker
            return False
        except (PortError, TimeoutError) as error:
            _log.warning("lease not renewed", extra={"fields": {"error": str(error) or "no answer in time"}})
            return False

    def _may_take(self, found: Body) -> bool:
        spec, version = found.get("spec") or {}, str(found["metadata"]["resourceVersion"])
        if spec.get("holderIdentity") in (None, "", self._settings.identity):
            return True
        if self._seen[0] != version:
            self._seen = version, self._timer.time()
        return self._timer.time() - self._seen[1] >= int(spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    async def _take(self, found: Body) -> bool:
        spec = found.get("spec") or {}
        body = self._lease()
        if spec.get("holderIdentity") == self._settings.identity:
            body["spec"]["acquireTime"] = spec.get("acquireTime")
        else:
            body["spec"]["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        await self._write(body)
        return True

    async def _release(self) -> None:
        """Give the lease back, so that another need not wait for its end. Nothing is lost if that fails."""
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                found = await self._client.get(LEASES, self._settings.name, namespace=self._settings.namespace)
                if found is None or (found.get("spec") or {}).get("holderIdentity") != self._settings.identity:
                    return
                version = {"resourceVersion": found["metadata"]["resourceVersion"]}
                await self._write({"metadata": version, "spec": {"holderIdentity": "", "leaseDurationSeconds": 1}})
        except (PortError, TimeoutError) as error:
            _log.warning("lease not released", extra={"fields": {"error": str(error) or "no answer in time"}})

    async def _write(self, body: Body) -> None:
        await self._client.patch(LEASES, self._settings.name, body, namespace=self._settings.namespace)

    def _lease(self) -> Body:
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._settings.name, "namespace": self._settings.namespace},
            "spec": {
                "holderIdentity": self._settings.identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": now,
                "renewTime": now,
            },
        }

    async def _mark_forever(self) -> None:
        """Keep the label where it belongs. Without it runs go on, and their reports do not arrive."""
        while True:
            seconds = MARK_SECONDS
            try:
                await self._mark()
            except PortError as error:
                _log.warning("leader's pod not labelled", extra={"fields": {"error": str(error)}})
                seconds = RETRY_SECONDS
            await asyncio.sleep(seconds)

    async def _mark(self) -> None:
        """Label this pod, and no other, as the leader's: the Service sends reports there.

        A leader that was killed may have left its label; its pod does not receive any more.
        """
        namespace, lease = self._settings.namespace, self._settings.name
        selector = f"{names.LABEL_LEADER}={lease}"
        marked = {
            pod["metadata"]["name"] for pod in await self._client.list(PODS, namespace=namespace, labels=selector)
        }
        changes: dict[str, str | None] = dict.fromkeys(sorted(marked - {self._settings.pod}))
        changes |= {} if self._settings.pod in marked else {self._settings.pod: lease}
        for pod, value in changes.items():
            body: dict[str, Any] = {"metadata": {"labels": {names.LABEL_LEADER: value}}}
            with suppress(NotFound):  # it is gone meanwhile
                await self._client.patch(PODS, pod, body, namespace=namespace)


async def _run(work: Callable[[], Awaitable[object]]) -> None:
    await work()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
