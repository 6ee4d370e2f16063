"""Why a run waits: the cluster's words, and what follows from them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from piton.api.conditions import POD_STUCK, WAITING
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec, Stage
from piton.api.status import AttemptState, RunStatus, Verdict
from piton.api.status_base import Condition, Phase
from piton.core import wait_causes
from piton.core.decide import NO_ROOM, decide, refused, still
from piton.core.start_words import SIDECAR_STARTS, Proven
from piton.core.wait_causes import Cause, recognize
from piton.core.wait_reasons import SILENT_SECONDS, refusal, why
from piton.observed import AttemptSeen, ClusterMessage, LeavingPod, Observed, ReplicaSeen, ReplicaState, VolumeSeen
from piton.timing import Timing
from support.builders import (
    NOW,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    later,
    meta,
)

POD = "ragcun-1-master-0"


def a_word(
    reason: str, message: str = "", *, at: float = 0, since: float | None = None, **fields: Any
) -> ClusterMessage:
    first = at if since is None else since
    times = {"first_time": later(first), "last_time": later(at)}
    return ClusterMessage(**{"reason": reason, "message": message, "source": "kubelet", **times, **fields})


def unschedulable(message: str) -> ClusterMessage:
    return ClusterMessage(reason="Unschedulable", message=message)


def waiting(*words: ClusterMessage, **fields: Any) -> ReplicaSeen:
    return a_replica(ReplicaState.WAITING, words=words, **fields)


def told(*words: ClusterMessage, now: datetime = NOW, **fields: Any) -> tuple[Reason, str]:
    wait = why(an_attempt(waiting(*words, **fields)), now=now, since=NOW)
    assert wait is not None
    return wait.reason, wait.message


_SILENT = {"node": "n1", "placed_at": NOW, "waiting": "ContainerCreating", "never_started": True}


@pytest.mark.parametrize(
    ("words", "fields", "seconds", "is_told"),
    [
        ((), {}, 119, False),
        ((), {}, 120, True),
        ((ClusterMessage(reason="ContainerCreating"),), {}, 120, True),
        ((), {"placed_at": None}, 120, True),
        ((), {"placed_at": later(600)}, 719, False),
        ((a_word("Scheduled"),), {}, 120, True),
        ((), {"words_unread": True}, 3600, False),
        ((a_word("Pulling", 'image "x"', at=1), a_word("Pulled", 'image "x"', at=300)), {}, 419, False),
        ((a_word("Pulling", 'image "x"', at=1), a_word("Pulled", 'image "x"', at=300)), {}, 420, True),
        ((a_word("Pulled", 'image "x"', at=300, host="n1"),), {}, 419, False),
        ((a_word("Pulled", 'image "x"', at=300, host="n2"),), {}, 120, True),
        ((a_word("Synced", "all is well", at=3590, since=1, source="secret-syncer"),), {}, 3600, True),
        ((a_word("Synced", "all is well", at=3590, since=1, source=""),), {}, 3600, True),
        ((a_word("SuccessfulAttachVolume", at=300, source="attachdetach-controller"),), {}, 419, False),
        ((a_word("SuccessfulAttachVolume", at=300, source="attachdetach-controller"),), {}, 420, True),
        ((a_word("SandboxChanged", "it will be re-created", at=3590, since=300),), {}, 419, False),
        ((a_word("SandboxChanged", "it will be re-created", at=3590, since=300),), {}, 3600, True),
        ((a_word("Pulled", 'image "x"', at=3590, since=1),), {}, 3600, True),
        ((), {"node": None, "placed_at": None}, 3600, False),
        ((), {"deleting": True}, 3600, False),
    ],
)
def test_two_minutes_in_which_nobody_says_why_a_container_does_not_start_are_told(
    words: tuple[ClusterMessage, ...], fields: dict[str, Any], seconds: float, is_told: bool
) -> None:
    seen = an_attempt(waiting(*words, **{**_SILENT, **fields}))
    wait = why(seen, now=later(seconds), since=NOW)
    assert (wait is not None) is is_told
    assert wait is None or wait.reason is Reason.KUBELET_SILENT
    assert wait is None or "the kubelet of n1 has not said why the container pytorch does not start" in wait.message


_DRA = "failed to prepare dynamic resources: no such device"
_SIDECAR = ClusterMessage(reason=SIDECAR_STARTS, message="its startup probe has not passed in the init container cache")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((a_word("FailedPrepareDynamicResources", _DRA, at=600, is_warning=True),), _DRA),
        ((a_word("Unhealthy", "Startup probe failed: 503", at=600, is_warning=True),), "Startup probe failed: 503"),
        ((_SIDECAR, a_word("Started", "Started container cache", at=1)), "in the init container cache"),
        ((a_word("Unhealthy", "503", at=1, is_warning=True), a_word("Started", "cache", at=300)), None),
        ((a_word("Unhealthy", "503", at=1, is_warning=True), a_word("Synced", at=600, source="secret-syncer")), "503"),
        ((a_word("NotSynced", "no such key", at=600, is_warning=True, source="secret-syncer"),), "no such key"),
    ],
)
def test_a_warning_that_nobody_knows_is_quoted_and_does_not_begin_the_time_anew(
    words: tuple[ClusterMessage, ...], told: str | None
) -> None:
    """A kubelet repeats its warnings each five minutes."""
    wait = why(an_attempt(waiting(*words, **_SILENT)), now=later(601), since=NOW)
    assert wait is not None
    assert wait.reason is Reason.KUBELET_SILENT
    assert (told or "has not said why") in wait.message
    assert told is None or "has not said" not in wait.message
    assert "replace the node" not in wait.message


@pytest.mark.parametrize(
    "placed",
    [a_word("Scheduled", at=3), a_word("Scheduled", at=-60), a_word("Synced", at=600, source="secret-syncer")],
)
def test_what_was_said_before_it_had_its_node_or_by_others_says_nothing_of_its_kubelet(placed: ClusterMessage) -> None:
    before = a_word("FailedScheduling", "0/3 nodes", at=-60, is_warning=True)
    wait = why(an_attempt(waiting(before, placed, **_SILENT)), now=later(601), since=NOW)
    assert wait is not None
    assert "0/3 nodes" not in wait.message
    assert "replace the node" in wait.message


def test_a_replica_whose_events_were_not_read_is_not_accused() -> None:
    read = waiting(a_word("Pulling", 'image "x"', at=9), name="ragcun-1-worker-1", **_SILENT)
    unread = waiting(name="ragcun-1-worker-0", **{**_SILENT, "node": "n2"}, words_unread=True)
    wait = why(an_attempt(unread, read, expected_replicas=2), now=later(600), since=NOW)
    assert wait is not None
    assert wait.reason is Reason.IMAGE_PULLING
    silent = waiting(a_word("Pulled", 'image "x"', at=9), name="ragcun-1-worker-1", **_SILENT)
    wait = why(an_attempt(unread, silent, expected_replicas=2), now=later(600), since=NOW)
    assert wait is not None
    assert wait.message.startswith("ragcun-1-worker-1: the kubelet of n1 has not said why")


def test_a_peer_that_starts_in_silence_is_told_while_the_others_run_and_a_known_cause_is_told_first() -> None:
    silent = waiting(name="ragcun-1-worker-0", **_SILENT)
    runs = an_attempt(a_replica(node="n0", placed_at=NOW), silent)
    status = a_status(a_record(state=AttemptState.RUNNING, running_time=NOW))
    decision = decide(an_observed(runs, status=status, spec=a_spec(workers={"nodes": 2})), now=later(121))
    condition = decision.status.condition(WAITING)
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", Reason.KUBELET_SILENT)
    assert [news.reason for news in decision.announcements] == [Reason.KUBELET_SILENT]

    mounts = waiting(a_word("FailedMount", "no"), **_SILENT)
    wait = why(an_attempt(mounts, silent), now=later(121), since=NOW)
    assert wait is not None
    assert wait.reason is Reason.VOLUME_MOUNTING


def test_where_events_cannot_be_read_the_kubelet_is_not_blamed() -> None:
    wait = why(an_attempt(waiting(**_SILENT), words_unknown=True), now=later(121), since=NOW)
    assert wait is not None
    assert "Events cannot be read" in wait.message
    assert "has not said" not in wait.message


ONLY_OF_WORKERS = ("workers.template.resources", "workers.template.tol", "workers.template.nodeS", "Types", "tiers")
"""Settings that a stage beside the training does not have."""


@pytest.mark.parametrize("cause", wait_causes.PLACEMENT + wait_causes.REFUSALS, ids=lambda cause: cause.pattern[:30])
@pytest.mark.parametrize("stage", Stage)
def test_advice_names_settings_of_the_stage_that_waits(cause: Cause, stage: Stage) -> None:
    known: dict[str, Any] = dict.fromkeys(re.compile(cause.pattern).groupindex, "x")
    found = recognize("", [replace(cause, pattern="")], stage, zone="", **known)
    assert found is not None
    wrong = ONLY_OF_WORKERS if stage is not Stage.TRAIN else ("stages.",)
    assert not [word for word in wrong if word in found.advice]
    assert "{" not in found.advice


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("0/3 nodes are available: 3 had untolerated taint {pool: cpu}.", "to spec.stages.prepare.tolerations if"),
        ("0/3 nodes are available: 3 Insufficient memory.", "ask for less in spec.stages.prepare.resources, or widen"),
        ("3 node(s) didn't match Pod's node affinity/selector.", "spec.workers.zones and spec.stages.prepare.nodeS"),
    ],
)
def test_a_stage_that_no_node_takes_is_told_its_own_settings(message: str, advice: str) -> None:
    seen = replace(an_attempt(waiting(unschedulable(message))), stage=Stage.PREPARE)
    wait = why(seen, now=NOW, since=NOW)
    assert wait is not None
    assert advice in wait.message


def test_a_refusal_of_a_stage_names_its_own_settings() -> None:
    record = a_record(state=AttemptState.PENDING, stage=Stage.PREPARE)
    found = refused(an_observed(status=a_status(record)), "failed quota: q: must specify memory", now=NOW).status
    assert "set it in spec.stages.prepare.resources" in the_condition(found).message


def starting(seen: AttemptSeen, status: RunStatus | None = None, run: Meta | None = None) -> Observed:
    return an_observed(seen, status=status or a_status(a_record(state=AttemptState.STARTING)), run=run)


def the_condition(status: RunStatus) -> Condition:
    found = status.condition(WAITING)
    assert found is not None
    return found


NO_ANSWER = (
    'Internal error occurred: failed calling webhook "validator.kubeflow.org": failed to call webhook:'
    ' Post "https://training-operator.kubeflow.svc:443/validate?timeout=10s": dial tcp: connect: connection refused'
)
REFUSALS = [
    (
        NO_ANSWER,
        Reason.WEBHOOK_UNAVAILABLE,
        "the service training-operator.kubeflow.svc run",
    ),
    ('failed calling webhook "v.example.com"; no further details', Reason.WEBHOOK_UNAVAILABLE, "v.example.com"),
    ('admission webhook "kyverno.svc" denied the request: no', Reason.POLICY_DENIED, "kyverno.svc objects to"),
    ("ValidatingAdmissionPolicy 'small' with binding 'b' denied request: no", Reason.POLICY_DENIED, "policy small"),
    (
        'pods "a" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        Reason.POD_SECURITY,
        'enforces Pod Security "restricted"',
    ),
    ("exceeded quota: gpus, requested: pods=1, used: pods=0", Reason.QUOTA_EXCEEDED, "ResourceQuota gpus"),
    ("failed quota: cpus: must specify limits.cpu for: pytorch", Reason.QUOTA_EXCEEDED, "template.resources"),
    ("maximum memory usage per Container is 1Gi, but limit is 2Gi", Reason.LIMIT_RANGE, "LimitRange"),
    (
        'pods is forbidden: User "system:serviceaccount:p:piton" cannot create resource "pods" in API group ""',
        Reason.MISSING_RIGHTS,
        "Allow system:serviceaccount:p:piton to create pods",
    ),
    ("unable to create new content in namespace a because it is being terminated", Reason.NAMESPACE_TERMINATING, ""),
    ("PyTorchJobs cannot be created here (404); is their CRD installed?", Reason.ENGINE_MISSING, "Install the CRD"),
    ("there is no claim 'data' in 'team'; create it", Reason.CLAIM_MISSING, ""),
    ('error looking up service account team/x: serviceaccount "x" not found', Reason.REFUSED, "service account x"),
    ("something that nobody has seen", Reason.REFUSED, ""),
]


@pytest.mark.parametrize(("sentence", "reason", "advice"), REFUSALS, ids=[case[0][:40] for case in REFUSALS])
def test_a_refusal_is_quoted_with_its_reason_and_what_helps(sentence: str, reason: Reason, advice: str) -> None:
    wait = refusal(sentence)

    assert wait.reason is reason
    assert wait.message.startswith(sentence.rstrip("."))
    assert advice in wait.message


PLACEMENT = [
    ('persistentvolumeclaim "data" not found', Reason.CLAIM_MISSING, "Create the claim data"),
    ("pod has unbound immediate PersistentVolumeClaims", Reason.VOLUME_UNBOUND, "storage class"),
    ("2 node(s) didn't match PersistentVolume's node affinity", Reason.VOLUME_IN_OTHER_ZONE, "spec.workers.zones"),
    ("2 node(s) had volume node affinity conflict", Reason.VOLUME_IN_OTHER_ZONE, "spec.workers.zones"),
    ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", Reason.UNSCHEDULABLE, "enough nvidia.com/gpu free"),
    ("1 node(s) didn't match Pod's node affinity/selector", Reason.UNSCHEDULABLE, "nodeSelector"),
    ("3 node(s) had untolerated taint(s)", Reason.UNSCHEDULABLE, "tolerations"),
    ("something that nobody has seen", Reason.UNSCHEDULABLE, ""),
]


@pytest.mark.parametrize(("sentence", "reason", "advice"), PLACEMENT, ids=[case[0][:40] for case in PLACEMENT])
def test_a_pod_without_a_node_is_told_in_the_schedulers_words(sentence: str, reason: Reason, advice: str) -> None:
    found, message = told(unschedulable(sentence))

    assert found is reason
    assert message.startswith(f"{POD}: Unschedulable: {sentence.rstrip('.')}")
    assert advice in message


STARTS = [
    (
        a_word("FailedAttachVolume", "Volume is already exclusively attached", source="attachdetach-controller"),
        Reason.VOLUME_ATTACHING,
        "6 minutes",
    ),
    (a_word("FailedMount", 'configmap "words" not found'), Reason.VOLUME_MOUNTING, "Create the configmap words"),
    (a_word("FailedCreatePodSandBox", "no CNI"), Reason.SANDBOX_FAILED, "CNI"),
    (
        ClusterMessage(reason="ImagePullBackOff", message='Back-off pulling image "a:1"'),
        Reason.IMAGE_PULL_FAILED,
        "name",
    ),
    (
        ClusterMessage(reason="CreateContainerConfigError", message='secret "s" not found'),
        Reason.CONTAINER_CONFIG,
        "secret s",
    ),
    (ClusterMessage(reason="SchedulingGated", message="gated"), Reason.SCHEDULING_GATED, "gates"),
    (a_word("Pulling", 'Pulling image "a:1"'), Reason.IMAGE_PULLING, ""),
    (ClusterMessage(reason="InitContainer", message="init-pytorch is running"), Reason.INIT_CONTAINER, "init-pytorch"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "reason", "advice"), STARTS, ids=[case[0].reason for case in STARTS])
def test_a_pod_that_has_a_node_is_told_in_the_words_of_its_events(
    word: ClusterMessage, reason: Reason, advice: str
) -> None:
    found, message = told(word, node="node-1")

    assert found is reason
    assert word.message in message
    assert advice in message


NODES, CHECK = "Piton recognizes nothing about the run", "Check spec.trainer"
REGISTRY, NAME, WEBHOOK = "The registry fails", "Check the image's name", "webhook or controller that adds it"
DOWN = "unexpected status from HEAD request to https://x/v2/y: 503 Service Unavailable"
GONE = "failed to resolve reference: not found"
NO_SECRET = 'secret "s" not found'


@pytest.mark.parametrize(
    ("reason", "message", "advice", "after"),
    [
        ("CreateContainerError", 'failed to reserve container name "p": name "p" is reserved for "a"', NODES, NODES),
        ("CreateContainerError", "context deadline exceeded", NODES, NODES),
        ("CreateContainerConfigError", "failed to sync secret cache: timed out", NODES, NODES),
        ("RunContainerError", "nvidia-container-cli: initialization error: nvml error", NODES, NODES),
        ("RunContainerError", "something that nobody has seen yet", NODES, NODES),
        ("CreateContainerError", "no command specified", CHECK, NODES),
        ("CreateContainerConfigError", NO_SECRET, "Create the secret s", "Create the secret s"),
        ("ErrImagePull", DOWN, REGISTRY, REGISTRY),
        ("ImagePullBackOff", f'Back-off pulling image "x/y:1": ErrImagePull: {DOWN}', REGISTRY, REGISTRY),
        ("ErrImagePull", "write /var/lib/containerd/blob: no space left on device", REGISTRY, REGISTRY),
        ("ErrImagePull", GONE, NAME, REGISTRY),
        ("ImagePullBackOff", 'Back-off pulling image "x/y:1"', NAME, REGISTRY),
        ("ErrImagePull", "no match for platform in manifest: not found", "architecture of these nodes", REGISTRY),
        ("SignatureValidationFailed", "A signature was required", "have it signed", REGISTRY),
        ("ErrImagePull", "docker schema 1 images are not supported", "build the image anew", REGISTRY),
    ],
)
def test_advice_on_a_container_that_cannot_start_is_for_the_one_whom_the_verdict_blames(
    reason: str, message: str, advice: str, after: str
) -> None:
    seen = an_attempt(
        waiting(
            ClusterMessage(reason=reason, message=message),
            waiting=f"{reason}: {message}",
            cannot_start=True,
            program="python",
        )
    )
    first = why(seen, now=NOW, since=NOW)
    later_on = why(seen, now=NOW, since=NOW, proven=Proven(image=True, program=True))
    assert first is not None
    assert later_on is not None
    assert (advice in first.message, after in later_on.message) == (True, True)
    assert first.message.count("Check ") == (advice in (NAME, CHECK))
    begun = decide(starting(seen), now=NOW).status
    judged = decide(starting(seen, begun), now=later(Timing().start_seconds)).status.current
    assert judged is not None
    is_clusters = advice in (NODES, REGISTRY)
    assert judged.verdict is (Verdict.INFRASTRUCTURE if is_clusters else Verdict.USER_FAILURE)


@pytest.mark.parametrize(
    ("reason", "message", "advice"),
    [("ErrImagePull", GONE, WEBHOOK), ("CreateContainerError", "context deadline exceeded", WEBHOOK)],
)
def test_advice_on_an_init_container_that_cannot_start_is_for_whoever_has_added_it(
    reason: str, message: str, advice: str
) -> None:
    word = ClusterMessage(reason=reason, message=message)
    words = f"init container istio-init: {reason}: {message}"
    assert advice in told(word, waiting=words, cannot_start=True, node="n1")[1]


def test_advice_on_an_image_that_a_registry_misses_after_it_was_down_is_not_to_check_its_name() -> None:
    """As the verdict has it: a registry that comes back may say of each image that it does not exist."""

    def seen(words: str) -> AttemptSeen:
        word = ClusterMessage(reason="ErrImagePull", message=words)
        return an_attempt(waiting(word, waiting=f"ErrImagePull: {words}", cannot_start=True, program="python"))

    fresh = decide(starting(seen(GONE)), now=NOW).status
    was_down = decide(starting(seen(DOWN)), now=NOW).status
    back = decide(starting(seen(GONE), was_down), now=NOW).status
    assert NAME in the_condition(fresh).message
    assert REGISTRY in the_condition(back).message
    judged = decide(starting(seen(GONE), back), now=later(Timing().start_seconds)).status.current
    assert judged is not None
    assert judged.verdict is Verdict.INFRASTRUCTURE


@pytest.mark.parametrize(("cause", "advice"), [(DOWN, REGISTRY), ("x/y:1: not found", NAME)])
def test_advice_follows_a_cause_that_only_an_event_tells(cause: str, advice: str) -> None:
    """Kubelets before 1.32 leave it out of the state."""
    state = ClusterMessage(reason="ImagePullBackOff", message='Back-off pulling image "x/y:1"')
    event = a_word("Failed", f'Failed to pull image "x/y:1": rpc error: {cause}', is_warning=True)
    waits = f"{state.reason}: {state.message}"
    assert advice in told(state, event, waiting=waits, cannot_start=True, node="n1")[1]


NOT_YET = ("workers.minNodes", "capacity.patience")
"""Fields that validation refuses whatever is written there."""
_PATH = re.compile(r"\b(?:spec\.)?((?:workers|capacity|checkpoint|limits|stages|objective|trainer)(?:\.[a-z]\w*)+)")


def _paths() -> Iterator[str]:
    """Every field of a run's spec that a sentence of the core names."""
    for file in Path(wait_causes.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield from _PATH.findall(node.value)


def test_advice_names_fields_that_exist_and_that_validation_takes() -> None:
    found = set(_paths())
    assert len(found) > 20
    assert not found & set(NOT_YET)
    assert not [path for path in found if not _is_field(path)]


def _is_field(path: str) -> bool:
    model: Any = Spec
    for part in path.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return part in ("data", "memory", "requests", "limits") or "config" in path
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        if part not in fields:
            return False
        kinds = get_args(fields[part]) or (fields[part],)
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return True


OVER = [
    (a_word("FailedAttachVolume", "in use"), a_word("SuccessfulAttachVolume", at=1)),
    (a_word("FailedMount", "no such secret"), a_word("Pulling", 'Pulling image "a:1"', at=1)),
    (a_word("FailedCreatePodSandBox"), a_word("Pulled", 'Container image "a:1" already present', at=1)),
    (a_word("Pulling", 'Pulling image "a:1"'), a_word("Pulled", 'Successfully pulled image "a:1" in 3s', at=0)),
    (a_word("Nominated", "on: nodeclaim/a", source="karpenter"), a_word("FailedScheduling", source="karpenter", at=1)),
]


def test_what_helps_fits_into_an_event_however_long_the_quotation_is() -> None:
    """An Event has room for 1024 bytes, and is cut at its end."""
    no_root = refusal('pods "a" is forbidden: violates PodSecurity "restricted:latest": ' + "no root, " * 200).message
    nowhere = told(
        unschedulable("1 Insufficient nvidia.com/gpu, " * 50),
        a_word("FailedScheduling", "no instance type met all requirements, " * 50, source="karpenter"),
    )[1]

    assert "runAsNonRoot: true" in no_root
    assert "spec.capacity.tiers" in nowhere
    assert max(len(no_root), len(nowhere)) <= 1024


@pytest.mark.parametrize(("word", "end"), OVER, ids=[f"{word.reason} {end.reason}" for word, end in OVER])
def test_a_word_counts_until_a_later_one_shows_that_it_is_over(word: ClusterMessage, end: ClusterMessage) -> None:
    first = why(an_attempt(waiting(word)), now=NOW, since=NOW)
    then = why(an_attempt(waiting(word, end)), now=NOW, since=NOW)

    assert first is not None
    assert then is None or then.reason is not first.reason


def test_one_image_that_is_there_says_nothing_about_another() -> None:
    words = a_word("Pulled", 'Container image "init:1" already present'), a_word("Pulling", 'Pulling image "a:1"')

    assert told(*words)[0] is Reason.IMAGE_PULLING


def test_a_node_that_karpenter_launches_outranks_that_no_node_has_room() -> None:
    nowhere = unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    nominated = a_word("Nominated", "Pod should schedule on: nodeclaim/gpu-x", source="karpenter")
    by_scheduler = a_word("FailedScheduling", "0/1 nodes are available", source="default-scheduler", at=9)

    reason, message = told(nowhere, nominated, by_scheduler, now=later(45))
    assert reason is Reason.NODE_LAUNCHING
    assert message == (
        f"{POD}: Nominated: Pod should schedule on: nodeclaim/gpu-x, for more than 30s. A node is being launched."
    )


UP = a_word("TriggeredScaleUp", "pod triggered scale-up: [{gke-gpu 0->1 (max: 4)}]", source="cluster-autoscaler")
ZONE_FAILED = "Node scale up in zones us-central1-a associated with this pod failed: "


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        (
            a_word("FailedScaleUp", f"{ZONE_FAILED}GCE out of resources.", source="cluster-autoscaler", at=9),
            "The cloud has",
        ),
        (
            a_word("FailedScaleUp", f"{ZONE_FAILED}GCE quota exceeded.", source="cluster-autoscaler", at=9),
            "account's quota",
        ),
        (
            a_word("FailedScaleUp", f"{ZONE_FAILED}Internal error.", source="gke.io/autoscaler", at=9),
            "nvidia.com/gpu free",
        ),
        (
            a_word("NotTriggerScaleUp", "1 in backoff after failed scale-up", source="cluster-autoscaler", at=9),
            "The cloud has",
        ),
        (
            a_word("NotTriggerScaleUp", "1 max node group size reached", source="cluster-autoscaler", at=9),
            "size of the node group",
        ),
        (
            a_word("FailedScheduling", "insufficient capacity for all types", source="eks-auto-mode/compute", at=9),
            "The cloud has",
        ),
    ],
)
def test_a_launch_that_has_failed_is_no_node_on_its_way(word: ClusterMessage, advice: str) -> None:
    nowhere = unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    reason, message = told(nowhere, UP, word, now=later(7200))
    assert reason is Reason.UNSCHEDULABLE
    assert word.message in message
    assert advice in message

    again = a_word("TriggeredScaleUp", "pod triggered scale-up: [{b 0->1}]", source="cluster-autoscaler", at=20)
    assert told(nowhere, UP, word, again, now=later(7200))[0] is Reason.NODE_LAUNCHING


