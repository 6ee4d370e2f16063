"""What is read from a pod and from the node under it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from piton.api.status import PlacedReplica
from piton.contract.termination import Outcome, Termination
from piton.core.start_words import SIDECAR_STARTS
from piton.kube import kept_fields
from piton.kube.last_seen import Sightings
from piton.kube.nodes import NodeView
from piton.kube.pods import leaving, lost, replica
from piton.kube.prices import Prices
from piton.observed import ReplicaSeen, ReplicaState
from support.builders import NOW
from support.cluster import a_node


def _pod(*, phase: str = "Running", meta: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "ragcun-1-master-0", "uid": "uid-9", **(meta or {})},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "startTime": "2026-11-21T11:30:00Z", **status},
    }


def _container(name: str = "pytorch", **state: Any) -> list[dict[str, Any]]:
    return [{"name": name, "state": state}]


def _seen(pod: dict[str, Any], node: dict[str, Any] | None = None, *, exists: bool = True) -> ReplicaSeen:
    return replica(pod, NodeView(node=(node or a_node("node-1")) if exists else None, now=NOW), Prices())


@pytest.mark.parametrize("reason", ["EvictionByEvictionAPI", "DeletionByTaintManager", "PreemptionByScheduler"])
def test_a_disruption_target_is_a_disruption(reason: str) -> None:
    pod = _pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason}])
    assert _seen(pod).disruption == reason


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown", "Terminated", "NodeLost"])
def test_a_word_of_the_kubelet_is_a_disruption(reason: str) -> None:
    seen = _seen(_pod(phase="Failed", reason=reason, containerStatuses=_container(terminated={"exitCode": 0})))
    assert (seen.disruption, seen.state, seen.exit_code) == (reason, ReplicaState.FAILED, 0)


def test_a_pod_that_the_kubelet_does_not_accept_says_why() -> None:
    """What the kubelet of 1.37 writes when a device plugin has nothing to give."""
    message = "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate nvidia.com/gpu"
    seen = _seen(_pod(phase="Failed", reason="UnexpectedAdmissionError", message=message))
    assert (seen.refused, seen.state, seen.has_run) == (
        f"UnexpectedAdmissionError: {message}",
        ReplicaState.FAILED,
        False,
    )


@pytest.mark.parametrize(
    "pod",
    [
        _pod(phase="Failed", reason="Evicted", containerStatuses=_container(terminated={"exitCode": 137})),
        _pod(phase="Failed", initContainerStatuses=_container(terminated={"exitCode": 1})),
        _pod(phase="Pending", reason="SomeReason"),
    ],
)
def test_a_pod_that_has_begun_or_waits_was_accepted(pod: dict[str, Any]) -> None:
    assert _seen(pod).refused is None


TARGET = {"type": "DisruptionTarget", "status": "True"}
EVICTED = {**TARGET, "reason": "EvictionByEvictionAPI"}
KUBELETS = {**TARGET, "reason": "TerminationByKubelet"}
DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. "


def _at(minutes: float) -> str:
    """A time so many minutes after the trainer's end."""
    return (NOW + timedelta(minutes=minutes)).isoformat()


def _over(code: int = 0, sidecar: float | None = None, **status: Any) -> dict[str, Any]:
    """A pod that is over, and the trainer in which ended at NOW; the sidecar beside it so many minutes later."""
    ended = {"exitCode": code, "finishedAt": _at(0)}
    found = _container(terminated=ended)
    if sidecar is not None:
        found += _container("istio-proxy", terminated={"exitCode": 0, "finishedAt": _at(sidecar)})
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T11:30:00Z"}
    status = {"phase": "Failed", **status, "conditions": [bound, *status.pop("conditions", [])]}
    pod = _pod(containerStatuses=found, **status)
    pod["spec"] |= {"activeDeadlineSeconds": 7200, "terminationGracePeriodSeconds": 100}
    return pod


def _deleted(minutes: float, grace: int = 100) -> dict[str, Any]:
    leaves_by = NOW + timedelta(minutes=minutes, seconds=grace)
    return {"deletionTimestamp": leaves_by.isoformat(), "deletionGracePeriodSeconds": grace}


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    ("pod", "is_own"),
    [
        (lambda code: _over(code, reason="DeadlineExceeded"), True),
        (lambda code: _over(code, reason="DeadlineExceeded", startTime="2026-11-21T10:00:30Z"), False),
        (lambda code: _over(code, sidecar=5, reason="Evicted", message=DISK), True),
        (lambda code: _over(code, sidecar=2, reason="Evicted", message=DISK), False),
        (lambda code: _over(code, reason="Evicted", message=DISK), False),
        (lambda code: _over(code, reason="Evicted", conditions=[{**KUBELETS, "lastTransitionTime": _at(3)}]), True),
        (lambda code: _over(code, reason="Evicted", conditions=[{**KUBELETS, "lastTransitionTime": _at(0)}]), False),
        (lambda code: _over(code, reason="Terminated", conditions=[KUBELETS]), False),
        (lambda code: _over(code, sidecar=60, conditions=[{**EVICTED, "lastTransitionTime": _at(58)}]), True),
        (lambda code: _over(code, sidecar=1, conditions=[{**EVICTED, "lastTransitionTime": _at(0.9)}]), False),
        (lambda code: _over(code, conditions=[EVICTED]), False),
        (lambda code: _over(code, meta=_deleted(90), conditions=[EVICTED]), True),
        (lambda code: _over(code, meta=_deleted(0.5), conditions=[EVICTED]), False),
        (lambda code: _over(code, meta=_deleted(-0.5), conditions=[EVICTED]), False),
        (lambda code: _over(code, meta=_deleted(90), reason="Evicted", message=DISK), False),
    ],
)  # fmt: skip
def test_what_ends_a_pod_after_its_trainer_says_nothing_of_the_trainers_end(
    pod: Callable[[int], dict[str, Any]], is_own: bool, code: int
) -> None:
    seen = _seen(pod(code))
    own = ReplicaState.FAILED if code else ReplicaState.SUCCEEDED
    befell = (seen.disruption, seen.over_time, seen.out_of_disk)

    assert (seen.ended_by_itself, seen.exit_code) == (is_own, code)
    assert (befell == (None, False, False)) is is_own
    assert seen.state is (own if is_own else ReplicaState.FAILED)


