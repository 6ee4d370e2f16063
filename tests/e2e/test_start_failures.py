"""What keeps containers from starting, in the words of a real kubelet and containerd.

A policy of the API server changes the pods of one namespace, so that its kubelet cannot start them.
"""

import pytest

from support.changed_pods import changed_pods
from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(420)]
STEPS = 400
DOWN = "registry.down.invalid/piton/trainer:0.1.0"
NO_START = (
    '[JSONPatch{op: "add", path: "/spec/volumes/-", value: Object.spec.volumes{name: "x", '
    'hostPath: Object.spec.volumes.hostPath{path: "/etc/hostname", type: "File"}}}, '
    'JSONPatch{op: "add", path: "/spec/containers/0/volumeMounts/-", '
    'value: Object.spec.containers.volumeMounts{name: "x", mountPath: "/usr"}}]'
)
NO_REGISTRY = f'[JSONPatch{{op: "replace", path: "/spec/containers/0/image", value: "{DOWN}"}}]'
INIT_FAILS = (
    '[JSONPatch{op: "add", path: "/spec/initContainers", value: [Object.spec.initContainers{name: "vault-agent-init", '
    'image: "piton-box/busybox:1", terminationMessagePolicy: "FallbackToLogsOnError", '
    'command: ["sh", "-c", "echo permission denied: role training; exit 126"]}]}]'
)


@pytest.mark.parametrize(
    ("patch", "reason", "words"),
    [(NO_START, "StartFailed", "OCI runtime create failed"), (NO_REGISTRY, "ImagePullFailed", DOWN)],
    ids=["a runtime that starts nothing", "a registry that is down"],
)
def test_what_has_trained_waits_for_a_runtime_or_a_registry_that_fails(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf, patch: str, reason: str, words: str
) -> None:
    run = training()
    run.apply(paced(STEPS, 0.05, limits={"failures": 1, "startTimeout": "20s"}))
    wait_for(lambda: "checkpoint" in run.status, "it has saved", seconds=90, say=run.say)
    with changed_pods(cluster, run.namespace, patch):
        cluster.kubectl("-n", run.namespace, "delete", "pod", f"{run.name}-1-master-0", "--wait=false")
        wait_for(
            lambda: any(attempt.get("reason") == reason for attempt in run.status["attempts"]),
            "an attempt has not started",
            seconds=120,
            say=run.say,
        )
        said = next(a["message"] for a in run.status["attempts"] if a.get("reason") == reason)
        assert words in said

    status = run.wait_for_phase("Succeeded")

    assert status["failures"] == 0
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_an_init_container_that_fails_is_named_with_its_last_words(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    with changed_pods(cluster, run.namespace, INIT_FAILS):
        run.apply(paced(20, 0.0, limits={"failures": 1}))
        wait_for(
            lambda: any(a.get("reason") == "InitContainerFailed" for a in run.status.get("attempts", [])),
            "the init container has failed",
            seconds=60,
            say=run.say,
        )
        said = run.status["attempts"][0]["message"]
        pod = f"{run.name}-1-master-0"
        assert said.startswith(f"init container vault-agent-init of {pod} ended with exit code 126"), said
        assert "permission denied: role training" in said

    assert run.wait_for_phase("Succeeded")["failures"] == 0


def test_a_command_that_does_not_exist_stays_the_users(training: NewTraining) -> None:
    run, spec = training(), paced(20, 0.0, limits={"failures": 1})
    spec["trainer"]["command"] = ["pyhton", "train.py"]
    run.apply(spec)

    ended = run.wait_for_phase("Failed")["attempts"][-1]

    assert (ended["reason"], ended["verdict"]) == ("CannotStart", "UserFailure")
    assert "pyhton" in ended["message"]