def test_karpenters_words_stand_beside_the_schedulers() -> None:
    nowhere = unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint(s)")
    why_not = "Failed to schedule pod, all available instance types exceed limits for nodepool"
    reason, message = told(nowhere, a_word("FailedScheduling", why_not, source="karpenter"))

    assert reason is Reason.UNSCHEDULABLE
    assert "untolerated taint(s); karpenter: Failed to schedule pod" in message
    assert "Raise spec.limits of the NodePool" in message


@pytest.mark.parametrize(
    "words",
    [
        [
            unschedulable(
                "0/6 nodes are available: 2 Insufficient nvidia.com/gpu, 4 node(s) didn't match pod affinity rules."
            )
        ],
        [
            unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
            a_word(
                "FailedScheduling",
                "unsatisfiable topology constraint for pod affinity, key=topology.kubernetes.io/zone",
                source="karpenter",
            ),
        ],
    ],
    ids=["kube-scheduler", "Karpenter"],
)
def test_a_replica_says_in_which_zone_it_has_to_wait_for_a_node(words: list[ClusterMessage]) -> None:
    def said(zone: str | None) -> str:
        seen = an_attempt(a_replica(name="a", zone=zone), waiting(*words, name="b"))
        wait = why(seen, now=NOW, since=NOW)
        assert wait is not None
        assert wait.reason is Reason.UNSCHEDULABLE
        return wait.message

    assert "It waits for a node in the zone of the attempt's other replicas (us-east-1a): all" in said("us-east-1a")
    assert "It waits for a node in the zone of the attempt's other replicas: all" in said(None)