@pytest.mark.parametrize(
    ("start", "end", "deleted", "is_own"),
    [
        (-1440, -1440, 90, True),
        (-1440, -1440, 0.5, False),
        (1440, 1440, 90, False),
        (1440, 0, 0.5, False),
        (1440, 0, 90, True),
        (-1440, 0, 90, False),
    ],
)
def test_a_clock_that_is_off_or_set_right_leaves_a_doubt(
    start: float, end: float, deleted: float, is_own: bool
) -> None:
    """Minutes by which the node's clock is ahead at the start of the pod, and at the end of its trainer."""
    pod = _over(meta=_deleted(deleted), startTime=(NOW + timedelta(minutes=start - 30)).isoformat())
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = _at(end)
    assert _seen(pod).ended_by_itself is is_own


@pytest.mark.parametrize(
    ("resources", "of_pod", "is_own"),
    [
        ({}, {}, False),
        ({"requests": {"memory": "1Gi"}}, {}, False),
        ({"limits": {"cpu": "4"}}, {}, False),
        ({"limits": {"memory": "1Gi"}}, {}, True),
        ({}, {"limits": {"memory": "1Gi"}}, True),
    ],
)
def test_a_kernel_kills_a_trainer_without_a_limit_for_its_node(
    resources: dict[str, Any], of_pod: dict[str, Any], is_own: bool
) -> None:
    pod = _pod(phase="Failed", containerStatuses=_container(terminated={"exitCode": 137, "reason": "OOMKilled"}))
    pod["spec"] |= {"containers": [{"name": "pytorch", "resources": resources}], "resources": of_pod}
    seen = _seen(kept_fields.of_pod(pod))
    assert (seen.out_of_memory, seen.short_of_memory, seen.disruption is None) == (is_own, not is_own, is_own)


LOW = "The node was low on resource: {0}. Threshold quantity: 100Mi, available: 80Mi. "
USES = "Container pytorch was using {1}, request is {2}, has larger consumption of {0}. "


@pytest.mark.parametrize(
    ("message", "disk", "memory"),
    [
        ("Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. ", True, False),
        ('Container pytorch exceeded its local ephemeral storage limit "10Gi". ', True, False),
        ('Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ', True, False),
        ((LOW + USES).format("ephemeral-storage", "90Gi", "10Gi"), True, False),
        ((LOW + USES).format("memory", "900Gi", "800Gi"), False, True),
        (
            (LOW + USES).format("ephemeral-storage", "2Gi", "1Gi").replace("pytorch", "istio-proxy")
            + USES.format("ephemeral-storage", "90Gi", "10Gi"),
            True,
            False,
        ),
    ],
)
def test_an_eviction_for_what_the_pod_itself_uses_is_no_disruption(message: str, disk: bool, memory: bool) -> None:
    target = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    seen = _seen(_pod(phase="Failed", reason="Evicted", message=message, conditions=target))
    assert (seen.disruption, seen.out_of_disk, seen.out_of_memory) == (None, disk, memory)


@pytest.mark.parametrize(
    "message",
    [
        LOW.format("memory"),
        "The node had condition: [DiskPressure]. ",
        (LOW + USES).format("ephemeral-storage", "40Ki", "0"),
        (LOW + USES).format("memory", "900Gi", "0"),
        (LOW + USES).format("memory", "90Mi", "40Mi").replace("pytorch", "istio-proxy"),
        (LOW + USES).format("ephemeral-storage", "2Gi", "1Gi").replace("pytorch", "istio-proxy"),
        (LOW + USES).format("ephemeral-storage", "2Gi", "1Gi").replace("pytorch", "pytorch-metrics"),
        (LOW + USES).format("ephemeral-storage", "9Gi", "0")
        + USES.format("ephemeral-storage", "2Gi", "1Gi").replace("pytorch", "vault-agent"),
        'Container istio-proxy exceeded its local ephemeral storage limit "1Gi". ',
        'Container my-pytorch exceeded its local ephemeral storage limit "1Gi". ',
    ],
)
def test_an_eviction_because_others_use_much_is_a_disruption(message: str) -> None:
    seen = _seen(_pod(phase="Failed", reason="Evicted", message=message))
    assert (seen.disruption, seen.out_of_disk, seen.out_of_memory) == ("Evicted", False, False)


