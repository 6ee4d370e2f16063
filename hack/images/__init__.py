"""Piton's two images: from their Dockerfiles into the box, if one is up.

    python -m hack.images

The box knows nothing of Piton; this package does, and knows no more of the box than how an image is built and loaded.
"""

from hack.images.piton import OPERATOR, TRAINER, build, load

__all__ = ["OPERATOR", "TRAINER", "build", "load"]
