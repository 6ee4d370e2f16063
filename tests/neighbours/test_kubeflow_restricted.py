"""With `engine: kubeflow` in a namespace that enforces `restricted`, by the template of docs/pod-security.md."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.test_restricted_namespace import (
    restricted,
    test_a_command_that_is_said_not_to_be_root_trains_in_a_restricted_namespace,
    test_the_quickstart_trains_with_its_stages_in_a_restricted_namespace,
)
from hack.cluster.layout import KUBECONFIG
from hack.install import chart
from hack.neighbours import kubeflow
from support.live import LiveCluster

__all__ = [
    "restricted",
    "test_a_command_that_is_said_not_to_be_root_trains_in_a_restricted_namespace",
    "test_the_quickstart_trains_with_its_stages_in_a_restricted_namespace",
]

pytestmark = [pytest.mark.neighbours, pytest.mark.timeout(900)]

TEMPLATE = Path(__file__).parents[2] / "manifests" / "kubeflow-init-container.yaml"


@pytest.fixture(scope="module", autouse=True)
def engine(cluster: LiveCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kubeflow's training operator with that template, and a Piton that leaves the jobs to it."""
    template = tmp_path_factory.mktemp("config") / "initContainer.yaml"
    template.write_text(yaml.safe_load(TEMPLATE.read_text())["data"][template.name])
    try:
        kubeflow.start(init_template=template)
        with chart.changed(KUBECONFIG, {"engine": "kubeflow"}):
            yield
    finally:
        kubeflow.stop()
