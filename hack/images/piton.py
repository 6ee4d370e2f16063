"""The names of the two images, and how they get into the nodes."""

from pathlib import Path

from hack.cluster import depot, imagebuild, nodes, oci
from hack.cluster.build import Say

OPERATOR = "ghcr.io/piton-dev/operator:0.1.0"
TRAINER = "ghcr.io/piton-dev/trainer:0.1.0"

_REPOSITORY = Path(__file__).parents[2]
_DOCKERFILES = {
    OPERATOR: _REPOSITORY / "operator" / "Dockerfile",
    TRAINER: _REPOSITORY / "trainer" / "Dockerfile",
}


def build(say: Say) -> list[oci.Image]:
    """Both, as the checkout is now; what has not changed is there already."""
    return [imagebuild.build(name, dockerfile, _REPOSITORY, say) for name, dockerfile in _DOCKERFILES.items()]


def load(say: Say) -> dict[str, str]:
    """Build both, unpack them once for all nodes to come, and bring them to those that run; their digests, by name."""
    images = build(say)
    depot.add(images)
    nodes.refresh_all_images()
    say(f"every node has {', '.join(_DOCKERFILES)}")
    return {image.name: image.digest for image in images}