def test_the_most_decisive_word_of_a_gang_is_told() -> None:
    pulling = waiting(a_word("Pulling", 'Pulling image "a:1"'), name="a")
    stuck = waiting(a_word("FailedMount", "no such secret"), name="b")
    wait = why(an_attempt(pulling, stuck), now=NOW, since=NOW)

    assert wait is not None
    assert wait.message.startswith("b: FailedMount")


def test_a_job_without_pods_is_told_by_its_newest_event_or_as_without_a_controller() -> None:
    old, new = (
        a_word("FailedCreatePod", "exceeded quota: a, x"),
        a_word("FailedCreatePod", "exceeded quota: b, x", at=1),
    )
    quoted = why(an_attempt(words=(new, old)), now=NOW, since=NOW)
    assert quoted is not None
    assert quoted.message.startswith("exceeded quota: b")

    assert why(an_attempt(), now=later(SILENT_SECONDS - 1), since=NOW) is None
    silent = why(an_attempt(), now=later(SILENT_SECONDS), since=NOW)
    assert silent is not None
    assert silent.reason is Reason.ENGINE_SILENT

    held = why(
        an_attempt(words=(ClusterMessage(reason="Suspended", message="the job is suspended"),)),
        now=later(99),
        since=NOW,
    )
    assert held is not None
    assert held.reason is Reason.JOB_SUSPENDED