def test_an_eviction_for_memory_without_a_request_is_marked() -> None:
    def is_marked(message: str) -> bool:
        return _seen(_pod(phase="Failed", reason="Evicted", message=message)).short_of_memory

    none = (LOW + USES).format("memory", "9Gi", "0")
    assert is_marked(none)
    assert is_marked(none + USES.format("memory", "90Mi", "40Mi").replace("pytorch", "istio-proxy"))
    assert not any(map(is_marked, [LOW.format("memory"), (LOW + USES).format("ephemeral-storage", "9Gi", "0")]))


def test_the_zone_is_its_nodes() -> None:
    node = a_node("node-1", labels={"topology.kubernetes.io/zone": "us-east-1a"})
    assert (_seen(_pod(), node).zone, _seen(_pod()).zone) == ("us-east-1a", None)


def test_a_deletion_by_hand_is_a_deletion_and_no_disruption() -> None:
    seen = _seen(_pod(meta={"deletionTimestamp": "2026-11-21T12:01:00Z"}))
    assert (seen.deleting, seen.disruption, seen.state) == (True, None, ReplicaState.RUNNING)


def test_the_last_words_are_read() -> None:
    words = Termination(outcome=Outcome.FINISHED, step=7, weights_digest="sha256:1")
    ended = {"exitCode": 0, "message": words.to_json(), "finishedAt": "2026-11-21T11:59:00Z"}
    seen = _seen(_pod(phase="Succeeded", containerStatuses=_container(terminated=ended)))
    assert (seen.termination, seen.state, seen.ended_at) == (words, ReplicaState.SUCCEEDED, NOW - timedelta(minutes=1))


@pytest.mark.parametrize(
    ("code", "reason", "is_unknown"),
    [
        (255, "Unknown", True),
        (137, "ContainerStatusUnknown", True),
        (255, "Error", False),
        (137, "OOMKilled", False),
        (1, None, False),
    ],
)
def test_an_end_that_nobody_saw_is_told_from_one_of_the_programs(
    code: int, reason: str | None, is_unknown: bool
) -> None:
    ended = {"exitCode": code, "finishedAt": "2026-11-21T11:59:00Z"} | ({"reason": reason} if reason else {})
    seen = _seen(_pod(phase="Failed", containerStatuses=_container(terminated=ended)))
    assert (seen.end_unknown, seen.exit_code, seen.state) == (is_unknown, code, ReplicaState.FAILED)


def test_plain_text_of_a_program_that_failed_becomes_the_detail() -> None:
    ended = {"exitCode": 128, "reason": "StartError", "message": 'exec: "pyhton": executable file not found in $PATH'}
    seen = _seen(_pod(phase="Failed", containerStatuses=_container(terminated=ended)))
    assert seen.termination is not None
    assert seen.termination.outcome is Outcome.FAILED
    assert "pyhton" in seen.termination.detail


@pytest.mark.parametrize("code", [0, 78, 143])
def test_plain_text_never_outweighs_an_exit_code_with_a_meaning(code: int) -> None:
    ended = {"exitCode": code, "message": "goodbye"}
    seen = _seen(_pod(phase="Failed", containerStatuses=_container(terminated=ended)))
    assert (seen.termination, seen.exit_code) == (None, code)


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        (
            "LimitRanger plugin set: cpu, memory request for container pytorch; memory limit for container pytorch",
            "256Mi",
        ),
        ("LimitRanger plugin set: cpu, memory limit for container pytorch", "256Mi"),
        ("LimitRanger plugin set: memory request for container pytorch; cpu limit for container pytorch", None),
        ("LimitRanger plugin set: memory limit for container istio-proxy", None),
        ("", None),
    ],
)
def test_a_memory_limit_of_a_limit_range_is_known(told: str, limit: str | None) -> None:
    pod = _pod(meta={"annotations": {"kubernetes.io/limit-ranger": told}})
    pod["spec"]["containers"] = [{"name": "pytorch", "resources": {"limits": {"memory": "256Mi"}}}]
    assert _seen(pod).default_limit == limit
    assert _seen(kept_fields.of_pod(pod)).default_limit == limit


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ("LimitRanger plugin set: cpu, ephemeral-storage limit for container pytorch", "2Gi"),
        (
            "LimitRanger plugin set: ephemeral-storage, memory limit for container pytorch; cpu limit for container x",
            "2Gi",
        ),
        ("LimitRanger plugin set: memory limit for container pytorch", None),
        ("LimitRanger plugin set: ephemeral-storage limit for container pytorch-metrics", None),
        ("LimitRanger plugin set: ephemeral-storage request for container pytorch", None),
    ],
)
def test_a_disk_limit_of_a_limit_range_is_known(told: str, limit: str | None) -> None:
    meta = {"annotations": {"kubernetes.io/limit-ranger": told}}
    pod = _pod(phase="Failed", reason="Evicted", message=DISK, meta=meta)
    limits = {"memory": "1Gi", "ephemeral-storage": "2Gi"}
    pod["spec"]["containers"] = [{"name": "pytorch", "resources": {"limits": limits}}]
    assert _seen(kept_fields.of_pod(pod)).default_limit == limit


