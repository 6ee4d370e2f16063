"""What keeps pods from starting, in the words of kubelets, registries and runtimes: through the whole operator."""

from typing import Any

import pytest

from piton.api.conditions import STALLED, WAITING
from piton.api.reasons import Reason
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract import names
from piton.timing import Timing
from support.apiserver import EVENTS, PODS
from support.builders import a_manifest
from support.cluster import Cluster, Disrupted, Ends, Reports, Runs, Waits
from support.pilot import Pilot, a_pilot

OCI = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
NVIDIA = (
    f"{OCI}unable to start container process: error during container init: error running prestart hook #0: exit status "
    "1, stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: initialization error: nvml error"
)
MOUNT = f'{OCI}error mounting "/etc/hostname" to rootfs at "/usr": not a directory'
NOBODY_KNOWS = (
    'failed to start containerd task "pytorch": cannot start a stopped process: unknown',
    "OCI runtime create failed: runc did not terminate successfully: signal: killed: unknown",
    "exit status 255: unknown",
    "",
)
LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 20Mi. "
EVICTED = f"{LOW}Container pytorch was using 412000Ki, request is 0, has larger consumption of memory. "
UNAVAILABLE = (
    'Back-off pulling image "x/y:1": ErrImagePull: unexpected status from HEAD request: 503 Service Unavailable'
)
GONE = 'Back-off pulling image "x/y:1": ErrImagePull: failed to resolve reference "x/y:1": x/y:1: not found'


def start_error(message: str) -> Reports:
    ended = {"exitCode": 128, "reason": "StartError", "message": message, "startedAt": "1970-01-01T00:00:00Z"}
    return Reports(status={"phase": "Failed", "containerStatuses": _pytorch({"terminated": ended})})


def evicted(message: str = EVICTED) -> Reports:
    return Reports(status={"phase": "Failed", "reason": "Evicted", "message": message})


def init_fails(code: int, said: str) -> Reports:
    ended = {"exitCode": code, "reason": "Error", "message": said}
    return Reports(
        status={
            "phase": "Failed",
            "initContainerStatuses": [{"name": "vault-agent-init", "state": {"terminated": ended}}],
            "containerStatuses": _pytorch({"waiting": {"reason": "PodInitializing"}}),
        }
    )


def creating(event: tuple[str, str] | None = None) -> Reports:
    """A pod that the node has accepted and does not start."""
    return Reports(status={"containerStatuses": _pytorch({"waiting": {"reason": "ContainerCreating"}})}, event=event)