def test_a_replica_that_only_starts_waits_for_nothing() -> None:
    creating = ClusterMessage(reason="ContainerCreating")
    events = a_word("Scheduled"), a_word("Pulled", 'Container image "a:1" already present')

    assert why(an_attempt(waiting(creating, *events, node="node-1")), now=NOW, since=NOW) is None


# --- in the status ----------------------------------------------------------------------------------------------------

GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def test_the_reason_is_in_both_conditions_and_in_one_event() -> None:
    first = decide(starting(an_attempt(waiting(unschedulable(GPU)))), now=NOW)

    assert (first.status.phase, first.status.is_true(WAITING)) == (Phase.STARTING, True)
    training = first.status.condition("Training")
    assert training is not None
    assert training.reason is the_condition(first.status).reason is Reason.UNSCHEDULABLE
    assert [(a.severity, a.reason) for a in first.announcements] == [("Warning", Reason.UNSCHEDULABLE)]
    again = starting(an_attempt(waiting(unschedulable(GPU))), first.status)
    assert still(decide(again, now=later(1000)), first.status)


def test_other_numbers_are_not_written_and_other_words_are_but_told_once() -> None:
    first = decide(starting(an_attempt(waiting(unschedulable(GPU)))), now=NOW).status
    numbers = starting(an_attempt(waiting(unschedulable(GPU.replace("3", "4")))), first)
    assert still(decide(numbers, now=later(9)), first)

    words = decide(starting(an_attempt(waiting(unschedulable("1 node(s) were unschedulable"))), first), now=later(9))
    assert "were unschedulable" in the_condition(words.status).message
    assert words.announcements == ()


