"""The chart's installation on a real cluster, after a helm that was killed."""

import subprocess

import pytest

from hack.cluster.layout import KUBECONFIG
from hack.install import chart, piton, tools
from support.live import LiveCluster, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


def test_an_upgrade_that_was_killed_does_not_block_the_next(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """helm refuses it by itself: "another operation (install/upgrade/rollback) is in progress"."""
    monkeypatch.setattr(chart, "ANOTHER_HELM_SECONDS", 0.5)
    _kill_an_upgrade()
    assert chart.status(KUBECONFIG) == "pending-upgrade"

    piton.install_in_box(spot_nodes=2, say=print)

    assert chart.status(KUBECONFIG) == "deployed"


def _kill_an_upgrade() -> None:
    """One that waits for a pod that no node takes, and leaves the operator that runs alone."""
    nowhere = "operator.nodeSelector.kubernetes\\.io/hostname=nowhere"
    command = [tools.helm(), "upgrade", chart.RELEASE, chart.CHART, "--kubeconfig", KUBECONFIG, "--reuse-values"]
    command += ["--namespace", chart.NAMESPACE, "--set-string", nowhere, "--wait"]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as helm:
        wait_for(lambda: chart.status(KUBECONFIG) == "pending-upgrade", "helm waits", seconds=30)
        helm.kill()
