"""Evidence on one replica from its pod and its node. Pure: dictionaries of the API in, evidence out.

Evidence has to be read generously, because each of these signs may be missing: DisruptionTarget when a node dies, the
exit code when the kubelet does, the node when the cloud is quick.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from piton.api.status import PlacedReplica
from piton.contract import names
from piton.contract.termination import Outcome, Termination, outcome_of
from piton.kube import pod_start
from piton.kube.clocks import CLOCKS_DIFFER, on_the_clock_of_the_cluster
from piton.kube.kept_fields import LIMIT_RANGER
from piton.kube.nodes import NodeView, condition, moment, reclaim_notice, scheduled_at
from piton.kube.ownership import claims_of, is_shared
from piton.kube.pod_ends import OVER_TIME, ended_by_itself, without_its_end
from piton.kube.pod_start import LAST_WORDS_MAX, container_of, other_containers
from piton.kube.prices import Prices, share
from piton.observed import LeavingPod, LostReplica, ReplicaSeen, ReplicaState
from piton.rendering.affinity import ZONE

_DISRUPTED_REASONS = frozenset({"Evicted", "NodeShutdown", "Terminated", "Shutdown", "NodeLost", "Preempting"})
_BY_TAINT_MANAGER = "DeletionByTaintManager"
"""It deletes the pods of a node that does not answer: that says no more than the silence does."""
_DEFAULT_LIMIT = rf" (?P<all>[^;:]*) limit for container {names.CONTAINER}(?=;| *$)"
"""The API server's words: `LimitRanger plugin set: cpu request for container x; cpu, memory limit for container x`."""
_USES = f"Container {names.CONTAINER} was using [^,]+, request is"
_OWN_DISK = re.compile(
    rf"Pod .*usage exceeds the total limit|Container {names.CONTAINER} exceeded its local ephemeral storage limit"
    rf"|EmptyDir volume \"(?P<volume>[^\"]*)\" exceeds the limit"
    rf"|{_USES} (?!0,)[^,]+, has larger consumption of ephemeral-storage"
)
_OWN_MEMORY = re.compile(rf"{_USES} (?!0,)[^,]+, has larger consumption of memory")
"""The kubelet also evicts a pod for using more than it may, or more than it asked for while its node runs short. That
is no disruption, and happens again. Any use of the node's disk or memory is more than a request of 0: that says
nothing. See pkg/kubelet/eviction/helpers.go of Kubernetes."""
_MEMORY_WITHOUT_REQUEST = re.compile(rf"{_USES} 0, has larger consumption of memory")
_END_UNKNOWN = frozenset({"Unknown", "ContainerStatusUnknown"})
"""A container runtime says the first, with exit code 255, of what ran before it was started anew: mostly the machine
has rebooted. A kubelet says the second, with 137, of a container that it cannot find any more."""
_OOM_KILLED = "OOMKilled"
_NODE_OUT_OF_MEMORY = "OOMKilled without a limit of its own, so its node ran out of memory"


