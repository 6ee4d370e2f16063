"""A checkpoint volume that cannot be written to when an attempt begins."""

import json
import os

import pytest

from hack.cluster.layout import VOLUMES
from support.changed_pods import changed_pods
from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(420)]
STEPS = 400
READ_ONLY = '[JSONPatch{op: "add", path: "/spec/containers/0/volumeMounts/0/readOnly", value: true}]'
"""The first mount is that of the checkpoints."""


def test_a_volume_that_is_read_only_when_an_attempt_begins_is_waited_for(
    cluster: LiveCluster, training: NewTraining, digest_of: DigestOf
) -> None:
    """The run has saved there before: it is no mistake of its settings."""
    run = training()
    run.apply(paced(STEPS, 0.05, limits={"failures": 1}))
    wait_for(lambda: "checkpoint" in run.status, "it has saved", seconds=90, say=run.say)

    def log() -> str:
        return cluster.kubectl("-n", run.namespace, "logs", f"{run.name}-2-master-0", check=False)

    with changed_pods(cluster, run.namespace, READ_ONLY):
        cluster.kubectl("-n", run.namespace, "delete", "pod", f"{run.name}-1-master-0", "--wait=false")
        wait_for(lambda: "Read-only file system" in log(), "the trainer has met it", seconds=120, say=run.say)
    assert run.phase not in ("Failed", "Recovering"), run.say()
    cluster.kubectl("-n", run.namespace, "delete", "pod", f"{run.name}-2-master-0", "--wait=false")

    status = run.wait_for_phase("Succeeded")

    assert status["failures"] == 0
    assert status["result"]["weightsDigest"] == digest_of(STEPS)


def test_a_fresh_volume_of_roots_is_named_with_what_would_help(cluster: LiveCluster, training: NewTraining) -> None:
    """As of EFS, which ignores fsGroup."""
    run, name = training(), "of-root"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": run.namespace},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
    path = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims/{name}"
    wait_for(lambda: _volume(cluster, path), "the claim is bound", seconds=60)
    folder = VOLUMES / _volume(cluster, path)
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    spec = paced(20, 0.0)
    spec["trainer"] = {"image": spec["trainer"]["image"], "recipe": "charlm"}
    spec["checkpoint"]["volume"] = {"claimName": name}
    run.apply(spec)

    ended = run.wait_for_phase("Failed", seconds=120)["attempts"][-1]

    assert (ended["reason"], ended["permanent"]) == ("BadConfig", True)
    assert "belongs to 0:0 with mode 0755" in ended["message"], ended["message"]
    assert all(words in ended["message"] for words in ("fsGroup", "an access point of user 65532")), ended["message"]


def _volume(cluster: LiveCluster, path: str) -> str:
    found = cluster.get(path) or {}
    bound = (found.get("status") or {}).get("phase") == "Bound"
    return str(found["spec"]["volumeName"]) if bound else ""
