"""Everything that makes a cluster run Piton."""

from collections.abc import Callable

from hack import images
from hack.cluster import box, release
from hack.cluster.layout import KUBECONFIG
from hack.install import chart

IMAGE = "piton.dev/image"
"""Annotation of the operator's pod: which image it was made for, so that another one replaces it."""


def install_in_box(*, spot_nodes: int, say: Callable[[str], None], kubernetes: str | None = None) -> None:
    """Bring up the box, or what of it is not up, with Piton as it is in this checkout.

    Raises:
        BoxError: The box does not come up, an image cannot be built, helm refuses, or the operator does not serve.
    """
    box.require_root()
    release.choose(kubernetes, say)
    digests = images.load(say)  # before there are nodes: these start with what was unpacked once
    box.up(spot_nodes=spot_nodes, say=say, kubernetes=kubernetes)
    chart.install(KUBECONFIG, annotations={IMAGE: digests[images.OPERATOR]}, replicas=1)
    say("the operator serves")
