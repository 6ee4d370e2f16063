"""Every query of the dashboard returns data while a run trains: a real Prometheus in the box scrapes what there is.

The trainer is a stand-in that serves what a real one would, with numbers that grow. It proves nothing about training,
only that what is exported is found, scraped, named, and asked for.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from hack.cluster import box, images, processes, prometheus
from hack.cluster.layout import KUBECONFIG
from support.dashboard import Query, ask, load, queries, unanswered
from support.exported import a_trainers_registry

ROOT = Path(__file__).parents[2]
NAMESPACE = RUN = "dashboard-in-the-box"
HEARD = ("piton_run_progress_ratio", "piton_run_checkpoint", "piton_recovery_seconds")
"""What the operator knows from reports, which the stand-in does not make."""
GROWS = re.compile(r"^(piton_trainer_(?:step|step_seconds_\w+|data_wait_\w+|checkpoint_seconds_\w+)) .*$", re.MULTILINE)
TRAINER = """trap 'exit 143' TERM
mkdir /tmp/www
echo "$0" > /tmp/template
httpd -p $PITON_METRICS_PORT -h /tmp/www
i=0
while true; do
  i=$((i+1))
  sed "s/@/$i/" /tmp/template > /tmp/new && mv /tmp/new /tmp/www/metrics
  sleep 0.2
done
"""

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


@pytest.fixture(scope="module")
def scraped() -> Iterator[str]:
    """The address of a Prometheus in a box. A box that was up already stays as it is."""
    was_up, was_running = box.is_up(), processes.running(prometheus.PROCESS)
    try:
        if not was_up:
            box.up(spot_nodes=2, say=print)
        prometheus.start()
        yield prometheus.URL
    finally:
        if not was_running:
            prometheus.stop()
        if not was_up:
            box.down()


@pytest.fixture(scope="module")
def operator(scraped: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The operator that is installed in the box; where none is, one as a process of this machine."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(namespace))
    try:
        if kubectl("get", "deployment", "piton-operator", "-n", "piton-system", "--ignore-not-found", "-o", "name"):
            yield
        else:
            with _as_a_process(tmp_path_factory.mktemp("operator")):
                yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@contextmanager
def _as_a_process(folder: Path) -> Iterator[None]:
    """Prometheus is told of it, since it is no pod."""
    port, target = _free_port(), prometheus.TARGETS / "operator.json"
    for crd in ("trainingruns.piton.dev.yaml", "bundled"):
        kubectl("apply", "--validate=false", "-f", str(ROOT / "crds" / crd))
    aside = target.with_suffix(".new")  # Prometheus reads whatever it finds, at once
    aside.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"pod": "host"}}]))
    aside.replace(target)
    environment = os.environ | {
        "KUBECONFIG": str(KUBECONFIG),
        "PITON_OPERATOR_ENGINE": "bundled",
        "PITON_OPERATOR_NAMESPACES": NAMESPACE,
        "PITON_OPERATOR_PROBE_PORT": "0",
        "PITON_OPERATOR_METRICS_PORT": str(port),
    }
    with (folder / "log").open("w") as output:
        command = [sys.executable, "-m", "piton.cli", "operator"]
        with subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
            try:
                yield
            finally:
                process.terminate()
                target.unlink()
    print((folder / "log").read_text()[-4000:])


@pytest.fixture
def training(operator: None) -> Iterator[None]:
    """A run whose one pod serves metrics."""
    lines = generate_latest(a_trainers_registry()).decode().splitlines()
    metrics = "\n".join(line for line in lines if "#" not in line and "_bucket" not in line)
    manifest = {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": RUN, "namespace": NAMESPACE},
        "spec": {
            "trainer": {"image": images.BUSYBOX, "command": ["/bin/sh", "-c", TRAINER, GROWS.sub(r"\1 @", metrics)]},
            "workers": {"nodes": 1, "gpusPerNode": 1},
            "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
        },
    }
    kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump(manifest))
    try:
        yield
    finally:
        kubectl("delete", "trainingrun", RUN, "-n", NAMESPACE, "--ignore-not-found", "--timeout=50s")


def wait_for(true: Callable[[], object], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def heard(query: Query) -> bool:
    return any(name in query.expr for name in HEARD)


def test_every_query_returns_data_while_a_run_trains_and_none_about_a_run_that_is_gone(
    scraped: str, training: None
) -> None:
    asked = queries(load(), {"namespace": NAMESPACE, "run": RUN, "__rate_interval": "10s", "__range": "1m"})
    mine = [query for query in asked if not heard(query)]
    assert len(mine) > len(asked) / 2

    wait_for(lambda: not unanswered(scraped, mine), seconds=90)

    (series,) = ask(scraped, f'piton_trainer_step{{run="{RUN}"}}')
    assert json.loads(series)["namespace"] == NAMESPACE
    assert json.loads(series)["attempt"] == "1"
    kubectl("delete", "trainingrun", RUN, "-n", NAMESPACE, "--timeout=50s")
    wait_for(lambda: not ask(scraped, f'{{__name__=~"piton_.*", run="{RUN}"}}'), seconds=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found
