"""Pod Security: what trains in a namespace that enforces `restricted`, and what root may do where it may be root."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.images import BUSYBOX
from support.live import LiveCluster, NewTraining, Object, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]

QUICKSTART = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"
AS_ROOT = 'test "$(id -u)" = 0 && touch /written && chown 1234:1234 /written && test "$(stat -c %u /written)" = 1234'
NOT_ROOT = 'test "$(id -u)" = 1000 && ! touch /written && touch /checkpoints/written'


@pytest.fixture
def restricted(cluster: LiveCluster, namespace: str) -> str:
    """The test's namespace; the operator is not told of it."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


def the_quickstart(steps: int) -> Object:
    """The quickstart, in few steps, with stages before and after it."""
    spec: Object = yaml.safe_load(QUICKSTART.read_text())["spec"]
    spec["trainer"]["config"] |= {"steps": steps, "evalEvery": steps // 2}
    spec["stages"] = {"prepare": {"command": ["python", "-c", "open('/tmp/written', 'w')"]}, "evaluate": {}}
    return spec


def a_command(script: str, **security: Any) -> Object:
    """A program of busybox, whose image is root."""
    return {
        "trainer": {"image": BUSYBOX, "command": ["sh", "-c", script]},
        "workers": {"nodes": 1, "gpusPerNode": 0, "template": {"securityContext": security}},
        "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
        "limits": {"failures": 1},
    }


@pytest.mark.usefixtures("restricted")
def test_the_quickstart_trains_with_its_stages_in_a_restricted_namespace(training: NewTraining) -> None:
    run = training()
    run.apply(the_quickstart(steps=20))

    status = run.wait_for_phase("Succeeded", seconds=400)

    assert [stage["name"] for stage in status["stages"]] == ["Prepare", "Train", "Evaluate"]
    assert status["attempt"] == 3, "nothing was tried twice"
    assert status["result"]["step"] == 20


def test_a_command_is_root_where_the_namespace_lets_it(training: NewTraining) -> None:
    run = training()
    run.apply(a_command(AS_ROOT))

    assert run.wait_for_phase("Succeeded")["attempt"] == 1


@pytest.mark.usefixtures("restricted")
def test_a_command_that_may_be_root_has_no_pod_in_a_restricted_namespace(training: NewTraining) -> None:
    run = training()
    run.apply(a_command(AS_ROOT))

    wait_for(lambda: 'violates PodSecurity "restricted' in run.say(), "the refusal", seconds=60, say=run.say)
    assert run.pods() == []
    assert run.phase not in ("Succeeded", "Failed")


@pytest.mark.usefixtures("restricted")
def test_a_command_that_is_said_not_to_be_root_trains_in_a_restricted_namespace(training: NewTraining) -> None:
    run = training()
    run.apply(a_command(NOT_ROOT, runAsNonRoot=True, runAsUser=1000))

    assert run.wait_for_phase("Succeeded")["attempt"] == 1