@pytest.mark.parametrize(
    ("volume", "is_own"), [("shm", True), ("cache", True), ("istio-data", False), ("unknown", False)]
)
def test_a_volume_is_the_trainers_if_it_mounts_it(volume: str, is_own: bool) -> None:
    message = f'Usage of EmptyDir volume "{volume}" exceeds the limit "1Gi". '
    pod = _pod(phase="Failed", reason="Evicted", message=message)
    mounts = {"pytorch": ["shm", "cache"], "istio-proxy": ["istio-data", "cache"]}
    pod["spec"]["containers"] = [
        {"name": name, "volumeMounts": [{"name": each, "mountPath": f"/{each}"} for each in found]}
        for name, found in mounts.items()
    ]
    for seen in (_seen(pod), _seen(kept_fields.of_pod(pod))):
        assert (seen.disruption is None, seen.out_of_disk) == (is_own, is_own)


def test_out_of_memory_is_seen() -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    assert _seen(_pod(phase="Failed", containerStatuses=_container(terminated=ended))).out_of_memory


@pytest.mark.parametrize("limits", [{}, {"memory": "1Gi"}])
@pytest.mark.parametrize(("code", "counts"), [(0, False), (1, True), (143, True)])
def test_a_program_that_exits_0_has_not_run_out_of_memory_although_a_child_of_it_has(
    limits: dict[str, str], code: int, counts: bool
) -> None:
    """The runtime says OOMKilled of a container in which the kernel has killed any process, such as a data worker."""
    ended = {"exitCode": code, "reason": "OOMKilled"}
    pod = _pod(phase="Failed" if code else "Succeeded", containerStatuses=_container(terminated=ended))
    pod["spec"]["containers"] = [{"name": "pytorch", "resources": {"limits": limits}}]
    seen = _seen(pod)
    assert (seen.out_of_memory or seen.short_of_memory, seen.disruption is not None) == (counts, counts and not limits)
    assert (seen.state is ReplicaState.SUCCEEDED) is not counts


def test_a_sidecar_does_not_speak_for_the_trainer() -> None:
    statuses = _container("istio-proxy", running={}) + _container(terminated={"exitCode": 1})
    seen = _seen(_pod(phase="Running", containerStatuses=statuses))
    assert (seen.state, seen.exit_code) == (ReplicaState.FAILED, 1)
    crashed = _container("istio-proxy", terminated={"exitCode": 1}) + _container(running={})
    assert _seen(_pod(phase="Running", containerStatuses=crashed)).state is ReplicaState.RUNNING


@pytest.mark.parametrize("beside", [{"terminated": {"exitCode": 137}}, {"terminated": {"exitCode": 143}}])
def test_a_sidecar_that_fails_after_the_trainer_does_not_undo_its_end(beside: dict[str, Any]) -> None:
    """The pod's phase is Failed then; the trainer has exited 0 nevertheless."""
    statuses = _container(terminated={"exitCode": 0}) + _container("agent", **beside)
    seen = _seen(_pod(phase="Failed", containerStatuses=statuses))
    assert (seen.state, seen.outlives_trainer) == (ReplicaState.SUCCEEDED, False)


@pytest.mark.parametrize(
    ("beside", "phase"),
    [
        ({"running": {}}, "Running"),
        ({"waiting": {"reason": "ImagePullBackOff"}}, "Pending"),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, "Running"),
    ],
)
@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_pod_outlives_its_trainer_while_something_beside_it_has_not_ended(
    beside: dict[str, Any], phase: str, code: int
) -> None:
    statuses = _container(terminated={"exitCode": code}) + _container("agent", **beside)
    assert _seen(_pod(phase=phase, containerStatuses=statuses)).outlives_trainer
    assert not _seen(_pod(phase=phase, containerStatuses=_container(running={}))).outlives_trainer


@pytest.mark.parametrize("code", [0, 1])
def test_a_pod_whose_containers_have_all_ended_does_not_run_on(code: int) -> None:
    """A kubelet says Running for a moment then; the job, and the log with it, must not be deleted for that."""
    statuses = _container(terminated={"exitCode": code}) + _container("agent", terminated={"exitCode": 143})
    assert not _seen(_pod(phase="Running", containerStatuses=statuses)).outlives_trainer
    alone = _pod(phase="Running", containerStatuses=_container(terminated={"exitCode": code}))
    assert not _seen(alone).outlives_trainer


def test_a_sidecar_that_cannot_be_pulled_says_nothing_of_the_trainer() -> None:
    pull = {"reason": "ImagePullBackOff", "message": "agent:1: not found"}
    statuses = _container("agent", waiting=pull) + _container(running={})
    seen = _seen(_pod(phase="Pending", containerStatuses=statuses))
    assert (seen.state, seen.cannot_start, seen.words, seen.never_started) == (ReplicaState.RUNNING, False, (), False)
    starts = _container("agent", waiting=pull) + _container(waiting={"reason": "ContainerCreating"})
    seen = _seen(_pod(phase="Pending", containerStatuses=starts))
    assert [word.reason for word in seen.words] == ["ContainerCreating"]


@pytest.mark.parametrize(
    "reason",
    [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ],
)
def test_what_only_the_user_can_mend_cannot_start(reason: str) -> None:
    waiting = {"reason": reason, "message": "no such image"}
    seen = _seen(_pod(phase="Pending", containerStatuses=_container(waiting=waiting)))
    assert (seen.cannot_start, seen.waiting, seen.state) == (True, f"{reason}: no such image", ReplicaState.WAITING)


def test_a_pod_that_finds_no_node_waits_and_may_still_start() -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pod = _pod(
        phase="Pending",
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    )
    seen = replica(pod, None, Prices())
    assert (seen.cannot_start, seen.waiting) == (False, f"Unschedulable: {message}")