def replica(pod: Mapping[str, Any], view: NodeView | None, prices: Prices) -> ReplicaSeen:
    """One pod as a replica; `view` is None when the pod is on no node, or its node does not matter any more."""
    node = view.node if view else None
    container = container_of(pod.get("status") or {})
    ended = (container.get("state") or {}).get("terminated") or {}
    exit_code = ended.get("exitCode")
    by_itself = exit_code is not None and ended_by_itself(pod, ended)
    pod = without_its_end(pod) if by_itself else pod
    meta, status = pod["metadata"], pod.get("status") or {}
    waiting, cannot_start = pod_start.waiting(pod, container)
    gone_at = view.gone_at(pod) if view else None
    silent = _silence(view)
    now = view.now if view else None
    ended_at = on_the_clock_of_the_cluster(moment(ended.get("finishedAt")), pod, now)
    is_oom_killed = ended.get("reason") == _OOM_KILLED and exit_code != 0  # with 0 only a child of the program was
    is_without_limit = is_oom_killed and not _has_memory_limit(pod) and evicted_for(pod) is None
    disruption = disruption_of(pod) or (_NODE_OUT_OF_MEMORY if is_without_limit else None)
    return ReplicaSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        state=_state(status, exit_code),
        exit_code=exit_code,
        end_unknown=ended.get("reason") in _END_UNKNOWN,
        ended_at=ended_at,
        ended_by_itself=by_itself,
        termination=_termination(ended),
        over_time=status.get("reason") == OVER_TIME,
        refused=_refused(status),
        out_of_memory=(is_oom_killed and _has_memory_limit(pod)) or evicted_for(pod) is _OWN_MEMORY,
        default_limit=_default_limit(pod, "ephemeral-storage" if evicted_for(pod) is _OWN_DISK else "memory"),
        out_of_disk=evicted_for(pod) is _OWN_DISK,
        short_of_memory=_is_evicted_without_request(status) or is_without_limit,
        failed_beside=_failed_beside(status, exit_code),
        outlives_trainer=exit_code is not None and _outlives(pod, ended_at, now),
        deleting=bool(meta.get("deletionTimestamp")),
        grace_seconds=meta.get("deletionGracePeriodSeconds"),
        never_started=not _has_started(status, container) and (view is None or view.is_ready()),
        disruption=None if silent and disruption == _BY_TAINT_MANAGER else disruption,
        silent=silent,
        waiting=waiting,
        words=pod_start.words(pod),
        cannot_start=cannot_start,
        program=pod_start.program(pod),
        init_failure=pod_start.init_failure(pod, container),
        node=(pod.get("spec") or {}).get("nodeName"),
        zone=(node["metadata"].get("labels") or {}).get(ZONE) if node else None,
        node_gone=gone_at is not None and view is not None and gone_at <= view.now,
        node_reclaimed=view is not None and view.reclaimed(),
        leaving=reclaim_notice(node) if node else None,
        node_pool=view.pool if view else None,
        placed_at=_placed_at(pod),
        node_price=prices.of(node) if node else None,
        node_share=share(pod, node) if node else Fraction(1),
    )


def _silence(view: NodeView | None) -> str | None:
    """Describe the outage that keeps the node's silence from counting as its end, with the time of its end."""
    if view is None or view.outage is None:
        return None
    return f"{view.outage.words}; they are waited for until {view.outage.gone_at:%H:%M:%S} UTC at least"


def lost(
    placed: PlacedReplica, view: NodeView, *, disruption: str | None = None, notice: str | None = None
) -> LostReplica:
    """A replica of which nothing is left but what the status says, and the node that it was on, if that is left."""
    gone_at = view.gone_at(as_pod(placed))
    return LostReplica(
        name=placed.name,
        node=placed.node,
        running_since=placed.running_time,
        node_gone=gone_at is not None and gone_at <= view.now,
        node_reclaimed=view.reclaimed(),
        disruption=disruption,
        notice=notice,
    )


def as_pod(placed: PlacedReplica) -> dict[str, Any]:
    """As much of a pod as is known of one that does not exist any more."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": placed.placed_time.isoformat()}
    return {"metadata": {"name": placed.name, "uid": placed.uid}, "status": {"conditions": [scheduled]}}


def as_placed(pod: Mapping[str, Any]) -> PlacedReplica | None:
    """The pod as the status lists it; None if it never got a node."""
    placed_at, meta = _placed_at(pod), pod["metadata"]
    if placed_at is None:
        return None
    node = str(pod["spec"]["nodeName"])
    return PlacedReplica(name=meta["name"], uid=str(meta.get("uid", "")), node=node, placed_time=placed_at)


def _placed_at(pod: Mapping[str, Any]) -> datetime | None:
    """Return the time at which the pod got its node, else the time of its creation."""
    if not (pod.get("spec") or {}).get("nodeName"):
        return None
    started = (pod.get("status") or {}).get("startTime")
    return scheduled_at(pod) or moment(started or pod["metadata"].get("creationTimestamp"))


def _has_memory_limit(pod: Mapping[str, Any]) -> bool:
    """True if the trainer or its pod has a limit of memory. Else it is the node's that the kernel kills it for."""
    spec = pod.get("spec") or {}
    trainers = [each for each in spec.get("containers") or () if each["name"] == names.CONTAINER]
    limits = [(each.get("resources") or {}).get("limits") or {} for each in (spec, *trainers)]
    return not trainers or any("memory" in each for each in limits)


