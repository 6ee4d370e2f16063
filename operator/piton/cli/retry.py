"""`piton retry`: take up a run of a cluster that has failed, holds, or was left by `break`, by way of kubectl."""

import json
import subprocess
from typing import Any

import click

from piton.api.conditions import FAILED, STALLED, SUCCEEDED
from piton.api.status import RunStatus
from piton.clock import SystemClock
from piton.contract import InputError, names
from piton.core.retries import may_go_on

_SECONDS = 30


def retry(name: str, namespace: str | None) -> int:
    """Ask the operator for another chance, by the annotation that it looks for.

    Raises:
        ValueError: there is no such run, it needs none, or kubectl cannot be asked.
    """
    run = json.loads(_kubectl(namespace, "get", names.PLURAL, name, "-o", "json"))
    status = RunStatus.read(run.get("status") or {})
    goes_on = may_go_on(status)
    if status.is_true(SUCCEEDED) and not goes_on:
        raise InputError(f"{name} has Succeeded; a run that is to train on is a new one")
    if not goes_on and not status.is_true(FAILED) and not status.is_true(STALLED):
        raise InputError(
            f"{name} is {status.phase}, and goes on by itself; only what has Failed or is Stalled is retried"
        )
    text = SystemClock().now().strftime("%Y-%m-%dT%H-%M-%SZ")
    version = run["metadata"]["resourceVersion"]
    annotation = f"{names.ANNOTATION_RETRY}={text}"
    _kubectl(namespace, "annotate", names.PLURAL, name, annotation, "--overwrite", f"--resource-version={version}")
    step = f"step {status.checkpoint.step}" if status.checkpoint else "the beginning"
    click.echo(f"{name} is taken up again from {step}; failures count anew. See: kubectl get {names.PLURAL} {name} -w")
    return 0


def _kubectl(namespace: str | None, *words: str) -> Any:
    command = ["kubectl", *([] if namespace is None else ["-n", namespace]), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except FileNotFoundError:
        raise InputError("there is no kubectl on this machine; install it, and let it know of the cluster") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"the cluster has not answered kubectl for {_SECONDS} s; try again") from None
    if done.returncode:
        raise InputError(done.stderr.strip().removeprefix("Error from server ") or "kubectl failed without a word")
    return done.stdout
