"""Evidence on the order of two ends: did the trainer end first, or was its pod told to end?

A program may exit 0 because it is told to stop. So its end counts as its own only if it is older than all that could
have told it: a deletion, an eviction, the kubelet's own limits. That has to be beyond doubt, by more than two clocks of
one cluster may differ unnoticed; what is in doubt is repeated, and never taken for a success.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from piton.kube.clocks import CLOCKS_DIFFER, readings
from piton.kube.nodes import condition, moment
from piton.kube.pod_start import other_containers

OVER_TIME = "DeadlineExceeded"
_BY_KUBELET = "TerminationByKubelet"


def ended_by_itself(pod: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """True if the trainer, whose state is `ended`, was over before anything could have told it to end.

    Times of the kubelet are compared with each other. One of the control plane has to be later by both readings of the
    node's clock.
    """
    finished = moment(ended.get("finishedAt"))
    if finished is None:
        return False
    by_kubelet, by_others = list(_ends_by_kubelet(pod)), list(_ends_by_others(pod))
    is_kubelets = _tells_kubelets_end(pod)
    if (is_kubelets and not by_kubelet) or (_has_target(pod) and not (by_kubelet or by_others)):
        return False  # nobody can tell when that was
    if any(finished + CLOCKS_DIFFER > told for told in by_kubelet):
        return False
    return not any(max(readings(finished, pod)) + CLOCKS_DIFFER > told for told in by_others)


def without_its_end(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pod without the reasons for which it ended after its trainer: they say nothing of the attempt."""
    status = {key: value for key, value in pod["status"].items() if key not in ("reason", "message")}
    others = [each for each in status.get("conditions") or () if each.get("type") != "DisruptionTarget"]
    return {**pod, "status": {**status, "conditions": others}}


def _ends_by_others(pod: Mapping[str, Any]) -> Iterator[datetime]:
    """Times at which the control plane has told the pod to end: a deletion, or an eviction."""
    leaves_by = moment(pod["metadata"].get("deletionTimestamp"))
    if leaves_by is not None:
        yield leaves_by - timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    target = condition(pod, "DisruptionTarget")
    since = moment(target.get("lastTransitionTime"))
    if _has_target(pod) and target.get("reason") != _BY_KUBELET and since is not None:
        yield since


def _ends_by_kubelet(pod: Mapping[str, Any]) -> Iterator[datetime]:
    """Times, by its own clock, at which the kubelet has ended the pod, or before which it has not."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    target = condition(pod, "DisruptionTarget")
    since = moment(target.get("lastTransitionTime"))
    if _has_target(pod) and target.get("reason") == _BY_KUBELET and since is not None:
        yield since
    started, seconds = moment(status.get("startTime")), spec.get("activeDeadlineSeconds")
    if status.get("reason") == OVER_TIME and started is not None and seconds is not None:
        yield started + timedelta(seconds=seconds)
    if not _tells_kubelets_end(pod):
        return
    states = [each.get("state") or {} for each in other_containers(status)]
    ends = [moment((state.get("terminated") or {}).get("finishedAt")) for state in states]
    grace = timedelta(seconds=spec.get("terminationGracePeriodSeconds") or 0)
    yield from (end - grace for end in ends if end is not None)  # it had this long to end after it was told to


def _tells_kubelets_end(pod: Mapping[str, Any]) -> bool:
    """True if the kubelet says that it has ended the pod, for whatever reason."""
    is_target = _has_target(pod) and condition(pod, "DisruptionTarget").get("reason") == _BY_KUBELET
    return is_target or bool((pod.get("status") or {}).get("reason"))


def _has_target(pod: Mapping[str, Any]) -> bool:
    return condition(pod, "DisruptionTarget").get("status") == "True"
