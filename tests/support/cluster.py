"""A cluster around the API server: garbage collector, PyTorchJob controller, scheduler and kubelet, moved by hand.

Nothing happens by itself: `step` lets each of them act once, in a fixed order, and a script says what becomes of each
attempt's pods. The PyTorchJob controller has the ways of v1.9 that hurt: a running pod that is being deleted makes its
job Failed at once, and a master that exits 0 makes it Succeeded, whatever it had still to do.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from piton.contract import names
from piton.contract.termination import EXIT_CODES, ExitCode, Outcome, Termination
from piton.ports import Clock
from support.apiserver import CLAIMS, EVENTS, JOBS, NODES, PODS, RUNS, SWEEPS, WORKLOADS, ApiServer, Body
from support.builders import NOW


class FakeClock(Clock):
    """Time that tests move."""

    def __init__(self, start: datetime = NOW) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The pods run until somebody stops them; then they save and leave."""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """The pods never start."""

    reason: str = "ImagePullBackOff"
    message: str = 'Back-off pulling image "trainer:1"'


@dataclass(frozen=True, kw_only=True)
class Reports:
    """The kubelet writes this into the status of each pod, instead of starting it."""

    status: Mapping[str, Any]
    event: tuple[str, str] | None = None
    """Reason and message of an event about the pod, written once."""


@dataclass(frozen=True, kw_only=True)
class Initializes:
    """The pods stay in an init container, which ignores SIGTERM: only the end of their grace period stops them."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The master ends by itself, with these last words."""

    outcome: Outcome = Outcome.FINISHED
    step: int = 100
    exit_code: int | None = None
    best_metric: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    is_silent: bool = False
    """True if it leaves no last words, as a program of the user's."""

    @property
    def code(self) -> int:
        return int(EXIT_CODES.get(self.outcome, ExitCode(0)) if self.exit_code is None else self.exit_code)


@dataclass(frozen=True, kw_only=True)
class Disrupted:
    """The master is evicted from its node while it trains."""

    reason: str = "EvictionByEvictionAPI"


@dataclass(frozen=True, kw_only=True)
class Vanishes:
    """The master's node is gone without a word."""


Fate = Runs | Waits | Reports | Initializes | Ends | Disrupted | Vanishes
CRASHES = Ends(outcome=Outcome.FAILED, exit_code=1)