def _pytorch(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": names.CONTAINER, "state": state}]


async def after_a_save(pilot: Pilot, *fates: Any, **spec: Any) -> RunStatus:
    """A run that has trained and saved, lost its machine, and meets these fates one attempt after the other."""
    pilot.cluster.script = {1: Disrupted(), **dict(enumerate(fates, start=2))}
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until(lambda: pilot.status().phase in (Phase.SUCCEEDED, Phase.FAILED), turns=600)
    return pilot.status()


@pytest.mark.parametrize(
    "fate",
    [
        start_error(NVIDIA),
        start_error(MOUNT),
        start_error(f"{OCI}something that nobody has seen yet"),
        Waits(reason="ImagePullBackOff", message=UNAVAILABLE),
        Waits(reason="ImagePullBackOff", message=GONE),
        Waits(),
        Waits(reason="ErrImagePull", message="unexpected status: 403 Forbidden"),
        Waits(reason="CreateContainerError", message='failed to reserve container name "p": name is reserved for "a"'),
        Waits(reason="CreateContainerError", message="context deadline exceeded"),
        creating(("FailedCreatePodSandBox", "no runtime for nvidia is configured")),
    ],
    ids=["NVIDIA", "mount", "unknown", "503", "404", "no cause", "403", "reserved", "slow", "sandbox"],
)
async def test_what_has_run_before_is_never_the_users_fault_when_it_cannot_start(pilot: Pilot, fate: Any) -> None:
    status = await after_a_save(pilot, fate, fate, fate, limits={"failures": 1})

    assert (status.phase, status.failures, status.infrastructure_failures) == (Phase.SUCCEEDED, 0, 3)
    assert [record.verdict for record in status.attempts[1:4]] == [Verdict.INFRASTRUCTURE] * 3
    held = [record.ended_time - record.created_time for record in status.attempts[1:4] if record.ended_time]
    assert max(held).total_seconds() <= 330, "the node is held for 300 s, and for some turns"


@pytest.mark.parametrize(
    "fate",
    [
        Waits(reason="CreateContainerConfigError", message='secret "wandb" not found'),
        Waits(reason="CreateContainerConfigError", message="couldn't find key token in Secret team/wandb"),
    ],
    ids=["no Secret", "no key"],
)
async def test_a_missing_secret_stays_the_users(pilot: Pilot, fate: Any) -> None:
    status = await after_a_save(pilot, fate, limits={"failures": 1})

    assert (status.phase, status.failures, status.infrastructure_failures) == (Phase.FAILED, 1, 0)
    assert status.attempts[-1].reason is Reason.CANNOT_START


@pytest.mark.parametrize("program", ["python", "/opt/conda/bin/python", "apparmor_parser"])
async def test_a_missing_program_ends_no_run_that_has_trained(pilot: Pilot, program: str) -> None:
    words = f'{OCI}exec: "{program}": executable file not found in $PATH'
    status = await after_a_save(pilot, start_error(words), limits={"failures": 1})

    assert (status.phase, status.failures, status.infrastructure_failures) == (Phase.SUCCEEDED, 0, 1)


@pytest.mark.parametrize(("program", "fails"), [("pyhton", True), ("apparmor_parser", False)])
async def test_before_that_it_is_the_users_if_the_container_runs_it(pilot: Pilot, program: str, fails: bool) -> None:
    pilot.cluster.script = {1: start_error(f'{OCI}exec: "{program}": executable file not found in $PATH')}
    own = {"image": "trainer:1", "command": ["pyhton", "train.py"]}
    await pilot.cluster.apply(a_manifest(trainer=own, limits={"failures": 1}))
    status = await pilot.until_phase(Phase.FAILED if fails else Phase.SUCCEEDED)

    assert status.attempts[0].reason is (Reason.CANNOT_START if fails else Reason.START_FAILED)


async def first(pilot: Pilot, fate: Any, *, seconds: float) -> RunStatus:
    """A run whose first attempts all meet this fate, after so many seconds."""
    pilot.cluster.script = dict.fromkeys(range(1, 40), fate)
    await pilot.cluster.apply(a_manifest())
    for _ in range(int(seconds / 5)):
        await pilot.turn()
    return pilot.status()


@pytest.mark.parametrize(
    "message",
    [
        GONE,
        "401 Unauthorized",
        "pull access denied: insufficient_scope",
        'choosing an image from manifest list docker://x/y:1: no image found in image index for architecture "amd64"',
        'media type "application/vnd.docker.distribution.manifest.v1+json" is no longer supported since containerd',
        "SignatureValidationFailed: Source image rejected: A signature was required, but no signature exists",
    ],
    ids=["404", "401", "denied", "architecture", "schema 1", "signature"],
)
async def test_before_it_has_run_a_wrong_name_or_a_refusal_fails_fast(pilot: Pilot, message: str) -> None:
    status = await first(pilot, Waits(reason="ErrImagePull", message=message), seconds=400)

    assert (status.phase, status.failures, status.attempts[-1].reason) == (Phase.FAILED, 3, Reason.CANNOT_START)


@pytest.mark.parametrize(("cause", "fails"), [("503 Service Unavailable", False), ("x/y:1: not found", True)])
async def test_a_cause_that_only_an_event_tells_is_read(pilot: Pilot, cause: str, fails: bool) -> None:
    """Kubelets before 1.32 leave it out of the state."""
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x/y:1"'}
    event = ("Failed", f'Failed to pull image "x/y:1": rpc error: {cause}')
    fate = Reports(status={"containerStatuses": _pytorch({"waiting": waiting})}, event=event)
    status = await first(pilot, fate, seconds=400)

    assert ((status.phase is Phase.FAILED), status.failures > 0) == (fails, fails)
    assert cause in status.attempts[0].message


@pytest.mark.parametrize(
    "fate",
    [
        Waits(reason="ImagePullBackOff", message=UNAVAILABLE),
        Waits(reason="ErrImagePull", message='Head "https://x/v2/": dial tcp 10.0.0.1:443: i/o timeout'),
        Waits(reason="ErrImagePull", message='Head "https://x/v2/": dial tcp: lookup x on 10.0.0.2:53: no such host'),
        Waits(reason="ErrImagePull", message="toomanyrequests: You have reached your pull rate limit"),
        start_error(NVIDIA),
        *map(start_error, NOBODY_KNOWS),
        Waits(reason="CreateContainerError", message="error reserving ctr name k8s_x for id 0a: name is reserved"),
        Waits(reason="RunContainerError", message='container "0a1b" is in CONTAINER_EXITED state'),
        Waits(reason="CreateContainerConfigError", message="host IP unknown; known addresses: []"),
    ],
)
async def test_before_it_has_run_trouble_of_registry_and_node_is_waited_for(pilot: Pilot, fate: Any) -> None:
    status = await first(pilot, fate, seconds=1000)
    assert status.phase in (Phase.RECOVERING, Phase.STARTING)

    pilot.cluster.script = {}
    await pilot.until(lambda: pilot.status().phase is Phase.SUCCEEDED, turns=400)
    assert (pilot.status().failures, pilot.status().preemptions) == (0, 0)


@pytest.mark.parametrize(
    ("fate", "held_seconds"),
    [
        (start_error("exit status 255: unknown"), 60),
        (start_error("a field of the spec that no runtime has ever complained of"), 60),
        (Waits(reason="CreateContainerError", message="something that nobody has seen yet"), 360),
    ],
    ids=["no words", "unknown words", "it waits"],
)
async def test_a_start_that_never_works_for_reasons_nobody_knows_is_told_and_pays_for_few_minutes(
    pilot: Pilot, fate: Any, held_seconds: float
) -> None:
    """It is not the user's fault for certain, so it does not end the run: the back-off and limits.stalled bound it."""
    pilot.cluster.script = dict.fromkeys(range(1, 40), fate)
    await pilot.cluster.apply(a_manifest(limits={"stalled": "4h"}))
    paid = untold = longest = 0
    for _ in range(900):
        await pilot.turn(30)
        status = pilot.status()
        if status.phase is Phase.SUSPENDED:
            break
        is_paid = any(
            pod["spec"].get("nodeName") and pod["status"].get("phase") != "Failed" for pod in pilot.server.all(PODS)
        )
        is_told = status.is_true(WAITING) or status.is_true(STALLED)
        paid += 30 * is_paid
        untold = 0 if is_told or not is_paid else untold + 30
        longest = max(longest, untold)
    assert (status.phase, status.failures) == (Phase.SUSPENDED, 0)
    assert longest < 120
    assert 5 < status.attempt <= 12
    assert paid <= status.attempt * held_seconds
    assert "look at the image and the command" in str(status.condition(STALLED))


@pytest.mark.parametrize(("words", "is_tainted"), [("exit status 255: unknown", False), (NVIDIA, True)])
async def test_words_that_nobody_knows_taint_no_node_before_the_program_has_run(
    cluster: Cluster, words: str, is_tainted: bool
) -> None:
    async with a_pilot(cluster, timing=Timing(device_taint_seconds=86400)) as pilot:
        cluster.script[1] = start_error(words)
        await cluster.apply(a_manifest())
        await pilot.until(lambda: any(record.ended_time for record in pilot.status().attempts))
        told = [e["message"] for e in pilot.server.all(EVENTS) if "did not start" in e["message"]]

    assert len(told) == 1
    assert ("it gets the taint" in told[0]) is is_tainted


@pytest.mark.parametrize(
    ("trouble", "then"),
    [
        (Waits(message=UNAVAILABLE), GONE),
        (Waits(reason="ErrImagePull", message="toomanyrequests: slow down"), "401 Unauthorized"),
        (Waits(reason="CreateContainerError", message="context deadline exceeded"), 'Back-off pulling image "x/y:1"'),
    ],
    ids=["503", "429", "no cause"],
)
async def test_a_registry_that_comes_back_with_a_wrong_answer_is_not_believed(
    pilot: Pilot, trouble: Waits, then: str
) -> None:
    pilot.cluster.script = {1: trouble}
    await pilot.cluster.apply(a_manifest(limits={"failures": 1}))
    for _ in range(24):
        await pilot.turn()
    pilot.cluster.script = dict.fromkeys(range(1, 9), Waits(reason="ErrImagePull", message=then))
    for _ in range(26):
        await pilot.turn()
    assert (pilot.status().attempt, pilot.status().phase) == (1, Phase.STARTING)
    pilot.cluster.script = {}
    await pilot.until_phase(Phase.SUCCEEDED)

    assert (pilot.status().attempt, pilot.status().failures) == (1, 0)


async def test_a_wrong_name_behind_a_registry_that_was_down_fails_in_the_next_attempt(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Waits(message=UNAVAILABLE)}
    await pilot.cluster.apply(a_manifest(limits={"failures": 1}))
    await pilot.turn()
    await pilot.turn()
    await pilot.turn()
    pilot.cluster.script = dict.fromkeys(range(1, 9), Waits(reason="ErrImagePull", message=GONE))
    await pilot.until(lambda: pilot.status().phase is Phase.FAILED, turns=160)

    assert [record.reason for record in pilot.status().attempts] == [Reason.IMAGE_PULL_FAILED, Reason.CANNOT_START]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (None, Reason.GANG_INCOMPLETE),
        (("FailedMount", "timed out waiting for the condition"), Reason.GANG_INCOMPLETE),
        (("FailedCreatePodSandBox", "no runtime"), Reason.SANDBOX_FAILED),
    ],
    ids=["silence", "mount", "sandbox"],
)
async def test_a_node_that_never_starts_the_pod_is_left_after_the_start_timeout(
    pilot: Pilot, event: tuple[str, str] | None, reason: Reason
) -> None:
    pilot.cluster.script[1] = creating(event)
    await pilot.cluster.apply(a_manifest(limits={"startTimeout": "30s"}))
    status = await pilot.until_phase(Phase.SUCCEEDED)

    assert (status.attempt, status.failures, status.infrastructure_failures) == (2, 0, 1)
    ended = status.attempts[0]
    assert ended.reason is reason
    assert reason is Reason.SANDBOX_FAILED or ended.message.startswith(
        "0 of 1 replicas of attempt 1 have run within limits.startTimeout of 30s"
    )
    assert ended.ended_time is not None
    assert (ended.ended_time - ended.created_time).total_seconds() < 60


