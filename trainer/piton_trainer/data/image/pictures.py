"""Images as they lie in a record, and as a model sees them.

Pillow decodes, cuts and resizes, and leaves the interpreter to other threads meanwhile.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piton_trainer.data.image.crops import Crop
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.data.image.records import Records

Pixels = NDArray[np.uint8]


def from_pixels(pixels: Pixels, label: int) -> Picture:
    """A record of an array (height, width) or (height, width, channels)."""
    height, width, channels = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    content = np.ascontiguousarray(pixels).tobytes()
    return Picture(label=label, height=height, width=width, channels=channels, content=content, is_jpeg=False)


def from_file(content: bytes, label: int, *, max_side: int | None, quality: int) -> Picture:
    """A record of an image file: a colour JPEG that is small enough as it is, anything else as a new JPEG.

    Raises:
        OSError: it is no image, or a torn one. Every image is decoded once for that, however long it takes: better
            here than in the tenth hour of a training.
    """
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if image.format == "JPEG" and image.mode == "RGB" and (max_side is None or max(image.size) <= max_side):
            return _jpeg(content, image.size, label)
        smaller = image.convert("RGB")
    if max_side is not None:
        smaller.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=quality)
    return _jpeg(file.getvalue(), smaller.size, label)


def _jpeg(content: bytes, size: tuple[int, int], label: int) -> Picture:
    return Picture(label=label, height=size[1], width=size[0], channels=3, content=content, is_jpeg=True)


def cut(records: Records, number: int, crop: Crop, size: int) -> Pixels:
    """A part of a record as `size` x `size` pixels: (size, size, 3), or 1 for a grey one.

    Raises:
        BadConfig: the record is damaged.
    """
    height, width, channels = records.shape(number)
    content = records.read(number)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    if records.is_jpeg(number):
        image: Image.Image = Image.open(io.BytesIO(content))
        # A JPEG can be decoded at a half, a quarter, an eighth; no smaller than what is asked for.
        image.draft("RGB", (max(1, size * width // crop.width), max(1, size * height // crop.height)))
        shrink_x, shrink_y = image.width / width, image.height / height
        box_there = (box[0] * shrink_x, box[1] * shrink_y, box[2] * shrink_x, box[3] * shrink_y)
    else:
        shape = (height, width, channels) if channels > 1 else (height, width)
        image, box_there = Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape)), box
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box_there)).reshape(size, size, -1)
    return pixels[:, ::-1] if crop.flip else pixels
