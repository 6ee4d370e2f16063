"""Prepared data is that of what its sources hold, whatever their sizes and times."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from piton_trainer.clock import Clock
from piton_trainer.data import content, prepared, stream
from piton_trainer.data.ranking.rows import CsvReading
from piton_trainer.data.ranking.sources import judgments_of
from piton_trainer.data.retrieval import example_rows
from piton_trainer.data.retrieval.sources import collection_of, examples_of
from piton_trainer.data.skipped import MANIFEST, SkippedData
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks

HEADER = "query_id,llm_id,qrel,query_text\n"


class LaterClock(Clock):
    """A clock for which every file has been as it is for a while."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=10)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "Clock", LaterClock)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read for a digest."""
    names: list[str] = []
    real = hashlib.file_digest

    def noted(file: Any, digest: Any) -> Any:
        names.append(Path(file.name).name)
        return real(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def a_cache(tmp_path: Path) -> RunCache:
    return RunCache(tmp_path / "cache", Ranks())


class Examples:
    """A file of examples, and what is prepared of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "x.tsv"
        self.run_cache = a_cache(tmp_path)

    def write(self, word: str) -> None:
        self.file.write_text(f"what\t{word}\n")

    def read(self) -> str:
        return next(iter(examples_of(f"{self.file}", "train", None, self.run_cache)[1].texts[1:2]))

    @property
    def parts(self) -> object:
        return [1, f"{self.file}", "train", [stamps(self.file)], None]

    kind = "examples"


class Collections(Examples):
    """The documents of a collection."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        (tmp_path / "x" / "qrels").mkdir(parents=True)
        self.file = tmp_path / "x" / "corpus.jsonl"
        self.others = [tmp_path / "x" / "queries.jsonl", tmp_path / "x" / "qrels" / "test.tsv"]
        self.others[0].write_text('{"_id": "q", "text": "what"}\n')
        self.others[1].write_text("q\td\t1\n")

    def write(self, word: str) -> None:
        self.file.write_text(json.dumps({"_id": "d", "text": word}) + "\n")

    def read(self) -> str:
        return collection_of(f"{self.file.parent}", "test", self.run_cache).texts[0]

    @property
    def parts(self) -> object:
        return [1, f"{self.file.parent}", "test", [stamps(file) for file in (self.file, *self.others)]]

    kind = "collection"


class Judged(Examples):
    """A file of judgments."""

    def write(self, word: str) -> None:
        self.file.write_text(f"{HEADER}q,{word},1,what\n")

    def read(self) -> str:
        return judgments_of({f"{self.file}": CsvReading(gains={1.0: 1.0})}, self.run_cache).names[0]

    @property
    def parts(self) -> object:
        return [1, [[f"{self.file}", stamps(self.file), [[1.0, 1.0]], "original"]]]

    kind = "judgments"


def stamps(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def with_times_of(before: os.stat_result, file: Path) -> None:
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


SOURCES = pytest.mark.parametrize("source", [Examples, Collections, Judged])
Source = Callable[[Path], Examples]


@SOURCES
def test_other_content_of_the_same_size_and_time_is_seen(source: Source, tmp_path: Path) -> None:
    data = source(tmp_path)
    data.write("wind")
    assert data.read() == "wind"
    before = data.file.stat()
    data.write("wing")
    with_times_of(before, data.file)
    assert stamps(data.file) == f"{before.st_size} {before.st_mtime_ns}"
    assert data.read() == "wing"


@SOURCES
def test_a_copy_with_another_time_is_not_prepared_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source(tmp_path)
    data.write("wind")
    data.read()
    shutil.copyfile(data.file, data.file.with_suffix(".copy"))
    data.file.with_suffix(".copy").replace(data.file)
    os.utime(data.file, ns=(1, 1))
    monkeypatch.setattr(RunCache, "_make", lambda run_cache, folder, make: folder.is_dir() or pytest.fail("made again"))
    assert data.read() == "wind"


@SOURCES
def test_a_file_is_read_once_for_its_digest(source: Source, tmp_path: Path, hashed: list[str]) -> None:
    data = source(tmp_path)
    data.write("wind")
    data.read()
    once = len(hashed)
    data.read()
    assert len(hashed) == once == len(set(hashed))
    os.utime(data.file)
    data.read()
    assert hashed[once:] == [data.file.name]


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written once more within the same tick of the clock of its file system."""
    monkeypatch.setattr(content, "Clock", Clock)
    (tmp_path / "x.tsv").write_text("a\tb\n")
    versions = {stream.version_of(f"{tmp_path / 'x.tsv'}", tmp_path / "cache") for _ in range(2)}
    assert (len(versions), hashed) == (1, ["x.tsv", "x.tsv"])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"sha256": 1}', b"\xff"])
def test_a_damaged_memory_costs_a_reading(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n")
    whole = stream.version_of(f"{tmp_path / 'x.tsv'}", tmp_path / "cache")
    [note] = (tmp_path / "cache").iterdir()
    note.write_bytes(damage)
    assert stream.version_of(f"{tmp_path / 'x.tsv'}", tmp_path / "cache") == whole


# What an earlier version has prepared.


def as_before(data: Examples) -> Path:
    """Give prepared data the name that earlier versions gave it, and forget all that they did not know."""
    [folder] = data.run_cache.directory.glob(f"{data.kind}-*")
    key = hashlib.sha256(json.dumps(data.parts).encode()).hexdigest()[:16]
    for note in data.run_cache.directory.glob("content-*"):
        note.unlink()
    return folder.rename(folder.with_name(f"{data.kind}-{key}"))


@SOURCES
def test_what_an_earlier_version_has_prepared_is_taken(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source(tmp_path)
    data.write("wind")
    data.read()
    as_before(data)
    with monkeypatch.context() as patched:
        patched.setattr(RunCache, "_make", lambda run_cache, folder, make: folder.is_dir() or pytest.fail("made again"))
        assert data.read() == "wind"
        os.utime(data.file, ns=(1, 1))
        assert data.read() == "wind", "it is known by its content from now on"


@SOURCES
def test_what_an_earlier_version_has_prepared_is_that_of_one_content_only(source: Source, tmp_path: Path) -> None:
    data = source(tmp_path)
    data.write("wind")
    data.read()
    as_before(data)
    assert data.read() == "wind"
    before = data.file.stat()
    data.write("wing")
    with_times_of(before, data.file)
    assert data.read() == "wing"
    data.write("wind")
    assert data.read() == "wind"


@SOURCES
@pytest.mark.parametrize(
    "damage", [b"", bytes(16), b"\xff", b"a line\n"], ids=["empty", "zeros", "no UTF-8", "no digest"]
)
def test_a_damaged_note_of_what_an_earlier_version_has_prepared_is_no_folder(
    source: Source, damage: bytes, tmp_path: Path
) -> None:
    data = source(tmp_path)
    data.write("wind")
    data.read()
    folder = as_before(data)
    assert data.read() == "wind"
    [note] = data.run_cache.directory.glob("*.is")
    note.write_bytes(damage)
    assert data.read() == "wind"
    assert note.read_text() == folder.name.removeprefix(f"{data.kind}-"), "it is noted again"
    before = data.file.stat()
    note.write_bytes(damage)
    data.write("wing")
    with_times_of(before, data.file)
    assert data.read() == "wing", "the folder may be that of another content"
    assert len([path for path in data.run_cache.directory.glob(f"{data.kind}-*") if path.is_dir()]) == 2


# While it is read.


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Examples(tmp_path)
    data.write("wind")
    real = example_rows.examples

    def slow(source: str, skips: Any) -> Any:
        yield from real(source, skips)
        with data.file.open("a") as file:
            file.write("who\tnobody\n")

    monkeypatch.setattr("piton_trainer.data.retrieval.sources.rows_of", slow)
    with pytest.raises(BadConfig) as caught:
        data.read()
    assert caught.value.detail == (
        f"trainer.config.data: {data.file} has changed while it was read; start again when it is complete"
    )
    assert not list(data.run_cache.directory.glob("examples-*"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"^trainer\.config\.data: cannot read /nowhere/x\.tsv: No such file"):
        stream.version_of("/nowhere/x.tsv", tmp_path)


# What is left out.


def test_the_folder_lists_what_is_left_out_and_a_lower_setting_is_refused(tmp_path: Path) -> None:
    data = Examples(tmp_path)
    data.file.write_text("what\twind\nno fields\nwho\tnobody\nnone\n")

    def read(most: int) -> SkippedData:
        skipped_data = SkippedData(most)
        assert len(examples_of(f"{data.file}", "train", None, data.run_cache, skipped_data)[1]) == 2
        return skipped_data

    made = read(2)
    [folder] = data.run_cache.directory.glob("examples-*")
    listed = json.loads((folder / MANIFEST).read_text())
    assert listed["maxSkipped"] == 2
    assert [(entry["file"], entry["place"]) for entry in listed["skipped"]] == [
        (f"{data.file}", "line 2"),
        (f"{data.file}", "line 4"),
    ]
    assert made.count == read(9).count == 2
    [sentence] = read(9).sentences()
    assert sentence == (
        f"2 damaged examples are left out, and maxSkipped accepts 9; the first is {data.file}, line 2: it has one "
        f"field; query, positive and maybe negatives are wanted; all are listed in {folder / MANIFEST}"
    )
    for most in (0, 1):
        with pytest.raises(
            BadConfig, match=f"maxSkipped: {most} damaged examples are accepted, and there are 2; the first"
        ):
            read(most)
    data.file.write_text("what\twind\nwho\tnobody\n")
    assert read(0).count == 0


def test_nothing_is_listed_where_nothing_is_left_out(tmp_path: Path) -> None:
    data = Examples(tmp_path)
    data.write("wind")
    skipped_data = SkippedData(5)
    examples_of(f"{data.file}", "train", None, data.run_cache, skipped_data)
    assert (skipped_data.count, skipped_data.sentences()) == (0, [])
    assert not list(data.run_cache.directory.glob(f"*/{MANIFEST}"))


def test_the_weak_judgments_count_with_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"{HEADER}q,m,1,what\nq,n,x,what\n")
    readings = {f"{tmp_path / name}.csv": CsvReading(gains={1.0: 1.0}) for name in ("a", "b")}
    with pytest.raises(BadConfig, match="1 damaged examples are accepted, and there are at least 2"):
        judgments_of(readings, a_cache(tmp_path), SkippedData(1))
    skipped_data = SkippedData(2)
    judgments_of(readings, a_cache(tmp_path), skipped_data)
    assert skipped_data.count == 2


def test_the_key_of_objects_in_a_bucket_is_that_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "version_of", lambda source, memory: "etag")
    key, folder = prepared.prepare_folder(
        "x", lambda version_of: [version_of("s3://b/k")], lambda into, skips: None, a_cache(tmp_path), None
    )
    assert key.content == key.stamps == key.folder
    assert folder.name == f"x-{key.content}"


# Damage on the volume.


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("name", ["queries.npy", "texts.bin", "ends.npy", MANIFEST])
def test_a_folder_with_a_file_that_is_cut_or_gone_is_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    data = Examples(tmp_path)
    data.file.write_text("what\twind\nbad\n")

    def read() -> list[str]:
        return examples_of(f"{data.file}", "train", None, data.run_cache, SkippedData(1))[1].texts[:]

    assert read() == ["what", "wind"]
    [folder] = data.run_cache.directory.glob("examples-*")
    if damage == "gone":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, (folder / name).stat().st_size - 2)
    assert read() == ["what", "wind"]
    assert (folder / name).exists()


def test_a_damaged_list_of_what_is_left_out_is_one_sentence(tmp_path: Path) -> None:
    data = Examples(tmp_path)
    data.file.write_text("what\twind\nbad\n")
    examples_of(f"{data.file}", "train", None, data.run_cache, SkippedData(1))
    [manifest] = data.run_cache.directory.glob(f"examples-*/{MANIFEST}")
    manifest.write_bytes(bytes(manifest.stat().st_size))

    with pytest.raises(BadConfig, match=rf"{MANIFEST} is damaged; delete .* to have it made anew"):
        examples_of(f"{data.file}", "train", None, data.run_cache, SkippedData(1))