@pytest.mark.parametrize(
    "fate",
    [creating(("FailedMount", "timed out waiting for the condition")), creating(), creating(("Pulling", 'image "x"'))],
    ids=["mount", "silence", "pull"],
)
async def test_a_start_that_takes_longer_than_its_limit_each_time_comes_to_an_end(pilot: Pilot, fate: Any) -> None:
    """The commit before had no limit for a single node: a start of five minutes has to come to an end."""
    pilot.cluster.script = dict.fromkeys(range(1, 20), fate)
    await pilot.cluster.apply(a_manifest(limits={"startTimeout": "30s", "stalled": "1h"}))
    placed: dict[str, int] = {}
    for turn in range(600):
        await pilot.turn()
        for pod in pilot.server.all(PODS):
            number = int(pod["metadata"]["name"].split("-")[1])
            if turn - placed.setdefault(pod["metadata"]["name"], turn) >= 60 and pod["status"]["phase"] == "Pending":
                pilot.cluster.script[number] = Ends()
        if pilot.status().phase in (Phase.SUCCEEDED, Phase.SUSPENDED):
            break

    assert (pilot.status().phase, pilot.status().failures) == (Phase.SUCCEEDED, 0)
    assert pilot.status().attempt <= 5


async def test_a_node_that_starts_no_containers_is_named_with_the_command_that_keeps_pods_away(pilot: Pilot) -> None:
    await after_a_save(pilot, start_error(NVIDIA))

    (told,) = [e["message"] for e in pilot.server.all(EVENTS) if "kubectl taint node" in e.get("message", "")]
    assert "node node-of-ragcun-2-master-0 did not start ragcun-2-master-0" in told
    assert told.endswith("kubectl taint node node-of-ragcun-2-master-0 piton.dev/device-fault=ragcun-2:NoSchedule")


