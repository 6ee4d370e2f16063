"""What runs beside the trainer, as in a mesh: it neither keeps a machine nor hides that the run trains."""

import pytest

from support.changed_pods import changed_pods
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(420)]
STEPS = 60
MESH = (
    '[JSONPatch{op: "add", path: "/spec/containers/0", value: Object.spec.containers{name: "istio-proxy", '
    'image: "piton-box/busybox:1", '
    'command: ["sh", "-c", "trap \\"exit 0\\" TERM; while true; do sleep 1; done"]}}]'
)
NO_AGENT = (
    '[JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{name: "agent", '
    'image: "localhost:1/nobody/knows:1"}}]'
)


def _that_live(run: Training) -> list[str]:
    """Its pods that keep a machine."""
    return [pod["metadata"]["name"] for pod in run.pods() if pod["status"].get("phase") not in ("Succeeded", "Failed")]


@pytest.mark.parametrize("patch", [MESH, NO_AGENT], ids=["one that runs", "one without an image"])
def test_a_sidecar_keeps_no_machine_and_hides_no_training(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf, patch: str
) -> None:
    run = training()
    with changed_pods(cluster, run.namespace, patch):
        run.apply(paced(STEPS, 0.2))
        wait_for(lambda: run.phase == "Training", "it says that it trains", seconds=60, say=run.say)
        run.wait_for_commit(10)
        run.hurry()
        status = run.wait_for_phase("Succeeded", seconds=120)

    assert (status["attempt"], status["result"]["weightsDigest"]) == (1, digest_of(STEPS))
    wait_for(lambda: not _that_live(run), "its pods are gone", seconds=60, say=run.say)


def test_a_crash_beside_a_sidecar_frees_the_machine_for_the_next_attempt(
    cluster: LiveCluster, training: NewTraining
) -> None:
    run, spec = training(), paced(1, 0.0, limits={"failures": 2})
    spec["trainer"]["command"] = ["sh", "-c", "sleep 2; exit 1"]
    with changed_pods(cluster, run.namespace, MESH):
        run.apply(spec)
        status = run.wait_for_phase("Failed", seconds=180)

    assert [attempt["reason"] for attempt in status["attempts"]] == ["Crashed", "Crashed"]
    wait_for(lambda: not _that_live(run), "its pods are gone", seconds=60, say=run.say)
