"""Piton's images: from their Dockerfiles into the box, if one is up.

    python -m hack.images

The box knows nothing of Piton; this package does, and knows no more of the box than how an image is built and loaded.
"""

from hack.images.piton import DATASETS, OPERATOR, TRAINER, build, load, load_datasets

__all__ = ["DATASETS", "OPERATOR", "TRAINER", "build", "load", "load_datasets"]