def _default_limit(pod: Mapping[str, Any], resource: str) -> str | None:
    """Return the trainer's limit of a resource if a LimitRange has set it, and not the run."""
    told = str((pod["metadata"].get("annotations") or {}).get(LIMIT_RANGER) or "")
    if not any(resource in found["all"].split(", ") for found in re.finditer(_DEFAULT_LIMIT, told)):
        return None
    containers = (pod.get("spec") or {}).get("containers") or ()
    limits = [
        (each.get("resources") or {}).get("limits") or {} for each in containers if each["name"] == names.CONTAINER
    ]
    return next((str(found[resource]) for found in limits if resource in found), None)


def _state(status: Mapping[str, Any], exit_code: int | None) -> ReplicaState:
    """Return the trainer's state, whatever runs beside it; without a trainer's state, the pod's phase.

    A pod that its kubelet ends, as when the node shuts down, has failed, also where the trainer exited 0 because of it.
    """
    phase, container = status.get("phase"), container_of(status)
    was_ended = bool(status.get("reason")) or condition({"status": status}, "DisruptionTarget").get("status") == "True"
    if phase == "Failed" and (exit_code is None or was_ended):
        return ReplicaState.FAILED
    if exit_code is not None:
        return ReplicaState.FAILED if exit_code else ReplicaState.SUCCEEDED
    if phase == "Succeeded":
        return ReplicaState.SUCCEEDED
    runs = phase in ("Running", "Unknown") or "running" in (container.get("state") or {})
    return ReplicaState.RUNNING if runs else ReplicaState.WAITING


def _failed_beside(status: Mapping[str, Any], exit_code: int | None) -> str | None:
    """Name what makes the pod count as failed although its trainer exited 0; None if nothing does."""
    if status.get("phase") != "Failed" or _state(status, exit_code) is not ReplicaState.SUCCEEDED:
        return None
    ends = [(each["name"], (each.get("state") or {}).get("terminated") or {}) for each in other_containers(status)]
    failed = [f"{name} (exit code {end['exitCode']})" for name, end in ends if end.get("exitCode")]
    return ", ".join(failed) or "an end of its pod after that"


def _has_started(status: Mapping[str, Any], container: Mapping[str, Any]) -> bool:
    """True if the trainer has ever run. The phase alone does not say: it is Pending until the last sidecar runs."""
    state = container.get("state") or {}
    if pod_start.is_start_error(state.get("terminated") or {}):
        return False
    again = bool(container.get("lastState") or container.get("restartCount"))
    return status.get("phase") != "Pending" or again or "running" in state or "terminated" in state


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The statuses of all of its containers, those of initialisation first."""
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _refused(status: Mapping[str, Any]) -> str | None:
    """Return the kubelet's reason for not accepting the pod, which then fails before any container has a state.

    See rejectPod in pkg/kubelet/kubelet.go of Kubernetes: UnexpectedAdmissionError, OutOfcpu, NodeAffinity and others.
    """
    if status.get("phase") != "Failed" or status.get("reason") in (None, "", OVER_TIME):
        return None
    if any(container.get("state") for container in _containers(status)):
        return None
    return f"{status['reason']}: {status.get('message') or 'without a message'}"


def _termination(ended: Mapping[str, Any]) -> Termination | None:
    """The trainer's last words, or the cluster's where the program wrote plain text or never began."""
    text = ended.get("message")
    words = Termination.from_json(text)
    if words is None and text and ended.get("exitCode") and outcome_of(ended["exitCode"]) is None:
        return Termination(outcome=Outcome.FAILED, detail=text.strip()[-LAST_WORDS_MAX:], is_ours=False)
    return words


def disruption_of(pod: Mapping[str, Any]) -> str | None:
    """Return the cluster's reason for which the pod was taken from its node."""
    if evicted_for(pod):
        return None
    target = condition(pod, "DisruptionTarget")
    if target.get("status") == "True":
        return str(target.get("reason") or "DisruptionTarget")
    reason = (pod.get("status") or {}).get("reason")
    return str(reason) if reason in _DISRUPTED_REASONS else None


