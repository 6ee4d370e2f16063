"""The box's Prometheus: a configuration that its own tool accepts."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import prometheus
from support.missing import missing

Port = dict[str, Any]


@pytest.fixture
def promtool() -> Path:
    found = prometheus.find("promtool")
    if found is None:
        missing("there is no promtool; python -m hack.cluster promtool fetches it")
    return found


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prometheus, "_PODS", tmp_path / "pods.json")
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(prometheus.config()))
    return path


def test_the_configuration_is_accepted(promtool: Path, config: Path) -> None:
    done = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_keep_what_wants_to_be_scraped_and_name_it(promtool: Path, config: Path) -> None:
    metrics: Port = {"name": "metrics", "containerPort": 8081}
    other: Port = {"name": "http", "containerPort": 80}
    annotated = {"prometheus.io/scrape": "true", "prometheus.io/port": "9401"}
    pods = [
        a_pod(metrics, other, name="by-port", labels={"app": "x"}),
        a_pod(
            other, name="by-annotation", labels={"piton.dev/run": "r", "piton.dev/attempt": "2"}, annotations=annotated
        ),
        a_pod(other, name="neither"),
        a_pod(metrics, name="over", phase="Succeeded"),
    ]
    (config.parent / "pods.json").write_text(json.dumps(list(prometheus.discovered(pods))))

    command = [str(promtool), "check", "service-discovery", "--timeout=2s", str(config), "pods"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    labels = {kept["pod"]: kept for target in found if (kept := target["labels"])}
    assert set(labels) == {"by-port", "by-annotation"}
    assert labels["by-port"]["__address__"] == "10.78.1.7:8081"
    assert labels["by-annotation"]["__address__"] == "10.78.1.7:9401"
    wanted = {"namespace": "team", "pod": "by-annotation", "node": "node-1", "run": "r", "attempt": "2"}
    assert wanted.items() <= labels["by-annotation"].items()


def a_pod(*ports: Port, name: str = "ragcun-1-master-0", phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", **metadata},
        "spec": {"nodeName": "node-1", "containers": [{"name": "pytorch", "ports": list(ports)}]},
        "status": {"phase": phase, "podIP": "10.78.1.7"},
    }


def test_a_pod_is_found_at_each_of_its_ports_with_the_labels_that_kubernetes_gives_it() -> None:
    pod = a_pod(
        {"name": "metrics", "containerPort": 9401},
        {"containerPort": 80},
        labels={"piton.dev/run": "ragcun"},
        annotations={"prometheus.io/scrape": "true"},
    )

    first, second = prometheus.discovered([pod])

    assert (first["targets"], second["targets"]) == (["10.78.1.7:9401"], ["10.78.1.7:80"])
    assert first["labels"] == {
        "__meta_kubernetes_namespace": "team",
        "__meta_kubernetes_pod_name": "ragcun-1-master-0",
        "__meta_kubernetes_pod_node_name": "node-1",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_container_port_name": "metrics",
        "__meta_kubernetes_pod_label_piton_dev_run": "ragcun",
        "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
    }


def test_a_pod_without_an_address_is_no_target_and_one_without_ports_is_one() -> None:
    pending = {"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": []}, "status": {"phase": "Pending"}}

    (found,) = prometheus.discovered([pending, a_pod()])

    assert found["targets"] == ["10.78.1.7"]


def test_what_is_installed_is_used_before_what_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_HOME", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prometheus.find("promtool") is None

    cached, installed = tmp_path / "cache" / "usr" / "bin" / "promtool", tmp_path / "promtool"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert prometheus.find("promtool") == cached

    installed.touch(mode=0o755)
    assert prometheus.find("promtool") == installed
