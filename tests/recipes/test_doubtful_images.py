"""Images of a source that nobody meant so: 16 bits that hold 8, shards of zeros, classes at the wrong level."""

import io
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piton_trainer.data.image.image_files import Files, Form
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
    content = struct.pack(f"{order}{channels}H", *[16] * channels) + bytes(pixels.astype(f"{order}u2").tobytes())
    first = 8 + 2 * channels
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 2), (273, first), (277, channels), (278, height)]
    fields += [(279, len(content) - 2 * channels), *([(338, 2)] if channels == 4 else [])]
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, channels if tag == 258 else 1, told) for tag, told in fields)
    table = table.replace(struct.pack(f"{order}HHI", 258, 4, channels), struct.pack(f"{order}HHI", 258, 3, channels))
    start: bytes = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
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


def written(kind: str, pixels: Any, **more: bytes) -> bytes:
    content: bytes = WRITERS[kind](pixels, **more)
    return content


def as_shown(pixels: Any, kind: str) -> Any:
    return pixels[..., :1] if "grey" in kind else pixels


@pytest.mark.parametrize("kind", WRITERS)
def test_colours_of_16_bits_look_as_they_do_with_8(kind: str) -> None:
    found, picture = made(written(kind, slope() * 257))
    assert np.abs(found - as_shown(slope(), kind)).mean() < 3
    assert picture.remark is None


@pytest.mark.parametrize("kind", WRITERS)
def test_8_bits_in_colours_of_16_stay_as_they_are_and_that_is_said(kind: str) -> None:
    found, picture = made(written(kind, slope()))
    assert np.abs(found - as_shown(slope(), kind)).mean() < 3
    assert picture.remark == "has more than 8 bits and no value above 255, so its values are taken as they are"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("scale", [4, 16])
