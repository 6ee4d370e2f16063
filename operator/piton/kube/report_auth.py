"""Authentication of reports: a pod's token, reviewed by the API server, and the run of that pod.

    token --TokenReview--> pod, by uid --GET--> its PyTorchJob --GET--> the run, by uid, and the attempt

A token that is not meant for us costs the API server nothing: its own claims say so, though only the review proves
them. Answers are kept for a while, good ones longer than bad ones; who a pod belongs to never changes.
"""

import asyncio
import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from piton.contract import names
from piton.kube.client import Client
from piton.kube.ownership import controller
from piton.kube.report_store import Sender
from piton.kube.resources import JOBS, PODS, TOKEN_REVIEWS, Body
from piton.kube.workqueue import Timer
from piton.ports import Clock

GOOD_SECONDS = 300.0
"""Seconds for which a valid token is not reviewed again."""
BAD_SECONDS = 10.0
_REMEMBERED = 8192
"""Tokens, and pods, that are remembered."""
_REVIEWS_AT_ONCE = 8
"""Reports with forged tokens must not become as many requests to the API server."""
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_ACCOUNT = "system:serviceaccount:"

Value = TypeVar("Value")


class Unauthenticated(Exception):  # noqa: N818 - a situation, not an error
    """Nobody vouches for the token. The text is a sentence for the sender."""


class Forbidden(Exception):  # noqa: N818 - a situation, not an error
    """The token is good, but not for this run. The text is a sentence for the sender."""


@dataclass(frozen=True, kw_only=True)
class _Pod:
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class ReportAuthenticator:
    """Lets reports in. For one event loop."""

    def __init__(self, client: Client, clock: Clock, timer: Timer) -> None:
        self._client = client
        self._clock = clock
        self._pods: _Cache[_Pod | Exception] = _Cache(timer)
        self._senders: _Cache[Sender | Exception] = _Cache(timer)
        self._reviews = asyncio.Semaphore(_REVIEWS_AT_ONCE)

    async def admit(self, token: str, *, namespace: str, run: str) -> Sender:
        """Return the sender that the token belongs to.

        Raises:
            Unauthenticated: the token is not good.
            Forbidden: it belongs to a pod that may not report for this run.
            PortError: the API server does not answer, or not to us.
        """
        pod = await self._pod(token)
        if pod.namespace != namespace:
            raise Forbidden(f"the token is from namespace {pod.namespace!r}, not from {namespace!r}")
        sender = await self._sender(pod)
        if sender.run != run:
            raise Forbidden(f"pod {pod.name!r} belongs to run {sender.run!r}, not to {run!r}")
        return sender

    async def _pod(self, token: str) -> _Pod:
        key = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._pods.get(key)
        if known is None:
            seconds = self._seconds_left(token)
            known = await self._review(token)
            self._pods.put(key, known, BAD_SECONDS if isinstance(known, Exception) else min(seconds, GOOD_SECONDS))
        return _answer(known)

    def _seconds_left(self, token: str) -> float:
        """By the token's own words, which are not proven yet."""
        claims = _claims(token)
        audiences = claims.get("aud")
        if names.TOKEN_AUDIENCE not in (audiences if isinstance(audiences, list) else [audiences]):
            raise Unauthenticated(f"the token is not meant for {names.TOKEN_AUDIENCE}")
        expires = claims.get("exp")
        left = expires - self._clock.now().timestamp() if isinstance(expires, int | float) else 0.0
        if left <= 0:
            raise Unauthenticated("the token has expired")
        return left

    async def _review(self, token: str) -> _Pod | Exception:
        spec = {"token": token, "audiences": [names.TOKEN_AUDIENCE]}
        review: Body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": spec}
        async with self._reviews:
            found = await self._client.create(TOKEN_REVIEWS, review)
        status = found.get("status") or {}
        if not status.get("authenticated") or names.TOKEN_AUDIENCE not in (status.get("audiences") or ()):
            return Unauthenticated("the token is not valid here")
        user = status.get("user") or {}
        namespace = str(user.get("username") or "").removeprefix(_ACCOUNT).partition(":")[0]
        extra = user.get("extra") or {}
        name, uid = _first(extra.get(_POD_NAME)), _first(extra.get(_POD_UID))
        if not namespace or not name or not uid:
            return Forbidden("the token is not a pod's")
        return _Pod(namespace=namespace, name=name, uid=uid)

    async def _sender(self, pod: _Pod) -> Sender:
        known = self._senders.get(pod.uid)
        if known is None:
            known = await self._find(pod)
            self._senders.put(pod.uid, known, BAD_SECONDS if isinstance(known, Exception) else None)
        return _answer(known)

    async def _find(self, pod: _Pod) -> Sender | Exception:
        """The run and the attempt, by owners and not by labels alone: those anybody can write."""
        found = await self._client.get(PODS, pod.name, namespace=pod.namespace)
        if found is None or found["metadata"]["uid"] != pod.uid:
            return Forbidden(f"pod {pod.name!r} is gone")
        labels = found["metadata"].get("labels") or {}
        run, attempt = str(labels.get(names.LABEL_RUN) or ""), str(labels.get(names.LABEL_ATTEMPT) or "")
        owner = controller(found) or {}
        unrelated = Forbidden(f"pod {pod.name!r} belongs to no run")
        if not run or not (attempt.isascii() and attempt.isdigit()) or owner.get("kind") != "PyTorchJob":
            return unrelated
        name = names.attempt_name(run, int(attempt))
        job = await self._client.get(JOBS, name, namespace=pod.namespace)
        if job is None or owner.get("uid") != job["metadata"]["uid"]:
            return unrelated
        owner = controller(job) or {}
        if (owner.get("kind"), owner.get("name")) != (names.KIND, run):
            return unrelated
        return Sender(namespace=pod.namespace, run=run, run_uid=str(owner.get("uid")), attempt=int(attempt))


class _Cache(Generic[Value]):
    """Answers, each until its time; the oldest make room."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._kept: OrderedDict[Hashable, tuple[float | None, Value]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        until, value = self._kept.get(key, (None, None))
        if until is not None and until <= self._timer.time():
            del self._kept[key]
            return None
        return value

    def put(self, key: Hashable, value: Value, seconds: float | None) -> None:
        """Keep it for so long; None: for as long as there is room."""
        self._kept[key] = (None if seconds is None else self._timer.time() + seconds, value)
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)


def _answer(known: Value | Exception) -> Value:
    if isinstance(known, Exception):
        raise type(known)(*known.args)  # a new one: what is kept would collect the tracebacks of all who were told
    return known


def _claims(token: str) -> dict[str, Any]:
    """Return the claims of a JSON web token, unverified."""
    parts = token.split(".")
    if len(parts) != 3:
        raise Unauthenticated("the token is not a service account's")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unauthenticated("the token is not a service account's")
    return found


def _first(values: object) -> str:
    return str(values[0]) if isinstance(values, list) and values else ""
