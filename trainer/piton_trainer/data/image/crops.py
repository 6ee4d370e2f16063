"""The part of an image that is shown, and its size. Pure.

Every random number follows from the seed, the epoch and the number of the record. No generator is carried along, so a
crop does not depend on who drew before it: not on the thread, the rank, the attempt.
"""

import math
from dataclasses import dataclass

import numpy as np

TRIES = 10
ASPECT = (3 / 4, 4 / 3)
"""Narrowest and widest crop, width over height; with TRIES what the usual random resized crop has."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of an image, in pixels of the image."""

    left: int
    top: int
    width: int
    height: int
    flip: bool = False


def generator_of(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The random numbers of one record in one epoch."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, number]))


def random_crop(height: int, width: int, *, min_area: float, flip: bool, rng: np.random.Generator) -> Crop:
    """A part of at least `min_area` of the image, of a random aspect; mirrored every other time if `flip`."""
    mirrored = bool(rng.random() < 0.5) and flip
    for _ in range(TRIES):
        area = height * width * rng.uniform(min_area, 1.0)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return Crop(left=left, top=top, width=w, height=h, flip=mirrored)
    return _fitting(height, width, mirrored)


def _fitting(height: int, width: int, flip: bool) -> Crop:
    """As much of the middle as an allowed aspect lets us have."""
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Crop(left=(width - w) // 2, top=(height - h) // 2, width=w, height=h, flip=flip)


def center_crop(height: int, width: int, *, ratio: float) -> Crop:
    """The square in the middle whose side is that much of the shorter side."""
    side = max(1, round(min(height, width) * ratio))
    return Crop(left=(width - side) // 2, top=(height - side) // 2, width=side, height=side)
