"""Errors of the operator's own at one object, told on the object: there people look, and not in the operator's log.

A mistake of the operator may be that it cannot read what is written there. So the condition is put into the object as
the API server has it, and nothing of it is parsed.
"""

import logging
from typing import Any

from piton.api.conditions import OPERATOR_ERROR
from piton.api.reasons import Reason
from piton.core.wait_reasons import without_numbers
from piton.kube.client import Client
from piton.kube.events import Key, event_about, post
from piton.kube.resources import RUNS, SWEEPS, Body, Resource
from piton.ports import Clock

_TEXT_MAX = 400
_log = logging.getLogger(__name__)


class OperatorErrors:
    """The condition OperatorError and its Event, for the objects of one kind: once for each text, but for numbers."""

    def __init__(self, client: Client, clock: Clock, resource: Resource) -> None:
        self._client = client
        self._clock = clock
        self._resource = resource
        self._told: dict[Key, str] = {}

    async def tell(self, key: Key, error: Exception) -> None:
        """Say on the object that a pass over it has failed. What cannot be said is logged, and tried at the next."""
        text = f"{type(error).__name__}: {error}"[:_TEXT_MAX]
        if self._told.get(key) == without_numbers(text):
            return
        try:
            await self._write(key, text)
        except Exception as failure:  # noqa: BLE001 - whatever fails here must not end the worker as well
            fields = {self._resource.plural: "/".join(key), "error": repr(failure)}
            _log.warning("operator error not told", extra={"fields": fields})
            return
        self._told[key] = without_numbers(text)

    def forget(self, key: Key) -> None:
        """A pass got through, or the object is gone."""
        self._told.pop(key, None)

    async def _write(self, key: Key, text: str) -> None:
        namespace, name = key
        body = await self._client.get(self._resource, name, namespace=namespace)
        if body is None:
            return
        message = (
            f"the operator cannot go on with this object: {text}. That is a mistake of Piton's, or the object has what "
            "it does not expect; look for what was changed last. It is tried again, and until then nothing is done for "
            "the object: no limit is kept and no machine is given back"
        )
        now = self._clock.now()
        if self._resource in (RUNS, SWEEPS):  # the conditions of a PyTorchJob are its controller's
            condition = {
                "type": OPERATOR_ERROR,
                "status": "True",
                "reason": Reason.OPERATOR_ERROR.value,
                "message": message,
                "lastTransitionTime": now.isoformat().replace("+00:00", "Z"),
            }
            await self._client.replace_status(self._resource, _with(body, condition))
        event = event_about(body, severity="Warning", reason=Reason.OPERATOR_ERROR.value, message=message, now=now)
        await post(self._client, event)


def _with(body: Body, condition: dict[str, Any]) -> Body:
    """Return the object with this condition in place of the one of its type; all else is as it is."""
    status = body.get("status")
    status = status if isinstance(status, dict) else {}
    found = status.get("conditions")
    others = [each for each in found if not _is_of(each, OPERATOR_ERROR)] if isinstance(found, list) else []
    return {**body, "status": {**status, "conditions": [*others, condition]}}


def _is_of(condition: object, kind: str) -> bool:
    return isinstance(condition, dict) and condition.get("type") == kind