def test_how_long_an_image_is_pulled_is_written_in_steps() -> None:
    pulled = an_attempt(waiting(a_word("Pulling", 'Pulling image "a:1"'), node="n"))
    status = decide(starting(pulled), now=NOW).status
    messages = [the_condition(status).message]
    for seconds in range(130):
        status = decide(starting(pulled, status), now=later(seconds)).status
        messages += [the_condition(status).message] * (the_condition(status).message != messages[-1])

    assert [message.rpartition('"')[2] for message in messages] == [
        "", ", for more than 10s", ", for more than 30s", ", for more than 1m", ", for more than 2m",
    ]  # fmt: skip


def test_an_attempt_that_waits_without_a_known_reason_is_looked_at_within_5_s_and_later_less_often() -> None:
    seen = an_attempt(waiting())
    looks = [decide(starting(seen), now=later(waited)).look_again_seconds or 0 for waited in (0, 30, 100, 3600)]

    assert max(looks[:2]) <= 5
    assert looks == sorted(looks)
    assert looks[-1] == Timing().look_seconds_max


def test_an_attempt_that_waits_for_a_known_reason_is_looked_at_when_that_changes_by_time_alone() -> None:
    unplaced = starting(an_attempt(waiting(unschedulable(GPU))))
    pulled = starting(an_attempt(waiting(a_word("Pulling", 'Pulling image "a:1"'), node="n")))
    looks = [decide(pulled, now=later(waited)).look_again_seconds for waited in (0, 4, 10, 3600)]

    assert decide(unplaced, now=later(0)).look_again_seconds == Timing().look_seconds_max
    assert looks == [10, 6, 20, Timing().look_seconds_max]


