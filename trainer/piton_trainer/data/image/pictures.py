"""Images as they lie in a record, and as a model sees them.

Pillow decodes, cuts and resizes, and leaves the interpreter to other threads meanwhile.
"""

import io
import re
import sys
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile

from piton.contract import InputError
from piton_trainer.data.image.crops import Crop
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.data.image.records import Records

Pixels = NDArray[np.uint8]
_ANIMATED = ("PNG", "WEBP", "GIF", "TIFF")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of Pillow with one number of more than 8 bits for each pixel."""
_GREY_AND_ALPHA = "LA;16B"
_HALVED = re.compile(rf"RGB[AXa]?;16[BLN]|{_GREY_AND_ALPHA}")
"""Raw modes of Pillow with several numbers of 16 bits for each pixel, of which it keeps the upper 8 bits."""
_COLOURS = "RGBL"
_PNG_RGBA = 6
_WHITE_8, _WHITE_16 = 255, 65535
_DARKEST_16 = 4096
"""An image of 16 bits that uses fewer than 12 of them would have less than 16 shades left in 8."""
_TAKEN_AS_THEY_ARE = "has more than 8 bits and no value above 255, so its values are taken as they are"


def from_pixels(pixels: Pixels, label: int) -> Picture:
    """Make a record of an array of bytes (height, width) or (height, width, channels)."""
    height, width, channels = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    content = np.ascontiguousarray(pixels).tobytes()
    return Picture(label=label, height=height, width=width, channels=channels, content=content, is_jpeg=False)


def from_file(content: bytes, label: int, *, max_side: int | None, quality: int) -> Picture:
    """Make a record of an image file, with a remark where it does not show all of the file.

    A colour JPEG that is small enough and stands upright stays as it is; anything else becomes a new JPEG. Every image
    is decoded once to see that it can be, however long it takes: better here than in the tenth hour of a training.

    Raises:
        Exception: of whatever kind, where it is no image, or a damaged one.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "PNG":
            _expect_checksums(content)
        moves = image.format in _ANIMATED and getattr(image, "is_animated", False)
        is_halved = _is_halved(image)
        image.load()
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        fits = max_side is None or max(image.size) <= max_side
        if image.format == "JPEG" and image.mode == "RGB" and fits and upright:
            return _jpeg(content, image.size, label)
        lower = _lower_half(image, content) if is_halved else None
        meant: Image.Image = image if lower is None else lower
        smaller, remark = _in_colour(meant if upright else ImageOps.exif_transpose(meant))
        remark = remark if lower is None else _TAKEN_AS_THEY_ARE
    if max_side is not None:
        smaller.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=quality)
    remark = "has several frames, of which the first is taken" if moves else remark
    return replace(_jpeg(file.getvalue(), smaller.size, label), remark=remark)


def _expect_checksums(png: bytes) -> None:
    """Compare the checksums of the parts that an image is made of; Pillow decodes the pixels without that.

    Those of comments are left alone: there are programs that write them wrong.

    Raises:
        ValueError: one is wrong.
    """
    place = 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4])
        kind = png[place + 4 : place + 8]
        is_needed = not kind[0] & 0x20
        if is_needed and zlib.crc32(png[place + 4 : end]) != int.from_bytes(png[end : end + 4]):
            raise InputError(f"chunk {kind.decode('ascii', 'backslashreplace')} at byte {place} has a wrong checksum")
        place = end + 4


def _in_colour(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Return the image with 8 bits for each of three colours, and a remark where that took a guess.

    Pillow would make every value above 255 white. Files with 16 bits may still hold 8; those stay as they are.

    Raises:
        ValueError: the values leave open what is white.
    """
    if image.mode not in _DEEP:
        return image.convert("RGB"), None
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high < _WHITE_16 + 1):  # also where one is no number
        raise InputError(f"its values go from {low:g} to {high:g}, and 0 to 255 or 0 to 65535 are wanted")
    if high <= _WHITE_8:
        if image.mode == "F" and 0 < high <= 1:
            raise InputError(f"its values go from {low:g} to {high:g}, and 0 to 255 are wanted; write 8 bits")
        return Image.fromarray(values.astype(np.uint8)).convert("RGB"), _TAKEN_AS_THEY_ARE if high > 1 else None
    if high < _DARKEST_16:
        raise _black(high)
    return Image.fromarray((values * (_WHITE_8 / _WHITE_16)).round().astype(np.uint8)).convert("RGB"), None


def _black(brightest: float) -> InputError:
    return InputError(
        f"its brightest value is {brightest:g} of 65535, which 8 bits would make black; write it with 8 bits"
    )


def _is_halved(image: ImageFile) -> bool:
    """True if an image that is not loaded has several numbers of 16 bits for each pixel; Pillow takes 8 of them."""
    return any(_HALVED.fullmatch(_raw_mode(tile)) for tile in image.tile)


def _raw_mode(tile: Any) -> str:
    """Return Pillow's name for the order of the bytes in a part of a file."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else "")


def _lower_half(image: Image.Image, content: bytes) -> Image.Image | None:
    """Return the lower 8 bits of an image, where all that it shows lies in them.

    An image of 8 bits in 16 would be black. Alpha does not count, as it is white in both.

    Raises:
        ValueError: the upper half would have fewer than 16 shades.
    """
    upper = _colours(image)
    if int(upper.max()) * (_WHITE_8 + 1) >= _DARKEST_16:
        return None
    lower = _open_lower_half(content)
    brightest = int((upper.astype(np.uint16) * (_WHITE_8 + 1) + _colours(lower)).max())
    if brightest > _WHITE_8:
        raise _black(brightest)
    return lower if brightest > 1 else None


def _open_lower_half(content: bytes) -> Image.Image:
    """Open an image of several numbers of 16 bits so that Pillow takes the lower half of each of them."""
    image = Image.open(io.BytesIO(content))
    assert isinstance(image, ImageFile)
    if _raw_mode(image.tile[0]) == _GREY_AND_ALPHA:  # a PNG that has the same bytes as one of four colours with 8 bits
        header = content[12:24] + bytes([8, _PNG_RGBA]) + content[26:29]
        told = content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]
        return Image.open(io.BytesIO(told)).getchannel("G")
    image.tile = [tile._replace(args=_with_other_byte_order(tile)) for tile in image.tile]
    image.load()
    return image


def _with_other_byte_order(tile: Any) -> Any:
    """Return the arguments of a part of a file with the other order of the two bytes of a number."""
    raw = _raw_mode(tile)
    is_little = raw.endswith("L") or (raw.endswith("N") and sys.byteorder == "little")
    other = f"{raw[:-1]}{'B' if is_little else 'L'}"
    return other if isinstance(tile.args, str) else (other, *tile.args[1:])


def _colours(image: Image.Image) -> Pixels:
    """Return the pixels of a loaded image without its alpha, (height, width, colours)."""
    return np.stack([np.asarray(image.getchannel(band)) for band in image.getbands() if band in _COLOURS], axis=-1)


def _jpeg(content: bytes, size: tuple[int, int], label: int) -> Picture:
    return Picture(label=label, height=size[1], width=size[0], channels=3, content=content, is_jpeg=True)


def cut(records: Records, number: int, crop: Crop, size: int) -> Pixels:
    """Return a part of a record as `size` x `size` pixels: (size, size, 3), or 1 for a grey one.

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
