"""Rows and lines that nobody meant so: headers as examples, fields that stand twice, numbers as Python has them."""

import gzip
import json
from pathlib import Path

import pytest

from piton.contract.names import ENV_DATA_CACHE
from piton_trainer.data.csv_table import read_csv
from piton_trainer.data.numbers import decimal_number, whole_number
from piton_trainer.data.retrieval import beir, example_rows
from piton_trainer.data.retrieval.example_rows import Example
from piton_trainer.data.retrieval.sources import collection_of
from piton_trainer.data.text.sources import read_text
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.s3.cache import Cache, Remote
from support.retrieval import write_beir


def rows_of(tmp_path: Path, name: str, text: str) -> list[Example]:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return list(example_rows.examples(str(path)))


def refusal(tmp_path: Path, name: str, text: str) -> str:
    with pytest.raises(BadConfig) as caught:
        rows_of(tmp_path, name, text)
    assert caught.value.detail.startswith(f"trainer.config.data: {tmp_path}/")
    return caught.value.detail.replace(f"trainer.config.data: {tmp_path}/", "")


# Headers of a TSV.


@pytest.mark.parametrize(
    "header",
    [
        "qid\tpid",
        "qid\tpid\tnid",
        "query_id\tquery\tpassage",
        "query-id\tcorpus-id\tscore",
        "queryId\tdocId",
        "id\ttext",
        "query_text\tpassage_text\tlanguage",
        "sentence1\tsentence2",
        "text_1\ttext_2\tlabel",
        "Anchor\tPositive\tHard_Negative",
        "query\tpassage\tlanguage",
        " question_text \tanswer",
    ],
)
def test_a_header_of_a_tsv_is_refused(tmp_path: Path, header: str) -> None:
    for name in ("x.tsv", "x.tsv.gz"):
        assert refusal(tmp_path, name, f"{header}\na\tb\n").startswith(f"{name}, line 1: {header.split(maxsplit=1)[0]}")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("source\ttarget", "its first row is source and target; remove the line if these are names of columns"),
        ("input\toutput\tlabel", "its first row is input and output and label; remove the line if these are"),
        ("title\tbody", "its first row is title and body; remove the line if these are names of columns"),
        (
            "1048585\t7187158\t1",
            "its first row is 1048585 and 7187158 and 1; texts are wanted, and not the ids of texts",
        ),
        ("3\t0.5", "its first row is 3 and 0.5; texts are wanted, and not the ids of texts"),
    ],
)
def test_a_first_row_that_may_be_a_header_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str, told: str
) -> None:
    assert len(rows_of(tmp_path, "x.tsv", f"{row}\na\tb\tc\n")) == 2
    assert caplog.messages[0].startswith(f"{tmp_path}/x.tsv: {told}")


@pytest.mark.parametrize(
    "row",
    [
        "valid\tinvalid",
        "liquid\tsolid",
        "covid-19\tacid",
        "what is an id\tan id is a name",
        "answer the question\tno",
        "7\tseven",
        "android\tgoogle's system",
        "text-to-speech\tspeech that a program makes of a text",
        "did\tdo",
    ],
)
def test_a_first_row_of_texts_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str) -> None:
    assert len(rows_of(tmp_path, "x.tsv", f"{row}\na\tb\n")) == 2
    assert caplog.messages == []


def test_behind_the_first_row_such_words_are_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(rows_of(tmp_path, "x.tsv", "a\tb\nid\ttext\n1\t2\n")) == 3
    assert caplog.messages == []


# Fields of JSON.


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz"])
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ('"query":"a","positive":"b","positive":"c"', "field positive: stands twice, with two values"),
        ('"query":"a","query":"b","positive":"c"', "field query: stands twice, with two values"),
        ('"query":"a","positive":"b","negatives":["c"],"negatives":["d"]', "field negatives: stands twice"),
        ('"query":"a","positive":"b","negatives":false', "field negatives: there are other things than texts in it"),
        ('"query":"a","positive":"b","negatives":0', "field negatives: there are other things than texts in it"),
        ('"query":"a","positive":"b","negative":{}', "field negative: there are other things than texts in it"),
    ],
)
def test_a_field_with_two_values_or_none_that_is_a_text_is_refused(
    tmp_path: Path, name: str, fields: str, sentence: str
) -> None:
    assert f"1: {sentence}" in refusal(tmp_path, name, f"{{{fields}}}\n")


