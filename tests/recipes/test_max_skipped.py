"""`maxSkipped`: each reader leaves out so many damaged examples, lists them, and refuses one more."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fuzz_data.readers import READERS, Rows, pictures
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.preparation import prepare
from piton_trainer.data.image.record_writer import PART
from piton_trainer.data.image.records import Records
from piton_trainer.data.skipped import Skips
from piton_trainer.errors import BadConfig
from support.pictures import jpeg, noise


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Two examples of a source that are damaged."""

    reader: str
    damage: Callable[[Path], object]
    """Of the source's folder."""
    places: tuple[str, ...]
    """File and place of each, as the manifest has them."""


def in_lines(path: str, first: int, second: int, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        lines = (folder / path).read_bytes().splitlines(keepends=True)
        for number in (first, second):
            lines[number - 1] = change(lines[number - 1].rstrip(b"\n")) + b"\n"
        (folder / path).write_bytes(b"".join(lines))

    return act


def spoil(*paths: str, content: bytes = b"no image") -> Callable[[Path], object]:
    return lambda folder: [(folder / path).write_bytes(content) for path in paths]


def spoil_members(folder: Path) -> None:
    """A label and an image of two shards."""
    for shard, old, new in (("0.tar", b"1" + bytes(511), b"x" + bytes(511)), ("1.tar", pictures(11), bytes(40))):
        content = (folder / "x" / shard).read_bytes()
        assert old in content
        (folder / "x" / shard).write_bytes(content.replace(old, new.ljust(len(old), b"\0"), 1))


def in_json_list(folder: Path) -> None:
    entries = json.loads((folder / "x.json").read_bytes())
    entries[2], entries[5] = "text", {**entries[5], "positive": 7}
    (folder / "x.json").write_text(json.dumps(entries))


def not_utf8(line: bytes) -> bytes:
    return line.replace(b"i", b"\xee", 1)


def without_field(line: bytes) -> bytes:
    return line.rpartition(b"\t" if b"\t" in line else b",")[0]


LOSSES = {
    "images in folders": Loss(
        reader="PNG in folders",
        damage=spoil("x/bee/1.png", "x/cow/5.png"),
        places=("x/bee/1.png", "x/cow/5.png"),
    ),
    "a label and an image of shards": Loss(
        reader="shards", damage=spoil_members, places=("x/0.tar 1.cls", "x/1.tar 2.png")
    ),
    "texts": Loss(reader="texts", damage=spoil("x/0.txt", "x/2.txt", content=b"\xff"), places=("x/0.txt", "x/2.txt")),
    "fields of tsv": Loss(
        reader="tsv",
        damage=in_lines("x.tsv", 3, 7, lambda line: line.partition(b"\t")[0]),
        places=("x.tsv line 3", "x.tsv line 7"),
    ),
    "bytes of tsv": Loss(
        reader="tsv", damage=in_lines("x.tsv", 3, 7, not_utf8), places=("x.tsv line 3", "x.tsv line 7")
    ),
    "zeros in tsv": Loss(
        reader="tsv",
        damage=in_lines("x.tsv", 3, 7, lambda line: line.replace(b" ", b"\0")),
        places=("x.tsv line 3", "x.tsv line 7"),
    ),
    "jsonl": Loss(
        reader="jsonl",
        damage=in_lines("x.jsonl", 1, 12, lambda line: line[:-3]),
        places=("x.jsonl line 1", "x.jsonl line 12"),
    ),
    "bytes of jsonl": Loss(
        reader="jsonl", damage=in_lines("x.jsonl", 1, 12, not_utf8), places=("x.jsonl line 1", "x.jsonl line 12")
    ),
    "json": Loss(reader="json", damage=in_json_list, places=("x.json entry 3", "x.json entry 6")),
    "fields of csv": Loss(
        reader="csv", damage=in_lines("x.csv", 3, 13, without_field), places=("x.csv line 3", "x.csv line 13")
    ),
    "bytes of csv": Loss(
        reader="csv", damage=in_lines("x.csv", 3, 13, not_utf8), places=("x.csv line 3", "x.csv line 13")
    ),
    "quotes of csv": Loss(
        reader="csv",
        damage=in_lines("x.csv", 3, 13, lambda line: line.replace(b'"', b'"x"', 1)),
        places=("x.csv line 3", "x.csv line 13"),
    ),
    "grades of judgments": Loss(
        reader="judgments",
        damage=in_lines(
            "x.csv", 2, 21, lambda line: line.replace(b",2,", b",7,").replace(b",1,", b",x,").replace(b",0,", b",,")
        ),
        places=("x.csv line 2", "x.csv line 21"),
    ),
    "bytes of judgments": Loss(
        reader="judgments", damage=in_lines("x.csv", 2, 21, not_utf8), places=("x.csv line 2", "x.csv line 21")
    ),
    "documents": Loss(
        reader="beir",
        damage=in_lines("x/corpus.jsonl", 2, 8, lambda line: line[1:]),
        places=("x/corpus.jsonl line 2", "x/corpus.jsonl line 8"),
    ),
    "queries": Loss(
        reader="beir",
        damage=in_lines("x/queries.jsonl", 1, 3, lambda line: line[1:]),
        places=("x/queries.jsonl line 1", "x/queries.jsonl line 3"),
    ),
    "judgments of queries": Loss(
        reader="beir",
        damage=in_lines("x/qrels/test.tsv", 3, 4, without_field),
        places=("x/qrels/test.tsv line 3", "x/qrels/test.tsv line 4"),
    ),
    "Cranfield's judgments": Loss(
        reader="cranfield",
        damage=in_lines("x/cranqrel", 1, 5, lambda line: b"99" + line),
        places=("x/cranqrel line 1", "x/cranqrel line 5"),
    ),
}


def damaged(loss: Loss, folder: Path) -> str:
    source = READERS[loss.reader].write(folder)
    loss.damage(folder)
    return source


def places(skips: Skips, folder: Path) -> tuple[str, ...]:
    return tuple(f"{Path(skip.file).relative_to(folder)} {skip.place}".rstrip() for skip in skips.skipped)


@pytest.mark.parametrize("name", LOSSES)
def test_so_many_are_left_out_and_listed(name: str, tmp_path: Path) -> None:
    loss = LOSSES[name]
    whole = READERS[loss.reader].read(READERS[loss.reader].write(tmp_path), Skips())
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    source, skips = damaged(loss, tmp_path), Skips(2)
    rows = READERS[loss.reader].read(source, skips)
    assert sorted(places(skips, tmp_path)) == sorted(loss.places)
    assert all(skip.why and "trainer.config" not in skip.why for skip in skips.skipped)
    assert lost(whole, rows)


def lost(whole: Rows, rows: Rows) -> bool:
    """True if rows are missing, few enough for two damaged examples, and none is another one.

    A query goes with its two judgments. A text is many rows.
    """
    assert all(row in whole[kind] for kind, found in rows.items() for row in found if kind != "lines")
    missing = max((Counter(whole[kind]) - Counter(rows.get(kind, ()))).total() for kind in whole)
    return missing > 0 and ("lines" in whole or missing <= 2 * 2)


@pytest.mark.parametrize("name", LOSSES)
def test_the_list_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    source, first, second = damaged(LOSSES[name], tmp_path), Skips(2), Skips(9)
    assert READERS[LOSSES[name].reader].read(source, first) == READERS[LOSSES[name].reader].read(source, second)
    assert first.skipped == second.skipped


@pytest.mark.parametrize("name", LOSSES)
def test_one_more_is_refused_with_the_first_and_the_count(name: str, tmp_path: Path) -> None:
    source = damaged(LOSSES[name], tmp_path)
    with pytest.raises(BadConfig) as caught:
        READERS[LOSSES[name].reader].read(source, Skips(1))
    detail = caught.value.detail
    assert detail.startswith(
        "trainer.config.maxSkipped: 1 damaged examples are accepted, and there are at least 2; the first is "
    )
    assert any(str(tmp_path / place.split()[0]) in detail for place in LOSSES[name].places)
    assert detail.endswith("; mend the data, or accept more")


@pytest.mark.parametrize("name", LOSSES)
def test_without_the_setting_the_first_is_refused(name: str, tmp_path: Path) -> None:
    source = damaged(LOSSES[name], tmp_path)
    with pytest.raises(BadConfig, match=r"^trainer\.config\.data: "):
        READERS[LOSSES[name].reader].read(source, Skips())


# What is never skipped.


def appended(path: str, more: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes() + more)


def cut(path: str, at: float = 0.6) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(at * len(content))])

    return act


