"""One pass over one PyTorchJob, for `engine: bundled`: read it and what it has, decide, create, write, delete.

Reads come from the cache, and every write carries a precondition: a name that only this replica has, a uid, a
resourceVersion. A pass that was overtaken does nothing, and one that is repeated does nothing twice. Before pods are
created or deleted the pass is made again on live reads: a job that is gone must not get its pods back. Not for a job
without a status: it has had none.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from piton.core.wait_reasons import refusal
from piton.engine.decide import decide
from piton.engine.job import Job
from piton.engine.state import Create, Decision, Delete, ObjectKind
from piton.failures import Failures
from piton.kube import events
from piton.kube.client import Client, Reads
from piton.kube.errors import AlreadyExists, NotFound
from piton.kube.resources import JOBS, PODS, SERVICES, Body, Resource
from piton.ports import Clock, Conflict, PortError, Refused, Unavailable

_log = logging.getLogger(__name__)

_RESOURCES: dict[ObjectKind, Resource] = {
    ObjectKind.POD: PODS,
    ObjectKind.SERVICE: SERVICES,
    ObjectKind.JOB: JOBS,
}


@dataclass(frozen=True)
class _Refusal:
    kind: ObjectKind
    sentence: str

    @property
    def ends_with_room(self) -> bool:
        return refusal(self.sentence).ends_with_room

    @property
    def holds_its_kind(self) -> bool:
        return self.kind is ObjectKind.POD or self.ends_with_room


class NoRoom(Refused):
    """A ResourceQuota has no room for an object of the job, and nothing else is in its way."""

    def __init__(self, message: str, *, look_again_seconds: float | None) -> None:
        super().__init__(message)
        self.look_again_seconds = look_again_seconds
        """Seconds until something else is to be done for the job; None: nothing that time alone brings."""


class JobPass:
    """One look at one job, and what follows from it."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        namespace: str,
        name: str,
        *,
        cache: Reads | None = None,
        repeats: events.RepeatLimiter | None = None,
        failures: Failures | None = None,
    ) -> None:
        self._client = client
        self._repeats = repeats or events.RepeatLimiter(clock)
        self._failures = Failures(clock) if failures is None else failures
        self._cache = cache
        self._clock = clock
        self._namespace = namespace
        self._name = name

    async def run(self) -> Decision | None:
        """Do what this moment asks for; None when there is nothing to serve.

        A creation that is refused does not keep those of other kinds, or the status, from being written.

        Raises:
            Conflict: the job or something of it is not as it was read; call again at once.
            Unavailable: the API server did not answer; call again later.
            NoRoom: something could not be created, for want of room in a ResourceQuota.
            Refused: the same, for another reason. The job has an event that says why.
        """
        found = await self._look(self._cache or self._client)
        if found is not None and self._cache is not None and _is_irrevocable(found[0], found[2]):
            found = await self._look(self._client)  # the job; names and uids are the preconditions for the rest
        if found is None:
            return None
        job, manifest, decision = found
        refusals = await self._create_all(job, decision.creates)
        await self._complain(manifest, refusals)
        if decision.news:
            await self._write_status(manifest, decision)
        for delete in decision.deletes:
            await self._delete(delete)
        if refusals:
            raise _as_error(refusals, decision)
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

    async def _create_all(self, job: Job, creates: Iterable[Create]) -> list[_Refusal]:
        """Create the objects; what was refused. A kind that a quota has no room for is tried no further.

        Neither are pods after one of them was refused: they are a gang, and part of it would have machines for nothing.
        A failure ends the pass for the same reason. One that has lasted is told like a refusal.
        """
        refusals: list[_Refusal] = []
        for create in creates:
            if any(each.kind == create.kind and each.holds_its_kind for each in refusals):
                continue
            try:
                await self._create_or_find(job, create)
            except Refused as error:
                refusals.append(_Refusal(create.kind, str(error)))
            except (Conflict, Unavailable) as error:
                name = f"{create.kind} {create.body['metadata']['name']}"
                self._failures.note(name, str(error))
                self._failures.end_pass({name}, failed=True, is_away=False)
                if not self._failures.has_lasted(name):
                    raise
                return [*refusals, _Refusal(create.kind, str(error))]
        self._failures.end_pass((), failed=False, is_away=False)
        return refusals

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

    async def _complain(self, manifest: Body, refusals: list[_Refusal]) -> None:
        """Post the Events that `kubectl describe` shows, and that the run's own condition quotes."""
        key, uid = (self._namespace, self._name), manifest["metadata"]["uid"]
        if not refusals or not self._repeats.take(key, uid, [each.sentence for each in refusals]):
            return
        try:
            for each in refusals:
                await events.post(self._client, self._event(manifest, each))
        except PortError as error:
            self._repeats.forget(key)
            fields = {"job": f"{self._namespace}/{self._name}", "error": str(error)}
            _log.warning("event not posted", extra={"fields": fields})

    def _event(self, manifest: Body, refused: _Refusal) -> Body:
        reason, message = f"FailedCreate{refused.kind}", f"Error creating: {refused.sentence}"
        return events.event_about(manifest, severity="Warning", reason=reason, message=message, now=self._clock.now())

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


def _as_error(refusals: list[_Refusal], decision: Decision) -> Refused:
    """The refusal that room alone does not end, if there is one."""
    others = [each.sentence for each in refusals if not each.ends_with_room]
    if others:
        return Refused(others[0])
    return NoRoom(refusals[0].sentence, look_again_seconds=decision.look_again_seconds)


def _is_irrevocable(job: Job, decision: Decision) -> bool:
    """True if the decision deletes something, or creates what may have been there before."""
    return bool(decision.deletes or (decision.creates and job.status.conditions))