@pytest.mark.parametrize(
    ("fields", "negatives"),
    [
        ('"negative":"x","negatives":[]', ("x",)),
        ('"negative":"x","negatives":["y","z"]', ("y", "z", "x")),
        ('"negatives":null', ()),
        ('"negatives":[]', ()),
        ('"negative":""', ()),
        ('"negatives":"x"', ("x",)),
        ('"negatives":["x"],"negatives":["x"]', ("x",)),
        ('"n":1,"n":2', ()),
        ('"meta":{"a":1,"a":2}', ()),
    ],
)
def test_all_negatives_are_taken_and_what_is_not_read_may_be_anything(
    tmp_path: Path, fields: str, negatives: tuple[str, ...]
) -> None:
    text = f'{{"query":"a","positive":"b",{fields}}}\n'
    assert rows_of(tmp_path, "x.jsonl", text) == [Example(query="a", positive="b", negatives=negatives)]


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("corpus.jsonl", '{"_id":"b","_id":"c","text":"t"}', "line 2: field _id: stands twice"),
        ("corpus.jsonl", '{"_id":"b","title":"s","title":"r","text":"t"}', "line 2: field title: stands twice"),
        ("queries.jsonl", '{"_id":"q2","text":"t","text":"s"}', "line 2: field text: stands twice"),
        ("queries.jsonl", '{"_id":"q2","text":" "}', "line 2: field text: it is empty"),
        ("corpus.jsonl", '{"_id":"b","title":["s"],"text":"t"}', "line 2: field title: has to be a text or a number"),
        ("qrels/test.tsv", "q1\tb\t99999999999999999999", "line 3: 99999999999999999999 is too large a number"),
        ("qrels/test.tsv", f"q1\tb\t{'9' * 5000}", "line 3: 9999999999999999999999999 is too large a number"),
        ("qrels/test.tsv", "q1\tb\t-99999999999999999999", "line 3: -99999999999999999999 is too large a number"),
        ("qrels/test.tsv", "q1\tb\t1_0", "line 3: '1_0' is no whole number"),
        (
            "qrels/test.tsv",
            "q1\tb\t\N{ARABIC-INDIC DIGIT THREE}",
            "line 3: '\N{ARABIC-INDIC DIGIT THREE}' is no whole number",
        ),
        ("qrels/test.tsv", "q1\tb\t1e3", "line 3: '1e3' is no whole number"),
    ],
)
def test_a_doubtful_line_of_a_collection_has_its_place(tmp_path: Path, name: str, line: str, sentence: str) -> None:
    folder = write_beir(tmp_path / "x", {"a": "one"}, {"q1": "ask"}, {"q1": {"a": 1}})
    with (folder / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(BadConfig) as caught:
        beir.read(str(folder), "test")
    assert f"x/{name}, {sentence}" in caught.value.detail


@pytest.mark.parametrize("grade", [2**63 - 1, -(2**63) + 1, 3, 0])
def test_a_grade_of_64_bits_is_one(tmp_path: Path, grade: int) -> None:
    folder = write_beir(tmp_path / "x", {"a": "one", "b": "two"}, {"q1": "ask"}, {"q1": {"a": 1, "b": grade}})
    assert collection_of(str(folder), "test", RunCache(tmp_path / "cache", Ranks())).documents == 2


# Numbers.


@pytest.mark.parametrize(("text", "number"), [("1", 1), (" 1 ", 1), ("+1", 1), ("-0", 0), ("007", 7), ("1\r", 1)])
def test_a_whole_number_is_taken_as_other_programs_write_it(text: str, number: int) -> None:
    assert whole_number(text) == number
    assert decimal_number(text) == number


@pytest.mark.parametrize(
    "text", ["1_0", "1.0", "", " ", "0x1", "\N{ARABIC-INDIC DIGIT THREE}", "1 0", "--1", f"{2**63}"]
)
def test_what_is_no_whole_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no whole number|is too large a number"):
        whole_number(text)


@pytest.mark.parametrize("text", ["1_0", "", "\N{ARABIC-INDIC DIGIT THREE}", "1,5", "1_0.5"])
def test_what_is_no_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no number|could not convert"):
        decimal_number(text)


# Columns without a name.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("query,positive,\na,b,extra\n", 2),
        ("query,positive,comment,\na,b,c,d\n", 2),
        ("query,positive,,\na,b,,\nc,d,,e\n", 3),
    ],
)
def test_a_text_in_a_last_column_without_a_name_is_refused(tmp_path: Path, text: str, line: int) -> None:
    rows = [row.split(",") for row in text.splitlines()]
    told = f"it has {len(rows[line - 1])} fields, and the header {sum(map(bool, rows[0]))}; put quotes around a text"
    assert refusal(tmp_path, "x.csv", text).startswith(f"x.csv, line {line}: {told}")


