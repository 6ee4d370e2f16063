"""Piton's operator as a process of this machine, and the CPU time and memory of the processes beside it."""

import os
import re
import shutil
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from hack.cluster import pki, processes
from hack.cluster.layout import KUBECONFIG, STATE
from piton.kube.tls import AUTHORITY, CERTIFICATE, KEY

OPERATOR = "bench-operator"
SERVER = "kube-apiserver"
BENCH = "bench"
"""The process that measures."""
TRAINERS = "bench-trainers"
"""The process that reports for all trainers."""
MEASURED = (OPERATOR, SERVER, TRAINERS, "etcd", "kube-controller-manager", "kube-scheduler", "kwok", "kueue")
METRICS_PORT = 18081
PROGRESS_PORT = 18443
PROGRESS_URL = f"https://127.0.0.1:{PROGRESS_PORT}"
TLS_DIR = STATE / "bench-operator"
"""What the operator serves its trainers with."""
_PHASE = re.compile(r'^piton_runs\{phase="(\w+)"\} ([\d.]+)$', re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")


def start_operator() -> None:
    """Start it, with the bundled PyTorchJob controller and the receiver of reports.

    What the environment says of its other settings holds.
    """
    _have_certificate()
    environment = {
        "KUBECONFIG": str(KUBECONFIG),
        "PITON_OPERATOR_ENGINE": "bundled",
        "PITON_OPERATOR_METRICS_PORT": str(METRICS_PORT),
        "PITON_OPERATOR_PROBE_PORT": "0",
        "PITON_OPERATOR_PROGRESS_URL": PROGRESS_URL,
        "PITON_OPERATOR_PROGRESS_PORT": str(PROGRESS_PORT),
        "PITON_OPERATOR_TLS_DIR": str(TLS_DIR),
    }
    variables = [f"{name}={value}" for name, value in environment.items()]
    processes.start(OPERATOR, ["env", *variables, sys.executable, "-m", "piton.cli", "operator"])


def stop_operator() -> None:
    """Stop it with SIGTERM."""
    processes.stop(OPERATOR, seconds=30)


def known_runs() -> int | None:
    """Return the number of runs that the operator knows, from its metrics; None while it does not answer."""
    found = phases()
    return sum(found.values()) if found else None


def phases() -> dict[str, int]:
    """Return the number of runs by phase, from the operator's metrics; empty while it does not answer.

    Its metrics have a series for each run, so each call costs the operator CPU time.
    """
    with suppress(OSError, HTTPException), urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
        return phases_in_metrics(answer.read().decode())
    return {}


def phases_in_metrics(text: str) -> dict[str, int]:
    """Return the number of runs by phase."""
    return {phase: int(float(number)) for phase, number in _PHASE.findall(text)}


def cpu_seconds() -> dict[str, float]:
    """Return the CPU time so far of all processes that are measured; those that do not run are left out."""
    found = {name: _cpu_seconds(pid) for name in MEASURED if (pid := processes.running(name))}
    return {**found, BENCH: time.process_time()}


def memory_bytes(name: str) -> int:
    """Return the resident memory of a process; 0 if it does not run."""
    pid = processes.running(name)
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) if pid else None
    return int(found[1]) * 1024 if found else 0


def reconcile_loop_cpu_seconds() -> float:
    """Return the CPU time so far of the operator's first thread, its reconcile loop; 0 if it does not run."""
    pid = processes.running(OPERATOR)
    return _cpu_seconds(pid, thread=pid) if pid else 0.0


def _have_certificate() -> None:
    pki.issue(OPERATOR, "/CN=piton-operator", names=("IP:127.0.0.1",))
    TLS_DIR.mkdir(parents=True, exist_ok=True)
    for path, name in ((pki.certificate(OPERATOR), CERTIFICATE), (pki.key(OPERATOR), KEY), (pki.CA, AUTHORITY)):
        shutil.copyfile(path, TLS_DIR / name)


def _cpu_seconds(pid: int, *, thread: int | None = None) -> float:
    folder = Path(f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
