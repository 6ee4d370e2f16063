"""Reads everything about one run, from the cache or live.

Live reads come in an order: the job after its pods, and all nodes at once. In the cache each kind is as old as its own
watch, so what is read there may fit together badly; no create, delete or verdict follows from that.

Run, jobs and pods have to be read. A node, the Events and the claim become unknown when they could not be read for two
minutes: limits are kept without them, and nothing that rests on them is done.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from piton.api import parse
from piton.api.spec import Meta, Stage
from piton.api.stages import staged, wanted
from piton.api.status import AttemptState, PlacedReplica, RunStatus
from piton.contract import names
from piton.contract.progress import Progress
from piton.failures import Failures, Unread
from piton.kube import kueue, warning_events
from piton.kube.client import Reads
from piton.kube.clocks import began_at
from piton.kube.errors import NotFound, UnknownKind
from piton.kube.jobs import by_its_trainers, evaluated_step, expected_replicas, kept_job, stage_of, state_of
from piton.kube.nodes import NodeView, moment, unknown_node
from piton.kube.outages import starts_another, unplaced_since, urgency_of
from piton.kube.ownership import attempt_of, belongs_to_attempt, claims_of, made_for, volume_of
from piton.kube.pod_start import container_of
from piton.kube.pods import as_placed, as_pod, force_deleted, leaving, lost, replica, stays
from piton.kube.resources import CLAIMS, JOBS, NODES, PODS, RUNS, Body
from piton.kube.snapshot import ClusterSnapshot, SharedMemory
from piton.kube.zone_turns import Urgency
from piton.observed import AttemptSeen, LeavingPod, LostReplica, Observed, ReplicaSeen, VolumeSeen
from piton.ports import Refused, Unavailable
from piton.rendering.pytorchjob import tolerations
from piton.rendering.volume_claim import claim_name

_LOOK_SECONDS = 30.0
"""Seconds between looks at an attempt whose node is silent with others: their return wakes only their own runs."""


async def read(
    reads: Reads,
    namespace: str,
    name: str,
    *,
    now: datetime,
    run: Reads | None = None,
    shared: SharedMemory | None = None,
    failures: Failures | None = None,
) -> ClusterSnapshot | None:
    """Look at the run and all that belongs to it, in the cache or live; None when it does not exist.

    With `run`, the run itself is read from there, and the job that has the name of its next attempt. `failures` says
    since when something cannot be read; without it, nothing is unknown.

    Raises:
        Unavailable: something could not be read; nothing may be decided on half of the facts.
    """
    try:
        manifest = await (run or reads).get(RUNS, name, namespace=namespace)
        if manifest is None:
            return None
        return await _Reader(reads, run or reads, manifest, now, shared or SharedMemory(), failures).read()
    except Refused as refusal:
        raise Unavailable(f"this operator may not read what it has to: {refusal}") from refusal


class _Reader:
    """One look; it holds what its steps share."""

    def __init__(
        self,
        reads: Reads,
        by_name: Reads,
        manifest: Body,
        now: datetime,
        shared: SharedMemory,
        failures: Failures | None,
    ) -> None:
        self._reads = reads
        self._by_name = by_name
        self._manifest = manifest
        self._now = now
        self._shared = shared
        self._unread = Unread(failures)
        self._events = shared.events or reads
        self._parsed = parse.parse(manifest)
        self._changes_at: datetime | None = None
        self._jobs_unknown = ""
        self._claims: dict[str, Body | None] = {}
        self._urgency = Urgency()

    @property
    def _meta(self) -> Meta:
        return self._parsed.meta

    async def read(self) -> ClusterSnapshot:
        current = self._parsed.status.attempt
        # A job is never older than its pods: the worker that a succeeded job cleans away was not deleted by others.
        labelled = await self._reads.list(PODS, namespace=self._meta.namespace, labels=self._selector())
        jobs = await self._jobs()
        pods = self._pods(labelled, jobs)
        missing = self._missing(jobs, pods)
        trouble = self._shared.trouble and self._shared.trouble(kueue.WORKLOADS, self._meta.namespace)
        workload = await kueue.find(self._reads, self._meta, self._parsed.status, trouble)
        self._urgency = urgency_of(self._meta, self._parsed.spec, workload.body)
        views = await self._nodes(pods, missing)
        leaving_pods = [pod for group in pods.values() for pod in group if pod["metadata"].get("deletionTimestamp")]
        for name in sorted({name for pod in leaving_pods for name in claims_of(pod)}):
            await self._unread.or_unknown("its claim", self._claim_of(name), None)
        attempts = [
            await self._attempt(
                number, jobs.get(number), pods.get(number, ()), missing if number == current else (), views
            )
            for number in {*jobs, *pods}
        ]
        if self._shared.outages is not None:
            run = f"{self._meta.namespace}/{self._meta.name}"
            since = unplaced_since(self._meta, self._parsed.status, attempts)
            self._shared.outages.follow(run, unplaced_since=since)
        claim = await self._unread.or_unknown("its claim", self._claim(), None)
        volume = volume_of(claim, self._meta, self._parsed.spec or self._parsed.asked)
        observed = Observed(
            meta=self._meta,
            spec=self._parsed.spec,
            problems=self._parsed.problems,
            meanwhile=self._parsed.meanwhile,
            status=self._parsed.status,
            volume=VolumeSeen(exists=False, unknown=True) if "its claim" in self._unread else volume,
            attempts=tuple(sorted(attempts, key=lambda seen: seen.number)),
            jobs_unknown=self._jobs_unknown,
            progress=self._progress(),
            silent_seconds=self._silent_seconds(),
            unread=self._unread.end_look(),
            reservation=await kueue.look(self._shared.positions, self._meta, self._parsed.status, workload),
        )
        return ClusterSnapshot(
            manifest=self._manifest,
            observed=observed,
            pods=pods,
            claim=claim,
            workload=workload.body,
            changes_at=self._changes_at,
        )

    def _progress(self) -> Progress | None:
        """The current attempt's newest report; what an older one, or an earlier run's, still says does not count."""
        if self._shared.reports is None:
            return None
        key = (self._meta.namespace, self._meta.name)
        return self._shared.reports.look(key, run_uid=self._meta.uid, attempt=self._parsed.status.attempt)

    def _silent_seconds(self) -> float | None:
        """Return for how long the current attempt has not reported; None where it is told no place to report to."""
        if self._shared.reports is None or not self._shared.listens():
            return None
        key, attempt = (self._meta.namespace, self._meta.name), self._parsed.status.attempt
        return self._shared.reports.silent_seconds(key, run_uid=self._meta.uid, attempt=attempt)

    async def _jobs(self) -> dict[int, Body]:
        """Our jobs, and whatever has the name of the job that we want to create."""
        jobs: dict[int, Body] = {}
        for job in await self._labelled_jobs():
            number = attempt_of(job)
            if number is not None and made_for(job, self._meta):
                jobs[number] = job
        wanted = _in_flight(self._parsed.status)
        if wanted is not None and wanted not in jobs:
            name = names.attempt_name(self._meta.name, wanted)
            other = await self._job_of(name)
            if other is not None:
                jobs[wanted] = other
        return jobs

    async def _job_of(self, name: str) -> Body | None:
        try:
            return await self._by_name.get(JOBS, name, namespace=self._meta.namespace)
        except UnknownKind as error:
            self._jobs_unknown = str(error)
            return None

    async def _labelled_jobs(self) -> list[Body]:
        try:
            return await self._reads.list(JOBS, namespace=self._meta.namespace, labels=self._selector())
        except NotFound as error:  # creating one will say so in the run's condition
            self._jobs_unknown = f"the cluster does not serve PyTorchJobs ({error})"
            return []

    def _pods(self, labelled: Iterable[Body], jobs: Mapping[int, Body]) -> dict[int, tuple[Body, ...]]:
        found: dict[int, list[Body]] = {}
        for pod in labelled:
            number = attempt_of(pod)
            if number is not None and belongs_to_attempt(pod, self._meta, number, jobs.get(number)):
                found.setdefault(number, []).append(pod)
        return {
            number: tuple(sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))) for number, pods in found.items()
        }

    def _missing(self, jobs: Mapping[int, Body], pods: Mapping[int, Iterable[Body]]) -> tuple[PlacedReplica, ...]:
        """The replicas of the newest attempt that were placed, and whose pods do not exist any more.

        Also those that were placed and taken before a pass has seen them, unless another pod is in their place.
        """
        record = self._parsed.status.current
        if record is None or record.number not in jobs:
            return ()
        there = [pod["metadata"] for pod in pods.get(record.number, ())]
        uids, named = {meta.get("uid") for meta in there}, {meta["name"] for meta in there}
        known = {placed.uid for placed in record.replicas}
        taken = self._shared.sightings.disrupted(jobs[record.number]["metadata"]["uid"])
        unseen = (placed for placed in taken if placed.uid not in known and placed.name not in named)
        return (*(placed for placed in record.replicas if placed.uid not in uids), *unseen)

    async def _nodes(self, pods: Mapping[int, Iterable[Body]], missing: Iterable[PlacedReplica]) -> dict[str, NodeView]:
        """The nodes whose state can still matter: under the newest attempt, and under whatever is not quite gone."""
        wanted = {
            str(pod["spec"]["nodeName"])
            for number, group in pods.items()
            for pod in group
            if (pod.get("spec") or {}).get("nodeName") and (number == self._parsed.status.attempt or stays(pod))
        }
        wanted |= {placed.node for placed in missing}
        named = sorted(wanted)
        nodes = await asyncio.gather(
            *(
                self._unread.or_unknown(f"node {name}", self._reads.get(NODES, name), unknown_node(name))
                for name in named
            )
        )
        return {name: await self._view(node) for name, node in zip(named, nodes, strict=True)}

    async def _view(self, node: Body | None) -> NodeView:
        """Return the view of a node; if its silence is about to count as its end, of the other nodes as well."""
        pool = await self._shared.pools.of(node) if node and self._shared.pools else None
        view = NodeView(node=node, now=self._now, pool=pool)
        if node is None or self._shared.outages is None or not view.silent_for_long():
            return view
        if not starts_another(self._meta, self._parsed.status, self._parsed.spec):
            return view
        job = f"{self._meta.namespace}/{names.attempt_name(self._meta.name, self._parsed.status.attempt)}"
        outage = await self._shared.outages.of(node, job, now=self._now, urgency=self._urgency)
        if outage is not None:
            self._await(self._now + timedelta(seconds=_LOOK_SECONDS))
        return replace(view, outage=outage)

    async def _attempt(
        self,
        number: int,
        job: Body | None,
        pods: Iterable[Body],
        missing: Iterable[PlacedReplica],
        views: Mapping[str, NodeView],
    ) -> AttemptSeen:
        pods = tuple(pods)
        stage = next((stage_of(thing) for thing in (job, *pods) if thing is not None), Stage.TRAIN)
        read = [(pod, self._replica(pod, views)) for pod in pods]
        taken = [pod for pod, found in read if found.node_gone and force_deleted(pod)]
        replicas = tuple(found for pod, found in read if pod not in taken)
        missing = (*missing, *filter(None, map(as_placed, taken)))
        leaves = tuple(filter(None, (self._leaving(pod, views) for pod in pods)))
        if job is None:
            deleting = bool(replicas) and all(replica.deleting for replica in replicas)
            return AttemptSeen(
                number=number, stage=stage, job=None, deleting=deleting, replicas=replicas, leaving=leaves
            )
        state, message = state_of(job)
        seen = AttemptSeen(
            number=number,
            stage=stage,
            evaluated_step=evaluated_step(job),
            uid=job["metadata"]["uid"],
            job=by_its_trainers(state, replicas, is_complete=not missing),
            ours=made_for(job, self._meta),
            deleting=bool(job["metadata"].get("deletionTimestamp")),
            deleted_at=moment(job["metadata"].get("deletionTimestamp")),
            suspended=warning_events.is_suspended(job),
            message=message,
            replicas=replicas,
            lost=tuple(self._lost(placed, views[placed.node]) for placed in missing),
            leaving=leaves,
            expected_replicas=expected_replicas(job),
        )
        if seen.left_alone or self._meta.deleting:
            seen = replace(seen, leaving=(*leaves, *kept_job(job, leaves)))
        waits = number == _in_flight(self._parsed.status) and seen.incomplete and not seen.deleting
        return await self._with_events(seen, job) if waits else seen

    async def _with_events(self, seen: AttemptSeen, job: Body) -> AttemptSeen:
        """The attempt, with what events say of why it does not run."""
        return await self._unread.or_unknown("Events", self._heard(seen, job), replace(seen, words_unknown=True))

    async def _heard(self, seen: AttemptSeen, job: Body) -> AttemptSeen:
        asked = warning_events.with_unread_events(seen.replicas)
        said = {r.uid: await warning_events.of_pod(self._events, self._meta.namespace, r) for r in asked}
        replicas = tuple(
            replace(r, words=(*r.words, *said.get(r.uid, ())), words_unread=r.uid not in said) for r in seen.replicas
        )
        missing = len(replicas) < seen.expected_replicas
        return replace(seen, replicas=replicas, words=await warning_events.of_job(self._events, job) if missing else ())

    def _replica(self, pod: Body, views: Mapping[str, NodeView]) -> ReplicaSeen:
        view = self._view_of(pod, views)
        if view:
            self._await(view.gone_at(pod))
        seen = replica(pod, view, self._shared.prices)
        return replace(seen, began_at=began_at(pod, container_of(pod.get("status") or {}), seen.placed_at))

    def _leaving(self, pod: Body, views: Mapping[str, NodeView]) -> LeavingPod | None:
        spec = self._parsed.spec
        specs = [] if spec is None else [staged(spec, stage) for stage in wanted(spec.stages)]
        following = [each for one in specs for each in tolerations(one)]
        return leaving(pod, self._view_of(pod, views), claims=self._claims, next_tolerations=following)

    @staticmethod
    def _view_of(pod: Body, views: Mapping[str, NodeView]) -> NodeView | None:
        return views.get((pod.get("spec") or {}).get("nodeName") or "")

    def _lost(self, placed: PlacedReplica, view: NodeView) -> LostReplica:
        self._await(view.gone_at(as_pod(placed)))
        disruption, notice = self._shared.sightings.disruption(placed.uid), self._shared.sightings.notice(placed.node)
        return lost(placed, view, disruption=disruption, notice=notice)

    def _await(self, gone_at: datetime | None) -> None:
        """Look again when a node begins to count as gone."""
        if gone_at is not None and gone_at > self._now:
            self._changes_at = min(filter(None, (self._changes_at, gone_at)))

    async def _claim(self) -> Body | None:
        """The claim, also of a run whose spec is refused: that may be deleted."""
        spec = self._parsed.spec or self._parsed.asked
        if spec is None:
            return None
        return await self._claim_of(claim_name(self._meta, spec))

    async def _claim_of(self, name: str) -> Body | None:
        if name not in self._claims:
            self._claims[name] = await self._reads.get(CLAIMS, name, namespace=self._meta.namespace)
        return self._claims[name]

    def _selector(self) -> str:
        return f"{names.LABEL_RUN}={self._meta.name}"


def _in_flight(status: RunStatus) -> int | None:
    current = status.current
    return current.number if current and current.state is not AttemptState.ENDED else None
