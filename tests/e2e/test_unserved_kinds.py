"""Rights that are taken away for a while, and a kind that is not served for a while, in the API server's own words."""

import json

import pytest

from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 400
CRD = "trainingruns.piton.dev"


def _serve(cluster: LiveCluster, *, served: bool) -> None:
    patch = [{"op": "replace", "path": "/spec/versions/0/served", "value": served}]
    cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(patch))


def test_a_kind_that_is_not_served_for_a_while_is_as_it_was(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    """The operator goes on with its runs, and hears what users change, without a restart."""
    run = training()
    run.apply(paced(STEPS, 0.1, save_every=20))
    run.wait_for_commit(20)
    try:
        _serve(cluster, served=False)
        wait_for(lambda: bool(cluster.refusal("get", "trainingruns", "-A")), "the kind is not served", seconds=60)
    finally:
        _serve(cluster, served=True)
    wait_for(lambda: not cluster.refusal("get", "trainingruns", "-A"), "the kind is served again", seconds=60)

    run.patch({"suspend": True})
    run.wait_for_phase("Suspended", seconds=120)
    run.patch({"suspend": False})
    run.hurry()
    assert run.wait_for_phase("Succeeded")["result"]["weightsDigest"] == digest_of(STEPS)