class Cluster:
    """All controllers but Piton's."""

    def __init__(self, server: ApiServer, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.script: dict[int, Fate] = {}
        """What becomes of each attempt; one that is not named finishes."""
        self.fates: dict[str, Fate] = {}
        """What becomes of a job of that name, before the script is asked."""
        self.price: str | None = None
        """What new nodes say that they cost."""
        self.node_labels: Mapping[str, str] = {}
        """Labels of new nodes, besides their names."""
        self.neighbours: list[Callable[[], Awaitable[None]]] = []
        """What else acts in this cluster, once per step: Kueue, say."""
        self.quota: str | None = None
        """Why no pods can be created, while that is so."""
        self.sidecar: Body | None = None
        """The state of a container beside each trainer, as of a mesh: it does not end with the trainer."""
        self.hung: set[str] = set()
        """Pods that their kubelets cannot end."""

    async def apply(self, manifest: Body) -> Body:
        """What `kubectl apply` does to the spec of a run or a sweep."""
        meta = manifest["metadata"]
        kind = SWEEPS if manifest["kind"] == names.SWEEP_KIND else RUNS
        old = self.server.find(kind, meta["name"], meta["namespace"])
        if old is None:
            fresh = {key: meta[key] for key in ("name", "namespace", "labels") if key in meta}
            return await self.server.put(kind, {**manifest, "metadata": fresh})
        return await self.server.put(kind, {**old, "spec": manifest["spec"]})

    async def step(self) -> None:
        """Everybody acts once."""
        await self._collect_garbage()
        await self._run_kubelet()
        for job in self.server.all(JOBS):
            await self._reconcile_job(job)
        await self._schedule()
        for neighbour in self.neighbours:
            await neighbour()

    # --- garbage collector --------------------------------------------------------------------------------------------

    async def _collect_garbage(self) -> None:
        uids = {body["metadata"]["uid"] for kind in (SWEEPS, RUNS, JOBS) for body in self.server.all(kind)}
        for kind in (RUNS, JOBS, PODS, CLAIMS, WORKLOADS):
            for body in self.server.all(kind):
                meta = body["metadata"]
                owners = meta.get("ownerReferences") or []
                if owners and all(owner["uid"] not in uids for owner in owners) and not meta.get("deletionTimestamp"):
                    await self.server.delete(kind, meta["name"], meta["namespace"])

    # --- PyTorchJob controller ----------------------------------------------------------------------------------------

    async def _reconcile_job(self, job: Body) -> None:
        meta = job["metadata"]
        if meta.get("deletionTimestamp") or not meta.get("ownerReferences"):
            return
        pods = {pod["metadata"]["name"]: pod for pod in self._pods_of(job)}
        if _is_true(job, "Failed") or _is_true(job, "Succeeded"):
            for pod in pods.values():
                if pod["status"]["phase"] in ("Pending", "Running") and not pod["metadata"].get("deletionTimestamp"):
                    await self.server.delete(PODS, pod["metadata"]["name"], meta["namespace"])
            return
        for name, template in _wanted_pods(job).items():
            if name in pods:
                continue
            if self.quota:
                await self.server.put(EVENTS, _failed_create(job, self.quota, self._time()))
            else:
                await self.server.put(PODS, _pod(job, name, template))
        await self._judge_job(job, pods)

    async def _judge_job(self, job: Body, pods: Mapping[str, Body]) -> None:
        master = pods.get(f"{job['metadata']['name']}-master-0")
        if master and master["status"]["phase"] == "Succeeded":
            await self._set_job(job, "Succeeded", f"PyTorchJob {job['metadata']['name']} is successfully completed.")
        elif any(_counts_as_failed(pod) for pod in pods.values()):
            await self._set_job(
                job, "Failed", f"PyTorchJob {job['metadata']['name']} is failed because 1 replica(s) failed."
            )
        elif any(pod["status"]["phase"] == "Running" for pod in pods.values()):
            await self._set_job(job, "Running", f"PyTorchJob {job['metadata']['name']} is running.")

    async def _set_job(self, job: Body, kind: str, message: str) -> None:
        others = [c for c in job.get("status", {}).get("conditions", []) if c["type"] != kind]
        news = {"type": kind, "status": "True", "reason": f"PyTorchJob{kind}", "message": message}
        await self.server.put(JOBS, {**job, "status": {"conditions": [*others, news]}})

    # --- scheduler and kubelet ----------------------------------------------------------------------------------------

    async def _schedule(self) -> None:
        for pod in self.server.all(PODS):
            if pod["status"]["phase"] != "Pending" or pod["spec"].get("nodeName"):
                continue
            node = f"node-of-{pod['metadata']['name']}"
            if self.server.find(NODES, node, None) is None:
                await self.server.put(NODES, a_node(node, price=self.price, labels=self.node_labels))
            pod["spec"]["nodeName"] = node
            bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self._time()}
            pod["status"]["conditions"] = [*pod["status"].get("conditions", []), bound]
            await self.server.put(PODS, pod)

    async def _run_kubelet(self) -> None:
        for pod in self.server.all(PODS):
            if pod["spec"].get("nodeName") and self._lives(pod["spec"]["nodeName"]):
                await self._kubelet(pod)

    async def _kubelet(self, pod: Body) -> None:
        meta, phase = pod["metadata"], pod["status"]["phase"]
        if meta.get("deletionTimestamp"):
            if meta["name"] in self.hung:
                return
            if _has_trained(pod) and phase == "Running":  # what runs beside the trainer ends now
                pod["status"]["phase"] = "Failed"
                await self.server.put(PODS, pod)
            elif phase == "Running":
                await self._end(pod, Ends(outcome=Outcome.STOPPED, step=self._trained(pod)))
            elif meta.get("finalizers"):
                return
            elif not isinstance(self._fate(pod), Initializes) or meta["deletionTimestamp"] <= self._time():
                await self.server.remove(PODS, meta["name"], meta["namespace"])
        elif phase == "Pending":
            await self._begin(pod)
        elif phase == "Running" and meta["name"].endswith("-master-0") and not _has_trained(pod):
            await self._meet_fate(pod, self._fate(pod))
        elif phase == "Running" and self.sidecar and not _has_trained(pod) and self._master_is_done(pod):
            await self._end(pod, Ends())

    def _master_is_done(self, pod: Body) -> bool:
        """True if rank 0 has come to its end, and so do the others: with a sidecar the job ends with no pod."""
        name, _, _ = str(pod["metadata"]["name"]).rpartition("-worker-")
        master = self.server.find(PODS, f"{name}-master-0", pod["metadata"]["namespace"])
        if master is None or not _has_trained(master):
            return False
        return bool(master["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0)

    async def _begin(self, pod: Body) -> None:
        fate = self._fate(pod)
        if isinstance(fate, Waits):
            waiting = {"waiting": {"reason": fate.reason, "message": fate.message}}
            pod["status"] |= {"containerStatuses": [{"name": names.CONTAINER, "state": waiting}]}
        elif isinstance(fate, Reports):
            pod["status"] |= json.loads(json.dumps(fate.status))
            if fate.event and self.server.find(EVENTS, f"{pod['metadata']['name']}.start", None) is None:
                await self.server.put(EVENTS, _event(pod, *fate.event, self._time()))
        elif isinstance(fate, Initializes):
            running = {"running": {"startedAt": self._time()}}
            waiting = {"waiting": {"reason": "PodInitializing"}}
            pod["status"] |= {"initContainerStatuses": [{"name": "init-pytorch", "state": running}]}
            pod["status"] |= {"containerStatuses": [{"name": names.CONTAINER, "state": waiting}]}
        else:
            running = {"running": {"startedAt": self._time()}}
            pod["status"] |= {"phase": "Running", "startTime": self._time()}
            pod["status"]["containerStatuses"] = [{"name": names.CONTAINER, "state": running}]
            pod["status"]["containerStatuses"] += self._beside()
        await self.server.put(PODS, pod)

    async def _meet_fate(self, pod: Body, fate: Fate) -> None:
        match fate:
            case Ends():
                await self._end(pod, fate)
            case Disrupted():
                await self.disrupt(pod["metadata"]["name"], fate.reason, pod["metadata"]["namespace"])
            case Vanishes():
                await self.server.remove(NODES, pod["spec"]["nodeName"], None)
            case Runs() | Waits() | Reports() | Initializes():
                pass

    async def _end(self, pod: Body, fate: Ends) -> None:
        finished = fate.outcome is Outcome.FINISHED
        saved = fate.step if fate.outcome in (Outcome.FINISHED, Outcome.STOPPED) else None
        words = Termination(
            outcome=fate.outcome,
            step=fate.step,
            checkpoint_step=saved,
            weights_digest="sha256:5eed" if finished else None,
            best_metric=fate.best_metric,
            metrics=fate.metrics,
            detail="all steps are done" if finished else fate.detail,
        )
        message = "" if fate.is_silent else words.to_json()
        ended = {"exitCode": fate.code, "finishedAt": self._time(), "message": message, "reason": "Completed"}
        if self.sidecar is None:
            pod["status"]["phase"] = "Succeeded" if fate.code == 0 else "Failed"
        statuses = [{"name": names.CONTAINER, "state": {"terminated": ended}}, *self._beside()]
        pod["status"]["containerStatuses"] = statuses
        await self.server.put(PODS, pod)

    def _beside(self) -> list[Body]:
        return [] if self.sidecar is None else [{"name": "istio-proxy", "state": self.sidecar}]

    async def disrupt(self, name: str, reason: str, namespace: str) -> None:
        """Evict the pod: the condition first, then the deletion."""
        pod = self.server.find(PODS, name, namespace)
        assert pod is not None
        target = {"type": "DisruptionTarget", "status": "True", "reason": reason}
        pod["status"]["conditions"] = [*pod["status"].get("conditions", []), target]
        await self.server.put(PODS, pod)
        await self.server.delete(PODS, name, namespace)

    def _fate(self, pod: Body) -> Fate:
        labels = pod["metadata"]["labels"]
        job = names.attempt_name(labels[names.LABEL_RUN], int(labels[names.LABEL_ATTEMPT]))
        return self.fates.get(job) or self.script.get(int(labels[names.LABEL_ATTEMPT]), Ends())

    def _trained(self, pod: Body) -> int:
        return 10 * int(pod["metadata"]["labels"][names.LABEL_ATTEMPT])

    def _lives(self, node: str) -> bool:
        found = self.server.find(NODES, node, None)
        return found is not None and all(c["status"] == "True" for c in found["status"]["conditions"])

    def _pods_of(self, job: Body) -> list[Body]:
        uid = job["metadata"]["uid"]
        pods = self.server.all(PODS)
        return [pod for pod in pods if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", []))]

    def _time(self) -> str:
        return self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")


def a_node(
    name: str,
    *,
    ready: str = "True",
    since: str = "2026-11-21T11:00:00Z",
    price: str | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Body:
    """A node; keyword arguments are its spec."""
    annotations = {} if price is None else {"annotations": {names.ANNOTATION_PRICE: price}}
    meta = {"labels": {"kubernetes.io/hostname": name, **(labels or {})}}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "creationTimestamp": "2026-11-21T11:00:00Z", **meta, **annotations},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
    }


def _has_trained(pod: Body) -> bool:
    """True if its trainer has ended."""
    statuses = pod["status"].get("containerStatuses") or []
    return any(each["name"] == names.CONTAINER and "terminated" in each["state"] for each in statuses)


def _is_true(thing: Body, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in thing.get("status", {}).get("conditions", []))


def _counts_as_failed(pod: Body) -> bool:
    phase = pod["status"]["phase"]
    return bool(phase == "Failed" or (phase == "Running" and pod["metadata"].get("deletionTimestamp")))


def _wanted_pods(job: Body) -> dict[str, Body]:
    return {
        f"{job['metadata']['name']}-{kind.lower()}-{index}": spec["template"]
        for kind, spec in job["spec"]["pytorchReplicaSpecs"].items()
        for index in range(spec["replicas"])
    }


def _failed_create(job: Body, why: str, time: str) -> Body:
    meta = job["metadata"]
    return {
        "metadata": {"name": f"{meta['name']}.failed", "namespace": meta["namespace"]},
        "involvedObject": {"kind": "PyTorchJob", "name": meta["name"], "uid": meta["uid"]},
        "type": "Warning",
        "reason": "FailedCreatePod",
        "message": f"Error creating: {why}",
        "lastTimestamp": time,
    }


def _event(pod: Body, reason: str, message: str, time: str) -> Body:
    meta = pod["metadata"]
    return {
        "metadata": {"name": f"{meta['name']}.start", "namespace": meta["namespace"]},
        "involvedObject": {"kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet"},
        "firstTimestamp": time,
        "lastTimestamp": time,
    }


def _pod(job: Body, name: str, template: Body) -> Body:
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "controller": True, "blockOwnerDeletion": True}
    owner |= {"name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": job["metadata"]["namespace"],
            "labels": {**template["metadata"]["labels"], "training.kubeflow.org/job-name": job["metadata"]["name"]},
            "annotations": dict(template["metadata"].get("annotations", {})),
            "ownerReferences": [owner],
        },
        "spec": json.loads(json.dumps(template["spec"])),
        "status": {"phase": "Pending"},
    }
