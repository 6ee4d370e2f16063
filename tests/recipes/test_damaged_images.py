"""Damaged and doubtful images: each is refused by the name of its file, or what is left out of a source is said."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.preparation import prepare
from piton_trainer.data.image.record_writer import MADE, PART
from piton_trainer.data.image.records import Records
from piton_trainer.data.image.sources import open_source
from piton_trainer.errors import BadConfig
from support.pictures import Pixels, jpeg, noise

FORM = Form(max_side=200, quality=95)


def png(pixels: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **settings)
    return file.getvalue()


def a_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(count: int = 4) -> list[tuple[str, bytes]]:
    """Images and their labels."""
    return [
        pair
        for number in range(count)
        for pair in ((f"{number}.png", png(noise(number))), (f"{number}.cls", f"{number}".encode()))
    ]


def refusal(source: Path) -> str:
    with pytest.raises(BadConfig) as caught:
        everything(source)
    assert caught.value.detail.startswith("trainer.config.data: ")
    return caught.value.detail


def everything(source: Path) -> dict[int, Pixels]:
    """What is prepared of a source, by label."""
    records = source.with_suffix(".records")
    records.unlink(missing_ok=True)
    prepare(str(source), records, FORM, threads=1)
    found = Records(records)
    return {int(found.labels[number]): shown(found, number) for number in range(len(found))}


def shown(records: Records, number: int) -> Pixels:
    if records.is_jpeg(number):
        return np.asarray(Image.open(io.BytesIO(records.read(number))))
    return np.frombuffer(records.read(number), np.uint8).reshape(records.shape(number))


# Shards.


def flipped_header(whole: bytes, at: int) -> bytes:
    return whole[: at + 150] + bytes([whole[at + 150] ^ 0x40]) + whole[at + 151 :]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flipped_header, "is damaged: there is no header of a file at byte {at}, and no end"),
        (lambda whole, at: whole[:at], "is cut off: it ends at byte {at} without the zeros that end a tar file"),
        (lambda whole, at: whole[: at + 100], "is cut off: it ends at byte {after} without the zeros"),
        (lambda whole, at: whole[: at + 520], "is no plain tar file, or is damaged: unexpected end of data"),
        (
            lambda whole, at: whole[:at] + b"x" * 512 + whole[at:],
            "is damaged: there is no header of a file at byte {at}",
        ),
        (lambda whole, at: whole + whole, "goes on after its end at byte {end}; are these several tar files in one?"),
        (lambda whole, at: whole + b"\nexit 0\n", "goes on after its end at byte {end}; are these several"),
    ],
    ids=["flipped", "cut after a member", "cut in a header", "cut in a member", "a block too many", "two", "more"],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: Callable[[bytes, int], bytes], sentence: str) -> None:
    good, bad = (a_shard(tmp_path / "x" / f"{number}.tar", pairs()) for number in range(2))
    assert len(everything(tmp_path / "x")) == 4
    with tarfile.open(good) as tar:
        at, end = tar.getmembers()[4].offset, tar.offset
    bad.write_bytes(damage(good.read_bytes(), at))
    assert f"{bad} {sentence.format(at=at, after=at + 100, end=end)}" in refusal(tmp_path / "x")


def test_a_shard_may_end_with_one_block_of_zeros(tmp_path: Path) -> None:
    shard = a_shard(tmp_path / "x.tar", pairs())
    with tarfile.open(shard) as tar:
        list(tar)
        end = tar.offset
    shard.write_bytes(shard.read_bytes()[: end + 512])
    assert len(everything(shard)) == 4


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("0.png", png(noise(9))), "x.tar/0.png stands twice in its shard beside 0.png; leave one out"),
        (("0.jpg", jpeg(noise(9))), "x.tar/0.jpg stands twice in its shard beside 0.png; leave one out"),
        (("0.cls", b"1"), "x.tar/0.cls stands twice in its shard; leave one out"),
        (("9.cls", b"99999999999"), "x.tar/9.cls has to hold the number of a class, not b'99999999999'"),
    ],
)
def test_members_that_contradict_each_other_are_refused(tmp_path: Path, more: tuple[str, bytes], sentence: str) -> None:
    assert sentence in refusal(a_shard(tmp_path / "x.tar", [*pairs(), more]))


def test_what_is_left_out_of_a_shard_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = [("7.tif", b"x"), ("7.cls", b"7"), ("./._0.png", b"x"), ("0.json", b"{}"), ("./9.png", png(noise(9)))]
    shard = a_shard(tmp_path / "x.tar", [*pairs(), *more, ("./9.cls", b"5")])
    assert sorted(everything(shard)) == [0, 1, 2, 3, 5]
    assert caplog.messages[:2] == [
        f"{shard}: not taken for data are 1 *.tif, 1 with a leading dot, 1 *.json, 1 *.cls without an image",
        f"{shard}: 1 of 6 classes have no image: 4",
    ]


# Pictures.


def a_class(root: Path, **files: bytes) -> Path:
    (root / "a").mkdir(parents=True)
    for name, content in files.items():
        (root / "a" / name.replace("_", ".")).write_bytes(content)
    return root


def grey(*, top: int, dtype: Any) -> Any:
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "form", "mode"),
    [
        (np.uint16, "PNG", "I;16"),
        (np.uint16, "TIFF", "I;16"),
        (np.dtype(">u2"), "TIFF", "I;16B"),
        (np.int32, "TIFF", "I"),
        (np.float32, "TIFF", "F"),
    ],
)
def test_a_picture_with_16_bits_looks_as_it_does_with_8(tmp_path: Path, dtype: Any, form: str, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(grey(top=65535, dtype=dtype)).save(file, form)
    assert Image.open(file).mode == mode
    found = everything(a_class(tmp_path / "x", deep_png=file.getvalue()))[0]
    assert np.abs(found[..., 0].astype(int) - grey(top=255, dtype=np.uint8)).max() <= 3


def test_16_bits_that_hold_8_stay_as_they_are_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = png(grey(top=255, dtype=np.uint16))
    found = everything(a_class(tmp_path / "x", one_png=content, two_png=content))[0]
    assert np.abs(found[..., 0].astype(int) - grey(top=255, dtype=np.uint8)).max() <= 3
    [said] = [message for message in caplog.messages if "no value above 255" in message]
    assert said.startswith(f"{tmp_path}/x/a/")


def tiff(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (png(grey(top=1023, dtype=np.uint16)), "its brightest value is 1023 of 65535, which 8 bits would make black"),
        (tiff(grey(top=1, dtype=np.float32)), "its values go from 0 to 1, and 0 to 255 are wanted; write 8 bits"),
        (tiff(grey(top=70_000, dtype=np.float32)), "its values go from 0 to 70000, and 0 to 255 or 0 to 65535"),
        (tiff(-grey(top=5, dtype=np.int32)), "its values go from -5 to 0, and 0 to 255 or 0 to 65535 are wanted"),
        (tiff(grey(top=5, dtype=np.float32) * np.nan), "its values go from nan to nan"),
    ],
)
def test_a_picture_whose_white_nobody_knows_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    told = refusal(a_class(tmp_path / "x", odd_png=content))
    assert f"x/a/odd.png is no image that can be read: {sentence}" in told


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = everything(a_class(tmp_path / "x", phone_jpg=jpeg(pixels, exif=exif)))[0]
    assert upright.shape == (80, 40, 3)
    assert upright[:35].mean() > 240 > 15 > upright[45:].mean()


def test_of_a_moving_picture_the_first_frame_is_taken_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 0)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    found = everything(a_class(tmp_path / "x", one_webp=file.getvalue(), two_webp=file.getvalue()))[0]
    assert found.mean() > 190
    assert sum("has several frames, of which the first is taken" in message for message in caplog.messages) == 1


def a_bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def damaged_pixels() -> bytes:
    content = bytearray(png(noise(0, 40, 40)))
    content[content.index(b"IDAT") + 900] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("scan_png", a_bomb(), "Image size (400000000 pixels) exceeds limit"),
        ("bit_png", damaged_pixels(), "chunk IDAT at byte 33 has a wrong checksum"),
        ("cut_png", png(noise(0, 40, 40))[:-300], ""),
        ("cut_webp", b"RIFF\x10\0\0\0WEBPVP8 ", ""),
        ("page_jpg", b"<html>", "cannot identify image file"),
        ("empty_jpg", b"", "cannot identify image file"),
    ],
)
def test_a_damaged_picture_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    told = refusal(a_class(tmp_path / "x", **{name: content}))
    assert f"{tmp_path}/x/a/{name.replace('_', '.')} is no image that can be read: {sentence}" in told


def test_a_wrong_checksum_of_a_comment_is_nobodys_trouble(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("made", "by hand")
    content = png(noise(0, 40, 40), pnginfo=info)
    at = content.index(b"tEXt")
    body = content[at - 4 : at + 16 + 4]
    end = content.index(b"\0\0\0\0IEND")
    wrong = bytes([body[-1] ^ 1])
    moved = content[: at - 4] + content[at + 20 : end] + body[:-1] + wrong + content[end:]
    one, other = (everything(a_class(tmp_path / name, x_png=file)) for name, file in (("a", content), ("b", moved)))
    assert np.array_equal(one[0], other[0])


# Archives.


def an_archive(path: Path, images: Any = None, labels: Any = None) -> Path:
    np.savez(path, images=np.zeros((6, 4, 4), np.uint8) if images is None else images, labels=labels)
    return path


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, -1, 0, 1, 1], "x.npz, label 2: -1 is no number of a class"),
        ([0, 1, 0.5, 0, 1, 1], "x.npz, label 2: 0.5 is no number of a class"),
        ([0, 1, 1, 0, 1, np.nan], "x.npz, label 5: nan is no number of a class"),
        ([0, 1, 1, 0, 1, 2**40], f"x.npz, label 5: {2**40} is no number of a class"),
        ([1j] * 6, "x.npz has labels of complex128, and not whole numbers from 0 on"),
        (["cat"] * 6, "x.npz has to hold images and labels: invalid literal for int()"),
        ([None] * 6, "x.npz has to hold images and labels: Object arrays cannot be loaded"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: list[Any], sentence: str) -> None:
    assert sentence in refusal(an_archive(tmp_path / "x.npz", labels=labels))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no archive", "twice"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    path = an_archive(tmp_path / "x.npz", labels=np.arange(6))
    whole = path.read_bytes()
    place = whole.index(b"\x93NUMPY") + 140
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "flipped": whole[:place] + b"x" + whole[place + 1 :],
            "empty": b"",
            "no archive": b"\x93NUMPY" + b"x" * 100,
            "twice": whole,
        }[damage]
    )
    if damage == "twice":
        import zipfile

        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("labels.npy", archive.read("labels.npy"))
    assert str(path) in refusal(path)


def test_whole_labels_of_any_kind_are_taken_and_classes_without_images_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for labels in (np.array([0, 1, 2, 3, 4, 9.0]), np.array(["0", "1", "2", "3", "4", "9"])):
        caplog.clear()
        assert sorted(everything(an_archive(tmp_path / "x.npz", labels=labels))) == [0, 1, 2, 3, 4, 9]
        assert f"{tmp_path}/x.npz: 4 of 10 classes have no image: 5, 6, 7, 8" in caplog.messages


# Folders.


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(noise(len(name))))


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "x"
    put(root, "cat/1.png", "cat/2.PNG", "dog/deep/1.png", ".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png")
    put(root, "cat/._1.png", "fox/1.tif", "fox/2.gif", "fox/3.gif", "stray.png", "dog/notes", "cat/folder.png/3.png")
    put(tmp_path / "elsewhere", "3.png", "4.png")
    (root / "owl").mkdir()
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "bee").symlink_to(tmp_path / "elsewhere")

    source = open_source(str(root), FORM)
    assert source.classes == ("bee", "cat", "dog", "fox", "owl")
    assert len(source) == 6
    assert caplog.messages == [
        (
            f"{root}: not taken for data are 3 with a leading dot, 2 *.gif, 1 images beside the folders of the classes"
            ", 1 linked folders, 1 links that lead nowhere, or no files, 1 without a suffix, 1 *.tif"
        ),
        f"{root}: 2 of 5 classes have no image: fox, owl",
    ]


def test_a_folder_that_is_in_order_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / ".hidden" / "x", "cat/1.png", "dog/2.png")
    assert len(open_source(str(tmp_path / ".hidden" / "x"), FORM)) == 2
    assert caplog.messages == []


def test_shards_beside_folders_and_hidden_ones_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a_shard(tmp_path / "x" / "0.tar", pairs())
    (tmp_path / "x" / "._0.tar").write_bytes(b"of macOS")
    put(tmp_path / "x", "cat/1.png")
    assert len(open_source(str(tmp_path / "x"), FORM)) == 4
    assert caplog.messages == [
        f"{tmp_path}/x: taken are the *.tar shards, and not the folders beside them",
        f"{tmp_path}/x: not taken for data are 1 with a leading dot",
    ]


def test_a_class_whose_name_is_no_text_is_refused_and_such_a_file_is_not(tmp_path: Path) -> None:
    put(tmp_path / "x", "cat/1.png")
    odd = os.fsencode(tmp_path / "x")
    shutil.copy(tmp_path / "x/cat/1.png", os.fsdecode(odd + b"/cat/\xe9.png"))
    assert len(open_source(str(tmp_path / "x"), FORM)) == 2
    (tmp_path / "x/cat/2.png").write_bytes(b"no")
    bad = Path(os.fsdecode(odd + b"/cat/\xe8.png"))
    (tmp_path / "x/cat/2.png").rename(bad)
    assert "x/cat/\\xe8.png is no image that can be read" in refusal(tmp_path / "x")
    bad.unlink()
    shutil.copytree(tmp_path / "x/cat", os.fsdecode(odd + b"/caf\xe9"))
    assert refusal(tmp_path / "x").endswith(f"the name of folder {tmp_path}/x/caf\\xe9 is no UTF-8; rename it")


# A preparation that goes on.


def interrupted(root: Path, count: int, *, damaged: int) -> tuple[Path, list[Path]]:
    """A folder, prepared up to a damaged picture: its files in the order in which they are written."""
    put(root, *(f"a/{number:02}.png" for number in range(count)))
    source = open_source(str(root), FORM)
    paths = [Path(file.name) for file in source.files]  # type: ignore[attr-defined]
    good = paths[damaged].read_bytes()
    paths[damaged].write_bytes(b"x" * len(good))
    assert f"{paths[damaged]} is no image" in refusal(root)
    paths[damaged].write_bytes(good)
    return root.with_suffix(".records"), paths


def test_only_what_is_made_of_the_same_content_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records, paths = interrupted(tmp_path / "x", 12, damaged=9)
    before = paths[4].stat()
    other = png(noise(99))
    other += bytes(max(0, before.st_size - len(other)))  # behind its end a PNG may hold anything
    paths[4].write_bytes(other)
    os.utime(paths[4], ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(paths[2])

    caplog.set_level("INFO")
    prepare(str(tmp_path / "x"), records, FORM, threads=1)
    assert "x.records: 4 of 12 images are there already" in caplog.messages
    fresh = tmp_path / "fresh.records"
    prepare(str(tmp_path / "x"), fresh, FORM)
    assert records.read_bytes() == fresh.read_bytes()
    assert not records.with_name(records.name + MADE).exists()


@pytest.mark.parametrize("lost", ["the stamps", "their end", "all but the stamps"])
def test_without_its_stamps_a_record_is_made_again(tmp_path: Path, lost: str) -> None:
    records, _ = interrupted(tmp_path / "x", 12, damaged=9)
    part, made = (records.with_name(records.name + end) for end in (PART, MADE))
    if lost == "all but the stamps":
        part.unlink()
    else:
        made.write_bytes(b"" if lost == "the stamps" else made.read_bytes()[:-40])
    prepare(str(tmp_path / "x"), records, FORM, threads=1)
    fresh = tmp_path / "fresh.records"
    prepare(str(tmp_path / "x"), fresh, FORM)
    assert records.read_bytes() == fresh.read_bytes()
