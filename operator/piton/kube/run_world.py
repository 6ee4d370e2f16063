"""One run on a cluster, as `piton.drive` wants to see it."""

from collections.abc import Awaitable, Collection
from contextlib import suppress
from typing import assert_never

from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec
from piton.api.stages import staged
from piton.api.status import AttemptState, RunStatus
from piton.contract import names
from piton.core.effects import (
    AddFinalizer,
    CreateVolume,
    DeleteRun,
    Effect,
    LeaveQueue,
    OwnVolume,
    RemoveFinalizer,
    RemoveReplica,
    ReportPodsReady,
    RequestQuota,
    ReturnQuota,
    StartAttempt,
    StopAttempt,
    TaintNode,
)
from piton.cost.spending import highest
from piton.failures import Failures
from piton.kube import kueue, zones
from piton.kube.client import Client, Reads
from piton.kube.errors import NotFound
from piton.kube.observe import read
from piton.kube.ownership import create
from piton.kube.resources import CLAIMS, JOBS, NODES, PODS, RUNS, Body, Resource
from piton.kube.snapshot import ClusterSnapshot, SharedMemory, seconds_until
from piton.kube.taints import NodeTaints
from piton.observed import Observed
from piton.ports import Clock, Conflict, Refused
from piton.rendering.affinity import TooDear, may_span_zones
from piton.rendering.appdef import ReportEndpoint
from piton.rendering.pytorchjob import node_selector, owner, pytorchjob
from piton.rendering.volume_claim import claim_name, volume_claim
from piton.rendering.workload import Granted, placed


