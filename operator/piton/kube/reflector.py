"""Keeps one Store in step with the API server: a complete list first, then a watch from its version on.

            +------------- 410, or the list broke off --------------+
            v                                                       |
    [list or streaming list] --complete--> [watch] --ended, cut--> [watch from the newest version]

A list that follows a 410 also finds what was deleted in between. Where the server streams lists (KEP-3157, on by
default since Kubernetes 1.32), list and watch are one request.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from random import SystemRandom

from piton.kube.client import Client
from piton.kube.errors import Busy, Expired, NotFound
from piton.kube.resources import Body, Resource
from piton.kube.store import Change, Store, key_of, version_of
from piton.kube.workqueue import Timer
from piton.ports import PortError, Refused, Unavailable

WATCH_SECONDS = 290
"""Seconds after which the server ends a watch; a load balancer in between often cuts at 300 s."""
SILENT_SECONDS = 120.0
"""Seconds without an event after which the client ends a watch. The server sends a bookmark each minute."""
LIST_SECONDS = 60.0
"""Seconds that a streamed list may take. A server that does not know them never says that it is complete."""
SHORT_SECONDS = 1.0
"""A watch that ends sooner, without any event, counts as failed."""
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 0.1, 30.0
FAILURES_MAX = 9
"""Failures in a row, within about a minute, after which a kind is read live and listed anew."""
ABSENT_SECONDS = 30.0
"""Seconds between two looks for a kind that the cluster does not know, or that may not be watched."""
_RANDOM = SystemRandom()
_COMPLETE = "k8s.io/initial-events-end"

Listener = Callable[[Change], None]

_log = logging.getLogger(__name__)


class Reflector:
    """One watch. For one event loop."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        store: Store,
        listener: Listener,
        *,
        timer: Timer,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.store = store
        self.synced = asyncio.Event()
        """Set once the store is complete, or cannot be filled."""
        self.unusable: PortError | None = None
        """The error, while the kind is unknown to the cluster, may not be watched, or has failed for long."""
        self._client = client
        self._listener = listener
        self._timer = timer
        self._selectors = {"labelSelector": labels} if labels else {}
        self._selectors |= {"fieldSelector": fields} if fields else {}
        self._version: int | None = None
        self._newest = 0
        """The newest version of all; an API server that was restored from a backup begins again at an older one."""
        self._streams_lists = True
        self._failures = 0
        self._is_quiet = True
        self._active_at = timer.time()
        self._appeared = asyncio.Event()

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            self._active_at = self._timer.time()
            try:
                await self._follow()
                self._failures = 0
            except Expired:
                self._version = None
            except Refused as refusal:
                await self._refuse(refusal)
            except PortError as error:
                await self._wait(error)

    def list_if_absent(self) -> None:
        """List at once if the cluster did not know the kind: a write of our own has shown that it does now."""
        if isinstance(self.unusable, NotFound):
            self._appeared.set()

    def watches(self, body: Body) -> bool:
        """True if the object has the label that is selected."""
        label = self._selectors.get("labelSelector")
        return label is None or label in (body["metadata"].get("labels") or {})

    def idle_seconds(self) -> float:
        """Return the seconds since the last event or request. An API server that is down is asked again and again."""
        return self._timer.time() - self._active_at

    async def _follow(self) -> None:
        if self._version is None:
            await self._list()
        else:
            began, self._is_quiet = self._timer.time(), True
            async for event in self._watch(resourceVersion=str(self._version)):
                self._take(event)
            if self._is_quiet and self._timer.time() - began < SHORT_SECONDS:
                raise Unavailable("the server ends each watch at once")

    async def _list(self) -> None:
        if self._streams_lists and await self._stream_list():
            return
        items, version = await self._client.list_all(self.resource, namespace=self.namespace, query=self._selectors)
        self._complete(items, version)

    async def _stream_list(self) -> bool:
        """List and watch in one request. False if the server does not know such requests."""
        try:
            await self._list_and_watch()
        except NotFound:
            raise
        except (Refused, TimeoutError):
            self._streams_lists = False
        return self._streams_lists

    async def _list_and_watch(self) -> None:
        items: dict[tuple[str, str], Body] = {}
        events = self._watch(sendInitialEvents="true", resourceVersionMatch="NotOlderThan")
        try:
            async with asyncio.timeout(LIST_SECONDS):
                async for event in events:
                    body = event["object"]
                    if event["type"] == "BOOKMARK" and _COMPLETE in (body["metadata"].get("annotations") or {}):
                        self._complete(list(items.values()), version_of(body))
                        break
                    if event["type"] == "DELETED":  # changes may come before the list is complete
                        items.pop(key_of(body), None)
                    elif event["type"] != "BOOKMARK":
                        items[key_of(body)] = self.store.trimmed(body)
                else:
                    raise Unavailable("the streamed list ended before it was complete")
            async for event in events:
                self._take(event)
        finally:
            await events.aclose()

    async def _watch(self, **query: str) -> AsyncGenerator[Body, None]:
        """Yield the events of one watch.

        Raises:
            Expired: the server has forgotten this version.
        """
        seconds = str(round(_RANDOM.uniform(0.9, 1.0) * WATCH_SECONDS))  # else all watches end together
        asked = {**self._selectors, **query, "allowWatchBookmarks": "true", "timeoutSeconds": seconds}
        async for event in self._client.watch(
            self.resource, namespace=self.namespace, query=asked, silent_seconds=SILENT_SECONDS
        ):
            self._active_at, self._failures, self._is_quiet = self._timer.time(), 0, False
            yield event

    def _complete(self, items: list[Body], version: int) -> None:
        changes = self.store.replace(items, version=version, restored=version < self._newest)
        self._version, self._newest, self.unusable = version, version, None
        self.synced.set()
        for change in changes:
            self._listener(change)

    def _take(self, event: Body) -> None:
        """Take in one event."""
        body = event["object"]
        self._version = self._newest = max(self._version or 0, version_of(body))
        if event["type"] == "BOOKMARK":
            return
        change = self.store.remove(body) if event["type"] == "DELETED" else self.store.put(body)
        if change is not None:
            self._listener(change)

    async def _refuse(self, refusal: Refused) -> None:
        """Wait for the kind, or for the right to watch it. Reads of it go to the API server meanwhile."""
        if self.unusable is None and not isinstance(refusal, NotFound):
            _log.warning("watch refused", extra={"fields": {"resource": self.resource.plural, "error": str(refusal)}})
        if isinstance(refusal, NotFound):
            for change in self.store.replace([], version=sys.maxsize):
                self._listener(change)
        self.unusable, self._version = refusal, None
        self.synced.set()
        self._appeared.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._appeared.wait(), ABSENT_SECONDS)

    async def _wait(self, error: PortError) -> None:
        seconds = min(BACKOFF_SECONDS * 2.0 ** min(self._failures, 32), BACKOFF_SECONDS_MAX)
        seconds = max(seconds, error.seconds) if isinstance(error, Busy) else seconds
        self._failures += 1
        if self._failures >= FAILURES_MAX:  # one kind that fails must not keep the runs from being served
            self.unusable, self._version = error, None
            self.synced.set()
        if self._failures > 1:
            fields = {"resource": self.resource.plural, "error": str(error), "retryInSeconds": round(seconds, 1)}
            _log.warning("watch failed", extra={"fields": fields})
        await asyncio.sleep(seconds * _RANDOM.uniform(1.0, 1.5))
