"""Small images for tests: records of them, folders of JPEGs, and a task that a tiny model learns in a second."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piton_trainer.data.image.pictures import from_pixels
from piton_trainer.data.image.record_writer import Recorder
from piton_trainer.data.image.records import About, Records

Pixels = NDArray[np.uint8]
ABOUT = About(source="made for a test")


def noise(seed: int, height: int = 6, width: int = 5) -> Pixels:
    """An image in colour of which no two are alike."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def jpeg(pixels: Pixels, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **settings)
    return file.getvalue()


def records_of(path: Path, images: list[Pixels], labels: list[int] | None = None) -> Records:
    """A finished file of records; the labels are the numbers of the images unless they are given."""
    with Recorder(path, ABOUT) as recorder:
        for number, image in enumerate(images):
            recorder.append(from_pixels(image, number if labels is None else labels[number]))
        recorder.finish()
    return Records(path)


def quadrants(path: Path, count: int = 240, side: int = 12) -> Path:
    """An archive of grey noise in which one quarter is brighter: its number is the label."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, size=(count, side, side), dtype=np.uint8)
    labels = np.arange(count) % 4
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[top : top + half, left : left + half] += 100
    np.savez(path, images=images, labels=labels)
    return path
