"""Examples and collections: what is understood, what is refused and where, and the traps of FOLDOC and Cranfield."""

import gzip
import json
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from piton_trainer.data import debian
from piton_trainer.data.retrieval import beir, cranfield, example_rows, foldoc
from piton_trainer.data.retrieval.example_rows import Example
from piton_trainer.data.retrieval.locations import check_collection, check_examples
from piton_trainer.data.retrieval.sources import collection_of, examples_of
from piton_trainer.data.text import mapped
from piton_trainer.data.text.mapped import Texts
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from support.retrieval import write_beir


def a_shelf(tmp_path: Path) -> RunCache:
    return RunCache(tmp_path / "cache", Ranks())


def rows_of(tmp_path: Path, name: str, text: str) -> list[Example]:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return list(example_rows.examples(str(path)))


# Examples.

OBJECT = '{"query": "why", "positive": "because", "negatives": ["no", "never"]}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.tsv", "why\tbecause\tno\tnever\nwho\tme\n"),
        ("x.tsv.gz", "why\tbecause\tno\tnever\nwho\tme\n"),
        (
            "x.jsonl",
            f'{OBJECT}\n\n{{"query": "who", "positive": "me"}}',
        ),
        ("x.json", f'[{OBJECT}, {{"query": "who", "positive": "me", "negative": ""}}]'),
        ("x.csv", "positive,query,negative_1,negative_2,source\nbecause,why,no,never,x\nme,who,,,x\n"),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert rows_of(tmp_path, name, text) == [
        Example(query="why", positive="because", negatives=("no", "never")),
        Example(query="who", positive="me"),
    ]


def test_one_negative_may_stand_alone(tmp_path: Path) -> None:
    text = '{"query": "why", "positive": "because", "negative": "no"}\n'
    assert rows_of(tmp_path, "x.jsonl", text) == [Example(query="why", positive="because", negatives=("no",))]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.tsv", "a\tb\nwhy\n", "x.tsv, line 2: it has one field; query, positive and maybe negatives are wanted"),
        ("x.tsv", "\tb\n", "x.tsv, line 1: query or positive is empty"),
        ("x.jsonl", '\n{"query": "a"}\n', "x.jsonl, line 2: field positive: there is no text in it"),
        ("x.jsonl", "[]\n", "x.jsonl, line 1: it is no JSON object"),
        ("x.jsonl", "{\n", "x.jsonl, line 1: Expecting property name"),
        ("x.jsonl", '{"query": "a", "positive": "b", "negatives": [1]}', "there are other things than texts in it"),
        ("x.json", "[1]", "x.json, entry 1: "),
        ("x.json", "[", "x.json cannot be read as JSON"),
        ("x.csv", "query,answer\na,b\n", "x.csv, line 1: there are no columns query and positive in its header"),
        ("x.csv", "query,positive\na\n", "x.csv, line 2: it has 1 fields, and the header 2"),
        ("x.csv", "query,positive\na,b\nc,d, e\n", "x.csv, line 3: it has 3 fields, and the header 2; put quotes"),
        ("x.csv", 'query,positive\n"a\nb",c\na,b,c\n', "x.csv, line 4: it has 3 fields, and the header 2"),
        ("x.csv", 'query,positive\n"a\n', "x.csv, line 2: unexpected end of data"),
        ("x.csv", "query,positive\na,b\nquery,positive\n", "x.csv, line 3: query and positive are names of columns"),
        ("x.csv", "query,positive,query\na,b,c\n", "x.csv, line 1: a column stands twice in the header query,positive"),
        ("x.csv", "query,positive,nogative\na,b,c\n", "x.csv, line 1: column nogative: did you mean negative?"),
        ("x.csv.gz", "", "x.csv.gz, line 1: there are no columns"),
        ("x.tsv", "Query\tPassage\na\tb\n", "x.tsv, line 1: Query and Passage are names of columns and no example"),
        (
            "x.jsonl",
            '{"query": "a", "positive": "\\ud83d"}',
            "line 1: field positive: character 1 is half of a surrogate",
        ),
        ("x.jsonl", '{"query": "a", "positive": "b", "negetive": "c"}', "field negetive: did you mean negatives?"),
        (
            "x.json",
            '{"query": "a", "positive": "b", "negatives": ["c\\udc00"]}',
            "entry 1: field negatives: character 2",
        ),
        ("x.json", "[" * 200_000, "x.json cannot be read as JSON"),
        ("x.jsonl", "[" * 200_000, "x.jsonl, line 1: "),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(BadConfig) as caught:
        rows_of(tmp_path, name, text)
    assert caught.value.detail.startswith("trainer.config.data: ")
    assert sentence in caught.value.detail.replace(f"{tmp_path}/", "")


