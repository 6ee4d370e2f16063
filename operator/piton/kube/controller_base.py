"""The base of all controllers: a queue of objects, workers that reconcile them, and a resync of all objects.

Watches and timers only add keys. A pass reads from the cache; after one that failed the next reads live, since the
cache may be behind what is there.
"""

import asyncio
import logging
import re
import traceback
from abc import ABC, abstractmethod

from piton.failures import Failures
from piton.kube.cache import ClusterCache
from piton.kube.client import Client, Reads
from piton.kube.errors import Busy
from piton.kube.events import Key
from piton.kube.metrics import OperatorMetrics
from piton.kube.operator_errors import OperatorErrors
from piton.kube.quota_waits import QuotaWaits, gives_room
from piton.kube.resources import QUOTAS, Body, Resource
from piton.kube.settings import PitonSettings
from piton.kube.store import Change
from piton.kube.tasks import with_grace
from piton.kube.workqueue import Timer, WorkQueue
from piton.ports import Clock, Conflict, PortError

_CONFLICTS_AT_ONCE = 3
"""Conflicts in a row after which an object waits as after any other error: somebody keeps writing to it."""
_REFUSED_SECONDS = 1.0
"""Least time between two passes in which the API server refuses something. A user who mends it waits no longer."""
_RESYNC_AGAIN_SECONDS = 30.0
"""After a resync that failed: without a cache nothing else finds the objects."""

_QUOTA = re.compile(r"exceeded quota: ([^,\s]+)")

_log = logging.getLogger(__name__)