CRASHES_AGAIN = "back-off 5m0s restarting failed container=istio-proxy pod=x"


@pytest.mark.parametrize(
    "state",
    [
        {"waiting": {"reason": "CrashLoopBackOff", "message": CRASHES_AGAIN}},
        {"running": {"startedAt": "2026-11-22T10:00:00Z"}},  # for the moment
        {"terminated": {"exitCode": 1}},
    ],
    ids=lambda state: next(iter(state)),
)
async def test_a_sidecar_that_crashes_before_the_trainer_starts_is_named_and_no_node_is_blamed(
    state: dict[str, Any], pilot: Pilot
) -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no connection to istiod"}}
    sidecar = {"name": "istio-proxy", "restartCount": 7, "state": state, "lastState": last}
    pilot.cluster.script[1] = Reports(
        status={
            "phase": "Pending",
            "initContainerStatuses": [sidecar],
            "containerStatuses": _pytorch({"waiting": {"reason": "PodInitializing"}}),
        }
    )
    await pilot.cluster.apply(a_manifest())
    for _ in range(30):
        await pilot.turn(10)
    waiting = pilot.status().condition(WAITING)
    assert waiting is not None
    assert (waiting.status, waiting.reason) == ("True", Reason.INIT_CONTAINER_FAILED)
    told = "init container istio-proxy ends with exit code 1 each time: no connection to istiod"
    assert told in waiting.message
    for _ in range(30):
        await pilot.turn(60)
    assert told in pilot.status().attempts[0].message
    assert not [event for event in pilot.server.all(EVENTS) if "kubectl taint" in event["message"]]


