"""A thin client of the Kubernetes API: the few calls that Piton makes, on plain dictionaries.

Typed models would have to be kept in step with every cluster's version and cannot express a PyTorchJob; transport,
TLS and credentials are `kubernetes.aio`'s. No call is repeated in here: when to try again is the queue's affair.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol, Self
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientPayloadError, ClientTimeout, SocketTimeoutError
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from pydantic_core import from_json

from piton import __version__
from piton.kube.errors import TRANSLATED, Busy, NotFound, UnknownKind, is_of_other_uid, translate
from piton.kube.resources import Body, Resource
from piton.kube.store import version_of
from piton.kube.workqueue import Timer
from piton.ports import Conflict, PortError

Bodies = list[Body]

CALLS_AT_ONCE = 16
"""Of all halves of the operator together. A slow server gets no more than so many, however many runs there are."""
OPENED = "OPENED"
"""The first event of each watch, and not the server's: it has accepted the watch."""
_PAGE = 500
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
_MERGE_PATCH = "application/merge-patch+json"
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")
_USER_AGENT = f"piton-operator/{__version__}"
"""The part before the slash is the name by which `managedFields` list what the operator has written."""


class Reads(Protocol):
    """Reads of objects: live through a client, or from the cache."""

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Body | None:
        """Return one object; None: it does not exist."""

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        most: int | None = None,
    ) -> Bodies:
        """Return all objects that match."""


async def load_configuration(url: str | None = None) -> Configuration:
    """Load address and credentials from a URL, `KUBECONFIG`, the pod's service account, or `~/.kube/config`."""
    configuration = Configuration(host=url) if url else Configuration()
    if url is None:
        in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
        if in_cluster:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration)
    configuration.retries = None
    _settle_proxy(configuration)
    return configuration


def _settle_proxy(configuration: Configuration) -> None:
    """Look for a proxy once. By default aiohttp looks for one, and for a .netrc, in two threads per request."""
    address = urlsplit(configuration.host)
    if not configuration.proxy and not proxy_bypass(address.hostname or ""):
        configuration.proxy = getproxies().get(address.scheme)
    configuration.client_session_kwargs = {"trust_env": False}