def test_a_container_that_is_being_created_may_still_start() -> None:
    seen = _seen(_pod(phase="Pending", containerStatuses=_container(waiting={"reason": "ContainerCreating"})))
    assert (seen.cannot_start, seen.waiting) == (False, "ContainerCreating")


@pytest.mark.parametrize(
    "ended",
    [
        {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"},
        {"exitCode": 127, "reason": "ContainerCannotRun"},
        {"exitCode": 128, "reason": "Error", "startedAt": "1970-01-01T00:00:00Z"},
    ],
)
def test_a_container_that_ended_without_a_beginning_has_never_run(ended: dict[str, Any]) -> None:
    pod = _pod(phase="Failed", containerStatuses=_container(terminated={**ended, "message": "OCI: no"}))
    seen = _seen(pod)
    assert (seen.cannot_start, seen.has_run, seen.ended) == (True, False, True)
    assert seen.waiting is not None
    assert seen.waiting.endswith(": OCI: no")


def test_a_program_that_ends_with_128_by_itself_has_run() -> None:
    ended = {"exitCode": 128, "reason": "Error", "startedAt": "2026-11-21T11:58:00Z"}
    seen = _seen(_pod(phase="Failed", containerStatuses=_container(terminated=ended)))
    assert (seen.cannot_start, seen.has_run) == (False, True)


WAITS_FOR_INIT = _container(waiting={"reason": "PodInitializing"})


def _init(**state: Any) -> list[dict[str, Any]]:
    return [*_container("istio-init", terminated={"exitCode": 0}), *_container("vault-agent-init", **state)]


def test_an_init_container_that_failed_is_named_until_the_trainer_has_begun() -> None:
    ended = {"exitCode": 126, "reason": "Error", "message": "permission denied: role training\n"}
    named = "init container vault-agent-init of ragcun-1-master-0 ended with exit code 126"
    parts: dict[str, Any] = {"initContainerStatuses": _init(terminated=ended), "containerStatuses": WAITS_FOR_INIT}
    assert _seen(_pod(phase="Failed", **parts)).init_failure == f"{named}: permission denied: role training"
    parts["initContainerStatuses"] = _init(terminated={"exitCode": 126})
    assert _seen(_pod(phase="Failed", **parts)).init_failure == named
    parts["containerStatuses"] = _container(terminated={"exitCode": 1})  # a native sidecar ends after the trainer
    assert _seen(_pod(phase="Failed", **parts)).init_failure is None


def test_an_init_container_whose_image_cannot_be_pulled_is_named() -> None:
    init = _init(waiting={"reason": "ImagePullBackOff", "message": "503"})
    seen = _seen(_pod(phase="Pending", initContainerStatuses=init, containerStatuses=WAITS_FOR_INIT))
    assert (seen.cannot_start, seen.waiting) == (True, "init container vault-agent-init: ImagePullBackOff: 503")


@pytest.mark.parametrize(("started", "is_named"), [(False, True), (True, False)])
def test_a_native_sidecar_is_named_until_it_has_started(started: bool, is_named: bool) -> None:
    pod = _pod(
        phase="Pending",
        initContainerStatuses=[{**_container("cache", running={})[0], "started": started}],
        containerStatuses=WAITS_FOR_INIT,
    )
    pod["spec"]["initContainers"] = [{"name": "cache", "restartPolicy": "Always"}]
    told = [word.message for word in _seen(kept_fields.of_pod(pod)).words if word.reason == SIDECAR_STARTS]
    assert told == ["its startup probe has not passed in the init container cache"] * is_named


STARTED = [
    ("a trainer that runs", _container(running={})),
    ("a trainer that has ended", _container(terminated={"exitCode": 1})),
    (
        "a trainer that is started again",
        [{**_container(waiting={})[0], "lastState": {"terminated": {"exitCode": 1}}, "restartCount": 1}],
    ),
]
NOT_STARTED = [
    ("nothing is known of it yet", []),
    ("its image is pulled", _container(waiting={"reason": "ContainerCreating"})),
    ("an init container runs", _container(waiting={"reason": "PodInitializing"})),
]


@pytest.mark.parametrize("statuses", [case[1] for case in STARTED], ids=[case[0] for case in STARTED])
def test_a_trainer_has_started(statuses: list[dict[str, Any]]) -> None:
    """Also where the pod is still called Pending, because a sidecar beside it has not started."""
    assert not _seen(_pod(phase="Pending", containerStatuses=statuses)).never_started
    assert not _seen(_pod(phase="Running", containerStatuses=statuses)).never_started


@pytest.mark.parametrize("statuses", [case[1] for case in NOT_STARTED], ids=[case[0] for case in NOT_STARTED])
def test_a_trainer_never_started(statuses: list[dict[str, Any]]) -> None:
    assert _seen(_pod(phase="Pending", containerStatuses=statuses)).never_started


def test_nobody_knows_what_has_started_on_a_node_that_does_not_answer() -> None:
    silent = a_node("node-1", ready="Unknown", since="2026-11-21T11:59:59Z")
    assert not _seen(_pod(phase="Pending"), silent).never_started


def test_how_long_a_deleted_pod_may_stay_is_read() -> None:
    leaving = {"deletionTimestamp": "2026-11-21T12:01:00Z", "deletionGracePeriodSeconds": 60}
    assert (_seen(_pod(meta=leaving)).grace_seconds, _seen(_pod()).grace_seconds) == (60, None)


LEAVES = {"deletionTimestamp": "2026-11-21T12:01:00Z"}


@pytest.mark.parametrize(
    ("meta", "phase", "ready", "leaves", "has_ended"),
    [
        ({}, "Running", "True", False, False),
        (LEAVES, "Running", "True", True, False),
        (LEAVES, "Running", "False", True, False),  # its kubelet answers: the container runtime is down, say
        (LEAVES, "Running", "Unknown", False, False),  # its node's silence is another matter
        (LEAVES | {"finalizers": ["example.com/log"]}, "Running", "True", True, False),
        (LEAVES | {"finalizers": ["example.com/log"]}, "Succeeded", "True", True, True),
        (LEAVES | {"finalizers": ["example.com/log"]}, "Failed", "Unknown", True, True),
        (
            LEAVES | {"finalizers": ["example.com/log"], "deletionGracePeriodSeconds": 0},
            "Running",
            "Unknown",
            True,
            True,
        ),
    ],
)
def test_a_pod_leaves_while_its_kubelet_is_to_end_it_or_a_finalizer_keeps_it(
    meta: dict[str, Any], phase: str, ready: str, leaves: bool, has_ended: bool
) -> None:
    view = NodeView(node=a_node("node-1", ready=ready), now=NOW)
    found = leaving(_pod(phase=phase, meta=meta), view, claims={}, next_tolerations=())
    assert (found is not None) is leaves
    assert found is None or found.has_ended is has_ended


def test_a_pod_leaves_with_the_words_of_a_node_that_is_not_ready() -> None:
    node = a_node("node-1", ready="False")
    (ready,) = [each for each in node["status"]["conditions"] if each["type"] == "Ready"]
    ready |= {"reason": "KubeletNotReady", "message": "container runtime is down"}
    for status, words in (("False", "KubeletNotReady: container runtime is down"), ("True", "")):
        ready["status"] = status
        found = leaving(_pod(meta=LEAVES), NodeView(node=node, now=NOW), claims={}, next_tolerations=())
        assert found is not None
        assert found.not_ready == words


GRACE = {"deletionGracePeriodSeconds": 30}


@pytest.mark.parametrize(
    ("meta", "phase", "status", "changed", "ahead", "by"),
    [
        ({}, "Running", "True", "12:00:50", 0, "12:01:20"),  # silent when the pod was to go
        ({}, "Running", "False", "12:00:50", 0, "12:01:20"),  # a kubelet that begins again says False first
        ({}, "Running", "True", "11:30:00", 0, "12:01:00"),
        ({}, "Running", "True", "12:20:00", 0, "12:01:00"),  # by a clock that was wrong for a moment
        ({}, "Running", "True", "12:00:50", -7200, "12:01:20"),  # by a clock that is wrong
        ({}, "Running", "True", "12:00:50", 7200, "12:01:20"),
        ({}, "Running", "True", None, 0, "12:01:00"),
        (
            {"finalizers": ["example.com/log"]},
            "Succeeded",
            "True",
            "12:00:50",
            0,
            "12:01:00",
        ),  # no kubelet is to end it
    ],
)
def test_a_kubelet_that_was_silent_gets_the_grace_period_of_a_pod_anew(
    meta: dict[str, Any], phase: str, status: str, changed: str | None, ahead: int, by: str
) -> None:
    node = a_node("node-1", ready=status)
    (ready,) = [each for each in node["status"]["conditions"] if each["type"] == "Ready"]
    its_clock = timedelta(seconds=ahead)
    ready["lastTransitionTime"] = changed and (
        (datetime.fromisoformat(f"2026-11-21T{changed}Z") + its_clock).isoformat()
    )
    pod = _pod(phase=phase, meta=LEAVES | GRACE | meta)
    bound = datetime.fromisoformat("2026-11-21T11:00:00Z")
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": bound.isoformat()}
    pod["status"] |= {"startTime": (bound + its_clock).isoformat(), "conditions": [scheduled]}
    now = datetime.fromisoformat("2026-11-21T12:02:00Z")

    found = leaving(pod, NodeView(node=node, now=now), claims={}, next_tolerations=())

    assert found is not None
    assert found.leaves_by == datetime.fromisoformat(f"2026-11-21T{by}Z")


OURS = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("taints", "tolerations", "is_closed"),
    [
        ([], [], False),
        ([{"key": "nvidia.com/gpu", "effect": "NoSchedule"}], [OURS], False),
        ([{"key": "nvidia.com/gpu", "effect": "NoExecute"}], [OURS], True),
        ([{"key": "piton.dev/device-fault", "value": "x", "effect": "NoSchedule"}], [OURS], True),
        ([{"key": "soft", "effect": "PreferNoSchedule"}], [], False),
        ([{"key": "a", "value": "b", "effect": "NoSchedule"}], [{"key": "a", "value": "b"}], False),
        ([{"key": "a", "value": "b", "effect": "NoSchedule"}], [{"key": "a", "value": "c"}], True),
        ([{"key": "a", "effect": "NoSchedule"}], [{"operator": "Exists"}], False),
        ([{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}], [], False),
        ([{"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"}], [], False),
        ([{"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute"}], [], False),
        ([{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}], [], True),
    ],
)
def test_a_node_is_closed_by_a_taint_that_such_pods_do_not_tolerate(
    taints: list[dict[str, str]], tolerations: list[dict[str, str]], is_closed: bool
) -> None:
    assert NodeView(node=a_node("node-1", taints=taints), now=NOW).is_closed_to(tolerations) is is_closed


