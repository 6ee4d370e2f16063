"""Everything that makes a cluster run Piton."""

from collections.abc import Callable
from pathlib import Path

from hack import images
from hack.cluster.layout import KUBECONFIG
from hack.install import chart


def install(kubeconfig: Path, say: Callable[[str], None]) -> None:
    """Bring the chart into the cluster, and into the box the images of this checkout as well.

    Raises:
        BoxError: An image cannot be built, helm refuses, or the operator does not come up.
    """
    annotations = {}
    if kubeconfig == KUBECONFIG:
        annotations["piton.dev/image"] = images.load(say)[images.OPERATOR]
    chart.install(kubeconfig, annotations=annotations)
    say("the operator serves")
