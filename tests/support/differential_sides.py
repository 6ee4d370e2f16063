"""Two controllers on one API server, a namespace each, and the hands that do the same to both.

What the API server has is known by watches; what a kubelet would do to the pods is done here.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration

from hack.neighbours.webhooks import NOT_CALLED
from piton.clock import SystemClock
from piton.contract import names
from piton.engine.job import LABEL_JOB
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists, NotFound
from piton.kube.job_controller import JobController
from piton.kube.metrics import OperatorMetrics, Registry
from piton.kube.resources import JOBS, NODES, PODS, SERVICES, Resource
from piton.kube.settings import Engine, PitonSettings
from piton.ports import Refused
from support.differential_jobs import NODE

Body = dict[str, Any]
Changed = Callable[["Side", Resource, Body], None]

RUN = secrets.token_hex(3)
KUBEFLOWS, OURS = f"differential-kubeflow-{RUN}", f"differential-piton-{RUN}"
"""New ones for each run of the tests: what an earlier one has left is in nobody's way."""
WATCHED = (JOBS, PODS, SERVICES)
NAMESPACES = Resource(group="", version="v1", plural="namespaces", namespaced=False)
ACCOUNTS = Resource(group="", version="v1", plural="serviceaccounts")
CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps")
LEASES = Resource(group="coordination.k8s.io", version="v1", plural="leases")
_GARBAGE_SECONDS = 180
"""The garbage collector looks for new kinds every 30 s."""
_WEBHOOK_SECONDS = 120
_HEARTBEAT_SECONDS = 5
_TICK_SECONDS = 0.05
_QUIET_TICKS = 4
_PATIENCE_TICKS = 60


_PROBE: Body = {
    "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
    "metadata": {"name": "probe", "labels": {names.LABEL_RUN: "differential"}},
    "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": {"spec": {
        "containers": [{"name": names.CONTAINER, "image": "probe:1"}], "nodeName": NODE,
        "automountServiceAccountToken": False,
    }}}}},
}  # fmt: skip
"""A job that nothing ever happens to, but that a service is taken away. A job of one replica has none with ours."""


class Side:
    """One namespace with its controller: what is there, and what can be done to it."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.namespace = namespace
        self._client = client
        self._seen: dict[str, dict[str, Body]] = {resource.plural: {} for resource in WATCHED}
        self._gone: dict[str, dict[str, Body]] = {resource.plural: {} for resource in WATCHED}
        self._lives: dict[str, list[str]] = {}

    def saw(self, resource: Resource, kind: str, body: Body) -> None:
        """An event of a watch."""
        name, uid = body["metadata"]["name"], body["metadata"]["uid"]
        if kind == "DELETED":
            self._seen[resource.plural].pop(name, None)
            self._gone[resource.plural][name] = body
            return
        self._seen[resource.plural][name] = body
        lives = self._lives.setdefault(f"{resource.plural}/{name}", [])
        lives.extend([] if uid in lives else [uid])

    def job(self, name: str) -> Body | None:
        """The job; None when there is none."""
        return self._seen[JOBS.plural].get(name)

    def last_job(self, name: str) -> Body | None:
        """The job as it is, or as it was when it was deleted; None when there was none."""
        return self.job(name) or self._gone[JOBS.plural].get(name)

    def of_job(self, resource: Resource, job: str) -> dict[str, Body]:
        """The objects that carry the job's label, by name."""
        found = self._seen[resource.plural]
        return {k: v for k, v in sorted(found.items()) if v["metadata"].get("labels", {}).get(LABEL_JOB) == job}

    def lives(self, resource: Resource, name: str) -> int:
        """How often an object of that name has been made."""
        return len(self._lives.get(f"{resource.plural}/{name}", ()))

    async def create(self, job: Body) -> Body:
        """Create the job. Raises Refused when a webhook does not like it."""
        body = {**job, "metadata": {**job["metadata"], "namespace": self.namespace}}
        return await _past_webhook(lambda: self._client.create(JOBS, body))

    async def patch_job(self, name: str, **spec: Any) -> None:
        """Change the job's spec."""
        await _past_webhook(lambda: self._client.patch(JOBS, name, {"spec": spec}, namespace=self.namespace))

    async def touch(self, name: str) -> None:
        """Change the job in a way that means nothing."""
        body = {"metadata": {"annotations": {"differential/touched": datetime.now(UTC).isoformat()}}}
        with contextlib.suppress(NotFound):
            await _past_webhook(lambda: self._client.patch(JOBS, name, body, namespace=self.namespace))

    async def delete(self, resource: Resource, name: str, *, grace_seconds: int | None = None) -> None:
        """Delete; that it is gone already is as good."""
        found = self._seen[resource.plural].get(name)
        if found is not None:
            with contextlib.suppress(NotFound):
                uid = found["metadata"]["uid"]
                await self._client.delete(
                    resource, name, uid=uid, namespace=self.namespace, grace_seconds=grace_seconds
                )

    async def say(self, pod: str, status: Body) -> None:
        """What the kubelet writes about a pod."""
        path = PODS.path(self.namespace, pod, "status")
        with contextlib.suppress(NotFound):
            await self._client.request("PATCH", path, body={"status": status})

    def said(self, pod: str) -> Body:
        """What it has written last."""
        status: Body = self._seen[PODS.plural].get(pod, {}).get("status", {})
        return status