def test_a_running_attempt_is_not_looked_at() -> None:
    running = an_observed(an_attempt(a_replica()), status=a_status(a_record()))

    assert decide(running, now=NOW).look_again_seconds is None


def test_a_gang_that_runs_in_part_says_what_the_others_wait_for() -> None:
    seen = an_attempt(a_replica(), waiting(unschedulable(GPU), name="b"))
    part = decide(an_observed(seen, status=a_status(a_record())), now=NOW)

    assert (part.status.phase, part.status.is_true("Training")) == (Phase.TRAINING, True)
    assert the_condition(part.status).reason is Reason.UNSCHEDULABLE
    assert [news.reason for news in part.announcements] == [Reason.UNSCHEDULABLE]
    assert still(decide(an_observed(seen, status=part.status), now=later(60)), part.status)
    whole = an_attempt(a_replica(), a_replica(name="b"))
    assert not decide(an_observed(whole, status=part.status), now=later(61)).status.is_true(WAITING)


def test_a_container_that_cannot_start_is_told_with_what_helps_before_it_is_judged() -> None:
    word = ClusterMessage(reason="ImagePullBackOff", message="no such image")
    seen = an_attempt(waiting(word, waiting="ImagePullBackOff: no such image", cannot_start=True))
    first = decide(starting(seen), now=NOW)

    assert the_condition(first.status).reason is Reason.IMAGE_PULL_FAILED
    assert "imagePullSecrets" in the_condition(first.status).message
    judged = decide(starting(seen, first.status), now=later(Timing().start_seconds))
    assert judged.status.current is not None
    assert judged.status.current.reason is Reason.CANNOT_START


