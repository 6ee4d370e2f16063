"""The file of records: what is written is read, damage is found, and a kill at any byte costs one record at most."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from piton_trainer.data.image.pictures import from_file, from_pixels
from piton_trainer.data.image.record_writer import PART, Recorder
from piton_trainer.data.image.records import HEAD, About, Records
from piton_trainer.errors import BadConfig
from support import ranks
from support.pictures import ABOUT, jpeg, noise, records_of

PICTURES = [from_pixels(noise(number, 3, 2), number) for number in range(4)]


def write(path: Path, *, finish: bool = True) -> int:
    """Append what is missing; how much was there."""
    with Recorder(path, ABOUT) as recorder:
        there = len(recorder)
        for picture in PICTURES[there:]:
            recorder.append(picture)
        if finish:
            recorder.finish()
    return there


def test_what_is_written_is_read(tmp_path: Path) -> None:
    grey, coloured = noise(1)[:, :, 0], noise(2, 40, 30)
    about = About(source="x", classes=("cat", "dog", "eel"))
    file = jpeg(coloured, quality=80)
    with Recorder(tmp_path / "x.records", about) as recorder:
        recorder.append(from_pixels(grey, 2))
        recorder.append(from_file(file, 1, max_side=None, quality=90))
        recorder.finish()

    records = Records(tmp_path / "x.records")
    assert (records.about, len(records), records.classes) == (about, 2, 3)
    assert records.labels.tolist() == [2, 1]
    assert [records.shape(0), records.shape(1)] == [(6, 5, 1), (40, 30, 3)]
    assert [records.is_jpeg(0), records.is_jpeg(1)] == [False, True]
    assert np.frombuffer(records.read(0), np.uint8).reshape(6, 5).tolist() == grey.tolist()
    assert records.read(1) == file
    assert not (tmp_path / "x.records.part").exists()


def test_without_names_the_highest_label_says_how_many_classes_there_are(tmp_path: Path) -> None:
    assert records_of(tmp_path / "x.records", [noise(0), noise(1)], [6, 2]).classes == 7


def test_every_flipped_bit_that_anybody_reads_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    write(path)
    whole = path.read_bytes()
    heads = {place for start in starts(whole) for place in range(start, start + HEAD.itemsize)}
    for place in set(range(len(whole))) - heads:  # those before the records serve a file that is still being written
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadConfig):
            read_all(path)
    path.write_bytes(whole)
    read_all(path)


def starts(content: bytes) -> list[int]:
    return [content.index(picture.content) - HEAD.itemsize for picture in PICTURES]


def read_all(path: Path) -> None:
    records = Records(path)
    assert [records.read(number) for number in range(len(records))] == [picture.content for picture in PICTURES]


def test_a_damaged_record_is_told_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    write(path)
    content = bytearray(path.read_bytes())
    content[content.index(PICTURES[3].content)] ^= 255
    path.write_bytes(content)
    records = Records(path)
    records.read(2)
    with pytest.raises(BadConfig) as caught:
        records.read(3)
    assert caught.value.detail == (
        f"trainer.config.data: record 3 of {path} is damaged; delete the file and prepare it again"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot mmap an empty file"), (b"JFIF" * 100, "it does not begin as one")],
)
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.records"
    path.write_bytes(content)
    with pytest.raises(BadConfig) as caught:
        Records(path)
    assert caught.value.detail == f"trainer.config.data: {path} is no file of records: {reason}"


def test_a_missing_file_and_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    with pytest.raises(BadConfig, match=r"cannot read .*: No such file or directory"):
        Records(path)
    write(path)
    path.write_bytes(path.read_bytes().replace(b"PITONREC\1", b"PITONREC\2"))
    with pytest.raises(BadConfig) as caught:
        Records(path)
    assert "it has version 2, and this Piton reads version 1" in caught.value.detail


def test_wherever_it_is_cut_off_the_same_file_comes_of_it_and_whole_records_stay(tmp_path: Path) -> None:
    write(tmp_path / "whole.records")
    whole = (tmp_path / "whole.records").read_bytes()
    sizes = []
    for cut in range(len(whole)):
        path = tmp_path / "cut.records"
        path.with_name(path.name + PART).write_bytes(whole[:cut])
        sizes.append(write(path))
        assert path.read_bytes() == whole
    assert sorted(sizes) == sizes
    assert set(sizes) == set(range(len(PICTURES) + 1))


def test_what_a_crash_of_the_machine_left_unwritten_in_the_middle_is_written_again(tmp_path: Path) -> None:
    write(tmp_path / "whole.records")
    path = tmp_path / "holed.records"
    write(path, finish=False)
    part = path.with_name(path.name + PART)
    content = part.read_bytes()
    place = content.index(PICTURES[2].content)
    part.write_bytes(content[:place] + bytes(6) + content[place + 6 :])
    assert write(path) == 2
    assert path.read_bytes() == (tmp_path / "whole.records").read_bytes()


def test_the_beginning_of_something_else_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    write(path, finish=False)
    with Recorder(path, About(source="another")) as recorder:
        assert len(recorder) == 0


def killed_in_the_middle(path: Path) -> None:
    with Recorder(path, ABOUT) as recorder:
        for picture in PICTURES[:3]:
            recorder.append(picture)
        recorder._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_leaves_what_it_has_written(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    assert ranks.run(1, partial(killed_in_the_middle, path))[0].code == -signal.SIGKILL
    assert not path.exists()
    assert write(path) == 3
    assert Records(path).labels.tolist() == [0, 1, 2, 3]