async def test_an_init_container_that_fails_is_named_with_its_code_and_last_words(pilot: Pilot) -> None:
    pilot.cluster.script[1] = init_fails(126, "permission denied: role training\n")
    await pilot.cluster.apply(a_manifest())
    status = await pilot.until_phase(Phase.SUCCEEDED)

    ended = status.attempts[0]
    assert (ended.verdict, ended.reason) == (Verdict.INFRASTRUCTURE, Reason.INIT_CONTAINER_FAILED)
    assert ended.message == (
        "init container vault-agent-init of ragcun-1-master-0 ended with exit code 126: "
        "permission denied: role training"
    )


CANNOT_BE_MADE = ("ImagePullBackOff", "ErrImagePull", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")


async def _sidecar_waits(pilot: Pilot, reason: str) -> None:
    """The kubelet cannot start a native sidecar of the first attempt again."""
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    pod["spec"]["initContainers"] = [{"name": "istio-proxy", "restartPolicy": "Always", "image": "proxy:1"}]
    waits = {"reason": reason, "message": "503 Service Unavailable"}
    pod["status"]["initContainerStatuses"] = [
        {"name": "istio-proxy", "started": False, "restartCount": 1, "state": {"waiting": waits}}
    ]
    await pilot.server.put(PODS, pod)


@pytest.mark.parametrize(("reason", "nodes"), [*((reason, 1) for reason in CANNOT_BE_MADE), ("ImagePullBackOff", 2)])
async def test_a_sidecar_that_cannot_start_again_does_not_end_a_training(pilot: Pilot, reason: str, nodes: int) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(workers={"nodes": nodes}))
    await pilot.until_phase(Phase.TRAINING)
    await _sidecar_waits(pilot, reason)
    for _ in range(20):
        await pilot.turn(30)

    status = pilot.status()
    assert (status.phase, status.attempt, status.is_true(WAITING)) == (Phase.TRAINING, 1, False)