def test_a_cordon_closes_a_node() -> None:
    view = NodeView(node=a_node("node-1", unschedulable=True), now=NOW)
    assert view.is_closed_to([])
    assert not view.is_closed_to([{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}])


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_node_that_does_not_exist_is_gone() -> None:
    seen = _seen(_pod(), exists=False)
    assert (seen.node_gone, seen.node_reclaimed, seen.ended) == (True, False, True)


@pytest.mark.parametrize(("seconds", "gone"), [(0, False), (8, False), (30, False), (31, True), (3600, True)])
def test_a_younger_node_of_that_name_is_another_machine_but_for_the_clocks_of_a_control_plane(
    seconds: int, gone: bool
) -> None:
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T11:30:00Z"}
    node = a_node("node-1")
    born = datetime(2026, 11, 21, 11, 30, tzinfo=UTC) + timedelta(seconds=seconds)
    node["metadata"]["creationTimestamp"] = born.isoformat()
    assert _seen(_pod(conditions=[bound]), node).node_gone is gone


def test_a_healthy_node_is_neither_gone_nor_reclaimed() -> None:
    seen = _seen(_pod())
    assert (seen.node_gone, seen.node_reclaimed) == (False, False)


@pytest.mark.parametrize(
    ("ready", "seconds", "gone"),
    [("Unknown", 34, False), ("Unknown", 35, True), ("False", 3600, False), ("True", 3600, False)],
)
def test_only_silence_makes_a_node_count_as_gone(ready: str, seconds: int, gone: bool) -> None:
    since = (NOW - timedelta(seconds=seconds)).isoformat()
    assert _seen(_pod(), a_node("node-1", ready=ready, since=since)).node_gone is gone


