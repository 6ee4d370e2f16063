"""A client of the API server with nothing but the standard library: as much as the box itself needs, as its admin."""

import contextlib
import json
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlencode

from hack.cluster import pki
from hack.cluster.layout import API_PORT, GATEWAY
from hack.cluster.shell import BoxError

Object = dict[str, Any]
_MERGE = "application/strategic-merge-patch+json"
_WATCH_SECONDS = 300
_RESTART_SECONDS = 20.0
_POLL_SECONDS = 0.1
_CONFLICT = 409
_NOT_FOUND = 404


class ApiError(BoxError):
    """The API server refused."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the API server answered {status}: {said}")
        self.status = status


class ApiUnreachableError(BoxError):
    """The API server did not answer."""


def call(method: str, path: str, body: Object | None = None, *, kind: str = "application/json") -> Object:
    """Send one request; return what came back. A server that restarts is asked again for a while.

    Raises:
        ApiError: Refused.
        ApiUnreachableError: No answer.
    """
    deadline = time.monotonic() + _RESTART_SECONDS
    while True:
        try:
            return _call(method, path, body, kind=kind)
        except ApiUnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _call(method: str, path: str, body: Object | None = None, *, kind: str = "application/json") -> Object:
    with _connection(timeout=15) as connection:
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
            response = connection.getresponse()
            said = response.read()
        except (OSError, HTTPException) as error:
            raise ApiUnreachableError(f"the API server does not answer: {error}") from None
    if response.status >= 400:
        raise ApiError(response.status, said.decode(errors="replace")[:500])
    found: Object = json.loads(said) if said.startswith(b"{") else {"text": said.decode()}
    return found


def ready() -> bool:
    """Whether the API server says so."""
    try:
        return _call("GET", "/readyz").get("text") == "ok"
    except (ApiError, ApiUnreachableError, FileNotFoundError):
        return False


def create(path: str, body: Object) -> None:
    """Create; that it exists already is as good."""
    with _tolerating(_CONFLICT):
        call("POST", path, body)


def patch(path: str, body: Object) -> None:
    """Merge `body` into what is there."""
    call("PATCH", path, body, kind=_MERGE)


def delete(path: str, *, grace_seconds: int | None = None) -> None:
    """Delete; that it is gone already is as good."""
    options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
    with _tolerating(_NOT_FOUND):
        call("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})


@contextlib.contextmanager
def _tolerating(status: int) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status != status:
            raise


def follow(path: str) -> Iterator[list[Object]]:
    """The whole list, now and after every change. Ends when the server ends the watch, or goes away: call it again.

    Raises:
        ApiError: Refused.
        ApiUnreachableError: No answer.
    """
    found = call("GET", path)
    objects = {item["metadata"]["uid"]: item for item in found["items"]}
    yield list(objects.values())
    query = {"watch": "1", "resourceVersion": found["metadata"]["resourceVersion"], "timeoutSeconds": _WATCH_SECONDS}
    with _connection(timeout=_WATCH_SECONDS + 15) as connection:
        try:
            connection.request("GET", f"{path}?{urlencode(query)}")
            for line in connection.getresponse():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                uid = event["object"]["metadata"]["uid"]
                objects = {key: value for key, value in objects.items() if key != uid}
                if event["type"] != "DELETED":
                    objects[uid] = event["object"]
                yield list(objects.values())
        except (OSError, HTTPException, ValueError) as error:
            raise ApiUnreachableError(f"the watch broke: {error}") from None


@contextlib.contextmanager
def _connection(*, timeout: float) -> Iterator[HTTPSConnection]:
    context = ssl.create_default_context(cafile=str(pki.CA))
    context.load_cert_chain(pki.certificate(pki.ADMIN), pki.key(pki.ADMIN))
    connection = HTTPSConnection(GATEWAY, API_PORT, timeout=timeout, context=context)
    try:
        yield connection
    finally:
        connection.close()
