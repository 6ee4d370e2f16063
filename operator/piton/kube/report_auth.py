"""Authentication of reports: a pod's token, reviewed by the API server, and the run of that pod.

    token --TokenReview--> pod, by uid --GET--> its PyTorchJob --GET--> the run, by uid, and the attempt

A token that is not meant for us costs the API server nothing: its own claims say so, though only the review proves
them. Answers are kept for a while, and renewed before they expire, so a trainer that reports steadily never waits; who
a pod belongs to never changes. Forged tokens have a cache of their own, and an address that sends many is not listened
to: they neither drive good tokens out of memory nor take all places for reviews.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from piton.contract import names
from piton.kube.answer_cache import AnswerCache, GoodAnswer, Refusal
from piton.kube.client import Client
from piton.kube.ownership import controller
from piton.kube.rate_limits import RateLimit, Slots
from piton.kube.report_store import Sender
from piton.kube.resources import JOBS, PODS, TOKEN_REVIEWS, Body
from piton.kube.workqueue import Timer
from piton.ports import Clock

GOOD_SECONDS = 300.0
"""Seconds for which a valid token is believed; it is reviewed again before."""
BAD_SECONDS = 10.0
REVIEWS_AT_ONCE, REVIEWS_AT_ONCE_OF_ADDRESS = 8, 2
"""Reviews under way: reports with forged tokens must not become as many requests to the API server."""
REPORT_SECONDS, REPORTS_AT_ONCE = 1.0, 5
"""Time between two reports of a pod, and how many of them may come at once. Trainers report every 5 s."""
FAILURE_SECONDS, FAILURES_AT_ONCE = 1.0, 10
"""Time between two tokens of one address that the API server refuses, and how many of them may come at once."""
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_ACCOUNT = "system:serviceaccount:"


class Unauthenticated(Refusal):
    """Nobody vouches for the token."""


class Forbidden(Refusal):
    """The token is good, but not for this run."""


class TooMany(Exception):  # noqa: N818 - a situation, not an error
    """The sender is too fast. The text is a sentence for it."""

    def __init__(self, sentence: str, *, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds
        """Time after which to come again."""


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
        self._pods: AnswerCache[_Pod] = AnswerCache(timer, refused_seconds=BAD_SECONDS)
        self._senders: AnswerCache[Sender] = AnswerCache(timer, refused_seconds=BAD_SECONDS)
        self._slots = Slots(total=REVIEWS_AT_ONCE, each=REVIEWS_AT_ONCE_OF_ADDRESS)
        self._reports = RateLimit(timer, seconds=REPORT_SECONDS, burst=REPORTS_AT_ONCE)
        self._failures = RateLimit(timer, seconds=FAILURE_SECONDS, burst=FAILURES_AT_ONCE)

    async def admit(self, token: str, *, address: str, namespace: str, run: str) -> Sender:
        """Return the sender that the token belongs to. The address is where the report comes from.

        Raises:
            Unauthenticated: the token is not good.
            Forbidden: it belongs to a pod that may not report for this run.
            TooMany: the pod reports too often, or too many tokens from this address were not good.
            PortError: the API server does not answer, or not to us.
        """
        pod = await self._pod(token, address)
        seconds = self._reports.take(pod.uid)
        if seconds > 0:
            raise TooMany(f"pod {pod.name!r} reports more often than every {REPORT_SECONDS:g} s", seconds=seconds)
        if pod.namespace != namespace:
            raise Forbidden(f"the token is from namespace {pod.namespace!r}, not from {namespace!r}")
        sender = await self._senders.find(pod.uid, lambda: self._find(pod))
        if sender.run != run:
            raise Forbidden(f"pod {pod.name!r} belongs to run {sender.run!r}, not to {run!r}")
        return sender

    async def _pod(self, token: str, address: str) -> _Pod:
        key = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        return await self._pods.find(
            key, lambda: self._review_unknown(token, address), renew=lambda: self._review(token)
        )

    async def _review_unknown(self, token: str, address: str) -> GoodAnswer[_Pod]:
        """Review a token that nobody has vouched for yet, unless its address has sent too many bad ones."""
        self._seconds_left(token)
        async with self._slots.of(address):
            seconds = self._failures.wait(address)
            if seconds > 0:
                raise TooMany(f"too many tokens from {address} were not valid", seconds=seconds)
            try:
                return await self._review(token)
            except Refusal:
                self._failures.count(address)
                raise

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

    async def _review(self, token: str) -> GoodAnswer[_Pod]:
        seconds = self._seconds_left(token)
        spec = {"token": token, "audiences": [names.TOKEN_AUDIENCE]}
        review: Body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": spec}
        async with self._slots.of_all():
            found = await self._client.create(TOKEN_REVIEWS, review)
        pod = _reviewed(found.get("status") or {})
        return GoodAnswer(value=pod, seconds=min(seconds, GOOD_SECONDS), renewable=seconds > GOOD_SECONDS)

    async def _find(self, pod: _Pod) -> GoodAnswer[Sender]:
        """The run and the attempt, by owners and not by labels alone: those anybody can write."""
        found = await self._client.get(PODS, pod.name, namespace=pod.namespace)
        if found is None or found["metadata"]["uid"] != pod.uid:
            raise Forbidden(f"pod {pod.name!r} is gone")
        labels = found["metadata"].get("labels") or {}
        run, attempt = str(labels.get(names.LABEL_RUN) or ""), str(labels.get(names.LABEL_ATTEMPT) or "")
        owner = controller(found) or {}
        unrelated = Forbidden(f"pod {pod.name!r} belongs to no run")
        if not run or not (attempt.isascii() and attempt.isdigit()) or owner.get("kind") != "PyTorchJob":
            raise unrelated
        name = names.attempt_name(run, int(attempt))
        job = await self._client.get(JOBS, name, namespace=pod.namespace)
        if job is None or owner.get("uid") != job["metadata"]["uid"]:
            raise unrelated
        owner = controller(job) or {}
        if (owner.get("kind"), owner.get("name")) != (names.KIND, run):
            raise unrelated
        sender = Sender(namespace=pod.namespace, run=run, run_uid=str(owner.get("uid")), attempt=int(attempt))
        return GoodAnswer(value=sender)


def _reviewed(status: Body) -> _Pod:
    """Return the pod of a TokenReview's status."""
    if not status.get("authenticated") or names.TOKEN_AUDIENCE not in (status.get("audiences") or ()):
        raise Unauthenticated("the token is not valid here")
    user = status.get("user") or {}
    namespace = str(user.get("username") or "").removeprefix(_ACCOUNT).partition(":")[0]
    extra = user.get("extra") or {}
    name, uid = _first(extra.get(_POD_NAME)), _first(extra.get(_POD_UID))
    if not namespace or not name or not uid:
        raise Forbidden("the token is not a pod's")
    return _Pod(namespace=namespace, name=name, uid=uid)


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