@pytest.mark.parametrize(
    ("ready", "seconds_over", "gone"),
    [("Unknown", 29, False), ("Unknown", 30, True), ("False", 3600, False), ("True", 3600, False), ("", 3600, False)],
)
def test_a_pod_that_outstays_its_deletion_on_a_node_that_does_not_answer_is_on_a_node_that_is_gone(
    ready: str,
    seconds_over: int,
    gone: bool,
) -> None:
    leaves = (NOW - timedelta(seconds=seconds_over)).isoformat()
    node = a_node("node-1", ready=ready, since=NOW.isoformat())
    assert _seen(_pod(meta={"deletionTimestamp": leaves}), node).node_gone is gone


@pytest.mark.parametrize("taint", ["node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"])
def test_somebodys_word_that_the_machine_is_off_is_enough(taint: str) -> None:
    assert _seen(_pod(), a_node("node-1", taints=[{"key": taint, "effect": "NoExecute"}])).node_gone


@pytest.mark.parametrize(
    "taint",
    [
        "karpenter.sh/disrupted",
        "ToBeDeletedByClusterAutoscaler",
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "cloud.google.com/impending-node-termination",
        "remediator.aks.microsoft.com/unschedulable",
    ],
)
def test_a_taint_announces_that_the_machine_will_be_taken(taint: str) -> None:
    seen = _seen(_pod(), a_node("node-1", taints=[{"key": taint, "effect": "NoSchedule"}]))
    assert (seen.node_reclaimed, seen.node_gone, seen.leaving) == (True, False, f"taint {taint}")


@pytest.mark.parametrize("kind", ["PreemptScheduled", "TerminateScheduled"])
@pytest.mark.parametrize("value", ["True", "False"])
def test_a_condition_of_azures_announces_it_as_well(kind: str, value: str) -> None:
    node = a_node("node-1")
    node["status"]["conditions"].append({"type": kind, "status": value})
    seen = _seen(_pod(), kept_fields.of_node(node))
    assert seen.leaving == (f"condition {kind}" if value == "True" else None)


@pytest.mark.parametrize("taint", ["aws-node-termination-handler/rebalance-recommendation", "nvidia.com/gpu"])
def test_other_taints_announce_nothing(taint: str) -> None:
    seen = _seen(_pod(), a_node("node-1", taints=[{"key": taint}]))
    assert (seen.node_reclaimed, seen.leaving) == (False, None)


# --- what is left of a pod that does not exist any more --------------------------------------------------------------

PLACED = PlacedReplica(name="ragcun-1-master-0", uid="uid-9", node="node-1", placed_time=NOW - timedelta(minutes=30))


def _lost(node: dict[str, Any] | None) -> tuple[bool, bool]:
    found = lost(PLACED, NodeView(node=node, now=NOW))
    return found.node_gone, found.node_reclaimed


def test_a_lost_replicas_machine_is_gone_when_its_node_is_or_is_a_younger_one() -> None:
    young = a_node("node-1")
    young["metadata"]["creationTimestamp"] = "2026-11-21T11:30:01Z"
    assert _lost(None) == _lost(young) == (True, False)
    assert _lost(a_node("node-1")) == (False, False)


def test_a_lost_replicas_machine_may_be_silent_off_or_on_its_way_out() -> None:
    since = (NOW - timedelta(seconds=40)).isoformat()
    assert _lost(a_node("node-1", ready="Unknown", since=since)) == (True, False)
    off = [{"key": "node.cloudprovider.kubernetes.io/shutdown"}]
    assert _lost(a_node("node-1", taints=off)) == (True, False)
    assert _lost(a_node("node-1", taints=[{"key": "karpenter.sh/disrupted"}])) == (False, True)


