"""Errors of the operator's own at one object, told on the object: there people look, and not in the operator's log.

So is what it could not read for long, and without which nothing can be decided.

A mistake of the operator may be that it cannot read what is written there. So the condition is put into the object as
the API server has it, and nothing of it is parsed.
"""

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from piton.api.conditions import OPERATOR_ERROR
from piton.api.reasons import Reason
from piton.core.wait_reasons import without_numbers
from piton.kube.client import Client
from piton.kube.events import Key, event_about, post
from piton.kube.resources import RUNS, SWEEPS, Body, Resource
from piton.kube.store import Change
from piton.ports import Clock, PortError, Refused

_TEXT_MAX = 400
_TEXTS_MOST = 32
"""Texts that are remembered for one object."""
_BURST = 6
_REFILL_SECONDS = 60.0
"""Texts that may be told of an object at once, and seconds after which it may be one more. A pass that gets through now
and then makes each text a new one, and what never repeats itself is always new."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Told:
    """The texts that were told about one object, and how many may follow now."""

    left: float = _BURST
    counted_at: datetime
    shown: dict[str, None] = field(default_factory=dict)
    """Texts that its condition has had, the newest last."""
    posted: dict[str, None] = field(default_factory=dict)
    """Texts of its Events."""

    def refill(self, now: datetime) -> None:
        """Count what may be told again by now."""
        self.left = min(_BURST, self.left + (now - self.counted_at).total_seconds() / _REFILL_SECONDS)
        self.counted_at = now

    @property
    def is_idle(self) -> bool:
        """True if it is as good as none."""
        return self.left >= _BURST and not self.shown and not self.posted


class OperatorErrors:
    """The condition OperatorError and its Event, for the objects of one kind: once for each text, but for numbers."""

    def __init__(self, client: Client, clock: Clock, resource: Resource) -> None:
        self._client = client
        self._clock = clock
        self._resource = resource
        self._told: dict[Key, _Told] = {}

    async def tell(self, key: Key, error: Exception) -> None:
        """Say on the object that a pass over it has failed. What cannot be said is logged, and tried at the next.

        Either is said without the other: a status that the API server refuses needs an Event most of all.
        """
        is_unread = isinstance(error, PortError)
        text = (str(error) if is_unread else f"{type(error).__name__}: {error}")[:_TEXT_MAX]
        words, now = without_numbers(text), self._clock.now()
        told = self._told.setdefault(key, _Told(counted_at=now))
        told.refill(now)
        shows_none = self._resource not in (RUNS, SWEEPS)  # the conditions of a PyTorchJob are its controller's
        if (shows_none or words in told.shown) and words in told.posted:
            return
        if told.left < 1:
            return
        told.left -= 1
        try:
            body = await self._client.get(self._resource, key[1], namespace=key[0])
        except Exception as failure:  # noqa: BLE001 - whatever fails here must not end the worker as well
            self._log(key, failure)
            return
        if body is None:
            return
        reason = Reason.CLUSTER_UNREADABLE if is_unread else Reason.OPERATOR_ERROR
        message = _unread(text) if is_unread else _message(text)
        if not shows_none and words not in told.shown:
            await self._say(key, told.shown, words, self._show(body, reason, message))
        if words not in told.posted:
            await self._say(key, told.posted, words, self._post(body, reason, message))

    def forget(self, key: Key) -> None:
        """A pass got through, or the object is gone."""
        now = self._clock.now()
        if key in self._told:
            self._told[key].shown.clear()
            self._told[key].posted.clear()
            for told in self._told.values():
                told.refill(now)
            self._told = {other: told for other, told in self._told.items() if not told.is_idle}

    async def _say(self, key: Key, told: dict[str, None], words: str, saying: Awaitable[object]) -> None:
        """Say it, and remember that. What is refused is refused the next time as well."""
        try:
            await saying
        except Refused as refusal:
            self._log(key, refusal)
        except Exception as failure:  # noqa: BLE001 - whatever fails here must not end the worker as well
            self._log(key, failure)
            return
        told[words] = None
        if len(told) > _TEXTS_MOST:
            del told[next(iter(told))]

    def _log(self, key: Key, failure: Exception) -> None:
        fields = {self._resource.plural: "/".join(key), "error": repr(failure)}
        _log.warning("operator error not told", extra={"fields": fields})

    async def _show(self, body: Body, reason: Reason, message: str) -> None:
        condition = {
            "type": OPERATOR_ERROR,
            "status": "True",
            "reason": reason.value,
            "message": message,
            "lastTransitionTime": self._clock.now().isoformat().replace("+00:00", "Z"),
        }
        await self._client.replace_status(self._resource, _with(body, condition))

    async def _post(self, body: Body, reason: Reason, message: str) -> None:
        now = self._clock.now()
        await post(self._client, event_about(body, severity="Warning", reason=reason.value, message=message, now=now))


def tells_only_error(change: Change) -> bool:
    """True if nothing has changed but the condition OperatorError: our own writing, which must not end a back-off."""
    before, after = change.before, change.after
    return before is not None and after is not None and before != after and _without(before) == _without(after)


def _without(body: Body) -> Body:
    """Return the object without that condition, and without the marks of a write."""
    metadata = {key: value for key, value in body["metadata"].items() if key not in _MARKS}
    status = body.get("status") or {}
    others = [each for each in status.get("conditions") or () if not _is_of(each, OPERATOR_ERROR)]
    return {**body, "metadata": metadata, "status": {**status, "conditions": others}}


_MARKS = ("resourceVersion", "managedFields")


def _message(text: str) -> str:
    return (
        f"the operator cannot go on with this object: {text}. That is a mistake of Piton's, or the object has what it "
        "does not expect; look for what was changed last. It is tried again, and until then nothing is done for the "
        "object: no limit is kept and no machine is given back"
    )


def _unread(text: str) -> str:
    return (
        f"the operator cannot look at this object: {text}. If it lacks a right, install or upgrade Piton's chart "
        "again; else look at the API server and its webhooks. It is tried again, and until then nothing is done for "
        "the object: no limit is kept and no machine is given back"
    )


def _with(body: Body, condition: dict[str, Any]) -> Body:
    """Return the object with this condition in place of the one of its type; all else is as it is."""
    status = body.get("status")
    status = status if isinstance(status, dict) else {}
    found = status.get("conditions")
    others = [each for each in found if not _is_of(each, OPERATOR_ERROR)] if isinstance(found, list) else []
    return {**body, "status": {**status, "conditions": [*others, condition]}}


def _is_of(condition: object, kind: str) -> bool:
    return isinstance(condition, dict) and condition.get("type") == kind