def test_a_run_whose_image_cannot_be_pulled_is_suspended_at_once() -> None:
    """Nobody has to know whose fault it is when nothing is wanted any more."""
    word = ClusterMessage(reason="ImagePullBackOff", message="no such image")
    seen = an_attempt(waiting(word, waiting="ImagePullBackOff: no such image", cannot_start=True))
    status = decide(starting(seen), now=NOW).status
    suspended = an_observed(seen, status=status, spec=a_spec(suspend=True))

    stopping = decide(suspended, now=later(1)).status
    assert (stopping.phase, stopping.is_true(WAITING)) == (Phase.STOPPING, False)
    assert stopping.current is not None
    assert stopping.current.verdict is Verdict.STOPPED


# --- refused ----------------------------------------------------------------------------------------------------------


def pending(status: RunStatus | None = None, run: Meta | None = None) -> Observed:
    return an_observed(
        status=status or a_status(a_record(state=AttemptState.PENDING), phase=Phase.PENDING),
        run=run,
        volume=VolumeSeen(exists=True),
    )


def test_a_refusal_whose_text_varies_is_written_once() -> None:
    first = refused(pending(), 'admission webhook "a" denied the request: id 5e1f-77 at 12:01:02', now=NOW)
    second = refused(
        pending(first.status), 'admission webhook "a" denied the request: id 90ab-13 at 12:01:03', now=later(1)
    )

    assert [news.reason for news in first.announcements] == [Reason.POLICY_DENIED]
    assert (second.status, second.announcements) == (first.status, ())


