"""Images of a source that nobody meant so: 16 bits that hold 8, shards of zeros, classes at the wrong level."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.data.image.sources import open_source
from piton_trainer.errors import BadConfig

FORM = Form(max_side=None, quality=95)


def refusal(source: Path) -> str:
    with pytest.raises(BadConfig) as caught:
        open_source(str(source), FORM)
    assert caught.value.detail.startswith("trainer.config.data: ")
    return caught.value.detail


# 16 bits for each of several colours.


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(pixels: Any, *, more: bytes = b"") -> bytes:
    """A PNG of (height, width, channels) with 16 bits, which Pillow does not write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_16(pixels: Any, order: str) -> bytes:
    """A TIFF of (height, width, channels) with 16 bits, which Pillow does not write."""
    height, width, channels = pixels.shape
    content = struct.pack(f"{order}{channels}H", *[16] * channels) + pixels.astype(f"{order}u2").tobytes()
    first = 8 + 2 * channels
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 2), (273, first), (277, channels), (278, height)]
    fields += [(279, len(content) - 2 * channels), *([(338, 2)] if channels == 4 else [])]
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, channels if tag == 258 else 1, told) for tag, told in fields)
    table = table.replace(struct.pack(f"{order}HHI", 258, 4, channels), struct.pack(f"{order}HHI", 258, 3, channels))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
    return start + content + struct.pack(f"{order}H", len(fields)) + table + bytes(4)


def slope() -> Any:
    """A picture of 8 bits in colour, without steps that a JPEG would smear."""
    down, right = np.indices((32, 32))
    return np.stack([down * 8, right * 8, 255 - 4 * (down + right)], axis=2).astype(np.uint16)


def with_alpha(pixels: Any) -> Any:
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 65535)], axis=2)


WRITERS: Mapping[str, Any] = {
    "PNG in colour": png_16,
    "PNG in colour with alpha": lambda pixels, **more: png_16(with_alpha(pixels), **more),
    "PNG in grey with alpha": lambda pixels, **more: png_16(with_alpha(pixels[..., :1]), **more),
    "TIFF": lambda pixels: tiff_16(pixels, "<"),
    "TIFF of the other order": lambda pixels: tiff_16(pixels, ">"),
    "TIFF with alpha": lambda pixels: tiff_16(with_alpha(pixels), "<"),
}


def made(content: bytes) -> tuple[Any, Picture]:
    picture = from_file(content, 0, max_side=FORM.max_side, quality=FORM.quality)
    return np.asarray(Image.open(io.BytesIO(picture.content))).astype(int), picture


def as_shown(pixels: Any, kind: str) -> Any:
    return pixels[..., :1] if "grey" in kind else pixels


@pytest.mark.parametrize("kind", WRITERS)
def test_colours_of_16_bits_look_as_they_do_with_8(kind: str) -> None:
    found, picture = made(WRITERS[kind](slope() * 257))
    assert np.abs(found - as_shown(slope(), kind)).mean() < 3
    assert picture.remark is None


@pytest.mark.parametrize("kind", WRITERS)
def test_8_bits_in_colours_of_16_stay_as_they_are_and_that_is_said(kind: str) -> None:
    found, picture = made(WRITERS[kind](slope()))
    assert np.abs(found - as_shown(slope(), kind)).mean() < 3
    assert picture.remark == "has more than 8 bits and no value above 255, so its values are taken as they are"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("scale", [4, 16])
def test_colours_of_10_or_12_bits_in_16_are_refused(kind: str, scale: int) -> None:
    brightest = as_shown(slope(), kind).max() * scale
    with pytest.raises(ValueError, match=f"brightest value is {brightest} of 65535, which 8 bits would make black"):
        made(WRITERS[kind](slope() * scale))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_black_picture_and_one_with_a_bright_spot_are_pictures(kind: str) -> None:
    black = np.zeros((32, 32, 3), np.uint16)
    assert (made(WRITERS[kind](black))[0] == 0).all()
    black[3, 3, 0] = 4096
    assert made(WRITERS[kind](black))[1].remark is None


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind.startswith("PNG")])
@pytest.mark.parametrize("scale", [1, 257])
def test_colours_of_16_bits_that_lie_on_their_side_are_turned(kind: str, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    flat = slope()[:16] * scale
    found, _ = made(WRITERS[kind](flat, more=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert found.shape[:2] == (32, 16)
    assert np.abs(found - as_shown(np.rot90(slope()[:16], k=-1), kind)).mean() < 3


def test_of_a_tiff_with_several_pages_the_first_is_taken_and_that_is_said() -> None:
    file = io.BytesIO()
    pages = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 0)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    found, picture = made(file.getvalue())
    assert found.mean() > 190
    assert picture.remark == "has several frames, of which the first is taken"


# Archives.


def an_archive(path: Path, save: Callable[..., None] = np.savez, images: Any = None) -> Path:
    count = 8 if images is None else len(images)
    save(
        path,
        images=np.arange(8 * 16 * 16).reshape(8, 16, 16).astype(np.uint8) if images is None else images,
        labels=np.arange(count) % 2,
    )
    return path


@pytest.mark.parametrize(
    ("save", "before", "after"),
    [
        (np.savez, b"(8, 16, 16)", b"(8, 16, 10)"),
        (np.savez, b"(8, 16, 16)", b"(8, 15, 16)"),
        (np.savez, b"(8,), }", b"(7,), }"),
        (np.savez, b"'descr': '<i8'", b"'descr': '<i4'"),
        (np.savez, b"'descr': '<i8'", b"'descr': '<f8'"),
        (np.savez, b"'fortran_order': False", b"'fortran_order': True "),
    ],
)
def test_a_header_of_an_array_that_says_something_else_is_refused(
    tmp_path: Path, save: Callable[..., None], before: bytes, after: bytes
) -> None:
    path = an_archive(tmp_path / "x.npz", save)
    whole = path.read_bytes()
    assert before in whole
    path.write_bytes(whole.replace(before, after, 1))
    assert str(path) in refusal(path)


def test_bytes_behind_an_array_are_refused_though_their_checksum_is_right(tmp_path: Path) -> None:
    path = an_archive(tmp_path / "x.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"(8, 16, 16)", b"(8, 16, 10)"))
    assert "x.npz has to hold images and labels: images has 768 bytes more than its header says" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_archive_that_is_in_order_is_read(tmp_path: Path, save: Callable[..., None], order: Any) -> None:
    images = np.asarray(np.random.default_rng(0).integers(256, size=(9, 5, 4, 3), dtype=np.uint8), order=order)
    source = open_source(str(an_archive(tmp_path / "x.npz", save, images)), FORM)
    assert sorted(source.picture(number).content for number in range(9)) == sorted(map(np.ndarray.tobytes, images))