@pytest.mark.parametrize(
    "text",
    [
        "query,positive,\na,b,\n",
        "query,positive,,\na,b,,\n",
        "query,positive,\na,b\n",
        ",query,positive\n0,a,b\n",  # as pandas numbers its rows
        "query,,positive\na,0,b\n",
    ],
)
def test_padding_and_numbers_of_rows_are_no_texts(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path, "x.csv", text) == [Example(query="a", positive="b")]


def test_a_header_with_padding_that_stands_twice_is_two_files_in_one(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("n,m,\n1,2,\nn,m,\n")
    with pytest.raises(BadConfig, match="line 3: 'n' is no whole number"):
        list(read_csv(str(path), lambda header: lambda fields: [whole_number(field) for field in fields]))


# Objects below a prefix.


@pytest.mark.parametrize(
    ("prefix", "told"),
    [
        ("day", "1 with a leading dot, 1 *.TXT, 1 without a suffix, 1 *.tar.gz, 1 *.png"),
        ("day/", "1 with a leading dot, 1 *.TXT, 1 without a suffix, 1 *.tar.gz, 1 *.png"),
        ("day/a/", None),
        ("day/z.txt", None),
        ("day/x.png", None),
        ("", "1 with a leading dot, 1 *.TXT, 1 without a suffix, 1 *.tar.gz, 1 *.png"),
    ],
)
def test_objects_that_are_no_texts_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prefix: str, told: str | None
) -> None:
    keys = ["day/", "day/.x/y.txt", "day/B.TXT", "day/NOTES", "day/a/b.md", "day/t.tar.gz", "day/x.png", "day/z.txt"]
    remotes = [
        Remote(bucket="bucket", key=key, etag="x", size=4)
        for key in [*keys, "daylight/c.txt"]
        if key.startswith(prefix)
    ]
    (tmp_path / "content").write_text("text")
    monkeypatch.setenv(ENV_DATA_CACHE, str(tmp_path))
    monkeypatch.setattr(Cache, "below", lambda self, bucket, prefix: remotes)
    monkeypatch.setattr(Cache, "fetch", lambda self, wanted, uri: [tmp_path / "content" for _ in wanted])
    assert read_text(f"s3://bucket/{prefix}").startswith("text")
    assert caplog.messages == ([f"s3://bucket/{prefix}: not taken for data are {told}"] if told else [])


# Texts that another program has written.


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("field", ["query", "positive", "negatives"])
def test_an_escaped_zero_is_refused(tmp_path: Path, name: str, field: str) -> None:
    entry = json.dumps({"query": "a", "positive": "b", "negatives": ["c"], field: "a\0"})

    assert f"field {field}: character 2 is 0, which is no text" in refusal(tmp_path, name, f"{entry}\n")


@pytest.mark.parametrize(
    ("field", "is_said"), [('"p ""one"""', True), ('"""p"" it is"', True), ('"one"', False), ('he said ""', False)]
)
def test_quotes_of_a_csv_in_a_tsv_are_said(
    field: str, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row, other) = rows_of(tmp_path, "x.tsv", f"a\t{field}\nb\tc\n")

    assert (row.positive, other.positive) == (field, "c")
    assert ("row 1 has a text in quotes as in a CSV" in caplog.text) == is_said