def test_colours_of_10_or_12_bits_in_16_are_refused(kind: str, scale: int) -> None:
    brightest = as_shown(slope(), kind).max() * scale
    with pytest.raises(ValueError, match=f"brightest value is {brightest} of 65535, which 8 bits would make black"):
        made(written(kind, slope() * scale))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_black_picture_and_one_with_a_bright_spot_are_pictures(kind: str) -> None:
    black = np.zeros((32, 32, 3), np.uint16)
    assert (made(written(kind, black))[0] == 0).all()
    black[3, 3, 0] = 4096
    assert made(written(kind, black))[1].remark is None


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind.startswith("PNG")])
@pytest.mark.parametrize("scale", [1, 257])
def test_colours_of_16_bits_that_lie_on_their_side_are_turned(kind: str, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    flat = slope()[:16] * scale
    found, _ = made(written(kind, flat, more=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
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
    count = 80 if images is None else len(images)
    save(
        path,
        images=np.arange(80 * 16 * 16).reshape(80, 16, 16).astype(np.uint8) if images is None else images,
        labels=np.arange(count) % 2,
    )
    return path


@pytest.mark.parametrize(
    ("save", "before", "after"),
    [
        (np.savez, b"(80, 16, 16)", b"(80, 16, 10)"),
        (np.savez, b"(80, 16, 16)", b"(80, 15, 16)"),
        (np.savez, b"(80,), }", b"(79,), }"),
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
            archive.writestr(name, content.replace(b"(80, 16, 16)", b"(80, 16, 10)"))
    assert "x.npz has to hold images and labels: images has 7680 bytes more than its header says" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_archive_that_is_in_order_is_read(tmp_path: Path, save: Callable[..., None], order: Any) -> None:
    images = np.asarray(np.random.default_rng(0).integers(256, size=(9, 5, 4, 3), dtype=np.uint8), order=order)
    source = open_source(str(an_archive(tmp_path / "x.npz", save, images)), FORM)
    assert sorted(source.picture(number).content for number in range(9)) == sorted(map(np.ndarray.tobytes, images))


# Shards.


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def a_shard(path: Path, count: int = 40, *, first: int = 0, suffix: str = "png") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for name, content in ((f"{number:03}.{suffix}", png(number)), (f"{number:03}.cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def read_all(path: Path) -> None:
    source = open_source(str(path), FORM)
    for number in range(len(source)):
        source.picture(number)


def two_shards(root: Path) -> tuple[Path, int]:
    """Return the second of two shards, and where its 21st image begins."""
    a_shard(root / "0.tar")
    shard = a_shard(root / "1.tar", first=40)
    assert len(open_source(str(root), FORM)) == 80
    with tarfile.open(shard) as tar:
        return shard, tar.getmembers()[40].offset


@pytest.mark.parametrize(
    ("zeros", "sentence"),
    [
        (lambda whole, at: whole[:at].ljust(len(whole), b"\0"), "has {left} bytes of zeros from byte {at} on"),
        (lambda whole, at: whole[: at + 512].ljust(len(whole), b"\0"), "bytes of zeros from byte"),
        (lambda whole, at: bytes(len(whole)), "has {size} bytes of zeros from byte 0 on"),
        (lambda whole, at: whole + bytes(10_240), "bytes of zeros from byte"),
        (lambda whole, at: whole + bytes(3 << 20), "bytes of zeros from byte"),
        (lambda whole, at: bytes(10_240), "is a tar file without files; write it anew"),
        (lambda whole, at: bytes(1024), "is a tar file without files; write it anew"),
        (lambda whole, at: b"", "is no plain tar file, or is damaged: empty file"),
    ],
    ids=[
        "half of it",
        "from a content on",
        "all of it",
        "a record more",
        "megabytes more",
        "empty",
        "small",
        "nothing",
    ],
)
def test_a_shard_that_ends_in_zeros_is_refused(
    tmp_path: Path, zeros: Callable[[bytes, int], bytes], sentence: str
) -> None:
    shard, at = two_shards(tmp_path / "x")
    whole = shard.read_bytes()
    shard.write_bytes(zeros(whole, at))
    with pytest.raises(BadConfig) as caught:
        read_all(tmp_path / "x")
    assert str(shard) in caught.value.detail
    assert sentence.format(at=at, left=len(whole) - at, size=len(whole)) in caught.value.detail


@pytest.mark.parametrize("blocking", [1, 2, 20, 64, 128, 2048])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 24])
def test_a_shard_of_any_blocking_factor_is_read_and_much_padding_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blocking: int, count: int
) -> None:
    folder, shard = tmp_path / "in", tmp_path / "x.tar"
    folder.mkdir()
    with tarfile.open(a_shard(tmp_path / "y.tar", count)) as tar:
        tar.extractall(folder, filter="data")
    names = sorted(path.name for path in folder.iterdir())
    subprocess.run(["tar", "-b", f"{blocking}", "-cf", str(shard), "-C", str(folder), *names], check=True)
    assert shard.stat().st_size % (512 * blocking) == 0
    assert len(open_source(str(shard), FORM)) == count
    told = [message for message in caplog.messages if "bytes of zeros" in message]
    with tarfile.open(shard) as tar:
        list(tar)
        zeros = shard.stat().st_size - tar.offset
    assert len(told) == (zeros >= 22 * 512)
    assert blocking == 64 or bool(told) == (blocking > 20)
    assert all(message.startswith(f"{shard} ends in ") for message in told)


def linked_shard(path: Path, links: dict[str, str], option: str) -> Path:
    """Write two images with their labels, and links, as `tar` writes what `ln` has made."""
    folder = path.with_suffix("")
    (folder / "sub").mkdir(parents=True)
    for number in (0, 1):
        (folder / f"{number}.png").write_bytes(png(50 * number))
        (folder / f"{number}.cls").write_bytes(b"%d" % number)
    for name, target in links.items():
        make = [] if option == "hard" else ["-s"]
        subprocess.run(["ln", *make, target, name], cwd=folder, check=True)
    subprocess.run(["tar", "-cf", str(path), "-C", str(folder), "0.cls", "0.png", "1.cls", "1.png", *links], check=True)
    return path


@pytest.mark.parametrize(
    ("option", "links"),
    [
        ("hard", {"2.png": "1.png", "2.cls": "0.cls"}),
        ("soft", {"2.png": "1.png", "2.cls": "0.cls"}),
        ("soft", {"sub/2.png": "../1.png", "sub/2.cls": "../0.cls"}),
        ("soft", {"1b.png": "1.png", "2.png": "1b.png", "2.cls": "./0.cls", "1b.cls": "1.cls"}),
    ],
)
def test_a_link_in_a_shard_is_the_file_before_it(tmp_path: Path, option: str, links: dict[str, str]) -> None:
    """`tar` writes files with one content, as `jdupes` leaves them, as links."""
    source = open_source(str(linked_shard(tmp_path / "x.tar", links, option)), FORM)
    assert isinstance(source, Files)
    found = {(file.label, int(np.asarray(Image.open(io.BytesIO(file.read()))).max())) for file in source.files}
    assert len(source) == 2 + len(links) // 2
    assert (0, 50) in found


def test_a_link_to_what_is_not_in_the_shard_is_refused_by_its_name_or_skipped(tmp_path: Path) -> None:
    shard = linked_shard(tmp_path / "x.tar", {"2.png": "/elsewhere/2.png", "2.cls": "0.cls"}, "soft")
    with pytest.raises(BadConfig, match=r"x\.tar/2\.png is a link to no file before it in the shard; write the shard"):
        open_source(str(shard), FORM)


def test_shards_without_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a_shard(tmp_path / "x" / "0.tar", 5)
    a_shard(tmp_path / "x" / "1.tar", 3, suffix="tif")
    assert len(open_source(str(tmp_path / "x"), FORM)) == 5
    assert caplog.messages == [
        f"{tmp_path}/x: not taken for data are 3 *.tif, 3 *.cls without an image",
        f"{tmp_path}/x: 1 of 2 shards have no image: 1.tar",
    ]


def test_shards_count_in_any_case_and_what_is_beside_them_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "x"
    a_shard(root / "0.tar", 5)
    a_shard(root / "1.TAR", 3, first=5)
    (root / "cat").mkdir()
    (root / "gone").symlink_to("nowhere")
    for name in ("2.tar.gz", "3.tar.gz", "4.tgz", "README", ".DS_Store", "5.tar.zst"):
        (root / name).write_bytes(b"x")
    assert len(open_source(str(root), FORM)) == 8
    assert caplog.messages == [
        f"{root}: taken are the *.tar shards, and not the folders beside them",
        (
            f"{root}: not taken for data are 2 *.tar.gz beside the shards, 2 without a suffix beside the shards, "
            "1 with a leading dot, 1 *.tgz beside the shards, 1 *.tar.zst beside the shards"
        ),
    ]


@pytest.mark.parametrize("kind", ["a link that leads nowhere", "a pipe", "a link to itself"])
def test_a_shard_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "x"
    a_shard(root / "0.tar", 5)
    match kind:
        case "a pipe":
            os.mkfifo(root / "1.tar")
        case _:
            (root / "1.tar").symlink_to("nowhere" if "nowhere" in kind else "1.tar")
    assert refusal(root).endswith(
        f"{root}/1.tar is no file, or a link that leads nowhere; remove it or put the shard in its place"
    )


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("./0.png", "0.png", "0.cls", "./0.cls"), "x.tar/0.png stands twice in its shard beside ./0.png"),
        (("a/0.png", "a/./0.jpg", "a/0.cls"), "x.tar/a/./0.jpg stands twice in its shard beside a/0.png"),
        (("0.png", "0.cls", ".//0.cls"), "x.tar/.//0.cls stands twice in its shard"),
    ],
)
def test_one_name_in_two_spellings_stands_twice(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content := b"1" if name.endswith("cls") else png(1))
            tar.addfile(info, io.BytesIO(content))
    assert sentence in refusal(tmp_path / "x.tar")


# Classes.


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(len(name)))
    return root


