"""Piton on older versions of Kubernetes, a box of each: install, train, be preempted, finish, uninstall.

`make e2e-versions VERSIONS="1.33"`. A box that is up is stopped for it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hack.cluster import box, drills, release
from hack.cluster.layout import KUBECONFIG, Node
from hack.cluster.shell import BoxError
from hack.install import chart, piton
from support.live import LiveCluster, Training, wait_for
from support.missing import missing
from support.on_a_cluster import the_right_to_a_box

pytestmark = [pytest.mark.versions, pytest.mark.timeout(3600)]

VERSIONS = os.environ.get("VERSIONS", "1.30 1.33 1.35").split()
NAMESPACE = "smoke"
QUICKSTART = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"


@pytest.fixture(params=VERSIONS)
def cluster(request: pytest.FixtureRequest) -> Iterator[LiveCluster]:
    """A box of that version, with Piton."""
    with the_right_to_a_box():
        box.down()
        try:
            piton.install_in_box(spot_nodes=2, say=print, kubernetes=request.param)
            assert release.version().startswith(f"v{request.param}.")
            print(f"Kubernetes {release.version()}")
            yield LiveCluster(KUBECONFIG)
        except BoxError as error:
            missing(str(error))
        finally:
            box.down()


def test_the_quickstart_is_preempted_and_succeeds(cluster: LiveCluster) -> None:
    spec = yaml.safe_load(QUICKSTART.read_text())["spec"]
    cluster.kubectl("create", "namespace", NAMESPACE)
    run = Training(cluster, NAMESPACE, "quickstart")

    run.apply({**spec, "workers": {"nodes": 1, "gpusPerNode": 1}})
    first = run.wait_for_node(1)
    run.wait_for_commit(25, seconds=600)
    drills.reclaim(Node.named(first), notice_seconds=20)

    status = run.wait_for_phase("Succeeded", seconds=900)
    assert (status["attempt"], status["preemptions"], status["failures"]) == (2, 1, 0)
    assert status["lost"]["steps"] == 0
    run.delete()
    wait_for(lambda: not run.leftovers(), "nothing of the run is left", seconds=120)
    chart.remove(KUBECONFIG)
    assert not cluster.items(f"/apis/apps/v1/namespaces/{chart.NAMESPACE}/deployments")
