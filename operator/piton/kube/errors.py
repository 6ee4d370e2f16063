"""Errors of the API server as the core sees them. The only place that knows HTTP statuses.

PortError
├── Conflict
│   └── AlreadyExists  an object of this name exists; whose it is has to be looked at
├── Unavailable        no answer, overload, or credentials that are being renewed
│   ├── Busy           429 for all callers, with the seconds after which to come again
│   ├── Expired        410: the version that a list or watch was to go on from is forgotten
│   └── Silence        the connection broke or timed out
└── Refused            quota, policy, rights, a webhook that is down, an invalid body; its own sentence is kept
    └── NotFound       no such object, or no such kind of object
        └── UnknownKind  the server does not serve the kind, for now or for ever: nothing is said about its objects
"""

import json
import re

import aiohttp
from kubernetes.aio.client import ApiException

from piton.ports import Conflict, PortError, Refused, Unavailable

_ALREADY_EXISTS = "AlreadyExists"
_TOO_MANY = 429
"""Without a reason it is priority and fairness, or a proxy, for all callers. With one it is about this request alone,
as from a webhook or a PodDisruptionBudget."""
_RETRY_SECONDS, _RETRY_SECONDS_MAX = 1.0, 60.0
"""Default and maximum of the seconds of a Retry-After, which priority and fairness of Kubernetes sends."""
_EXPIRED = 410
_BUSY = frozenset({401, 408})
"""401: the token has just expired and the next call renews it."""
_NO_WEBHOOK = "failed calling webhook"
"""An admission webhook did not answer. The status is 500, but nothing was stored, and whoever runs the webhook has to
hear of it."""
_TOO_LARGE = 413
_TOO_LARGE_FOR_ETCD = re.compile(
    r"request is too large|trying to send message larger than max|Request entity too large"
)
"""etcd takes no larger object, ever. The API server answers 500 where it has not counted the bytes itself."""
_NOT_SERVED = re.compile(r"could not find the requested resource|page not found|^404 ")
"""The words of a 404, with a Status or without one, where the kind or its version is not served. Else it names an
object."""
_DENIED = re.compile(r'^admission webhook ".*" denied the request')
"""A webhook may deny with any status. With 404 it says nothing about whether the object is there."""
_OTHER_UID = "Precondition failed: UID in precondition"
_SENTENCE_MAX = 900
"""A reason has to fit into an event's message, with a few words around it."""


class AlreadyExists(Conflict):
    """An object of this name exists."""


class NotFound(Refused):
    """There is no such object, or the cluster does not know this kind of object."""


class UnknownKind(NotFound):
    """The server does not serve this kind, or this version of it: the object asked for may exist nevertheless."""


class Busy(Unavailable):
    """The API server has too many requests, and says after how many seconds to come again."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Expired(Unavailable):
    """The version of the list is too old to go on from: list again."""


class NoAnswer(Unavailable):
    """The connection broke or timed out: whether a write took effect is not known."""


def translate(error: Exception) -> PortError:
    """The port's word for what a call to the API server raised."""
    if not isinstance(error, ApiException) or not error.status:
        return NoAnswer(f"the API server did not answer: {type(error).__name__}: {error}")
    reason, sentence = _read(error)
    if error.status == 409:
        return AlreadyExists(sentence) if reason == _ALREADY_EXISTS else Conflict(sentence)
    if _NO_WEBHOOK in sentence or error.status == _TOO_LARGE or _TOO_LARGE_FOR_ETCD.search(sentence):
        return Refused(sentence)
    if error.status == _TOO_MANY and reason:
        return Unavailable(f"the API server answered {error.status}: {sentence}")
    if error.status == _TOO_MANY:
        return Busy(f"the API server answered {error.status}: {sentence}", seconds=_retry_after(error))
    if error.status == _EXPIRED:
        return Expired(sentence)
    if error.status in _BUSY or error.status >= 500:
        return Unavailable(f"the API server answered {error.status}: {sentence}")
    if error.status == 404 and not _DENIED.match(sentence):
        return UnknownKind(sentence) if _NOT_SERVED.search(sentence) else NotFound(sentence)
    return Refused(sentence)


def is_of_other_uid(error: Conflict) -> bool:
    """True if the name has a new bearer: the object that was meant, by its uid, is gone."""
    return _OTHER_UID in str(error)


TRANSLATED = (ApiException, aiohttp.ClientError, TimeoutError, OSError)
"""The errors that a call to the API server may raise; any other is a bug of Piton."""


def _retry_after(error: ApiException) -> float:
    """Seconds, as Kubernetes says it; a proxy may say a date, or nothing."""
    try:
        seconds = float((error.headers or {})["Retry-After"])
    except (KeyError, ValueError):
        seconds = _RETRY_SECONDS
    return min(max(seconds, _RETRY_SECONDS), _RETRY_SECONDS_MAX)


def _read(error: ApiException) -> tuple[str, str]:
    """The reason and the sentence of a metav1.Status; proxies answer with something else."""
    try:
        status = json.loads(error.body or "")
        return str(status.get("reason", "")), str(status["message"])[:_SENTENCE_MAX]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", f"{error.status} {error.reason}"