@pytest.mark.parametrize(
    ("reason", "code", "why"),
    [("ErrImagePull", 1, Reason.CRASHED), ("RunContainerError", 137, Reason.KILLED)],
)
async def test_a_sidecar_that_cannot_start_again_does_not_explain_the_trainers_end(
    pilot: Pilot, reason: str, code: int, why: Reason
) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(trainer={"image": "trainer:1", "command": ["train"]}))
    await pilot.until_phase(Phase.TRAINING)
    await _sidecar_waits(pilot, reason)
    pilot.cluster.sidecar = {"running": {}}  # the pod does not end with its trainer
    pilot.cluster.script = {1: Ends(exit_code=code, is_silent=True), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2, turns=200)

    assert pilot.status().attempts[0].reason is why


KILLED = Reports(
    status={
        "phase": "Failed",
        "containerStatuses": _pytorch({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
    }
)


@pytest.mark.parametrize("fates", [(evicted(), evicted(), evicted()), (KILLED, KILLED, evicted())])
async def test_one_end_for_the_nodes_memory_is_a_disruption_and_the_second_in_a_row_the_programs(
    pilot: Pilot, fates: tuple[Reports, ...]
) -> None:
    status = await after_a_save(pilot, *fates)

    ends = [(record.verdict, record.reason) for record in status.attempts[1:4]]
    again = (Verdict.USER_FAILURE, Reason.OUT_OF_MEMORY)
    assert ends == [(Verdict.PREEMPTED, Reason.DISRUPTED), again, again]
    assert (status.phase, status.failures) == (Phase.SUCCEEDED, 2)


async def test_evictions_with_an_undisturbed_attempt_between_them_are_disruptions(pilot: Pilot) -> None:
    status = await after_a_save(pilot, evicted(), Disrupted(), evicted(), Ends(), limits={"failures": 1})

    assert (status.phase, status.failures, status.preemptions) == (Phase.SUCCEEDED, 0, 4)


async def test_another_image_has_to_prove_itself(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs(), 2: Waits(reason="ErrImagePull", message="not found")}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    wrong = {"image": "trainer:wrong", "recipe": "charlm"}
    await pilot.cluster.apply(a_manifest(trainer=wrong, limits={"failures": 1}))
    await pilot.cluster.disrupt("ragcun-1-master-0", "EvictionByEvictionAPI", "team")

    assert (await pilot.until_phase(Phase.FAILED)).attempts[-1].reason is Reason.CANNOT_START


async def test_an_image_that_people_go_back_to_has_proved_itself(pilot: Pilot) -> None:
    pilot.cluster.script = {
        1: Runs(),
        2: Runs(),
        3: Waits(reason="ErrImagePull", message="401 Unauthorized"),
        4: Ends(),
    }
    for number, image in enumerate(("trainer:1", "trainer:2", "trainer:1"), start=1):
        await pilot.cluster.apply(a_manifest(trainer={"image": image, "recipe": "charlm"}, limits={"failures": 1}))
        if number > 1:
            await pilot.cluster.disrupt(f"ragcun-{number - 1}-master-0", "EvictionByEvictionAPI", "team")
        if number < 3:
            await pilot.until(lambda n=number: pilot.status().attempt == n and pilot.status().phase is Phase.TRAINING)  # type: ignore[misc]
    status = await pilot.until_phase(Phase.SUCCEEDED)

    assert (status.failures, status.infrastructure_failures) == (0, 1)
