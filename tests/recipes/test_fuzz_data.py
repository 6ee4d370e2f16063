"""Every kind of damage in a source of every reader, and whether the fuzzer of `make fuzz-data` finds a fault."""

import gzip
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest

from fuzz_data import __main__ as fuzz_main
from fuzz_data.damages import DAMAGES
from fuzz_data.play import Case, Kind, Verdict, draw, play
from fuzz_data.readers import READERS
from piton_trainer.data import stream
from piton_trainer.data.image import shards
from piton_trainer.data.retrieval import cranfield, example_rows, json_lines
from piton_trainer.data.skipped import Skip, Skips
from piton_trainer.errors import BadConfig

SEEDS = 3


def played(reader: str, damage: str, folder: Path, seeds: int = SEEDS, mosts: Sequence[int] = (0,)) -> list[Verdict]:
    verdicts = []
    for seed, most in product(range(seeds), mosts):
        own = folder / f"{seed}-{most}"
        own.mkdir()
        verdicts.append(play(Case(reader=reader, damage=damage, seed=f"{seed}", most=most), own))
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
    faults = [verdict for verdict in played(reader, damage, tmp_path, mosts=(0, 2)) if verdict.kind.is_fault]
    assert faults == []


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_said_of_a_source_that_is_in_order(
    reader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    READERS[reader].read(READERS[reader].write(tmp_path), Skips())
    assert caplog.messages == []


def test_a_seed_always_has_the_same_cases_and_draws_all_of_them() -> None:
    cases = [draw(7, number) for number in range(5000)]
    assert cases[:100] == [draw(7, number) for number in range(100)]
    fitting = {(r.name, d.name) for r in READERS.values() for d in DAMAGES.values() if d.fits(r)}
    assert {(case.reader, case.damage) for case in cases} == fitting


def kinds(reader: str, damage: str, folder: Path, most: int = 0) -> Counter[Kind]:
    return Counter(verdict.kind for verdict in played(reader, damage, folder, seeds=30, mosts=(most,)))


def take_the_first_bad_header_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_trouble_at_the_end", lambda shard, end: None)


def count_records_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def records(path: Path, step: int | None = None) -> Any:
        for number, record in enumerate(re.split(r"(?m)^\.I \d+\n", path.read_text())[1:], start=1):
            yield number, record.partition(".W")[2]

    monkeypatch.setattr(cranfield, "_records", records)


def cut_rows_at_a_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    def examples(source: str, skips: Skips) -> Any:
        rows = (line.split(",") for line in Path(source).read_text(encoding="utf-8").splitlines()[1:])
        return (example_rows.Example(query=row[0], positive=row[1]) for row in rows)

    monkeypatch.setattr(example_rows, "examples", examples)


def stumble_over_damaged_gzip(monkeypatch: pytest.MonkeyPatch) -> None:
    def examples(source: str, skips: Skips) -> Any:
        return gzip.decompress(Path(source).read_bytes()).splitlines()

    monkeypatch.setattr(example_rows, "examples", examples)


def forget_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def members(shard: Path) -> Any:
        raise BadConfig(f"trainer.config.data: a shard is no tar file: {tarfile.ReadError()}")

    monkeypatch.setattr(shards, "_members", members)


def lose_what_follows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(source: str, skips: Skips) -> Any:
        return (numbered for numbered in stream.lines(source, skips) if not skips.count)

    monkeypatch.setattr(json_lines, "lines", lines)


def list_it_otherwise_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    add, times = Skips.add, count()
    monkeypatch.setattr(
        Skips, "add", lambda skips, skip, refusal=None: add(skips, replace(skip, why=f"{next(times)}"), refusal)
    )


def list_it_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Skips.add
    monkeypatch.setattr(Skips, "add", lambda skips, skip, refusal=None: add(skips, replace(skip, file="x"), refusal))


def take_a_harmless_change_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    real = json_lines.parsed

    def parsed(source: str, parse: Callable[[str], Any], skips: Skips) -> Any:
        if Path(source).read_bytes().startswith(b"\xef\xbb\xbf"):
            skips.add(Skip(file=source, place="line 1", why="it begins with a mark"))
        return real(source, parse, skips)

    monkeypatch.setattr(example_rows, "parsed", parsed)


@pytest.mark.parametrize(
    ("plant", "reader", "damage", "most", "fault"),
    [
        (take_the_first_bad_header_for_the_end, "shards", "byte", 0, Kind.DIFFERENT),
        (count_records_as_they_come, "cranfield", "line", 0, Kind.DIFFERENT),
        (cut_rows_at_a_comma, "csv", "line", 0, Kind.TRACEBACK),
        (stumble_over_damaged_gzip, "tsv.gz", "cut", 0, Kind.TRACEBACK),
        (forget_the_name, "shards", "byte", 0, Kind.UNNAMED),
        (lose_what_follows_too, "jsonl", "line", 9, Kind.UNCOUNTED),
        (list_it_otherwise_each_time, "csv", "field less", 9, Kind.UNSTEADY),
        (list_it_under_another_name, "shards", "member", 9, Kind.UNNAMED),
        (take_a_harmless_change_for_damage, "tsv", "BOM", 9, Kind.NEEDLESS),
    ],
)
def test_a_fault_that_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    reader: str,
    damage: str,
    most: int,
    fault: Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, has_fault in enumerate((False, True)):
        (tmp_path / f"{number}").mkdir()
        if has_fault:
            plant(monkeypatch)
        assert (kinds(reader, damage, tmp_path / f"{number}", most=most)[fault] > 0) == has_fault


def test_the_fuzzer_says_how_far_it_is_and_how_to_repeat_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_main, "LINE_EVERY", 5)
    monkeypatch.setattr(fuzz_main, "_play", lambda case: Verdict(kind=Kind.SAME))
    monkeypatch.setattr("sys.argv", ["fuzz_data", "--cases", "12", "--seed", "3"])
    assert fuzz_main.main() == 0
    told = capsys.readouterr().out
    assert ("5 of 12 cases are played" in told, "10 of 12 cases" in told, "11 of 12" in told) == (True, True, False)
    monkeypatch.setattr(fuzz_main, "_play", lambda case: Verdict(kind=Kind.TRACEBACK, detail="ouch"))
    assert fuzz_main.main() == 1
    assert "make fuzz-data N=1 SEED=3 FIRST=0" in capsys.readouterr().out