class Arena:
    """Both sides, and when anything of a job has changed last."""

    def __init__(self, configuration: Configuration, client: Client) -> None:
        self._configuration = configuration
        self._client = client
        self._changed: dict[str, int] = {}
        self.ticks = 0
        """Time as both controllers have it: on a busy machine it goes slower."""
        self.kubeflow = Side(client, KUBEFLOWS)
        self.piton = Side(client, OURS)
        settings = PitonSettings(namespaces=(OURS,), engine=Engine.BUNDLED, workers=16)
        loop, kinds = asyncio.get_running_loop(), watched_kinds(engine=True)
        watched = [kind for kind in kinds if kind.resource in WATCHED]
        self._cache = ClusterCache(client, loop, watched, namespaces=settings.namespaces)
        meter = OperatorMetrics(Registry())
        self._jobs = JobController(client, SystemClock(), loop, settings, meter, cache=self._cache)
        self._jobs.subscribe(self._cache)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Kubeflow's, and ours."""
        return self.kubeflow, self.piton

    def quiet(self, job: str) -> bool:
        """Whether nothing of the job has changed for a while, on either side."""
        return self._silence(job) >= _QUIET_TICKS

    def gives_up(self, job: str, *, since: int) -> bool:
        """Whether nothing has happened for so long that nothing will; a job that is never silent is given up, too."""
        return self._silence(job) >= _PATIENCE_TICKS or self.ticks - since >= 4 * _PATIENCE_TICKS

    def _silence(self, job: str) -> int:
        key, queue = (OURS, job), self._jobs.queue
        busy = key in queue._urgent or key in queue._routine or key in queue._processing
        return 0 if busy else self.ticks - self._changed.get(job, self.ticks)

    def disturb(self, job: str) -> None:
        """Wait for what is coming, also where nothing has changed yet."""
        self._changed[job] = self.ticks

    async def run(self) -> None:
        """Watch, and run our controller, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for side in self.sides:
                for resource in WATCHED:
                    tasks.create_task(self._watch(side, resource))
            tasks.create_task(self._cache.run())
            tasks.create_task(self._jobs.run())
            tasks.create_task(self._beat())
            tasks.create_task(self._tick())

    async def _watch(self, side: Side, resource: Resource) -> None:
        path = resource.path(side.namespace)
        listed = await self._client.request("GET", path)
        for body in listed["items"]:  # the probe's, if its controller was quicker than this list
            side.saw(resource, "ADDED", body)
        version = listed["metadata"]["resourceVersion"]
        while True:
            async for event in _events(self._configuration, path, version):
                body = event["object"]
                version = body["metadata"]["resourceVersion"]
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    side.saw(resource, event["type"], body)
                    self._tell(resource, body)

    def _tell(self, resource: Resource, body: Body) -> None:
        meta = body["metadata"]
        labels = meta.get("labels", {})
        job = meta["name"] if resource is JOBS else labels.get(LABEL_JOB)
        if job is None:
            return
        self.disturb(job)

    async def _beat(self) -> None:
        """Keep the node alive, so that nobody takes its pods away."""
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": now}
            await self._client.patch(LEASES, NODE, {"spec": spec}, namespace="kube-node-lease")
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _tick(self) -> None:
        """Take a service of a job away on both sides; once both controllers have made it again, time has gone on.

        Whatever lay in their queues before has been looked at by then.
        """
        for side in self.sides:
            await side.create(_PROBE)
        while True:
            await asyncio.gather(*(_renewed(side) for side in self.sides))
            self.ticks += 1
            await asyncio.sleep(_TICK_SECONDS)


async def _past_webhook(send: Callable[[], Awaitable[Body]]) -> Body:
    """Send a request until Kubeflow's webhook has looked at it. On a busy machine it may not answer in its 10 s."""
    async with asyncio.timeout(_WEBHOOK_SECONDS):
        while True:
            try:
                return await send()
            except Refused as refusal:
                if NOT_CALLED not in str(refusal):
                    raise