class KubeWorld:
    """The port `World` over the Kubernetes API. Made for one turn of a run: a pass, and those that follow it at once.

    It acts on what it has read, and on nothing newer.

    It reads from the cache, where there is one, and live what is to be acted on.

    Every write carries a precondition (a name that only this attempt has, a uid, a resourceVersion), so a pass that
    was overtaken does nothing, and one that is repeated does nothing twice.
    """

    def __init__(
        self,
        client: Client,
        clock: Clock,
        namespace: str,
        name: str,
        *,
        cache: Reads | None = None,
        shared: SharedMemory | None = None,
        server: ReportEndpoint | None = None,
        taints: NodeTaints | None = None,
        failures: Failures | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._cache = cache
        self._read_live = False
        self._written: str | None = None
        """The resourceVersion that the newest write to the run has left."""
        self._shared = shared or SharedMemory()
        self._server = server
        self._failures = failures
        self._taints = taints or NodeTaints(client, clock)
        self._reading: ClusterSnapshot | None = None

    @property
    def is_cached(self) -> bool:
        """True if the last observation may be a while old: it came from the cache, and no write has confirmed it."""
        return self._cache is not None and not self._read_live and not self._is_confirmed()

    def _is_confirmed(self) -> bool:
        """True if the run is as the API server has just answered to a write of this object, and has nothing yet.

        A read would show the same. A job that has the name of the first one is found when that is created.
        """
        written = self._written is not None and self._written == self._read.manifest["metadata"]["resourceVersion"]
        return written and self._has_nothing_yet()

    async def observe(self, *, live: bool = False) -> Observed | None:
        """Read the run and all that is its own.

        Of a run that has nothing yet, live are the run and the name of its first job: nothing else can forbid a start.
        """
        self._read_live = live
        has_nothing = live and self._has_nothing_yet()
        self._reading = await self._look(live=live, only_run=has_nothing)
        if has_nothing and not self._has_nothing_yet():
            self._reading = await self._look(live=True)
        return self._reading.observed if self._reading else None

    async def _look(self, *, live: bool, only_run: bool = False) -> ClusterSnapshot | None:
        cached = self._cache or self._client
        return await read(
            self._client if live and not only_run else cached,
            self._namespace,
            self._name,
            run=self._client if live else cached,
            now=self._clock.now(),
            shared=self._shared,
            failures=self._failures,
        )

    def _has_nothing_yet(self) -> bool:
        """True if the last look saw a run before its first attempt, that waits in no queue and is to be kept."""
        if self._cache is None or self._reading is None:
            return False
        observed = self._reading.observed
        current, meta = observed.status.current, observed.meta
        is_first = current is None or (current.number, current.state) == (1, AttemptState.PENDING)
        return is_first and not (observed.attempts or self._reading.workload or meta.queue or meta.deleting)

    @property
    def meta(self) -> Meta | None:
        """The run's metadata as last observed."""
        return self._reading.observed.meta if self._reading else None

    @property
    def observed(self) -> Observed | None:
        """The last observation."""
        return self._reading.observed if self._reading else None

    def look_again_seconds(self) -> float | None:
        """Seconds until the observation changes without an event; None: only an event changes it."""
        return seconds_until(self._reading, self._clock.now())

    async def apply(self, effect: Effect) -> None:
        """Carry out one effect."""
        match effect:
            case AddFinalizer() | RemoveFinalizer():
                await self._set_finalizer(held=isinstance(effect, AddFinalizer))
            case DeleteRun():
                await self._delete_run()
            case CreateVolume():
                await self._create_volume()
            case OwnVolume():
                await self._own_volume(owned=effect.owned)
            case StartAttempt():
                await self._start(effect)
            case StopAttempt():
                await self._stop(effect.number)
            case RemoveReplica():
                await self._delete(PODS, effect.name, effect.uid, grace_seconds=effect.grace_seconds)
            case TaintNode():
                await self._taints.put(effect)
            case RequestQuota() | ReturnQuota() | ReportPodsReady() | LeaveQueue():
                read = self._read
                await kueue.apply(
                    self._client, effect, self._meta, read.observed.spec, read.workload, self._clock.now()
                )
            case _:
                assert_never(effect)

    async def write_status(self, status: RunStatus) -> None:
        """Replace the status, unless anybody has written to the run since it was observed."""
        manifest = self._read.manifest
        body = {**manifest, "status": status.to_wire()}
        self._remember(await self._write(self._client.replace_status(RUNS, body)))

    @property
    def _read(self) -> ClusterSnapshot:
        assert self._reading is not None, "observe comes first"
        return self._reading

    @property
    def _meta(self) -> Meta:
        return self._read.observed.meta

    @property
    def _spec(self) -> Spec:
        spec = self._read.observed.spec
        assert spec is not None, "nothing is created for a run without an accepted spec"
        return spec

    async def _set_finalizer(self, *, held: bool) -> None:
        metadata = self._read.manifest["metadata"]
        others = [finalizer for finalizer in metadata.get("finalizers") or () if finalizer != names.FINALIZER]
        finalizers = [*others, names.FINALIZER] if held else others
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        self._remember(await self._write(self._client.patch(RUNS, self._name, body, namespace=self._namespace)))

    def _remember(self, manifest: Body) -> None:
        """The run as our own write left it: what we write next builds on that."""
        self._read.manifest.clear()
        self._read.manifest.update(manifest)
        self._written = manifest["metadata"]["resourceVersion"]

    async def _create_volume(self) -> None:
        name = claim_name(self._meta, self._spec)
        if self._spec.checkpoint.volume.claim_name:
            raise Refused(
                f"spec.checkpoint.volume.claimName: there is no claim {name!r} in {self._namespace!r}; create it"
            )
        await self._create(CLAIMS, volume_claim(self._meta, self._spec))

    async def _own_volume(self, *, owned: bool) -> None:
        """Other owners than the run stay as they are. A claim that has changed or is gone is looked at again."""
        claim = self._read.claim
        assert claim is not None, "only the owner of an observed claim changes"
        metadata = claim["metadata"]
        others = [found for found in metadata.get("ownerReferences") or () if found.get("uid") != self._meta.uid]
        owners = [*others, owner(self._meta)] if owned else others
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "ownerReferences": owners}}
        await self._write(self._client.patch(CLAIMS, metadata["name"], body, namespace=self._namespace))

    async def _delete_run(self) -> None:
        """Not if it has changed since: the user may just have asked for another chance."""
        version = self._read.manifest["metadata"]["resourceVersion"]
        with suppress(NotFound):
            await self._client.delete(RUNS, self._name, uid=self._meta.uid, version=version, namespace=self._namespace)

    async def _start(self, effect: StartAttempt) -> None:
        granted = await kueue.granted(self._client, self._read.workload)
        job = pytorchjob(
            self._meta,
            self._spec,
            effect.number,
            self._server,
            stage=effect.stage,
            checkpoint_step=effect.checkpoint_step,
            go_on_after=effect.go_on_after,
            blocking_saves=effect.blocking_saves,
            stop_after=effect.stop_after,
            active_deadline_seconds=effect.active_deadline_seconds,
            avoid=await self._too_dear(),
            avoid_zones=effect.avoid_zones,
            zones_are_named=await self._zones_are_named(staged(self._spec, effect.stage), granted),
        )
        try:
            await self._create(JOBS, placed(job, granted))
        except NotFound as error:
            raise Refused(f"PyTorchJobs cannot be created here ({error}); is their CRD installed?") from error

    async def _too_dear(self) -> Collection[TooDear]:
        """Return the instance types to exclude by price. A node whose price rises later is left again.

        The nodes are only looked at after an attempt was on one that was too dear: in a large cluster they are many.
        """
        most = highest(self._spec)
        if most is None:
            return ()
        was_left = any(record.reason is Reason.PRICE_TOO_HIGH for record in self._read.observed.status.attempts)
        return self._shared.prices.above(most, await self._nodes.list(NODES) if was_left else ())

    async def _zones_are_named(self, spec: Spec, granted: Granted) -> bool:
        """True if all nodes say their zone that the pods may be on. Only asked where it matters.

        Where the user names zones, the pods are on nodes that name theirs.
        """
        if not may_span_zones(spec):
            return False
        selector = {**node_selector(spec), **granted.node_selector}
        return bool(spec.workers.zones) or await zones.are_named(self._nodes, selector)

    @property
    def _nodes(self) -> Reads:
        return self._shared.nodes or self._client

    async def _create(self, resource: Resource, body: Body) -> None:
        await create(self._client, resource, body, self._meta, owner="run")

    async def _stop(self, number: int) -> None:
        """Delete the job; its pods follow with their grace period. Where that is done already, the pods themselves."""
        seen = self._read.observed.attempt(number)
        if seen is None or not seen.ours:
            return
        if seen.job is not None and not seen.deleting:
            await self._delete(JOBS, names.attempt_name(self._name, number), seen.uid)
            return
        for replica in seen.replicas:
            if not replica.deleting:
                await self._delete(PODS, replica.name, replica.uid)

    async def _delete(self, resource: Resource, name: str, uid: str, *, grace_seconds: int | None = None) -> None:
        try:
            await self._client.delete(resource, name, uid=uid, namespace=self._namespace, grace_seconds=grace_seconds)
        except NotFound:
            return

    async def _write(self, writing: Awaitable[Body]) -> Body:
        """A write to the run itself. A run that is gone is one that has changed: the next look finds out."""
        try:
            return await writing
        except NotFound as error:
            raise Conflict(f"the run is gone: {error}") from error
