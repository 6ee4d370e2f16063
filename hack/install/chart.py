"""The chart, installed by helm as anybody would."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hack.cluster.shell import run
from hack.install import tools

CHART = Path(__file__).parents[2] / "charts" / "piton"
RELEASE = "piton"
NAMESPACE = "piton-system"
DEPLOYMENT = "piton-operator"
ANOTHER_HELM_SECONDS = 30.0
"""So long a pending release may be the work of another helm; then it is that of one that was killed."""


def install(kubeconfig: Path, *, annotations: dict[str, str] | None = None, replicas: int = 2) -> None:
    """Install or upgrade, and wait until the operator serves.

    `annotations` are the operator pod's: a new value replaces a pod whose image has changed under the same name.

    Raises:
        BoxError: helm refuses, or the operator does not come up.
    """
    _undo_interrupted(kubeconfig)
    command: list[str | Path] = [tools.helm(), "upgrade", "--install", RELEASE, CHART, "--kubeconfig", kubeconfig]
    command += ["--namespace", NAMESPACE, "--create-namespace", "--set", f"operator.replicas={replicas}"]
    for key, value in (annotations or {}).items():
        command += ["--set-string", f"operator.podAnnotations.{key.replace('.', chr(92) + '.')}={value}"]
    run(command)
    _wait(kubeconfig)


def remove(kubeconfig: Path) -> None:
    """Uninstall; the CRDs stay, and with them the runs."""
    run(
        [tools.helm(), "uninstall", RELEASE, "--kubeconfig", kubeconfig, "--namespace", NAMESPACE, "--ignore-not-found"]
    )


@contextlib.contextmanager
def changed(kubeconfig: Path, values: Mapping[str, Any], *, chart: Path = CHART) -> Iterator[None]:
    """Other values or another chart, rolled back in the end; the operator serves before and after."""
    options: list[str | Path] = ["--kubeconfig", kubeconfig, "--namespace", NAMESPACE]
    sets = [word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]
    run([tools.helm(), "upgrade", RELEASE, chart, *options, "--reuse-values", *sets])
    try:
        _wait(kubeconfig)
        yield
    finally:
        run([tools.helm(), "rollback", RELEASE, *options])
        _wait(kubeconfig)


def status(kubeconfig: Path) -> str:
    """`deployed`, `pending-upgrade`, ... as helm says; nothing where Piton is not installed."""
    options: list[str | Path] = ["--kubeconfig", kubeconfig, "--namespace", NAMESPACE]
    found = json.loads(run([tools.helm(), "list", "--filter", f"^{RELEASE}$", "--output", "json", *options]))
    return str(found[0]["status"]) if found else ""


def _undo_interrupted(kubeconfig: Path) -> None:
    """Undo what a helm that was killed has begun: until then helm refuses every other operation on the release."""
    deadline = time.monotonic() + ANOTHER_HELM_SECONDS
    while (pending := status(kubeconfig)).startswith("pending-"):
        if time.monotonic() > deadline:
            undo = "uninstall" if pending == "pending-install" else "rollback"
            run([tools.helm(), undo, RELEASE, "--kubeconfig", kubeconfig, "--namespace", NAMESPACE])
            return
        time.sleep(0.1)


def _wait(kubeconfig: Path) -> None:
    kubectl: list[str | Path] = [tools.kubectl(), "--kubeconfig", kubeconfig, "--namespace", NAMESPACE]
    run([*kubectl, "rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=120s"])
