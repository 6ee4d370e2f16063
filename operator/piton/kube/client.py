"""A thin client of the Kubernetes API: the few calls that Piton makes, on plain dictionaries.

Typed models would have to be kept in step with every cluster's version and cannot express a PyTorchJob; transport,
TLS and credentials are `kubernetes.aio`'s. No call is repeated in here: when to try again is the queue's affair.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException

from piton.contract import names
from piton.kube.errors import TRANSLATED, Busy, NotFound, translate
from piton.kube.workqueue import Timer

Body = dict[str, Any]

CALLS_AT_ONCE = 16
"""Of all halves of the operator together. A slow server gets no more than so many, however many runs there are."""
_PAGE = 500
_MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A kind of object, as the API's paths spell it."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of the collection, of one object, or of an object's subresource."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [f"{root}/{self.version}"]
        if namespace is not None and self.namespaced:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


RUNS = Resource(group=names.API_GROUP, version=names.API_VERSION, plural=names.PLURAL)
SWEEPS = Resource(group=names.API_GROUP, version=names.API_VERSION, plural=names.SWEEP_PLURAL)
JOBS = Resource(group="kubeflow.org", version="v1", plural="pytorchjobs")
PODS = Resource(group="", version="v1", plural="pods")
SERVICES = Resource(group="", version="v1", plural="services")
CLAIMS = Resource(group="", version="v1", plural="persistentvolumeclaims")
NODES = Resource(group="", version="v1", plural="nodes", namespaced=False)
NODE_POOLS = Resource(group="karpenter.sh", version="v1", plural="nodepools", namespaced=False)
EVENTS = Resource(group="", version="v1", plural="events")
TOKEN_REVIEWS = Resource(group="authentication.k8s.io", version="v1", plural="tokenreviews", namespaced=False)


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
    return configuration


class Client:
    """Calls to one API server. Raises the port's errors and no others.

    What the server asks for when it is busy, it asks of all callers: until then each call fails as if it were sent.
    """

    def __init__(
        self, configuration: Configuration, *, timeout_seconds: float = 30.0, timer: Timer | None = None
    ) -> None:
        self.configuration = configuration
        self._api = ApiClient(configuration)
        self._timeout_seconds = timeout_seconds
        self._timer = timer
        self._busy_until = float("-inf")
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Body | None:
        """One object as it is now; None when it does not exist."""
        try:
            return await self.request("GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        most: int | None = None,
    ) -> list[Body]:
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
        return await self.request("POST", resource.path(body["metadata"].get("namespace")), body=body)

    async def patch(self, resource: Resource, name: str, body: Body, *, namespace: str | None = None) -> Body:
        """Merge into an object; a resourceVersion in the body is a precondition."""
        return await self.request("PATCH", resource.path(namespace, name), body=body)

    async def replace_status(self, resource: Resource, body: Body) -> Body:
        """Replace an object's status; the body's resourceVersion is the precondition."""
        metadata = body["metadata"]
        return await self.request(
            "PUT", resource.path(metadata.get("namespace"), metadata["name"], "status"), body=body
        )

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
        """Delete the object that has this uid, and this version. What depends on it is the garbage collector's."""
        conditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
        options: Body = {"preconditions": conditions, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self.request("DELETE", resource.path(namespace, name), body=options)

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Body:
        """One call; the answer as a dictionary."""
        headers = {"Accept": "application/json"}
        headers["Content-Type"] = _MERGE_PATCH if method == "PATCH" else "application/json"
        if query:
            path = f"{path}?{urlencode(query)}"
        async with self._calls:
            self._refuse_while_busy()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._call(method, path, headers, body)
            except TRANSLATED as error:
                found = translate(error)
                if isinstance(found, Busy):
                    self._busy_until = max(self._busy_until, self._now() + found.seconds)
                raise found from error

    def _refuse_while_busy(self) -> None:
        left = self._busy_until - self._now()
        if left > 0:
            raise Busy(f"the API server is busy, and asked for another {left:.1f} s", seconds=left)

    def _now(self) -> float:
        return (self._timer or asyncio.get_running_loop()).time()

    async def _call(self, method: str, path: str, headers: dict[str, str], body: Body | None) -> Body:
        _, url, headers, _, _ = await self._api.param_serialize(
            method, path, header_params=headers, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(method, url, header_params=headers, body=body)
        text = await response.read()
        if not 200 <= response.status <= 299:
            raise ApiException(http_resp=response)
        answer: Body = json.loads(text)
        return answer
