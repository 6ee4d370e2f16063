"""One pass over one PyTorchJob, for `engine: bundled`: read it and what it has, decide, create, write, delete.

Reads come from the cache, and every write carries a precondition: a name that only this replica has, a uid, a
resourceVersion. A pass that was overtaken does nothing, and one that is repeated does nothing twice. Before pods are
created or deleted the pass is made again on live reads: a job that is gone must not get its pods back. Not for a job
without a status: it has had none.
"""

import logging

from piton.engine.decide import decide
from piton.engine.job import Job
from piton.engine.state import Create, Decision, Delete, ObjectKind
from piton.kube import events
from piton.kube.client import Client, Reads
from piton.kube.errors import AlreadyExists, NotFound
from piton.kube.resources import JOBS, PODS, SERVICES, Body, Resource
from piton.ports import Clock, Conflict, PortError, Refused

_log = logging.getLogger(__name__)

_RESOURCES: dict[ObjectKind, Resource] = {
    ObjectKind.POD: PODS,
    ObjectKind.SERVICE: SERVICES,
    ObjectKind.JOB: JOBS,
}


class JobPass:
    """One look at one job, and what follows from it."""

    def __init__(self, client: Client, clock: Clock, namespace: str, name: str, *, cache: Reads | None = None) -> None:
        self._client = client
        self._cache = cache
        self._clock = clock
        self._namespace = namespace
        self._name = name

    async def run(self) -> Decision | None:
        """Do what this moment asks for; None when there is nothing to serve.

        A creation that is refused does not keep the others, or the status, from being written.

        Raises:
            Conflict: the job or something of it is not as it was read; call again at once.
            Unavailable: the API server did not answer; call again later.
            Refused: something could not be created. The job has an event that says why.
        """
        found = await self._look(self._cache or self._client)
        if found is not None and self._cache is not None and _is_irrevocable(found[0], found[2]):
            found = await self._look(self._client)  # the job; names and uids are the preconditions for the rest
        if found is None:
            return None
        job, manifest, decision = found
        refusals = [sentence for create in decision.creates if (sentence := await self._create(job, manifest, create))]
        if decision.news:
            await self._write_status(manifest, decision)
        for delete in decision.deletes:
            await self._delete(delete)
        if refusals:
            raise Refused(refusals[0])
        return decision

    async def _look(self, jobs: Reads) -> tuple[Job, Body, Decision] | None:
        """Read the job and its objects, and decide; None when there is nothing to serve."""
        reads = self._cache or self._client
        manifest = await jobs.get(JOBS, self._name, namespace=self._namespace)
        job = Job.read(manifest) if manifest else None
        if manifest is None or job is None or not job.served:
            return None
        selector = job.selector()
        pods = await reads.list(PODS, namespace=self._namespace, labels=selector)
        services = await reads.list(SERVICES, namespace=self._namespace, labels=selector)
        return job, manifest, decide(job, pods, services, now=self._clock.now())

    async def _create(self, job: Job, manifest: Body, create: Create) -> str | None:
        """Create the object; why it was refused, in a sentence, or None."""
        try:
            await self._create_or_find(job, create)
        except Refused as refusal:
            await self._complain(manifest, f"FailedCreate{create.kind}", f"Error creating: {refusal}")
            return str(refusal)
        return None

    async def _create_or_find(self, job: Job, create: Create) -> None:
        resource, name = _RESOURCES[create.kind], create.body["metadata"]["name"]
        try:
            await self._client.create(resource, create.body)
        except AlreadyExists as error:
            found = await self._client.get(resource, name, namespace=self._namespace)
            if found is None:
                raise Conflict(f"{resource.plural} {name!r} was there and is gone again") from error
            if not job.owns(found):
                raise Refused(
                    f"{resource.plural} {name!r} exists and does not belong to this job; it is left alone"
                ) from error

    async def _complain(self, manifest: Body, reason: str, message: str) -> None:
        """Post the Event that `kubectl describe` shows, and that the run's own condition quotes."""
        now = self._clock.now()
        event = events.event_about(manifest, severity="Warning", reason=reason, message=message, now=now)
        try:
            await events.post(self._client, event)
        except PortError as error:
            fields = {"job": f"{self._namespace}/{self._name}", "error": str(error)}
            _log.warning("event not posted", extra={"fields": fields})

    async def _write_status(self, manifest: Body, decision: Decision) -> None:
        try:
            await self._client.replace_status(JOBS, {**manifest, "status": decision.status.to_body()})
        except NotFound as error:
            raise Conflict(f"the job is gone: {error}") from error

    async def _delete(self, delete: Delete) -> None:
        try:
            await self._client.delete(_RESOURCES[delete.kind], delete.name, uid=delete.uid, namespace=self._namespace)
        except NotFound:
            return


def _is_irrevocable(job: Job, decision: Decision) -> bool:
    """True if the decision deletes something, or creates what may have been there before."""
    return bool(decision.deletes or (decision.creates and job.status.conditions))