def test_text_that_is_none_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(b"a\tb\n\xff\xfe\tc\n")
    with pytest.raises(BadConfig, match=r"x\.tsv, line 2: it is not UTF-8 text \(character 1\)"):
        list(example_rows.examples(str(tmp_path / "x.tsv")))


def test_each_text_is_kept_once_and_a_limit_draws_the_same_rows_from_any_order(tmp_path: Path) -> None:
    lines = [f"q{number}\tp{number % 3}\tn\n" for number in range(20)]
    for name, rows in (("x.tsv", lines), ("y.tsv", lines[::-1])):
        (tmp_path / name).write_text("".join(rows))
    drawn = []
    for name in ("x.tsv", "y.tsv"):
        _, found = examples_of(str(tmp_path / name), "train", 5, a_shelf(tmp_path))
        assert len(found) == 5
        assert len(found.texts) == len(set(found.texts))
        drawn.append({found.texts[int(number)] for number in found.queries})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5


def test_an_empty_file_has_no_examples(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("")
    with pytest.raises(BadConfig, match="there is not one example in"):
        examples_of(str(tmp_path / "x.tsv"), "train", None, a_shelf(tmp_path))


def test_texts_come_back_from_the_disk_as_they_were(tmp_path: Path) -> None:
    told = ["", "a", "zwölf Boxkämpfer", "", "x" * 1000]
    mapped.save(told, tmp_path)
    assert list(Texts(tmp_path)) == told
    assert Texts(tmp_path)[1:3] == told[1:3]
    assert Texts(tmp_path).lengths.tolist() == [0, 1, 18, 0, 1000]


# BEIR.


def test_a_collection_is_read_with_titles_grades_and_its_own_splits_queries(tmp_path: Path) -> None:
    folder = write_beir(
        tmp_path / "x",
        {"b": "two", "a": "one", "c": "three"},
        {"q1": "first", "q2": "second"},
        {"q1": {"a": 2, "b": 0, "gone": 1}},
    )
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"_id": "a", "title": "A title", "text": "one"})
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    found = collection_of(str(folder), "test", a_shelf(tmp_path))
    assert list(found.texts) == ["A title one", "two", "three", "first"]
    assert (found.documents, found.queries) == (3, 1)
    assert found.grades.look_up(np.zeros(3, dtype=np.int64), np.arange(3)).tolist() == [2.0, 0.0, 0.0]
    assert found.ideal[0, :3].tolist() == [2.0, 1.0, 0.0]
    assert found.own.tolist() == [-1]