class Worker(ABC):
    """Serves all objects of one kind. A subclass says which, and what a pass over one of them is."""

    kind: str
    """The name of the objects in logs and metrics."""
    resource: Resource
    labels: str | None = None
    """A selector: which of them are served."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        timer: Timer,
        settings: PitonSettings,
        meter: OperatorMetrics,
        *,
        cache: ClusterCache | None = None,
    ) -> None:
        self.queue: WorkQueue[Key] = WorkQueue(timer)
        self._client = client
        self._cache = cache
        self._reads: Reads = cache or client
        self._clock = clock
        self._timer = timer
        self._settings = settings
        self._meter = meter
        self._busy_since: dict[Key, float] = {}
        self._refused_until: dict[Key, float] = {}
        self._waits = QuotaWaits(self.queue)
        self._errors = OperatorErrors(client, clock, self.resource)
        self._failures: dict[Key, Failures] = {}
        """Of objects with an effect or a read that fails now, or of which a pass has to know what the last one did."""
        self._doubtful: set[Key] = set()
        """Objects whose last pass failed, perhaps because the cache was behind."""
        meter.watch_queue(self.kind, self.queue.__len__)

    @abstractmethod
    async def reconcile(self, key: Key) -> None:
        """Look at one object and do what is to be done now; add its key to the queue if there will be more."""

    @abstractmethod
    def subscribe(self, cache: ClusterCache) -> None:
        """Have the objects looked at that a change in the cache concerns."""

    def wake(self, namespace: str, name: str, *, urgent: bool = False) -> None:
        """Something about this object may have changed."""
        self.queue.add((namespace, name), urgent=urgent)

    def reads(self, key: Key) -> Reads | None:
        """Return the cache for a pass over this object; None: it has to read live."""
        return None if key in self._doubtful else self._cache

    async def resync(self, *, seconds: float = 0.0) -> None:
        """Have every object looked at, spread over so many seconds. What waits for room has a time of its own.

        Raises:
            PortError: the objects of no namespace could be listed. Those of some are left to their watch.
        """
        found: list[Body] = []
        failures: list[PortError] = []
        for namespace in self._settings.namespaces or (None,):
            try:
                found += await self._reads.list(self.resource, namespace=namespace, labels=self.labels)
            except PortError as error:
                failures.append(error)
        if failures and not found:
            raise failures[0]
        for failure in failures:
            self._log_failed_resync(failure)
        keys = [(manifest["metadata"]["namespace"], manifest["metadata"]["name"]) for manifest in found]
        keys = [key for key in keys if key not in self._waits]
        for number, key in enumerate(keys):
            self.queue.add_after(key, seconds * number / len(keys))

    async def run(self) -> None:
        """Work until cancelled. Passes that run then have a moment to end: a leader gives up its lease after them."""
        if self._cache is not None:
            await self._cache.synced()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync_forever(), name=f"{self.kind} resync")
            for number in range(self._settings.workers):
                tasks.create_task(self._work(), name=f"{self.kind} worker {number}")

    async def _resync_forever(self) -> None:
        spread = 0.0
        while True:
            seconds = self._settings.resync_seconds
            try:
                await self.resync(seconds=spread)
                spread = seconds
            except PortError as error:
                self._log_failed_resync(error)
                seconds = min(seconds, _RESYNC_AGAIN_SECONDS)
            await asyncio.sleep(seconds)

    def _log_failed_resync(self, error: PortError) -> None:
        _log.warning("resync failed", extra={"fields": {"kind": self.kind, "error": str(error)}})

    async def _work(self) -> None:
        while True:
            await with_grace(self.handle(await self.queue.get()), seconds=self._settings.stop_seconds)

    async def handle(self, key: Key) -> None:
        """One key from the queue: a pass over the object, and another try later if it fails."""
        if self._is_held_back(key):
            self.queue.done(key)
            return
        self._busy_since[key] = self._timer.time()
        self._waits.pass_began(key)
        failed = True
        try:
            with self._meter.reconciling(self.kind):
                await self.reconcile(key)
        except Conflict:
            self._doubtful.add(key)
            self.queue.retry(key, free=_CONFLICTS_AT_ONCE)
        except Busy as error:
            self._doubtful.add(key)
            self.queue.postpone(key, error.seconds)
        except PortError as error:
            self._failed(key, str(error), level=logging.WARNING)
            if self.failures(key).is_blind():
                await self._errors.tell(key, error)
        except Exception as error:  # noqa: BLE001 - a bug that one object meets must not stop the others
            self._failed(key, repr(error), level=logging.ERROR)
            await self._errors.tell(key, error)
        else:
            failed = False
            self._errors.forget(key)
            self._doubtful.discard(key)
            self.queue.forget(key)
        finally:
            if key in self._failures and self._failures[key].is_over:
                del self._failures[key]
            self._waits.pass_ended(key, failed=failed)
            del self._busy_since[key]
            self.queue.done(key)

    def failures(self, key: Key) -> Failures:
        """Return the failures of effects on this object and of its reads, from earlier passes."""
        return self._failures.setdefault(key, Failures(self._clock))

    def forget_failures(self, key: Key) -> None:
        """The object is gone."""
        self._failures.pop(key, None)

    def on_quota(self, change: Change) -> None:
        """A ResourceQuota changed: what waits in its namespace is tried if there is more room."""
        if gives_room(change):
            self._waits.room_came(change.body["metadata"]["namespace"])

    def hears_of_room(self, key: Key) -> bool:
        """True if a change of a ResourceQuota of the object's namespace is noticed."""
        return self._cache is not None and self._cache.is_watched(QUOTAS, key[0])

    def speaks(self, key: Key, refusal: str) -> bool:
        """True if the quota in the refusal is one of the object's namespace, whose changes are noticed.

        A ClusterResourceQuota of OpenShift refuses in the same words, and nobody hears of its room.
        """
        named = _QUOTA.search(refusal)
        return self._cache is None or named is None or self._cache.peek(QUOTAS, key[0], named[1]) is not None

    def hold_back(self, key: Key, *, refused: bool) -> None:
        """Hold back an object that was refused: the status that quotes the refusal would wake it again at once."""
        if not refused:
            self._refused_until.pop(key, None)
            return
        self._refused_until[key] = self._timer.time() + _REFUSED_SECONDS
        self._meter.count_refusal(self.kind)

    def _is_held_back(self, key: Key) -> bool:
        seconds = self._refused_until.get(key, 0.0) - self._timer.time()
        if seconds > 0:
            self.queue.add_after(key, seconds)
        return seconds > 0

    def _failed(self, key: Key, why: str, *, level: int) -> None:
        self._doubtful.add(key)
        seconds = self.queue.retry(key)
        fields: dict[str, object] = {self.kind: "/".join(key), "error": why, "retryInSeconds": seconds}
        if level >= logging.ERROR:
            fields["traceback"] = traceback.format_exc()
        _log.log(level, "pass failed", extra={"fields": fields})

    def ailment(self) -> str | None:
        """Return the problem of this controller, in a sentence; None while it works."""
        now = self._timer.time()
        for (namespace, name), since in self._busy_since.items():
            if now - since > self._settings.stuck_seconds:
                return f"a pass over the {self.kind} {namespace}/{name} has taken {now - since:.0f} s"
        return None
