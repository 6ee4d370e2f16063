"""The names of the images, and how they get into the nodes."""

from collections.abc import Sequence
from pathlib import Path

from hack.cluster import depot, imagebuild, nodes, oci
from hack.cluster.programs import Say

OPERATOR = "ghcr.io/piton-dev/operator:0.1.0"
TRAINER = "ghcr.io/piton-dev/trainer:0.1.0"
DATASETS = "ghcr.io/piton-dev/trainer-datasets:0.1.0"
"""The trainer with the real data of the small systems; only they need it."""

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
    return _load(build(say), say)


def load_datasets(say: Say) -> None:
    """Bring the trainer with data to the nodes."""
    build(say)
    trainer = imagebuild.stored_as(TRAINER, _DOCKERFILES[TRAINER], _REPOSITORY)
    dockerfile = _REPOSITORY / "trainer" / "datasets.Dockerfile"
    _load([imagebuild.build(DATASETS, dockerfile, _REPOSITORY, say, TRAINER=trainer)], say)


def _load(images: Sequence[oci.Image], say: Say) -> dict[str, str]:
    depot.add(images)
    nodes.refresh_all_images()
    say(f"every node has {', '.join(image.name for image in images)}")
    return {image.name: image.digest for image in images}