def test_a_training_split_becomes_examples_with_what_was_judged_useless_as_negatives(tmp_path: Path) -> None:
    folder = write_beir(
        tmp_path / "x",
        {"a": "one", "b": "two", "c": "three"},
        {"q": "ask"},
        {"q": {"a": 1, "b": 0, "c": 2, "d": 1}},
        "train",
    )
    found = list(example_rows.of_collection(beir.read(str(folder), "train")))
    assert found == [
        Example(query="ask", positive="one", negatives=("two",)),
        Example(query="ask", positive="three", negatives=("two",)),
    ]


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("qrels/test.tsv", "q1\ta\n", "line 3: it has 2 fields, and query-id, corpus-id and score are 3"),
        ("qrels/test.tsv", "q1\ta\tgood\n", "line 3: 'good' is no whole number"),
        ("qrels/test.tsv", "q9\ta\t1\n", "query q9 has judgments in x, and no text"),
        ("corpus.jsonl", '{"text": "t"}\n', "line 2: there is no field '_id'"),
        ("corpus.jsonl", '{"_id": "t"}\n', "line 2: field text: there is no text in it"),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "two"}\n',
            "corpus.jsonl, line 2: a stands twice, and with another text",
        ),
        ("corpus.jsonl", '{"_id": null, "text": "t"}\n', "line 2: field _id: has to be a text or a number, not null"),
        ("queries.jsonl", '{"_id": "q1", "text": "b"}\n', "queries.jsonl, line 2: q1 stands twice, and with another"),
        (
            "qrels/test.tsv",
            "q1\ta\t2\n",
            "test.tsv, line 3: query q1 and document a are judged twice, with another grade",
        ),
    ],
)
def test_a_wrong_line_of_a_collection_has_its_place(tmp_path: Path, name: str, line: str, sentence: str) -> None:
    folder = write_beir(tmp_path / "x", {"a": "one"}, {"q1": "ask"}, {"q1": {"a": 1}})
    with (folder / name).open("a") as file:
        file.write(line)
    with pytest.raises(BadConfig) as caught:
        beir.read(str(folder), "test")
    assert sentence in caught.value.detail.replace(f"{tmp_path}/", "")


def test_what_stands_twice_and_says_the_same_stands_once(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "x", {"a": "one"}, {"q": "ask"}, {"q": {"a": 1}})
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (folder / name).read_text()
        (folder / name).write_text(content * 2)
    assert beir.read(str(folder), "test") == beir.Beir(
        documents={"a": "one"}, queries={"q": "ask"}, grades={"q": {"a": 1}}
    )


def test_judgments_of_documents_that_are_missing_are_said_and_most_of_them_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = write_beir(
        tmp_path / "few", {"a": "one", "b": "two"}, {"q": "ask"}, {"q": {"a": 1, "b": 2, "gone": 1, "c": 0}}
    )
    assert collection_of(str(few), "test", a_shelf(tmp_path)).queries == 1
    assert caplog.messages == [
        f"1 of 3 relevant judgments of {few} name documents that it does not have, the first gone for query q"
    ]
    most = write_beir(tmp_path / "most", {"1": "one"}, {"q": "ask"}, {"q": {"01": 1}})
    with pytest.raises(
        BadConfig, match=r"1 of 1 relevant judgments of .*/most name documents .*, the first 01 for query q"
    ):
        collection_of(str(most), "test", a_shelf(tmp_path))
    none = write_beir(tmp_path / "none", {"a": "one"}, {"q": "ask"}, {"q": {"a": 0}})
    with pytest.raises(BadConfig, match=r"not one judgment of .*/none has a grade above 0"):
        collection_of(str(none), "test", a_shelf(tmp_path))


def test_rows_of_a_tsv_with_other_numbers_of_fields_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows_of(tmp_path, "x.tsv", "a\tb\nc\td\n")
    assert caplog.messages == []
    rows_of(tmp_path, "x.tsv", "a\tb\nc\td e\tf\ng\th\n")
    assert caplog.messages == [
        f"{tmp_path}/x.tsv: its rows have different numbers of fields; row 2 is the first that differs"
    ]


def test_two_columns_of_one_name_are_two_negatives_and_padding_is_none(tmp_path: Path) -> None:
    text = "query,positive,negative,negative\nwhy,because,no,never,,\n"
    assert rows_of(tmp_path, "x.csv", text) == [Example(query="why", positive="because", negatives=("no", "never"))]


def test_compressed_bytes_that_are_damaged_are_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress("".join(f"q{n}\tp{n * n}\n" for n in range(3000)).encode()))
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] ^= place % 256
    (tmp_path / "x.tsv.gz").write_bytes(content)
    with pytest.raises(BadConfig, match=r"x\.tsv\.gz cannot be read after line \d+: Error -3 while decompressing"):
        list(example_rows.examples(str(tmp_path / "x.tsv.gz")))