class Client:
    """Calls to one API server. Raises the port's errors and no others.

    What the server asks for when it is busy, it asks of all callers: until then each call fails as if it were sent.
    """

    def __init__(
        self, configuration: Configuration, *, timeout_seconds: float = 30.0, timer: Timer | None = None
    ) -> None:
        self.configuration = configuration
        # Calls are bounded below. Watches last, and there is one per kind and namespace: none may wait for another.
        configuration.connection_pool_maxsize = 0
        self._api = ApiClient(configuration)
        self._api.user_agent = _USER_AGENT
        self._timeout_seconds = timeout_seconds
        self._timer = timer
        self._busy_until = float("-inf")
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self.on_written: Callable[[Resource, Body], None] | None = None
        """Called with each object that a write has left."""
        self.on_date: Callable[[str | None], None] = lambda _: None
        """Called with the date of each answer."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Body | None:
        """Return one object as it is now; None when it does not exist.

        Raises:
            UnknownKind: the server does not serve the kind, so that nobody can tell.
        """
        try:
            return await self.request("GET", resource.path(namespace, name))
        except UnknownKind as error:
            kind = f"{resource.plural} of {resource.group or 'the core'}/{resource.version}"
            raise UnknownKind(f"the cluster does not serve {kind} ({error})") from error
        except NotFound:
            return None

    async def list_all(
        self, resource: Resource, *, namespace: str | None, query: Mapping[str, str]
    ) -> tuple[Bodies, int]:
        """All objects that match, as they are now, and the version of the list.

        Raises:
            Expired: the list moved on while it was paged through.
        """
        asked: dict[str, str] = {"limit": str(_PAGE), **query}
        items: Bodies = []
        while True:
            page = await self.request("GET", resource.path(namespace), query=asked)
            items += [_complete(item, page) for item in page.get("items") or ()]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items, version_of(page)
            asked = {**asked, "continue": token}

    async def watch(
        self, resource: Resource, *, namespace: str | None, query: Mapping[str, str], silent_seconds: float
    ) -> AsyncGenerator[Body, None]:
        """Yield OPENED, then the events of the watch, until the server ends it or sends nothing for so long.

        Raises:
            Expired: the version is too old.
        """
        path = f"{resource.path(namespace)}?{urlencode({'watch': 'true', **query})}"
        limits = ClientTimeout(total=None, sock_connect=self._timeout_seconds, sock_read=silent_seconds)
        self._refuse_while_busy()
        try:
            response = await self._send("GET", path, dict(_HEADERS), None, limits=limits)
            content = response.response.content
            try:
                yield {"type": OPENED, "object": {"metadata": {}}}
                while line := await content.readline():
                    yield _event(line)
            except SocketTimeoutError:
                return
            finally:
                response.response.close()
        except TRANSLATED as error:
            raise self._translated(error) from error

    async def newest_version(self, resource: Resource, *, namespace: str | None) -> int:
        """Return the version that a list would have now."""
        return version_of(await self.request("GET", resource.path(namespace), query={"limit": "1"}))

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        most: int | None = None,
    ) -> Bodies:
        """All objects that match, as they are now: no resourceVersion is named, so the server may not answer late.

        With `most` it ends with the page that has so many. A page may be empty although there are more.
        """
        query = {"limit": str(most or _PAGE)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        items: list[Body] = []
        while True:
            page = await self.request("GET", resource.path(namespace), query=query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token or (most is not None and len(items) >= most):
                return items
            query = {**query, "continue": token}

    async def create(self, resource: Resource, body: Body) -> Body:
        """Create an object. Raises AlreadyExists when the name is taken, by whomever."""
        path = resource.path(body["metadata"].get("namespace"))
        return self._written(resource, await self.request("POST", path, body=body))

    async def patch(self, resource: Resource, name: str, body: Body, *, namespace: str | None = None) -> Body:
        """Merge into an object; a resourceVersion in the body is a precondition."""
        return self._written(resource, await self.request("PATCH", resource.path(namespace, name), body=body))

    async def replace_status(self, resource: Resource, body: Body) -> Body:
        """Replace an object's status; the body's uid and resourceVersion are the preconditions.

        Nothing else of the object is sent: the API server takes only the status, and would read the rest in vain.
        """
        metadata = body["metadata"]
        sent: Body = {field: body[field] for field in ("apiVersion", "kind", "status") if field in body}
        sent["metadata"] = {field: metadata[field] for field in _IDENTITY if field in metadata}
        path = resource.path(metadata.get("namespace"), metadata["name"], "status")
        return self._written(resource, await self.request("PUT", path, body=sent))

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        uid: str,
        version: str | None = None,
        namespace: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete the object that has this uid, and this version. What depends on it is the garbage collector's.

        Raises:
            NotFound: it is gone, also where another object has its name.
            Conflict: the server, or a webhook with that status, did not delete it.
        """
        conditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
        options: Body = {"preconditions": conditions, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self.request("DELETE", resource.path(namespace, name), body=options)
        except Conflict as error:
            if is_of_other_uid(error):
                raise NotFound(str(error)) from error
            raise

    def _written(self, resource: Resource, body: Body) -> Body:
        if self.on_written is not None:
            self.on_written(resource, body)
        return body

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Body:
        """One call; the answer as a dictionary."""
        headers = dict(_HEADERS)
        headers["Content-Type"] = _MERGE_PATCH if method == "PATCH" else "application/json"
        if query:
            path = f"{path}?{urlencode(query)}"
        async with self._calls:
            self._refuse_while_busy()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._call(method, path, headers, body)
            except TRANSLATED as error:
                raise self._translated(error) from error

    def _translated(self, error: Exception) -> PortError:
        found = translate(error)
        if isinstance(found, Busy):
            self._busy_until = max(self._busy_until, self._now() + found.seconds)
        return found

    def _refuse_while_busy(self) -> None:
        left = self._busy_until - self._now()
        if left > 0:
            raise Busy(f"the API server is busy, and asked for another {left:.1f} s", seconds=left)

    def _now(self) -> float:
        return (self._timer or asyncio.get_running_loop()).time()

    async def _call(self, method: str, path: str, headers: dict[str, str], body: Body | None) -> Body:
        response = await self._send(method, path, headers, body)
        return _parsed(await response.read())

    async def _send(
        self, method: str, path: str, headers: dict[str, str], body: Body | None, limits: ClientTimeout | None = None
    ) -> Any:
        _, url, headers, _, _ = await self._api.param_serialize(
            method, path, header_params=headers, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(method, url, header_params=headers, body=body, _request_timeout=limits)
        self.on_date(response.headers.get("Date"))
        if not 200 <= response.status <= 299:
            await response.read()
            raise ApiException(http_resp=response)
        return response


def _parsed(text: bytes) -> Body:
    """Parse an answer.

    Raises:
        ClientPayloadError: it is no JSON, as the page of a proxy, or a line that was cut.
    """
    try:
        found: Body = from_json(text)
    except ValueError as error:
        raise ClientPayloadError(f"no JSON: {error}") from error
    return found


def _event(line: bytes) -> Body:
    """Parse an event of a watch.

    Raises:
        ApiException: it is an error that ends the watch.
    """
    event = _parsed(line)
    if event["type"] == "ERROR":
        status = event["object"]
        found = ApiException(status=int(status.get("code") or 500), reason=status.get("reason"))
        found.body = json.dumps(status)
        raise found
    return event


def _complete(item: Body, page: Body) -> Body:
    """Add the kind, which the items of a list lack."""
    kind = str(page.get("kind") or "").removesuffix("List")
    return {"apiVersion": page.get("apiVersion"), "kind": kind, **item} if kind else item