async def _renewed(side: Side) -> None:
    """Take a service of the probe's away, and wait until there is another."""
    gone, probe = "", _PROBE["metadata"]["name"]
    while True:
        service = side.of_job(SERVICES, probe).get(f"{probe}-worker-0")
        if service is not None and gone and service["metadata"]["uid"] != gone:
            return
        if service is not None and not gone:
            gone = service["metadata"]["uid"]
            await side.delete(SERVICES, service["metadata"]["name"])
        await asyncio.sleep(_TICK_SECONDS / 5)


async def _events(configuration: Configuration, path: str, version: str) -> AsyncIterator[Body]:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=2**22) as session,
        session.get(f"{configuration.host}{path}", params=query, ssl=context) as response,
    ):
        async for line in response.content:
            event: Body = json.loads(line)
            assert event["type"] != "ERROR", f"the watch of {path} broke: {event['object']}"
            yield event


async def prepare(client: Client) -> None:
    """The namespaces, the node, and a garbage collector that watches PyTorchJobs."""
    for namespace in (KUBEFLOWS, OURS):
        await _have(client, NAMESPACES, {"metadata": {"name": namespace}})
        while await client.get(ACCOUNTS, "default", namespace=namespace) is None:  # noqa: ASYNC110 - no pod without it
            await asyncio.sleep(0.1)
    node = {"metadata": {"name": NODE}, "spec": {"unschedulable": True}}
    await _have(client, NODES, node)
    lease = {"metadata": {"name": NODE, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": NODE}}
    await _have(client, NAMESPACES, {"metadata": {"name": "kube-node-lease"}})
    await _have(client, LEASES, lease)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played by a test"}
    await client.request("PATCH", NODES.path(name=NODE, subresource="status"), body={"status": {"conditions": [ready]}})
    async with asyncio.timeout(_GARBAGE_SECONDS):
        await _until_garbage_is_collected(client)


async def _until_garbage_is_collected(client: Client) -> None:
    """Delete one job after the other, until what it owned is deleted too. Nobody serves a job without Piton's label."""
    for number in itertools.count():
        meta = {"name": f"garbage-{number}", "namespace": OURS}
        job = await client.create(JOBS, {**_PROBE, "metadata": meta})
        owner = {"apiVersion": _PROBE["apiVersion"], "kind": _PROBE["kind"], "name": meta["name"]}
        owner["uid"] = job["metadata"]["uid"]
        await client.create(CONFIG_MAPS, {"metadata": {**meta, "ownerReferences": [owner]}})
        await client.delete(JOBS, meta["name"], uid=owner["uid"], namespace=OURS)
        for _ in range(round(1 / _TICK_SECONDS)):
            if await client.get(CONFIG_MAPS, meta["name"], namespace=OURS) is None:
                return
            await asyncio.sleep(_TICK_SECONDS)


async def _have(client: Client, resource: Resource, body: Body) -> None:
    with contextlib.suppress(AlreadyExists):
        await client.create(resource, body)


async def clear(client: Client) -> None:
    """Take everything away again; pods first, which nobody else would end."""
    for namespace in (KUBEFLOWS, OURS):
        for resource in (JOBS, PODS):
            await client.request("DELETE", resource.path(namespace), body={"gracePeriodSeconds": 0})
        await client.request("DELETE", NAMESPACES.path(name=namespace))
    await client.request("DELETE", NODES.path(name=NODE))
    await client.request("DELETE", LEASES.path("kube-node-lease", NODE))
