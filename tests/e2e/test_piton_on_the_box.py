"""Piton on a real API server with real nodes: its operator with the bundled engine, and pods that a shell runs.

The trainers are stand-ins until there is an image with torch in the box: they prove nothing about training, only that
attempts start, rendezvous, lose their nodes and are followed by others.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import box, drills, images
from hack.cluster.layout import GATEWAY, KUBECONFIG, Node
from piton.contract import names
from piton_trainer.config import Server
from piton_trainer.report import push
from support import certificates
from support.builders import a_progress

ROOT = Path(__file__).parents[2]
PROGRESS_PORT = 18443
SCRIPT = "trap 'exit 143' TERM; i=0; while [ $i -lt {tenths} ]; do sleep 0.1; i=$((i+1)); done"

pytestmark = [
    pytest.mark.box,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="the box needs root"),
]


def kubectl(*words: str, stdin: str = "") -> str:
    command = ["kubectl", "--kubeconfig", str(KUBECONFIG), *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A box with both CRDs, and the operator as a process of this machine. A box that was up already stays up."""
    was_up = box.is_up()
    box.up(spot_nodes=2, say=print)
    log = tmp_path_factory.mktemp("operator") / "log"
    environment = {
        **os.environ,
        "KUBECONFIG": str(KUBECONFIG),
        "PITON_OPERATOR_ENGINE": "bundled",
        "PITON_OPERATOR_PROGRESS_URL": f"https://{GATEWAY}:{PROGRESS_PORT}",
        "PITON_OPERATOR_PROGRESS_PORT": str(PROGRESS_PORT),
        "PITON_OPERATOR_TLS_DIR": str(certificates.make(tmp_path_factory.mktemp("tls"), GATEWAY)),
    }
    try:
        for crd in ("trainingruns.piton.dev.yaml", "bundled"):
            kubectl("apply", "--validate=false", "-f", str(ROOT / "crds" / crd))
        kubectl("wait", "--for=condition=Established", "crd/trainingruns.piton.dev", "crd/pytorchjobs.kubeflow.org")
        with log.open("w") as output:
            command = [sys.executable, "-m", "piton.cli", "operator"]
            with subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
                try:
                    yield
                finally:
                    process.terminate()
    finally:
        print(log.read_text()[-4000:])
        if not was_up:
            box.down()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a run that is deleted in the end, whatever became of it."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    yield name
    kubectl("delete", "trainingrun", name, "--ignore-not-found", "--timeout=50s")


@pytest.fixture
def all_nodes_back() -> Iterator[None]:
    yield
    box.up(spot_nodes=2, say=print)


def apply(name: str, *, tenths: int, nodes: int = 1) -> None:
    """A run of stand-ins that work for so many tenths of a second."""
    manifest = {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "trainer": {"image": images.BUSYBOX, "command": ["/bin/sh", "-c", SCRIPT.replace("{tenths}", str(tenths))]},
            "workers": {"nodes": nodes, "gpusPerNode": 8},
            "capacity": {"tiers": ["Spot"]},
            "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
        },
    }
    kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump(manifest))


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", "trainingrun", name, "-o", "json")).get("status") or {}
    return found


def node_of(pod: str) -> str:
    """The node that a running pod is on; empty while it does not run."""
    found = kubectl("get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.status.phase} {.spec.nodeName}")
    return found.removeprefix("Running ") if found.startswith("Running ") else ""


def wait_for(true: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def succeeded(name: str) -> dict[str, Any]:
    wait_for(lambda: status(name).get("phase") == "Succeeded")
    return status(name)


def test_two_nodes_work_together_and_finish(run: str) -> None:
    apply(run, tenths=20, nodes=2)

    found = succeeded(run)

    assert (found["attempt"], found["preemptions"], found["failures"]) == (1, 0, 0)


def test_a_reclaimed_node_is_followed_by_another(run: str, all_nodes_back: None) -> None:
    apply(run, tenths=100)
    first = wait_for(lambda: node_of(f"{run}-1-master-0"))

    drills.reclaim(Node.named(first), notice_seconds=10)

    second = wait_for(lambda: node_of(f"{run}-2-master-0"))
    assert second != first
    found = succeeded(run)
    assert (found["attempt"], found["preemptions"], found["failures"]) == (2, 1, 0)
    assert found["attempts"][0]["verdict"] == "Preempted"


def test_a_dead_node_is_not_waited_for_five_minutes(run: str, all_nodes_back: None) -> None:
    apply(run, tenths=100)
    first = wait_for(lambda: node_of(f"{run}-1-master-0"))

    drills.kill(Node.named(first))

    second = wait_for(lambda: node_of(f"{run}-2-master-0"))
    assert second != first
    found = succeeded(run)
    assert (found["preemptions"], found["failures"]) == (1, 0)


def test_what_a_pod_reports_shows_while_it_works(run: str, tmp_path: Path) -> None:
    """The stand-in cannot speak TLS; its token, its address and its authority are what the pod really has."""
    apply(run, tenths=300)
    pod = f"{run}-1-master-0"
    wait_for(lambda: node_of(pod))
    script = f"echo ${names.ENV_SERVER_URL}; cat ${names.ENV_SERVER_TOKEN}; echo; cat ${names.ENV_SERVER_CA_CERT}"
    url, token, authority = kubectl("exec", pod, "--", "sh", "-c", script).split("\n", 2)
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.crt").write_text(authority)
    server = Server(url=url, ca_cert=tmp_path / "ca.crt", token_file=tmp_path / "token")

    push(server, a_progress(70, checkpoint=50, loss=0.25))

    wait_for(lambda: "checkpoint" in status(run), seconds=20)
    row = kubectl("get", "trainingrun", run, "--no-headers").split()
    assert row[1:5] == ["Training", "7", "70", "0.25"]
    with pytest.raises(ConnectionError, match="403"):
        push(replace(server, url=url.replace(run, "another")), a_progress(999))


def test_a_deleted_run_leaves_nothing_behind(run: str) -> None:
    apply(run, tenths=6000)
    wait_for(lambda: node_of(f"{run}-1-master-0"))

    kubectl("delete", "trainingrun", run, "--timeout=50s")

    left = "pytorchjobs,pods,services,persistentvolumeclaims"
    wait_for(lambda: kubectl("get", left, "-l", f"piton.dev/run={run}", "-o", "name").strip() == "", seconds=60)
