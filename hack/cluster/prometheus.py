"""A real Prometheus, for those who want one: it finds the pods that want to be scraped, as in any cluster.

It is a process of this machine, which the pods can be reached from, and is started by its own command and not by `up`:
most tests do without. Debian's package is unpacked into the cache and not installed, because installing it would start
a server of its own, now and at every boot.

Debian builds it without `kubernetes_sd_configs`, so a second process watches the pods and writes the same labels into
a file that Prometheus reads as it changes. The rules that pick and name the targets are those of any cluster.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from hack.cluster import addons, packages, processes
from hack.cluster.layout import CACHE, PROMETHEUS_PORT, STATE
from hack.cluster.shell import BoxError

PROCESS = "prometheus"
DISCOVERY = "prometheus-discovery"
URL = f"http://127.0.0.1:{PROMETHEUS_PORT}"
TARGETS = STATE / "prometheus" / "targets"
"""JSON files with targets that are no pods, an operator under a debugger, say. They are read as they come and go."""

Object = dict[str, Any]
_HOME = CACHE / "prometheus"
_FOLDER = STATE / "prometheus"
_CONFIG = _FOLDER / "prometheus.yml"
_PODS = _FOLDER / "pods.json"
_POD = "__meta_kubernetes_pod_"
_UNSAFE = re.compile(r"[^a-zA-Z0-9_]")


def start() -> None:
    """Start it, and wait until it answers. The first time it is fetched, some 20 MB."""
    need()
    TARGETS.mkdir(parents=True, exist_ok=True)
    _CONFIG.write_text(yaml.safe_dump(config(), sort_keys=False))
    if not processes.running(DISCOVERY):
        processes.start(DISCOVERY, [sys.executable, "-m", "hack.cluster", "discovery"])
    if not processes.running(PROCESS):
        processes.start(PROCESS, _command())
    processes.wait_for("Prometheus to be ready", _is_ready, seconds=30, of=PROCESS)


def need() -> None:
    """Fetch it and its promtool, unless they are here.

    Raises:
        BoxError: This is no Debian, or its package is not to be had.
    """
    if not find("prometheus"):
        packages.unpack("prometheus", _HOME)


def stop() -> None:
    """Stop it; what it has seen goes with the box."""
    processes.stop(PROCESS)
    processes.stop(DISCOVERY)


def find(program: str) -> Path | None:
    """Where `prometheus` or `promtool` is: installed, or in the cache."""
    installed, ours = shutil.which(program), _HOME / "usr" / "bin" / program
    return Path(installed) if installed else ours if ours.exists() else None


def discover() -> None:
    """Keep the file of pods up to date, until killed."""
    addons.watch("/api/v1/pods", _publish)


def _publish(pods: list[Object]) -> None:
    aside = _PODS.with_suffix(".new")
    aside.write_text(json.dumps(list(discovered(pods))))
    aside.replace(_PODS)


def discovered(pods: Iterable[Object]) -> Iterator[Object]:
    """What `kubernetes_sd_configs` with `role: pod` would find: a target for each port of each pod that has an address.

    Of its labels only those that the rules below look at.
    """
    for pod in pods:
        address = pod.get("status", {}).get("podIP")
        if not address:
            continue
        ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
        for port in ports or [{}]:
            number = port.get("containerPort")
            labels = {**_meta(pod), f"{_POD}container_port_name": port.get("name", "")}
            yield {"targets": [f"{address}:{number}" if number else address], "labels": labels}


def _meta(pod: Object) -> dict[str, str]:
    metadata, spec, status = pod["metadata"], pod["spec"], pod["status"]
    labels = {"__meta_kubernetes_namespace": metadata["namespace"], f"{_POD}name": metadata["name"]}
    labels |= {f"{_POD}node_name": spec.get("nodeName", ""), f"{_POD}phase": status.get("phase", "")}
    for kind, values in (("label", metadata.get("labels")), ("annotation", metadata.get("annotations"))):
        labels |= {f"{_POD}{kind}_{_UNSAFE.sub('_', name)}": value for name, value in (values or {}).items()}
    return labels


def config() -> Object:
    """Scrape every pod that is annotated for it or has a port named `metrics`.

    Labels that a metric brings itself win (`honor_labels`): an operator speaks of objects in other namespaces.
    """
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(_PODS)]}],
                "relabel_configs": relabelling(),
            },
            {
                "job_name": "others",
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(TARGETS / "*.json")], "refresh_interval": "1s"}],
            },
        ],
    }


def relabelling() -> list[Object]:
    """Which pods are scraped, where, and what they are called; docs/metrics.md gives the same rules to everybody.

    The last one is all that the box knows of Piton: two labels that say whose pod it is.
    """
    scrape, port = (f"{_POD}annotation_prometheus_io_{what}" for what in ("scrape", "port"))
    return [
        {
            "source_labels": [scrape, f"{_POD}container_port_name"],
            "regex": "true;.*|.*;metrics",
            "action": "keep",
        },
        {"source_labels": [f"{_POD}phase"], "regex": "Pending|Succeeded|Failed", "action": "drop"},
        _label("__address__", ["__address__", port], r"([^:]+)(?::\d+)?;(\d+)", "$1:$2"),
        _label("namespace", ["__meta_kubernetes_namespace"]),
        _label("pod", [f"{_POD}name"]),
        _label("node", [f"{_POD}node_name"]),
        {"action": "labelmap", "regex": f"{_POD}label_piton_dev_(run|attempt)"},
    ]


def _label(name: str, labels: list[str], regex: str = "(.*)", value: str = "$1") -> Object:
    return {"source_labels": labels, "regex": regex, "target_label": name, "replacement": value}


def _command() -> list[str | Path]:
    program = find("prometheus")
    if program is None:
        raise BoxError("Debian's package prometheus brought no program of that name")
    return [
        program,
        f"--config.file={_CONFIG}",
        f"--storage.tsdb.path={_FOLDER / 'data'}",
        "--storage.tsdb.retention.time=1d",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
    ]


def _is_ready() -> bool:
    try:
        with urlopen(f"{URL}/-/ready", timeout=2):  # noqa: S310 - the address is ours
            return True
    except OSError:
        return False
