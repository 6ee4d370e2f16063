"""Every kind of damage in a source of every reader, and whether the fuzzer of `make fuzz-data` finds a fault."""

import gzip
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz_data.damages import DAMAGES
from fuzz_data.play import Case, Kind, Verdict, draw, play
from fuzz_data.readers import READERS
from piton_trainer.data.image import shards
from piton_trainer.data.retrieval import cranfield, example_rows
from piton_trainer.errors import BadConfig

SEEDS = 3


def played(reader: str, damage: str, folder: Path, seeds: int = SEEDS) -> list[Verdict]:
    verdicts = []
    for seed in range(seeds):
        (folder / f"{seed}").mkdir()
        verdicts.append(play(Case(reader=reader, damage=damage, seed=f"{seed}"), folder / f"{seed}"))
    return verdicts


@pytest.mark.parametrize(
    ("reader", "damage"),
    [
        pytest.param(reader.name, damage.name, id=f"{damage.name} of {reader.name}")
        for reader in READERS.values()
        for damage in DAMAGES.values()
        if damage.fits(reader)
    ],
)
def test_no_damage_changes_more_than_it_hits_without_a_word(reader: str, damage: str, tmp_path: Path) -> None:
    faults = [verdict for verdict in played(reader, damage, tmp_path) if verdict.kind.is_fault]
    assert faults == []


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_said_of_a_source_that_is_in_order(
    reader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    READERS[reader].read(READERS[reader].write(tmp_path))
    assert caplog.messages == []


def test_a_seed_always_has_the_same_cases_and_draws_all_of_them() -> None:
    cases = [draw(7, number) for number in range(5000)]
    assert cases[:100] == [draw(7, number) for number in range(100)]
    fitting = {(r.name, d.name) for r in READERS.values() for d in DAMAGES.values() if d.fits(r)}
    assert {(case.reader, case.damage) for case in cases} == fitting


def kinds(reader: str, damage: str, folder: Path) -> Counter[Kind]:
    return Counter(verdict.kind for verdict in played(reader, damage, folder, seeds=30))


def take_the_first_bad_header_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_trouble_at_the_end", lambda shard, end: None)


def count_records_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def records(path: Path, step: int | None = None) -> Any:
        for number, record in enumerate(re.split(r"(?m)^\.I \d+\n", path.read_text())[1:], start=1):
            yield number, record.partition(".W")[2]

    monkeypatch.setattr(cranfield, "_records", records)


def cut_rows_at_a_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    def examples(source: str) -> Any:
        rows = (line.split(",") for line in Path(source).read_text(encoding="utf-8").splitlines()[1:])
        return (example_rows.Example(query=row[0], positive=row[1]) for row in rows)

    monkeypatch.setattr(example_rows, "examples", examples)


def stumble_over_damaged_gzip(monkeypatch: pytest.MonkeyPatch) -> None:
    def examples(source: str) -> Any:
        return gzip.decompress(Path(source).read_bytes()).splitlines()

    monkeypatch.setattr(example_rows, "examples", examples)


def forget_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def members(shard: Path) -> Any:
        raise BadConfig(f"trainer.config.data: a shard is no tar file: {tarfile.ReadError()}")

    monkeypatch.setattr(shards, "_members", members)


@pytest.mark.parametrize(
    ("plant", "reader", "damage", "fault"),
    [
        (take_the_first_bad_header_for_the_end, "shards", "byte", Kind.DIFFERENT),
        (count_records_as_they_come, "cranfield", "line", Kind.DIFFERENT),
        (cut_rows_at_a_comma, "csv", "line", Kind.TRACEBACK),
        (stumble_over_damaged_gzip, "tsv.gz", "cut", Kind.TRACEBACK),
        (forget_the_name, "shards", "byte", Kind.UNNAMED),
    ],
)
def test_a_fault_that_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    reader: str,
    damage: str,
    fault: Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, has_fault in enumerate((False, True)):
        (tmp_path / f"{number}").mkdir()
        if has_fault:
            plant(monkeypatch)
        assert (kinds(reader, damage, tmp_path / f"{number}")[fault] > 0) == has_fault