def evicted_for(pod: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return the pattern of the pod's own overuse for which the kubelet evicted it, memory or disk; None: neither."""
    status = pod.get("status") or {}
    if status.get("reason") != "Evicted":
        return None
    message = status.get("message") or ""
    if _OWN_MEMORY.search(message):
        return _OWN_MEMORY
    return _OWN_DISK if any(_is_trainers(pod, found["volume"]) for found in _OWN_DISK.finditer(message)) else None


def _is_trainers(pod: Mapping[str, Any], volume: str | None) -> bool:
    """True if the trainer mounts the volume, or nothing is known of its mounts; None is no volume, but its own use."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    mounts = next((each.get("volumeMounts") for each in containers if each["name"] == names.CONTAINER), None)
    return volume is None or mounts is None or any(each["name"] == volume for each in mounts)


def _is_evicted_without_request(status: Mapping[str, Any]) -> bool:
    """True if the pod was evicted because its node ran short of memory, and requests none."""
    message = str(status.get("message") or "")
    return status.get("reason") == "Evicted" and _MEMORY_WITHOUT_REQUEST.search(message) is not None


def force_deleted(pod: Mapping[str, Any]) -> bool:
    """True if only somebody's finalizer keeps the object; nothing that Piton can do would change that."""
    return bool(pod["metadata"].get("deletionTimestamp")) and pod["metadata"].get("deletionGracePeriodSeconds") == 0


def stays(pod: Mapping[str, Any]) -> bool:
    """True if it has not ended, or has and cannot go: that needs a kubelet that lives, or somebody's force."""
    return not _has_ended(pod) or "deletionTimestamp" in pod["metadata"]


def leaving(
    pod: Mapping[str, Any],
    view: NodeView | None,
    *,
    claims: Mapping[str, Mapping[str, Any] | None],
    next_tolerations: Sequence[Mapping[str, Any]],
) -> LeavingPod | None:
    """Return the pod if it is being deleted, and its kubelet answers or a finalizer alone keeps it; else None.

    Args:
        pod: the pod.
        view: its node; None where it has none.
        claims: the claims that leaving pods mount, by name.
        next_tolerations: those of the next attempt. What its admission adds to them is seen at the pod alone.
    """
    meta, spec = pod["metadata"], pod.get("spec") or {}
    leaves_by = moment(meta.get("deletionTimestamp"))
    finalizers = tuple(meta.get("finalizers") or ())
    is_only_kept = bool(finalizers) and (_has_ended(pod) or force_deleted(pod) or view is None)
    if leaves_by is None or not (is_only_kept or (view is not None and view.answers())):
        return None
    changed_at = None if view is None or is_only_kept else view.answers_since()
    since = on_the_clock_of_the_cluster(changed_at, pod, None if view is None else view.now)
    if since is not None:
        leaves_by = max(leaves_by, since + timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0))
    return LeavingPod(
        name=meta["name"],
        uid=meta.get("uid", ""),
        node=spec.get("nodeName"),
        not_ready="" if view is None else view.not_ready(),
        leaves_by=leaves_by,
        finalizers=finalizers,
        has_ended=is_only_kept,
        unshared_claims=tuple(name for name in claims_of(pod) if not is_shared(claims.get(name))),
        is_node_closed=view is not None and view.is_closed_to([*(spec.get("tolerations") or ()), *next_tolerations]),
    )


def _outlives(pod: Mapping[str, Any], ended_at: datetime | None, now: datetime | None) -> bool:
    """True if the pod runs on after its trainer has ended.

    A kubelet says for a moment that a pod runs whose containers have all ended. To delete its job then would delete the
    trainer's log as well. What only init containers keep from ending gets the grace period that the kubelet gives them.
    """
    if _has_ended(pod):
        return False
    if any("terminated" not in (each.get("state") or {}) for each in pod_start.other_containers(pod["status"])):
        return True
    grace = timedelta(seconds=(pod.get("spec") or {}).get("terminationGracePeriodSeconds") or 0) + CLOCKS_DIFFER
    return ended_at is not None and now is not None and now > ended_at + grace


def _has_ended(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
