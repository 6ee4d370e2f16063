"""A run whose status another version of the operator wrote, on a real API server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.layout import KUBECONFIG
from hack.install import chart
from piton.api.conditions import STATUS_UNREADABLE
from support.live import DigestOf, NewTraining, Object, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 1000
"""At ten steps a second: time for what a test does. Then the run hurries to its end."""
NEW = "addedLater"
"""A field of the newer version, in the status and in each attempt."""
KEPT = {"word": "kept", "empty": ""}


def test_a_run_with_a_status_of_a_newer_operator_is_left_alone_until_it_can_be_read(
    training: NewTraining, digest_of: DigestOf
) -> None:
    run, other = training(), training("other")
    run.apply(paced(STEPS, 0.1))
    run.wait_for_commit(10)
    jobs = run.leftovers()

    _write(run, {"phase": "Migrating", NEW: KEPT})
    wait_for(lambda: _unreadable(run.status), "the run is unreadable", seconds=60, say=run.say)
    written = run.status
    run.patch({"suspend": True})
    _wait_for_the_end_of_its_pod(run)
    other.apply(paced(STEPS, 0.0, save_every=STEPS))
    other.wait_for_phase("Succeeded")

    assert _without_the_condition(run.status) == _without_the_condition(written)
    assert run.leftovers() == jobs
    run.patch({"suspend": False})
    run.hurry()
    _write(run, {"phase": "Training"})
    status = run.wait_for_phase("Succeeded")
    assert (status["attempt"], status.get("failures", 0), status.get("preemptions", 0)) == (1, 0, 0)
    assert status["result"]["weightsDigest"] == digest_of(STEPS)
    assert status[NEW] == KEPT
    assert not _unreadable(status)


def test_what_a_newer_version_wrote_outlives_a_rollback_of_the_chart(training: NewTraining, tmp_path: Path) -> None:
    """The older schema would prune it at the next write, by whoever it is, if it did not keep unknown fields."""
    run = training()
    run.apply(paced(STEPS, 0.1))
    run.wait_for_commit(10)
    run.patch({"suspend": True})
    suspended = run.wait_for_phase("Suspended")

    with chart.changed(KUBECONFIG, {}, chart=_newer(tmp_path / "chart")):
        _write(run, {NEW: KEPT, "attempts": [attempt | {NEW: KEPT} for attempt in suspended["attempts"]]})

    run.hurry()
    run.patch({"suspend": False})
    status = run.wait_for_phase("Succeeded")
    assert status[NEW] == KEPT
    assert [attempt.get(NEW) for attempt in status["attempts"]] == [KEPT, None]


def _write(run: Training, status: Object) -> None:
    """Into the status, as an operator does."""
    patch = json.dumps({"status": status})
    words = ["patch", "trun", run.name, "--subresource=status", "--type=merge", "-p", patch]
    run.cluster.kubectl("-n", run.namespace, *words)


def _unreadable(status: Object) -> bool:
    return any(c["type"] == STATUS_UNREADABLE and c["status"] == "True" for c in status.get("conditions", []))


def _without_the_condition(status: Object) -> Object:
    return status | {"conditions": [c for c in status["conditions"] if c["type"] != STATUS_UNREADABLE]}


def _wait_for_the_end_of_its_pod(run: Training) -> None:
    def ended() -> bool:
        return [pod["status"]["phase"] for pod in run.pods(1)] == ["Succeeded"]

    wait_for(ended, "its pod ends", seconds=120, say=run.say)


def _newer(folder: Path) -> Path:
    """The chart of a version whose runs have another field in their status."""
    shutil.copytree(chart.CHART, folder)
    path = folder / "files" / "trainingruns.piton.dev.yaml"
    crd: dict[str, Any] = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    for part in (status, status["properties"]["attempts"]["items"]):
        part["properties"][NEW] = {"type": "object", "additionalProperties": {"type": "string"}}
    path.write_text(yaml.safe_dump(crd))
    return folder
