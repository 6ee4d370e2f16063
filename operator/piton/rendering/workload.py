"""Quota from Kueue: the Workload that asks for it, what is seen of it, and what an admission adds to a job.

A run with a queue label has one Workload at a time. It is the run's and not that of a job: it holds the quota while
attempts come and go. Pure values; `quota_rules.py` decides, the kube adapter reads and writes.
"""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from piton.api.one_form import in_one_form
from piton.api.spec import Meta, Spec, Stage, Tier
from piton.api.stages import OPERATING_SYSTEM
from piton.contract import names
from piton.observed import ReservationSeen
from piton.rendering.affinity import POOLS, SPOT_TAINTS
from piton.rendering.pytorchjob import TOLERATED_SECONDS, owner, pytorchjob

API_VERSION = "kueue.x-k8s.io/v1beta2"
ANNOTATION_ASKED = f"{names.API_GROUP}/asked"
"""Digest of what a Workload asks for. The API server adds defaults to what it is given, so that cannot be compared."""
LABEL_OWNER = "kueue.x-k8s.io/job-uid"
"""By which Kueue names the owner to others, and finishes a Workload that is left without one."""
POD_SET = "trainers"

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Granted:
    """The effect of an admission on nodes: labels and tolerations of its flavors and admission checks."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def workload_name(run: str) -> str:
    """The Workload of a run, e.g. `trainingrun-ragcun`."""
    return f"{names.KIND.lower()}-{run}"


def workload(meta: Meta, spec: Spec, stage: Stage, *, priority: int = 0) -> Body:
    """The Workload that asks for the quota of one attempt at this stage: all of its pods, or none."""
    pods = _pod_set(meta, spec, stage)
    # Always with a number: Kueue 0.18's visibility API fails for a whole queue as soon as one in it has none.
    wanted: Body = {"queueName": meta.queue, "podSets": [pods], "priority": priority}
    if meta.priority_class:
        kind = {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": meta.priority_class}
        wanted["priorityClassRef"] = kind
    return {
        "apiVersion": API_VERSION,
        "kind": "Workload",
        "metadata": {
            "name": workload_name(meta.name),
            "namespace": meta.namespace,
            "labels": {names.LABEL_RUN: meta.name, LABEL_OWNER: meta.uid},
            "annotations": {ANNOTATION_ASKED: asked(meta, spec, stage)},
            "ownerReferences": [owner(meta)],
        },
        "spec": wanted,
    }


def asked(meta: Meta, spec: Spec, stage: Stage) -> str:
    """Return the digest of what the run would ask for now, in one form. Stages that need the same share it."""
    return _digest(meta, _pod_set(meta, in_one_form(spec), stage))


def asks_alike(digest: str, meta: Meta, spec: Spec, stage: Stage) -> bool:
    """True if the Workload with this digest asks for what the run would ask for now, by this operator or an older one.

    A Workload that is made anew loses its place in the queue, so an upgrade must not make one.
    """
    if digest == asked(meta, spec, stage):
        return True
    pods = _pod_set(meta, spec, stage)  # as they are written, which older operators noted
    return digest in (_digest(meta, pods), _digest(meta, _as_before(pods, spec)))


def _as_before(pods: Body, spec: Spec) -> Body:
    """Return the pods as operators wrote them that knew neither the label of the operating system nor GKE and AKS."""
    pods = deepcopy(pods)
    pod, own = pods["template"]["spec"], spec.workers.template
    if OPERATING_SYSTEM not in own.node_selector:
        del pod["nodeSelector"][OPERATING_SYSTEM]
    if Tier.SPOT in spec.capacity.tiers:
        kept = pod["tolerations"][: len(pod["tolerations"]) - len(TOLERATED_SECONDS) - len(SPOT_TAINTS)]
        pod["tolerations"] = [*kept, *pod["tolerations"][-len(TOLERATED_SECONDS) :]]
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required and spec.capacity.tiers:
        terms = required["nodeSelectorTerms"]
        required["nodeSelectorTerms"] = [t for t in terms if not any(_is_newer(r) for r in t["matchExpressions"])]
    return pods


def _is_newer(requirement: Body) -> bool:
    return requirement["key"] in (*POOLS, *(key for keys in POOLS.values() for key in keys))


def _digest(meta: Meta, pods: Body) -> str:
    text = json.dumps([meta.queue, meta.priority_class, pods], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pod_set(meta: Meta, spec: Spec, stage: Stage) -> Body:
    """Return what a quota counts: the number of pods, their requests, and the nodes that are suitable."""
    replicas = pytorchjob(meta, spec, 1, stage=stage)["spec"]["pytorchReplicaSpecs"]
    pod = replicas["Master"]["template"]["spec"]
    kept = {
        key: pod[key] for key in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName") if key in pod
    }
    if "nodeAffinity" in pod.get("affinity", {}):
        kept["affinity"] = {"nodeAffinity": pod["affinity"]["nodeAffinity"]}
    for part in ("initContainers", "containers"):
        if part in pod:
            kept[part] = [{key: c[key] for key in ("name", "image", "resources") if key in c} for c in pod[part]]
    count = sum(int(replica["replicas"]) for replica in replicas.values())
    return {"name": POD_SET, "count": count, "template": {"metadata": {}, "spec": kept}}


def placed(job: Body, granted: Granted) -> Body:
    """The job with its pods on the nodes that they were granted."""
    job = deepcopy(job)
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        metadata, pod = replica["template"]["metadata"], replica["template"]["spec"]
        metadata["labels"] = {**granted.labels, **metadata["labels"]}
        metadata["annotations"] = {**granted.annotations, **metadata["annotations"]}
        if granted.node_selector:
            pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **granted.node_selector}
        pod["tolerations"] = [
            *pod["tolerations"],
            *(dict(t) for t in granted.tolerations if t not in pod["tolerations"]),
        ]
    return job


def seen(found: Body | None, meta_uid: str, *, position: int | None = None) -> ReservationSeen:
    """A Workload as the API server gives it, as the rules want to see it."""
    if found is None:
        return ReservationSeen()
    owners = found["metadata"].get("ownerReferences") or []
    evicted = _true(found, "Evicted")
    return ReservationSeen(
        exists=True,
        ours=any(o.get("uid") == meta_uid and o.get("controller") for o in owners),
        deleting="deletionTimestamp" in found["metadata"],
        queue=str(found.get("spec", {}).get("queueName", "")),
        asked=str((found["metadata"].get("annotations") or {}).get(ANNOTATION_ASKED, "")),
        held=_true(found, "QuotaReserved"),
        admitted=_true(found, "Admitted"),
        evicted=evicted or found.get("spec", {}).get("active") is False,
        finished=_true(found, "Finished"),
        ready=_true(found, "PodsReady"),
        position=position,
        message=_why(found, evicted=evicted),
    )


def _why(found: Body, *, evicted: bool) -> str:
    """Kueue's own words: of the eviction while it holds quota, else of what keeps it from being admitted."""
    if evicted and _true(found, "QuotaReserved"):
        return str(_condition(found, "Evicted").get("message", ""))
    if found.get("spec", {}).get("active") is False:
        return "its Workload is deactivated (spec.active is false)"
    for check in found.get("status", {}).get("admissionChecks") or ():
        if check.get("state") != "Ready" and _true(found, "QuotaReserved"):
            return f"admission check {check.get('name')}: {check.get('message') or check.get('state')}"
    return str(_condition(found, "QuotaReserved").get("message", ""))