@pytest.mark.parametrize(
    ("reader", "damage", "sentence"),
    [
        ("shards", cut("x/1.tar"), "1.tar"),
        ("shards", appended("x/1.tar", b"x" * 512), "goes on after its end"),
        ("small npz", cut("x.npz"), "x.npz has to hold images and labels"),
        ("tsv.gz", cut("x.tsv.gz"), "x.tsv.gz cannot be read after line"),
        ("csv.gz", cut("x.csv.gz"), "x.csv.gz cannot be read after line"),
        ("csv", in_lines("x.csv", 1, 1, lambda line: b"x" + line), "no columns query and positive"),
        ("csv", in_lines("x.csv", 13, 13, lambda line: line[:-1]), "unexpected end of data"),
        ("json", cut("x.json"), "cannot be read as JSON"),
        ("tsv", appended("x.tsv", b"query\tpositive\n"), "are names of columns"),
        ("csv", appended("x.csv", b"query,positive,negative\n"), "are names of columns"),
        (
            "judgments",
            appended("x.csv", b"query_id,llm_id,qrel,query_text,source, confidence\n"),
            "has to be a number, not 'qrel'",
        ),
        ("judgments", in_lines("x.csv", 3, 3, lambda line: line.replace(b"ask", b"task")), "had another text before"),
        ("beir", appended("x/corpus.jsonl", b'{"_id": "d1", "text": "other"}\n'), "d1 stands twice"),
        ("beir", appended("x/queries.jsonl", b'{"_id": "q1", "text": "other"}\n'), "q1 stands twice"),
        ("beir", appended("x/qrels/test.tsv", b"q0\td0\t0\n"), "are judged twice"),
        ("beir", appended("x/qrels/test.tsv", b"q99\td0\t1\n"), "query q99 has judgments in"),
        ("cranfield", in_lines("x/cran.qry", 4, 4, lambda line: b"x" + line), "a record or its text is missing"),
        ("foldoc", cut("x/foldoc.index"), "no dictionary that can be read"),
        ("records", cut("x.records"), "is no file of records"),
    ],
)
def test_damage_of_unknown_size_and_contradictions_are_refused(
    reader: str, damage: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    source, skips = READERS[reader].write(tmp_path), Skips(1000)
    damage(tmp_path)
    with pytest.raises(BadConfig) as caught:
        READERS[reader].read(source, skips)
    assert sentence in caught.value.detail
    assert caught.value.detail.startswith("trainer.config.data: ")


def test_a_row_over_several_lines_counts_as_all_of_them(tmp_path: Path) -> None:
    """An opening quote swallows the rows up to the next one; each of these lines may have been an example."""
    source = READERS["csv"].write(tmp_path)
    in_lines("x.csv", 4, 4, lambda line: line[:-1])(tmp_path)
    skips = Skips(2)
    READERS["csv"].read(source, skips)
    assert [(skip.place, skip.examples) for skip in skips.skipped] == [("lines 4 to 5", 2)]
    with pytest.raises(BadConfig, match="1 damaged examples are accepted, and there are at least 2; the first is"):
        READERS["csv"].read(source, Skips(1))


@pytest.mark.parametrize("most", [0, 2])
def test_a_query_of_cranfield_without_a_judgment_is_no_query(most: int, tmp_path: Path) -> None:
    source, lines = READERS["cranfield"].write(tmp_path), tmp_path / "x" / "cranqrel"
    rows = [row for row in lines.read_text().splitlines() if most or not row.startswith("2 ")]
    lines.write_text("".join(f"x{row}\n" if row.startswith("2 ") else f"{row}\n" for row in rows))
    found = READERS["cranfield"].read(source, Skips(most))
    assert [name for name, _ in found["train queries"]] == ["q1", "q4", "q5"]


def test_text_of_16_bits_is_no_text_of_few_damaged_lines(tmp_path: Path) -> None:
    source = READERS["tsv"].write(tmp_path)
    Path(source).write_bytes(Path(source).read_text(encoding="utf-8").encode("utf-16"))
    with pytest.raises(BadConfig, match="is it UTF-16"):
        READERS["tsv"].read(source, Skips(11))


def test_a_file_that_cannot_be_opened_is_no_damaged_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be readable for the next attempt, which would then train on something else."""
    source = READERS["PNG in folders"].write(tmp_path)
    read = Path.read_bytes
    refused = tmp_path / "x" / "bee" / "1.png"

    def refuse(path: Path) -> bytes:
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadConfig, match=r"1\.png is no image that can be read: Permission denied"):
        READERS["PNG in folders"].read(source, Skips(5))


# The file of records.

FORM = Form(max_side=None, quality=90)


def a_folder(tmp_path: Path, count: int = 8, *, damaged: tuple[int, ...] = (2, 5)) -> Path:
    for number in range(count):
        path = tmp_path / "x" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number in damaged else jpeg(noise(number)))
    return tmp_path / "x"


def test_the_records_have_the_list(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path), tmp_path / "x.records"
    prepare(str(source), path, FORM, threads=2, most=3)
    records = Records(path)
    assert len(records) == 6
    assert sorted(skip.file for skip in records.skipped) == [
        str(source / "ant" / "2.jpg"),
        str(source / "bee" / "5.jpg"),
    ]
    assert all("cannot identify image" in skip.why for skip in records.skipped)
    assert [path.name for path in tmp_path.glob("x.records.*")] == ["x.records.origin"]


def test_records_of_which_nothing_is_left_out_are_the_same_bytes_with_any_setting(tmp_path: Path) -> None:
    source = a_folder(tmp_path, damaged=())
    for most in (0, 3):
        prepare(str(source), tmp_path / f"{most}.records", FORM, threads=1, most=most)
    assert (tmp_path / "0.records").read_bytes() == (tmp_path / "3.records").read_bytes()


@pytest.mark.parametrize("most", [0, 1])
def test_records_with_more_left_out_than_is_accepted_now_are_refused(tmp_path: Path, most: int) -> None:
    source, path = a_folder(tmp_path), tmp_path / "x.records"
    prepare(str(source), path, FORM, threads=1, most=2)
    with pytest.raises(BadConfig) as caught:
        prepare(str(source), path, FORM, threads=1, most=most)
    assert (
        f"maxSkipped: {most} damaged examples are accepted, and there are 2; the first is {source}"
        in caught.value.detail
    )
    assert f"or delete {path}" in caught.value.detail
    prepare(str(source), path, FORM, threads=1, most=5)


def test_a_source_without_an_image_that_can_be_used_is_refused(tmp_path: Path) -> None:
    source = a_folder(tmp_path, 4, damaged=(0, 1, 2, 3))
    with pytest.raises(BadConfig) as caught:
        prepare(str(source), tmp_path / "x.records", FORM, threads=1, most=4)
    assert caught.value.detail == (
        f"trainer.config.data: no image of {source} can be used; mend the images or name another source"
    )


def test_a_damaged_list_is_noticed(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path), tmp_path / "x.records"
    prepare(str(source), path, FORM, threads=1, most=2)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"cannot identify", b"cannot identity", 1))
    with pytest.raises(BadConfig, match="its list of skipped images is damaged"):
        Records(path)


def interrupted(source: Path, path: Path, most: int) -> str:
    with pytest.raises(BadConfig) as caught:
        prepare(str(source), path, FORM, threads=1, most=most)
    assert path.with_name(path.name + PART).exists()
    return caught.value.detail


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded: list[str] = []
    real = from_file

    def noted(content: bytes, *args: Any, **settings: Any) -> Any:
        decoded.append("")
        return real(content, *args, **settings)

    monkeypatch.setattr("piton_trainer.data.image.image_files.from_file", noted)
    return decoded


def test_a_resumed_preparation_has_the_same_list_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = a_folder(tmp_path, 40, damaged=(3, 11, 30)), tmp_path / "x.records"
    prepare(str(source), tmp_path / "straight.records", FORM, threads=1, most=3)
    interrupted(source, path, 2)  # at the third, with what is before it written
    decoded = counting(monkeypatch)
    prepare(str(source), path, FORM, threads=1, most=3)
    assert path.read_bytes() == (tmp_path / "straight.records").read_bytes()
    assert len(decoded) < 40


def test_a_setting_that_is_lowered_holds_for_what_was_skipped_before(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path, 40, damaged=(3, 11, 30)), tmp_path / "x.records"
    interrupted(source, path, 2)
    assert "1 damaged examples are accepted, and there are at least 2" in interrupted(source, path, 1)
    assert "is no image that can be read" in interrupted(source, path, 0)
    prepare(str(source), path, FORM, threads=1, most=3)
    assert len(Records(path).skipped) == 3


def test_a_skipped_image_that_is_mended_is_taken_by_a_resumed_preparation(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path, 40, damaged=(3, 11, 30)), tmp_path / "x.records"
    interrupted(source, path, 2)
    for number in (3, 11):
        (source / "bee" / f"{number}.jpg").write_bytes(jpeg(noise(number)))
    prepare(str(source), path, FORM, threads=1, most=1)
    assert [skip.file for skip in Records(path).skipped] == [str(source / "ant" / "30.jpg")]
    assert len(Records(path)) == 39


def test_a_lost_list_of_an_unfinished_file_costs_no_image_and_adds_none(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path, 40, damaged=(3, 11, 30)), tmp_path / "x.records"
    prepare(str(source), tmp_path / "straight.records", FORM, threads=1, most=3)
    interrupted(source, path, 2)
    [beside] = tmp_path.glob("x.records.skipped")
    beside.write_bytes(beside.read_bytes()[:-9])
    prepare(str(source), path, FORM, threads=1, most=3)
    assert path.read_bytes() == (tmp_path / "straight.records").read_bytes()
