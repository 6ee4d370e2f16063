"""Announcements as Events of core/v1: what `kubectl describe` shows. Told once each, counted when repeated.

The Event's name is made from what it says, so a repetition finds its own Event again, also after a restart. A run
may only say so much in a time; what it says too often is in the status anyway.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from piton.api.spec import Meta
from piton.contract import names
from piton.core.effects import Announcement
from piton.core.wait_reasons import without_numbers
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists
from piton.kube.resources import EVENTS, Body
from piton.ports import Clock, PortError

COMPONENT = "piton-operator"
BURST = 25
"""Events that a run may have at once."""
REFILL_SECONDS = 30.0
"""One more after so long."""
REPEAT_SECONDS = 1200.0
"""Seconds after which an Event is told again that says the same. The API server keeps Events for an hour, and as long
as the object waits there has to be one: the reason of the run is read from it."""
_MESSAGE_MAX = 1024

Key = tuple[str, str]
"""Namespace and name of a run."""

_log = logging.getLogger(__name__)


class EventRateLimiter:
    """The rate limit of Events per run: a token bucket, as client-go has one per object."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: dict[Key, tuple[float, datetime]] = {}

    def take(self, key: Key) -> bool:
        """True if the run may say one more thing now."""
        now = self._clock.now()
        tokens, since = self._tokens.get(key, (float(BURST), now))
        tokens = min(BURST, tokens + (now - since).total_seconds() / REFILL_SECONDS)
        granted = tokens >= 1
        self._tokens[key] = (tokens - 1 if granted else tokens), now
        return granted

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._tokens.pop(key, None)


class RepeatLimiter:
    """The Events that were last told about each object: the same are told again only after a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[Key, tuple[tuple[str, frozenset[str]], datetime]] = {}

    def take(self, key: Key, uid: str, messages: Iterable[str]) -> bool:
        """True if these are to be told now: they differ, apart from numbers, or have not been told for long."""
        now, words = self._clock.now(), (uid, frozenset(map(without_numbers, messages)))
        told, since = self._told.get(key, (None, now))
        if told == words and (now - since).total_seconds() < REPEAT_SECONDS:
            return False
        self._told[key] = words, now
        return True

    def forget(self, key: Key) -> None:
        """The object is gone, there is nothing to tell any more, or it was not told after all."""
        self._told.pop(key, None)


class EventAnnouncer:
    """The port `Announcer` for one run or sweep."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        ration: EventRateLimiter,
        subject: Callable[[], Meta | None],
        *,
        kind: str = names.KIND,
    ) -> None:
        self._kind = kind
        self._client = client
        self._clock = clock
        self._ration = ration
        self._subject = subject

    async def announce(self, announcement: Announcement) -> None:
        """Post the Event, or count it once more. What cannot be told is only logged: the status has it."""
        meta = self._subject()
        if meta is None or not self._ration.take((meta.namespace, meta.name)):
            return
        try:
            await post(self._client, _event(self._kind, meta, announcement, self._clock.now()))
        except PortError as error:
            _log.warning(
                "event not posted", extra={"fields": {"about": f"{meta.namespace}/{meta.name}", "error": str(error)}}
            )


async def post(client: Client, event: Body) -> None:
    """Post the Event, or count it once more."""
    try:
        await client.create(EVENTS, event)
    except AlreadyExists:
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        old = await client.get(EVENTS, name, namespace=namespace) or {}
        again = {"count": int(old.get("count") or 1) + 1, "lastTimestamp": event["lastTimestamp"]}
        await client.patch(EVENTS, name, again, namespace=namespace)


def event_about(subject: Body, *, severity: str, reason: str, message: str, now: datetime) -> Body:
    """The Event that says this about the object."""
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta = subject["metadata"]
    digest = hashlib.sha256(f"{meta['uid']}/{severity}/{reason}/{message}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": subject["apiVersion"],
            "kind": subject["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": severity,
        "reason": reason,
        "message": _cut(message),
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }


def _event(kind: str, meta: Meta, announcement: Announcement, now: datetime) -> Body:
    subject = {
        "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
        "kind": kind,
        "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
    }
    reason = announcement.reason.value
    return event_about(subject, severity=announcement.severity, reason=reason, message=announcement.message, now=now)


def _cut(message: str) -> str:
    """The API server counts bytes."""
    data = message.encode()
    return message if len(data) <= _MESSAGE_MAX else data[: _MESSAGE_MAX - 3].decode(errors="ignore") + "..."
