"""What follows from an end, on a cluster: docs/failures.md."""

import os
import time
from collections.abc import Iterator

import pytest

from piton.contract import names
from support import boxed
from support.changed_pods import changed_pods
from support.live import LiveCluster, NewTraining, Object, paced, wait_for

REFUSED_SECONDS = float(os.environ.get("PITON_REFUSED_SECONDS", "20"))
"""For how long the kubelet accepts no pod. 600 by hand; a run is Stalled then, and goes on all the same."""
pytestmark = [pytest.mark.box, pytest.mark.timeout(600 + 3 * REFUSED_SECONDS)]
WORKS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(2)"
FAILS_ONCE = f"import os, sys; sys.exit(os.environ[{names.ENV_ATTEMPT!r}] == '1')"


SYSCTL = (
    '[JSONPatch{op: "add", path: "/spec/securityContext/sysctls", '
    'value: [Object.spec.securityContext.sysctls{name: "kernel.msgmax", value: "65536"}]}]'
)
"""A sysctl, which no kubelet of the box allows."""


def a_command(program: str, **limits: object) -> Object:
    """A run of this Python program, which says nothing to Piton."""
    spec = paced(1, 0.0, limits=limits)
    spec["trainer"]["command"] = ["python", "-c", program]
    return spec


@pytest.fixture
def one_zone() -> Iterator[None]:
    with boxed.in_one_zone():
        yield


@pytest.mark.usefixtures("one_zone")
def test_half_a_gang_frees_its_node_and_a_whole_one_trains(cluster: LiveCluster, training: NewTraining) -> None:
    run, spec = training(), a_command(WORKS.replace("(2)", "(600)"), startTimeout="10s")
    spec["workers"] |= {"nodes": 2, "gpusPerNode": 8}
    cluster.kubectl("cordon", "node-2")
    try:
        run.apply(spec)
        wait_for(lambda: len(run.running()) == 1, "one node runs", seconds=60, say=run.say)
        wait_for(
            lambda: run.status["attempts"][0].get("reason") == "GangIncomplete" and not run.running(),
            "its node is free again",
            seconds=60,
            say=run.say,
        )
        run.patch({"limits": {"startTimeout": "5m"}})  # of the attempts that can get both
    finally:
        cluster.kubectl("uncordon", "node-2")

    wait_for(lambda: len(run.running()) == 2, "both nodes run", seconds=300, say=run.say)
    status = run.status
    said = status["attempts"][0]["message"]
    assert said.startswith("1 of 2 replicas of attempt 1 have run within limits.startTimeout of 10s"), said
    assert (status["failures"], status["preemptions"]) == (0, 0)
    described = cluster.kubectl("-n", run.namespace, "describe", "trun", run.name)
    assert "1 of 2 replicas of attempt 1 have run within limits.startTimeout of 10s" in described


def test_a_run_that_has_failed_is_taken_up_again_when_the_user_asks(
    cluster: LiveCluster, training: NewTraining
) -> None:
    run = training()
    run.apply(a_command(FAILS_ONCE, failures=1))
    assert run.wait_for_phase("Failed")["failures"] == 1

    cluster.kubectl("-n", run.namespace, "annotate", "trun", run.name, f"{names.ANNOTATION_RETRY}=1")

    wait_for(lambda: run.phase == "Succeeded", "it has succeeded", seconds=60, say=run.say)
    status = run.status
    assert (status["attempt"], status["failures"], status["retried"]) == (2, 1, "1")
    assert [attempt["verdict"] for attempt in status["attempts"]] == ["UserFailure", "Finished"]


def test_a_kubelet_that_accepts_no_pods_ends_no_run(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    with changed_pods(cluster, run.namespace, SYSCTL):
        run.apply(a_command(WORKS, failures=1))
        began = time.monotonic()
        wait_for(
            lambda: len(run.status.get("attempts", [])) > 1 and time.monotonic() - began > REFUSED_SECONDS,
            "it is tried again",
            seconds=60 + REFUSED_SECONDS,
            say=run.say,
        )
        described = cluster.kubectl("-n", run.namespace, "describe", "trun", run.name)
        assert "did not accept" in described
        assert "SysctlForbidden" in described

    status = run.wait_for_phase("Succeeded", seconds=300 + REFUSED_SECONDS)

    assert (status["failures"], status["preemptions"]) == (0, 0)
    reasons = [attempt["reason"] for attempt in status["attempts"]]
    assert set(reasons[:-1]) == {"NodeRefused"}, reasons