def test_what_is_missing_is_noticed_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_beir(tmp_path / "x", {"a": "one"}, {"q": "ask"}, {"q": {"a": 1}})
    assert check_collection(str(folder), "test") is None
    assert check_examples("s3://bucket/x.tsv", "train") is None
    assert check_examples("s3://bucket/x", "train") is None
    assert check_collection(str(folder), "dev") == (
        f"{folder} is no collection: there is no file {folder}/qrels/dev.tsv"
    )
    told = check_examples("/nowhere/x.tsv", "train")
    assert told is not None
    assert told.startswith("there is no file /nowhere/x.tsv; give one, ")
    monkeypatch.setattr(foldoc, "folder_of", lambda source: None)
    assert check_collection("foldoc:", "test") == (
        "foldoc: is not on this machine; say python -m piton_trainer.data.retrieval.foldoc, which gets it from Debian"
    )


# FOLDOC.

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def number(value: int) -> str:
    return (number(value // 64) if value >= 64 else "") + _DIGITS[value % 64]


def write_foldoc(folder: Path, articles: Mapping[str, str]) -> Path:
    """In dictd's format; an article's names are the lines of its key."""
    folder.mkdir()
    content, index = b"", []
    for names, body in articles.items():
        raw = f"{names}\n\n   {body}\n\n\n".encode()
        index += [f"{name.lower()}\t{number(len(content))}\t{number(len(raw))}" for name in names.split("\n")]
        content += raw
    (folder / "foldoc.dict.dz").write_bytes(gzip.compress(content))
    (folder / "foldoc.index").write_text("\n".join(sorted(index)) + "\n")
    return folder


ARTICLES = {
    "exclamation mark\n!": "<character> The {character} that is called ! or Exclamation mark, and bang at times.\n\n"
    "   (1998-09-17)",
    "scuzzy": "The usual way to say {SCSI}.",
    **{f"term {n}": f"<test> What term {n} means is known to {{nobody}} but those who ask." for n in range(60)},
}


def test_a_term_is_masked_in_its_article_and_what_only_points_elsewhere_is_left_out(tmp_path: Path) -> None:
    folder = write_foldoc(tmp_path / "foldoc", ARTICLES)
    found = {term: text for split in ("train", "test") for _, term, text in foldoc.articles(folder, split)}
    assert len(found) == 61
    assert found["exclamation mark"] == "<character> The character that is called it or it, and bang at times."
    assert found["term 7"] == "<test> What it means is known to nobody but those who ask."


def test_an_article_is_in_one_split_whatever_else_there_is(tmp_path: Path) -> None:
    folder = write_foldoc(tmp_path / "foldoc", ARTICLES)
    train, test = (collection_of(f"foldoc:{folder}", split, a_shelf(tmp_path)) for split in ("train", "test"))
    assert train.documents + test.documents == 61
    assert 0 < test.documents < 20
    assert not set(train.texts[train.documents :]) & set(test.texts[test.documents :])
    assert test.grades.look_up(np.arange(test.queries), np.arange(test.queries)).sum() == test.queries


def test_files_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    folder = write_foldoc(tmp_path / "foldoc", ARTICLES)
    (folder / "foldoc.dict.dz").write_bytes(b"no")
    with pytest.raises(BadConfig, match="holds no dictionary that can be read"):
        list(foldoc.articles(folder, "test"))


def test_a_damaged_place_in_the_index_is_refused(tmp_path: Path) -> None:
    folder = write_foldoc(tmp_path / "foldoc", ARTICLES)
    lines = (folder / "foldoc.index").read_text().splitlines()
    name, start, length = lines[9].split("\t")
    lines[9] = f"{name}\t{start}\t{length[:-1]}{'B' if length[-1] != 'B' else 'C'}"
    (folder / "foldoc.index").write_text("\n".join(lines))
    with pytest.raises(BadConfig, match=r"the places in foldoc\.index do not cover foldoc\.dict\.dz"):
        list(foldoc.articles(folder, "test"))


def a_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where programs are, besides those of every system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/nowhere")
    monkeypatch.setenv("PITON_DATA_CACHE", str(tmp_path / "data"))
    return folder


def test_without_apt_it_is_said_where_the_files_come_from(bin_folder: Path) -> None:
    with pytest.raises(BadConfig, match="dict-foldoc comes from Debian, and there is no apt-get here"):
        debian.fetch(foldoc.PACKAGE, ["usr/x"])


def test_a_package_is_downloaded_unpacked_and_put_where_it_is_looked_for(bin_folder: Path, tmp_path: Path) -> None:
    # A fresh machine: the first download knows no package, and the second one does.
    a_program(
        bin_folder,
        "apt-get",
        f'case "$1" in update) : > {tmp_path}/updated;; *) test -e {tmp_path}/updated && : > x_1_all.deb;; esac',
    )
    a_program(bin_folder, "dpkg", 'cd "$3" && /bin/mkdir -p usr && echo hello > usr/file')
    folder = debian.fetch("x", ["usr/file"])
    assert folder == tmp_path / "data" / "x"
    assert (folder / "file").read_text() == "hello\n"


def test_what_apt_says_last_is_passed_on(bin_folder: Path) -> None:
    a_program(bin_folder, "apt-get", "echo one >&2; echo 'E: no network' >&2; exit 100")
    a_program(bin_folder, "dpkg", "exit 1")
    with pytest.raises(BadConfig, match="apt-get update failed: E: no network"):
        debian.fetch("x", [])


# Cranfield.


def test_cranfields_queries_are_counted_its_grades_turned_and_its_names_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "cran.all.1400").write_text(".I 1\n.T\nwings\n.A\nx\n.W\nwings\nlift .\n.I 2\n.T\n.A\n.B\n.W\n")
    (tmp_path / "cran.qry").write_text(".I 001\n.W\nwhat\n.I 004\n.W\nwhich\n.I 007\n.W\nwho\ndid\n")
    (tmp_path / "cranqrel").write_text("1 1 1\n2 1 4\n2 2 5\n3 1 2 \n3 2 -1\n")
    train, test = (cranfield.read(f"cranfield:{tmp_path}", split) for split in ("train", "test"))
    assert train.documents == test.documents == {"d1": "wings lift .", "d2": ""}
    assert train.queries == {"q1": "what", "q2": "which"}
    assert train.grades == {"q1": {"d1": 4}, "q2": {"d1": 1, "d2": 0}}
    assert (test.queries, test.grades) == ({"q3": "who did"}, {"q3": {"d1": 3, "d2": 0}})


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("cran.qry", ".I 004", ".J 004", "cran.qry, line 1: here begins record 001, after"),
        ("cran.qry", ".I 001", " I 001", "cran.qry: begins with ' I 001"),
        ("cran.qry", ".W\nwhich", ".which", "cran.qry, line 3: here begins record 004 .which, after record 1"),
        (
            "cran.qry",
            ".I 007",
            ".I 002",
            "cran.qry, line 6: here begins record 002, after record 4",
        ),
        (
            "cran.all.1400",
            ".I 2",
            ".I 3",
            "cran.all.1400, line 7: here begins record 3, after record 1",
        ),
        ("cran.all.1400", ".I 1", ".I", "cran.all.1400: begins with '.I"),
        ("cranqrel", "2 2 5", "2 2", "cranqrel, line 3: query, document and grade are three numbers"),
        ("cranqrel", "3 2 -1", "4 2 -1", "cranqrel, line 5: there are 3 queries, and none is number 4"),
    ],
)
def test_damage_in_cranfields_files_has_its_line(tmp_path: Path, name: str, old: str, new: str, sentence: str) -> None:
    (tmp_path / "cran.all.1400").write_text("\ufeff.I 1\n.T\nwings\n.A\n.W\nwings\n.I 2\n.T\n.A\n.W\n")
    (tmp_path / "cran.qry").write_text("\ufeff.I 001\n.W\n.I 004\n.W\nwhich\n.I 007\n.W\nwho\ndid\n")
    (tmp_path / "cranqrel").write_text("1 1 1\n2 1 4\n2 2 5\n3 1 2 \n3 2 -1\n")
    assert list(cranfield.read(f"cranfield:{tmp_path}", "train").documents) == ["d1", "d2"]
    (tmp_path / name).write_text((tmp_path / name).read_text("utf-8-sig").replace(old, new))
    with pytest.raises(BadConfig) as caught:
        cranfield.read(f"cranfield:{tmp_path}", "train")
    assert sentence in caught.value.detail


def test_a_folder_without_cranfield_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read as Cranfield"):
        cranfield.read(f"cranfield:{tmp_path}", "test")
