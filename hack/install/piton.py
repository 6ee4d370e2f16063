"""Everything that makes a cluster run Piton."""

from collections.abc import Callable
from pathlib import Path

from hack.install import chart


def install(kubeconfig: Path, say: Callable[[str], None]) -> None:
    """Bring the images into the box, and the chart into the cluster."""
    chart.install(kubeconfig)
    say("the operator serves")