def returned(found: Body, *, now: datetime) -> Body:
    """The Workload's status after an eviction, when no pod runs any more: as Kueue's own job controllers leave it.

    Only a preempted Workload is back in the queue at once; after another eviction Kueue itself says when.
    """
    evicted = _condition(found, "Evicted")
    message = str(evicted.get("message", ""))
    reason = str(evicted.get("reason")) if _true(found, "Evicted") else "Deactivated"
    again = reason in ("Preempted", "NodeFailures")
    status = {key: value for key, value in (found.get("status") or {}).items() if key != "admission"}
    for kind, on, why, words in (
        ("Requeued", again, reason, message),
        ("QuotaReserved", False, "Pending", message),
        ("Admitted", False, "NoReservation", "The workload has no reservation"),
        ("PodsReady", False, "WaitForStart", "Not all pods are ready or succeeded"),
    ):
        status["conditions"] = _with(found, status, kind, on, why, words, now)
    return status


def with_readiness(found: Body, *, ready: bool, now: datetime) -> Body:
    """The Workload's status that says whether all pods run: Kueue evicts those that never do, where it is told to."""
    status = dict(found.get("status") or {})
    why = ("Started", "All pods reached readiness and the workload is running")
    if not ready:
        why = ("WaitForRecovery", "At least one pod has failed, waiting for recovery")
    return {**status, "conditions": _with(found, status, "PodsReady", ready, *why, now)}


def _with(found: Body, status: Body, kind: str, on: bool, reason: str, message: str, now: datetime) -> list[Body]:
    value = "True" if on else "False"
    old = next((c for c in status.get("conditions") or () if c["type"] == kind), None)
    same = old is not None and old["status"] == value
    new = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastTransitionTime": old["lastTransitionTime"] if old and same else _text(now),
        "observedGeneration": found["metadata"].get("generation", 0),
    }
    return [*(c for c in status.get("conditions") or () if c["type"] != kind), new]


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(found: Body, kind: str) -> Body:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def _true(found: Body, kind: str) -> bool:
    return _condition(found, kind).get("status") == "True"
