"""What people see of a run on a cluster while it trains, and which kinds of PyTorchJob it may be made of."""

import re
from pathlib import Path

import pytest
import yaml

from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

STEPS = 600
REAL_CRD = Path(__file__).parents[3] / "shared" / "data" / "kubeflow.org_pytorchjobs.yaml"
COMPACT_CRD = Path(__file__).parents[2] / "crds" / "bundled" / "kubeflow.org_pytorchjobs.yaml"

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]
_TIME = r"(\d+m)?(\d+s)?"
"""Short times, as kubectl and Piton write them: 45s, 1m5s, and 1m for a whole minute."""


def test_the_table_reads_well_while_it_trains(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    run.apply(paced(STEPS, 0.1, save_every=20))

    def row() -> dict[str, str]:
        heads, *rows = cluster.kubectl("-n", run.namespace, "get", "trainingruns").splitlines()
        at = [found.start() for found in re.finditer(r"\S+", heads)]
        cells = [rows[0][a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)] if rows else []
        return dict(zip(heads.split(), cells, strict=False))

    def selected(phase: str) -> list[str]:
        wanted = f"--field-selector=status.phase={phase}"
        names = cluster.kubectl("-n", run.namespace, "get", "trainingruns", wanted, "-o", "name")
        return [name.rpartition("/")[2] for name in names.split()]

    wait_for(lambda: int((seen := row()).get("STEP") or 0) >= 40 and seen["CKPT-AGE"], "forty steps", seconds=90)
    seen = row()
    print(seen)

    assert (seen["PHASE"], seen["PREEMPTS"]) == ("Training", "0")
    assert 5 <= int(seen["PROGRESS"]) <= 100
    assert 0 < float(seen["LOSS"]) < 2
    assert re.fullmatch(_TIME, seen["CKPT-AGE"])
    assert re.fullmatch(_TIME, seen["ETA"])
    assert selected("Training") == ["run"]
    run.hurry()
    done = run.wait_for_phase("Succeeded")
    assert selected("Training") == []
    assert (done["progress"]["progressPercentage"], done["progress"]["step"]) == (100, STEPS)
    assert f"step {STEPS}" in cluster.kubectl("-n", run.namespace, "logs", "run-1-master-0")


@pytest.mark.skipif(not REAL_CRD.exists(), reason=f"Kubeflow's own CRD is not at {REAL_CRD}")
def test_kubeflows_own_crd_does_as_well(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    """People have it installed already; the bundled engine works on it as on ours."""
    try:
        cluster.kubectl("replace", "--validate=false", "-f", str(REAL_CRD))
        run = training()
        run.apply(paced(STEPS, 0.0, save_every=STEPS))

        status = run.wait_for_phase("Succeeded")

        crd = yaml.safe_load(cluster.kubectl("get", "crd", "pytorchjobs.kubeflow.org", "-o", "yaml"))
        fields = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        assert "schedulingPolicy" in fields["runPolicy"]["properties"], "this is not Kubeflow's CRD"
        assert status["result"]["weightsDigest"] == digest_of(STEPS)
    finally:
        cluster.kubectl("replace", "--validate=false", "-f", str(COMPACT_CRD))
