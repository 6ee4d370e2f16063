"""Leader election: of several replicas one works; the others watch, and take over when it stops or is gone.

    standby --lease acquired--> leader --stopped---------------> passes end, lease released, process ends
                                  |
                                  +------lease lost------------> passes end, process ends: the kubelet restarts it

The leader stops `renew_deadline_seconds` after it *sent* its last renewal, and its passes have `stop_seconds` to end.
Both together are shorter than the lease, so nobody else leads before. Where clocks and processes behave worse than that
(a machine that stood still), the preconditions of every write hold: docs/decisions/0057.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from piton.contract import names
from piton.kube.client import Client
from piton.kube.errors import NoAnswer, NotFound
from piton.kube.lease import Lease
from piton.kube.metrics import OperatorMetrics
from piton.kube.resources import PODS
from piton.kube.settings import LeaseSettings
from piton.kube.tasks import Body, cancel, uninterrupted
from piton.kube.workqueue import Timer
from piton.ports import Clock, PortError

RELEASE_SECONDS = 2.0
"""Time that the release of the lease may take."""
_LABELS = 300.0
"""Seconds between two checks of the label: it may have been changed by hand."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class LeaseLost(Exception):  # noqa: N818 - a situation, not an error
    """Somebody else holds the lease, or it could not be renewed in time. The text is a sentence."""


class LeaderElection:
    """One candidate. Its client should be its own: calls of a leader that is busy must not delay renewals."""

    def __init__(
        self, client: Client, clock: Clock, timer: Timer, settings: LeaseSettings, meter: OperatorMetrics
    ) -> None:
        self.lease = Lease(client, clock, timer, settings)
        self._client = client
        self._timer = timer
        self._settings = settings
        self._meter = meter
        self._said = ""

    async def run(self, work: Body) -> None:
        """Wait for the lease, and work while it is held. In the end, however it comes, the lease is released.

        Raises:
            LeaseLost: The lease is no longer held; the work has ended.
            Exception: What the work has raised.
        """
        self._meter.show_leader(False)
        await self._acquire()
        self._meter.show_leader(True)
        working = asyncio.create_task(work(), name="work of the leader")
        labels = asyncio.create_task(self._label_forever(), name="label of the leader")
        try:
            await self._hold(working)
        finally:
            await uninterrupted(self._end(working, labels))
        working.result()

    async def _acquire(self) -> None:
        while True:
            now = self._timer.time()
            try:
                if await self._within(now + self._settings.renew_deadline_seconds, self.lease.acquire_or_renew()):
                    _log.info("leader", extra={"fields": {"identity": self.lease.identity}})
                    return
                self._say("standby", holder=self.lease.holder)
            except PortError as error:
                self._say("the lease cannot be read or acquired", logging.WARNING, error=str(error))
            now = self._timer.time()
            free_in = self.lease.free_at - now
            look_in = self._settings.look_seconds
            await self._until(now + (min(free_in, look_in) if free_in > 0 else look_in))

    async def _hold(self, working: asyncio.Task[None]) -> None:
        """Renew the lease until the work has ended."""
        while True:
            await self._until(self._timer.time() + self._settings.retry_seconds, working)
            if working.done():
                return
            await self._renew()

    async def _renew(self) -> None:
        """Renew the lease, with as many tries as there is time for."""
        deadline = self.lease.renewed_at + self._settings.renew_deadline_seconds
        why = ""
        while (now := self._timer.time()) < deadline:
            until = min(deadline, now + self._settings.renew_deadline_seconds / 2)  # one call that hangs is not all
            try:
                await self._within(until, self.lease.acquire_or_renew())
            except PortError as error:
                why = str(error)
                _log.warning("the lease was not renewed", extra={"fields": {"error": why}})
            else:
                if self.lease.held:
                    return
                if self.lease.holder:
                    raise LeaseLost(f"{self.lease.holder} holds the lease {self._settings.name}")
            await self._until(min(deadline, self._timer.time() + self._settings.retry_seconds))
        seconds = self._settings.renew_deadline_seconds
        raise LeaseLost(f"the lease {self._settings.name} was not renewed for {seconds:g} s: {why}")

    async def _end(self, working: asyncio.Task[None], labels: asyncio.Task[None]) -> None:
        await cancel(working, labels)
        self._meter.show_leader(False)
        try:
            await self._within(self._timer.time() + RELEASE_SECONDS, self.lease.release())
        except PortError as error:
            _log.warning("the lease was not released, and has to expire", extra={"fields": {"error": str(error)}})

    async def _label_forever(self) -> None:
        """Keep the label at this replica's pod alone: the Service of the progress server selects by it."""
        while True:
            seconds = _LABELS
            try:
                await self._label()
            except PortError as error:
                self._say("no reports: the leader's pod cannot be labelled", logging.WARNING, error=str(error))
                seconds = self._settings.retry_seconds
            await self._until(self._timer.time() + seconds)

    async def _label(self) -> None:
        """Label this pod, and no other. One whose node is dead would stay in the Service for another 40 s."""
        namespace, value = self._settings.namespace, self._settings.name
        labelled = await self._client.list(PODS, namespace=namespace, labels=f"{names.LABEL_LEADER}={value}")
        found = {pod["metadata"]["name"] for pod in labelled}
        changes: dict[str, str | None] = dict.fromkeys(found - {self._settings.pod})
        if self._settings.pod not in found:
            changes = {self._settings.pod: value, **changes}
        for pod, label in changes.items():
            with suppress(NotFound):  # gone meanwhile; or this process runs outside a cluster
                body = {"metadata": {"labels": {names.LABEL_LEADER: label}}}
                await self._client.patch(PODS, pod, body, namespace=namespace)

    async def _within(self, when: float, call: Coroutine[Any, Any, T]) -> T:
        """Await the call until then.

        Raises:
            NoAnswer: It took longer.
        """
        task = asyncio.create_task(call)
        try:
            await self._until(when, task)
        finally:
            if not task.done():
                await cancel(task)
        if task.cancelled():
            raise NoAnswer("the API server did not answer in time")
        return task.result()

    async def _until(self, when: float, *tasks: asyncio.Task[Any]) -> None:
        """Wait until then, or until one of the tasks has ended."""
        if when <= self._timer.time():
            return
        ripe = asyncio.get_running_loop().create_future()
        call = self._timer.call_at(when, ripe.cancel)  # which ends the wait, and may happen twice
        try:
            await asyncio.wait({ripe, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            ripe.cancel()

    def _say(self, what: str, level: int = logging.INFO, **fields: object) -> None:
        """Log it, unless it was the last that was logged: a standby looks every second."""
        text = f"{what} {fields}"
        if text != self._said:
            self._said = text
            _log.log(level, what, extra={"fields": fields})