def test_sightings_are_bounded_and_what_is_withdrawn_is_forgotten() -> None:
    sightings = Sightings(most=2)
    tainted = [a_node(f"node-{n}", taints=[{"key": "karpenter.sh/disrupted"}]) for n in range(3)]
    for node in tainted:
        sightings.node_changed(node)
    words = [sightings.notice(f"node-{n}") for n in range(3)]
    assert words == [None, "taint karpenter.sh/disrupted", "taint karpenter.sh/disrupted"]
    sightings.node_changed(a_node("node-2"))
    assert sightings.notice("node-2") is None
    sightings.pod_went(_pod(phase="Failed", reason="Evicted"))
    assert sightings.disruption("uid-9") == "Evicted"
    assert sightings.disruption("another") is None


def test_a_cordon_and_a_deletion_announce_it_too() -> None:
    cordoned = _seen(_pod(), a_node("node-1", unschedulable=True))
    assert (cordoned.node_reclaimed, cordoned.leaving) == (True, None), "a cordon takes nothing away by itself"
    leaving = a_node("node-1")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    deleted = _seen(_pod(), leaving)
    assert (deleted.node_reclaimed, deleted.leaving) == (True, "the node is being deleted")


# --- clocks: the control plane's, the node's -------------------------------------------------------------------------


def _scheduled(time: str) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": "True", "lastTransitionTime": time}]


@pytest.mark.parametrize("start", ["2026-11-20T11:30:00Z", "2026-11-21T11:29:57Z", "2026-11-22T11:30:00Z"])
def test_a_node_whose_clock_is_off_is_no_younger_machine(start: str) -> None:
    """The kubelet dates the pod's start; the node and the placement are dated by the control plane."""
    node = a_node("node-1")
    node["metadata"]["creationTimestamp"] = "2026-11-21T11:29:58Z"
    placed = _pod(startTime=start, conditions=_scheduled("2026-11-21T11:29:59Z"))
    assert not _seen(placed, node).node_gone

    earlier = _pod(startTime=start, conditions=_scheduled("2026-11-21T11:00:00Z"))
    assert _seen(earlier, node).node_gone, "this pod was placed on another machine of that name"


@pytest.mark.parametrize("hours", [-24, -2, 0, 2, 24])
def test_ends_on_nodes_with_different_clocks_are_compared_by_one(hours: int) -> None:
    off = timedelta(hours=hours)
    start, end = NOW - timedelta(minutes=30) + off, NOW - timedelta(minutes=1) + off
    pod = _pod(
        phase="Failed",
        startTime=start.isoformat(),
        conditions=_scheduled((NOW - timedelta(minutes=30)).isoformat()),
        containerStatuses=_container(terminated={"exitCode": 1, "finishedAt": end.isoformat()}),
    )
    assert _seen(pod).ended_at == NOW - timedelta(minutes=1)


def test_a_slow_start_is_no_difference_of_clocks() -> None:
    pod = _pod(
        phase="Failed",
        startTime=(NOW - timedelta(seconds=40)).isoformat(),
        conditions=_scheduled((NOW - timedelta(seconds=90)).isoformat()),
        containerStatuses=_container(terminated={"exitCode": 1, "finishedAt": NOW.isoformat()}),
    )
    assert _seen(pod).ended_at == NOW


@pytest.mark.parametrize(
    "was_off", [timedelta(hours=-24), timedelta(hours=-2), timedelta(hours=2), timedelta(hours=24)]
)
def test_a_clock_that_is_set_right_in_mid_run_moves_no_end(was_off: timedelta) -> None:
    """Only the start has the difference. Whoever pays for the machine pays until its end, and no longer."""
    placed, ended = NOW - timedelta(hours=4), NOW - timedelta(minutes=1)
    pod = _pod(
        phase="Failed",
        startTime=(placed + was_off).isoformat(),
        conditions=_scheduled(placed.isoformat()),
        containerStatuses=_container(terminated={"exitCode": 137, "finishedAt": ended.isoformat()}),
    )
    assert _seen(pod).ended_at == ended


def test_an_end_that_only_lies_in_the_future_is_not_known() -> None:
    pod = _pod(
        phase="Failed",
        startTime=(NOW - timedelta(minutes=30)).isoformat(),
        conditions=_scheduled((NOW - timedelta(minutes=30)).isoformat()),
        containerStatuses=_container(terminated={"exitCode": 1, "finishedAt": (NOW + timedelta(hours=2)).isoformat()}),
    )
    assert _seen(pod).ended_at is None


@pytest.mark.parametrize("hours", [-24, -2, 0, 2, 24])
def test_an_init_container_runs_since_a_time_of_the_control_plane(hours: int) -> None:
    placed, off = NOW - timedelta(minutes=30), timedelta(hours=hours)
    running = {"running": {"startedAt": (placed + timedelta(minutes=10) + off).isoformat()}}
    pod = _pod(
        phase="Pending",
        startTime=(placed + off).isoformat(),
        conditions=_scheduled(placed.isoformat()),
        initContainerStatuses=_container("fetch", **running),
    )
    (word,) = _seen(pod).words
    assert word.first_time == placed + (timedelta(minutes=10) if hours == 0 else timedelta())
