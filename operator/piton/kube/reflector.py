"""Keeps one Store in step with the API server: a complete list first, then a watch from its version on.

            +------------- 410, or the list broke off --------------+
            v                                                       |
    [list or streaming list] --complete--> [watch] --ended, cut--> [watch from the newest version]

A list that follows a 410 also finds what was deleted in between. Where the server streams lists (KEP-3157, on by
default since Kubernetes 1.32), list and watch are one request.

Only a DELETED event, or the absence from a complete list, says that an object is gone. An error says nothing about it:
what is known stays, and so does its version, while the server is away, forbids the kind or does not serve it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from random import SystemRandom

from piton.kube.client import OPENED, Client
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
"""Failures in a row, within about a minute, after which a kind is read live, if the watches of others work."""
ABSENT_SECONDS = 30.0
"""Seconds between two looks for a kind that the cluster does not know, or that may not be watched."""
AGAIN_SECONDS = 1.0
"""Seconds until the first look for a kind that was known until then; doubles with each one."""
LIST_AGAIN_SECONDS = 2.0
"""A list that follows a 410 waits for up to so long, by chance: all watches may get one in the same moment."""
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
        do_others_work: Callable[["Reflector"], bool] = lambda _: True,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.store = store
        self.synced = asyncio.Event()
        """Set once the store is complete, or cannot be filled."""
        self.unusable: PortError | None = None
        """The error, while the kind is not served, may not be watched, or fails for long where others work."""
        self._client = client
        self._listener = listener
        self._do_others_work = do_others_work
        self._timer = timer
        self._selectors = {"labelSelector": labels} if labels else {}
        self._selectors |= {"fieldSelector": fields} if fields else {}
        self._version: int | None = None
        self._newest = 0
        """The newest version of all; an API server that was restored from a backup begins again at an older one."""
        self._streams_lists = True
        self._failures = 0
        self._is_quiet = True
        self._refusals = 0
        self._active_at = timer.time()
        self._is_open = False
        self._heard_at = float("-inf")
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
                await asyncio.sleep(_RANDOM.uniform(0.0, LIST_AGAIN_SECONDS))
            except Refused as refusal:
                await self._refuse(refusal)
            except PortError as error:
                await self._wait(error)

    def look_if_absent(self) -> None:
        """Look again at once if the cluster did not know the kind: a write of our own has shown that it does now."""
        if isinstance(self.unusable, NotFound):
            self._appeared.set()

    def watches(self, body: Body) -> bool:
        """True if the object has the label that is selected."""
        label = self._selectors.get("labelSelector")
        return label is None or label in (body["metadata"].get("labels") or {})

    def idle_seconds(self) -> float:
        """Return the seconds since the last event or request. An API server that is down is asked again and again."""
        return self._timer.time() - self._active_at

    def works(self) -> bool:
        """True while a watch is open and the server has said something lately."""
        return self._is_open and self._timer.time() - self._heard_at < SILENT_SECONDS

    async def _follow(self) -> None:
        if self._version is None:
            await self._list()
        else:
            began, self._is_quiet, since = self._timer.time(), True, self._version
            async for event in self._watch(resourceVersion=str(since)):
                if 0 < version_of(event["object"]) < since:
                    raise Expired("the server's versions have gone back")
                self._take(event)
            if self._is_quiet:
                await self._doubt(self._timer.time() - began)

    async def _doubt(self, seconds: float) -> None:
        """Look into a watch that has ended after so many seconds without any event.

        A server that was restored from a backup sends nothing until its versions are where they were once.
        """
        if seconds >= SILENT_SECONDS:
            newest = await self._client.newest_version(self.resource, namespace=self.namespace)
            if 0 < newest < self._newest:
                raise Expired("the server's versions have gone back")
        elif seconds < SHORT_SECONDS:
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
        events = self._client.watch(self.resource, namespace=self.namespace, query=asked, silent_seconds=SILENT_SECONDS)
        try:
            async for event in events:
                self._active_at = self._heard_at = self._timer.time()
                self._is_open = True
                if "resourceVersion" in query:  # it goes on from what is known, so all is known again
                    self.unusable, self._refusals = None, 0
                if event["type"] != OPENED:
                    self._failures, self._is_quiet = 0, False
                    yield event
        finally:
            self._is_open = False
            await events.aclose()

    def _complete(self, items: list[Body], version: int) -> None:
        changes = self.store.replace(items, version=version, restored=version < self._newest)
        self._version, self._newest, self.unusable = version, version, None
        self._failures, self._refusals, self._heard_at = 0, 0, self._timer.time()
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
        self.unusable = refusal
        self.synced.set()
        self._appeared.clear()
        seconds = ABSENT_SECONDS
        if self._version is not None:  # it was known until now, and is probably back soon
            seconds = min(AGAIN_SECONDS * 2.0 ** min(self._refusals, 32), ABSENT_SECONDS)
        self._refusals += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(self._appeared.wait(), seconds * _RANDOM.uniform(0.5, 1.0))

    async def _wait(self, error: PortError) -> None:
        seconds = min(BACKOFF_SECONDS * 2.0 ** min(self._failures, 32), BACKOFF_SECONDS_MAX)
        seconds *= _RANDOM.uniform(0.5, 1.5)  # all watches of a server that was away wait at the same time
        seconds = max(seconds, error.seconds * _RANDOM.uniform(1.0, 1.5)) if isinstance(error, Busy) else seconds
        self._failures += 1
        if self._failures >= FAILURES_MAX and self._do_others_work(self):
            self.unusable = error  # one kind that fails must not keep the runs from being served
            self.synced.set()
        if self._failures > 1:
            fields = {"resource": self.resource.plural, "error": str(error), "retryInSeconds": round(seconds, 1)}
            _log.warning("watch failed", extra={"fields": fields})
        await asyncio.sleep(seconds)