@pytest.mark.parametrize(
    "splits", [("train", "val"), ("Training", "Validation", "test"), ("train2017", "val2017"), ("train",)]
)
def test_splits_with_the_classes_in_them_are_refused_as_classes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = put(tmp_path / "x", *(f"{split}/{name}/1.png" for split in splits for name in ("cat", "dog")))
    told = refusal(root)
    first = sorted(splits)[0]
    assert f"{root} has {' and '.join(sorted(splits))} with the folders of 2 classes in each" in told
    assert f"name {root}/{first} as data and another one as validation" in told


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("train/1.png", "test/1.png"), ["its classes are test and train, which are the usual names of splits"]),
        (("train/1.png", "test/a/1.png"), ["its classes are test and train, which are the usual names of splits"]),
        (("train/a/1.png", "test/a/1.png"), ["its classes are test and train, which are the usual names of splits"]),
        (("train/1.png", "bus/1.png"), []),
        (("train/a/1.png", "train/b/1.png", "bus/a/1.png", "bus/b/1.png"), []),
        (("trains/1.png", "valley/1.png"), []),
        (("cat/1.png",), ["all images are of one class, cat, so there is nothing to learn"]),
        (
            ("cat/1.png", "README.md", "dogs.tar.gz"),
            [
                (
                    "not taken for data are 1 *.md beside the folders of the classes, "
                    "1 *.tar.gz beside the folders of the classes"
                ),
                "all images are of one class, cat, so there is nothing to learn",
            ],
        ),
    ],
)
def test_classes_that_may_be_meant_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...], told: list[str]
) -> None:
    root = put(tmp_path / "x", *names)
    assert len(open_source(str(root), FORM)) == sum(name.endswith("png") for name in names)
    assert caplog.messages == [f"{root}: {sentence}" for sentence in told]


def test_a_link_that_leads_nowhere_in_place_of_a_class_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = put(tmp_path / "x", "cat/1.png", "dog/1.png")
    (root / "bee").symlink_to("nowhere")
    assert open_source(str(root), FORM).classes == ("cat", "dog")
    assert caplog.messages == [f"{root}: not taken for data are 1 links that lead nowhere, or no files"]


@pytest.mark.parametrize("kind", ["shards", "npz"])
def test_one_class_is_said_of_shards_and_archives(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path = tmp_path / ("x.tar" if kind == "shards" else "x.npz")
    if kind == "shards":
        a_shard(path, 1)
    else:
        np.savez(path, images=np.zeros((3, 4, 4), np.uint8), labels=np.zeros(3, int))
    open_source(str(path), FORM)
    assert caplog.messages == [f"{path}: all images are of one class, 0, so there is nothing to learn"]