def test_what_is_refused_for_long_is_tried_less_often() -> None:
    status = refused(pending(), "exceeded quota: a", now=NOW).status
    waits = [refused(pending(status), "exceeded quota: a", now=later(s)).look_again_seconds or 0 for s in (0, 60, 9999)]

    assert waits == [4.0, 15.0, 120.0]


ROOM = Timing(room_seconds=600.0)
FULL, UNSTATED = "exceeded quota: a", "failed quota: a: must specify limits.cpu"


@pytest.mark.parametrize(
    ("sentence", "timing", "seconds"),
    [(FULL, ROOM, 600.0), (FULL, Timing(), 4.0), (UNSTATED, ROOM, 4.0), ('failed calling webhook "a"', ROOM, 4.0)],
)
def test_what_only_room_in_a_quota_ends_is_tried_rarely_where_somebody_looks_for_room(
    sentence: str, timing: Timing, seconds: float
) -> None:
    decision = refused(pending(), sentence, now=NOW, timing=timing)

    assert decision.look_again_seconds == seconds
    assert (decision.rule == NO_ROOM) is (seconds == 600.0)


@pytest.mark.parametrize(("passed", "seconds"), [(0, 300.0), (299, 1.0), (300, 600.0), (301, 600.0)])
def test_a_run_that_waits_for_room_is_looked_at_when_its_deadline_passes(passed: float, seconds: float) -> None:
    observed = replace(pending(), spec=a_spec(limits={"deadline": "5m"}))

    assert refused(observed, FULL, now=later(passed), timing=ROOM).look_again_seconds == seconds


def test_a_refusal_is_over_when_the_next_thing_happens() -> None:
    status = refused(pending(), "exceeded quota: a", now=NOW).status

    assert status.is_true(WAITING)
    assert not decide(pending(status), now=later(10)).status.is_true(WAITING)


def test_a_run_whose_deletion_is_refused_says_so_and_then_that_it_is_deleted() -> None:
    run = meta(deleting=True)
    seen = an_attempt(a_replica())
    first = refused(an_observed(seen, status=a_status(a_record()), run=run), 'failed calling webhook "a"', now=NOW)
    assert the_condition(first.status).reason is Reason.WEBHOOK_UNAVAILABLE
    assert len(first.announcements) == 1

    leaving = an_observed(an_attempt(a_replica(deleting=True), deleting=True), status=first.status, run=run)
    second = decide(leaving, now=later(5)).status
    assert not second.is_true(WAITING)
    training = second.condition("Training")
    assert training is not None
    assert training.reason is Reason.DELETED


def test_a_run_that_has_ended_keeps_its_result_when_something_is_refused() -> None:
    ended = a_status(an_ended(1, Verdict.FINISHED, reason=Reason.FINISHED), phase=Phase.SUCCEEDED)
    observed = an_observed(status=ended)
    status = refused(observed, "exceeded quota: a", now=NOW).status

    assert status.is_true(WAITING)
    assert status.condition("Succeeded") == ended.condition("Succeeded")
    over = decide(an_observed(status=status), now=later(10)).status
    assert not over.is_true(WAITING)
    assert still(decide(an_observed(status=over, run=meta(held=False)), now=later(20)), over)


def test_a_stop_that_was_refused_says_again_why_it_stops() -> None:
    stopping = a_status(
        a_record(state=AttemptState.STOPPING, verdict=Verdict.STOPPED, reason=Reason.SUSPENDED, message="told to stop"),
        phase=Phase.STOPPING,
    )
    seen = an_attempt(a_replica())
    status = refused(an_observed(seen, status=stopping), "exceeded quota: a", now=NOW).status
    assert the_condition(status).reason is Reason.QUOTA_EXCEEDED
    gone = an_observed(an_attempt(a_replica(deleting=True), deleting=True), status=status)
    training = decide(gone, now=NOW).status.condition("Training")
    assert training is not None
    assert (training.reason, training.message) == (Reason.SUSPENDED, "told to stop")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "KubeletNotReady: pleg was last seen active 3m2.5s ago",
            "it is not ready (KubeletNotReady: pleg was last seen",
        ),
        ("", "a process may hang in the kernel"),
    ],
)
def test_a_pod_that_stays_on_a_node_that_is_not_ready_has_that_as_its_cause(words: str, told: str) -> None:
    pod = LeavingPod(
        name="a", uid="a", node="n1", leaves_by=NOW, unshared_claims=(), is_node_closed=False, not_ready=words
    )
    seen = an_attempt(a_replica(node="n1", deleting=True), deleting=True, job=None, leaving=(pod,))
    status = a_status(a_record(state=AttemptState.STOPPING))
    condition = decide(an_observed(seen, status=status), now=later(300)).status.condition(POD_STUCK)
    assert condition is not None
    assert told in condition.message
    assert ("process" in condition.message) is not bool(words)
    assert "3m2.5s" not in condition.message, "each look would be a write"
