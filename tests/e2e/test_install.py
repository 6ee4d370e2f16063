"""The chart's installation on a real cluster, after a helm that was killed."""

import json
import subprocess

import pytest

from hack.cluster.layout import KUBECONFIG
from hack.install import chart, piton, tools
from support.live import LiveCluster, NewTraining, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]
STEPS = 2000
_OPERATOR_PODS = f"/api/v1/namespaces/{chart.NAMESPACE}/pods"


def test_an_upgrade_that_was_killed_does_not_block_the_next(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """helm refuses it by itself: "another operation (install/upgrade/rollback) is in progress"."""
    monkeypatch.setattr(chart, "ANOTHER_HELM_SECONDS", 0.5)
    _kill_an_upgrade()
    assert chart.status(KUBECONFIG) == "pending-upgrade"

    piton.install_in_box(spot_nodes=2, say=print)

    assert chart.status(KUBECONFIG) == "deployed"


def test_uninstalled_under_runs_it_lets_them_train_and_the_next_operator_goes_on(
    cluster: LiveCluster, training: NewTraining
) -> None:
    """Without an operator nobody takes the finalizer off: docs/installation.md has the command."""
    stays, goes = training("stays"), training("goes")
    for run in (stays, goes):
        run.apply(paced(STEPS, 0.1, save_every=20, volume={"reclaim": "Retain"}))
    for run in (stays, goes):
        run.wait_for_commit(20)
    chart.remove(KUBECONFIG)
    try:
        wait_for(lambda: not cluster.items(_OPERATOR_PODS), "the operator is gone", seconds=60)
        newest = max(stays.commits())
        stays.wait_for_commit(newest + 40)
        cluster.kubectl("-n", goes.namespace, "delete", "trun", goes.name, "--wait=false")
        assert goes.running()
        release = json.dumps({"metadata": {"finalizers": None}})
        cluster.kubectl("-n", goes.namespace, "patch", "trun", goes.name, "--type=merge", "-p", release)
        left = [f"PersistentVolumeClaim {goes.name}-checkpoints"]
        wait_for(lambda: goes.leftovers() == left, "all but its claim is gone", seconds=150, say=goes.say)
    finally:
        piton.install_in_box(spot_nodes=2, say=print)
    stays.hurry()
    assert stays.wait_for_phase("Succeeded")["attempt"] == 1


def test_uninstalled_after_the_runs_it_leaves_nothing_but_definitions(
    cluster: LiveCluster, training: NewTraining
) -> None:
    run = training()
    run.apply(paced(STEPS, 0.1))
    run.wait_for_commit(10)
    run.delete()
    assert run.leftovers() == []
    chart.remove(KUBECONFIG)
    try:
        wait_for(lambda: not cluster.items(_OPERATOR_PODS), "the operator is gone", seconds=60)
        kinds = "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding"
        named = cluster.kubectl("get", kinds, "-l", f"app.kubernetes.io/instance={chart.RELEASE}", "-o", "name")
        assert named.strip() == ""
        assert "trainingruns.piton.dev" in cluster.kubectl("get", "crd", "-o", "name")
    finally:
        piton.install_in_box(spot_nodes=2, say=print)


def _kill_an_upgrade() -> None:
    """One that waits for a pod that no node takes, and leaves the operator that runs alone."""
    nowhere = "operator.nodeSelector.kubernetes\\.io/hostname=nowhere"
    command = [tools.helm(), "upgrade", chart.RELEASE, chart.CHART, "--kubeconfig", KUBECONFIG, "--reuse-values"]
    command += ["--namespace", chart.NAMESPACE, "--set-string", nowhere, "--wait"]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as helm:
        wait_for(lambda: chart.status(KUBECONFIG) == "pending-upgrade", "helm waits", seconds=30)
        helm.kill()
