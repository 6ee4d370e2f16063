"""A small, valid source of each kind, and what is read of it."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from piton_trainer.data.image.image_files import DamagedImage, Form
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Recorder
from piton_trainer.data.image.records import About, Records
from piton_trainer.data.image.sources import open_source
from piton_trainer.data.ranking.judgments import Collector
from piton_trainer.data.ranking.rows import CsvReading, JudgmentRow, csv_rows
from piton_trainer.data.retrieval import beir, collection, cranfield, example_rows, examples, foldoc
from piton_trainer.data.skipped import Skips
from piton_trainer.data.text.sources import read_text

Rows = Mapping[str, Sequence[Any]]
"""All that is read, by kind, in its order."""
FORM = Form(max_side=None, quality=90)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of source."""

    name: str
    write: Callable[[Path], str]
    """Writes a valid source into a folder that is there; returns its name in a config."""
    read: Callable[[str, Skips], Rows]
    """Reads a source, of which so many damaged examples may be left out."""
    tags: frozenset[str] = frozenset()
    """What its files are: `lines`, `ids`, `tar`, `npz`, `files`, `checksums`."""
    rows_hit: int = 1
    """Rows of a kind that one damage may change."""


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image with a shape that is easily compressed."""
    pixels = np.full((12, 12, 3), 20 * number % 250, dtype=np.uint8)
    pixels[number % 12, :, number % 3] = 250
    pixels[:, number % 7] += 3
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


pictures = cache(picture)


# Images.


def write_folder(folder: Path, kind: str) -> str:
    for number in range(9):
        path = folder / "x" / ("ant", "bee", "cow")[number % 3] / f"{number}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures(number, kind))
    return str(folder / "x")


def write_shards(folder: Path) -> str:
    (folder / "x").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "x" / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(9):
                for suffix, content in (("png", pictures(9 * shard + number)), ("cls", f"{number % 3}".encode())):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / "x")


def write_archive(folder: Path, save: Callable[..., None]) -> str:
    rng = np.random.default_rng(0)
    save(folder / "x.npz", images=rng.integers(256, size=(8, 5, 5), dtype=np.uint8), labels=np.arange(8) % 3)
    return str(folder / "x.npz")


def read_images(source: str, skips: Skips) -> Rows:
    found = open_source(source, FORM, skips)
    made = []
    for number in range(len(found)):
        try:
            made.append(found.picture(number))
        except DamagedImage as damaged:
            if not skips.most:
                raise
            skips.add(damaged.skip)
    return {"classes": found.classes, "images": [(one.label, one.height, one.width, one.content) for one in made]}


def write_records(folder: Path) -> str:
    with Recorder(folder / "x.records", About(source="x", classes=("ant", "bee"))) as recorder:
        for number in range(6):
            recorder.append(from_file(pictures(number), number % 2, max_side=None, quality=90))
        recorder.finish()
    return str(folder / "x.records")


def read_records(source: str, skips: Skips) -> Rows:
    found = Records(Path(source))
    return {
        "classes": found.about.classes,
        "images": [(int(found.labels[n]), found.shape(n), found.read(n)) for n in range(len(found))],
    }


# Texts.

WORDS = ("wind", "wing", "lift", "drag", "süß", "heat", "flow", "mach", "jet", "skin")


def words(number: int, count: int) -> str:
    return " ".join(WORDS[(number * 3 + place * place) % len(WORDS)] for place in range(count)) + f" {number}"


def write_text(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())
    return str(path)


def write_texts(folder: Path) -> str:
    for number in range(3):
        write_text(folder, f"x/{number}.txt", "".join(f"{words(9 * number + line, 6)}\n" for line in range(5)))
    return str(folder / "x")


def read_texts(source: str, skips: Skips) -> Rows:
    return {"lines": [line for line in read_text(source, skips).splitlines() if line]}


def _examples() -> Iterable[tuple[str, str, str]]:
    return ((f"who {words(n, 2)}", f"it is, {words(n, 5)}", f"no {words(n + 7, 4)}") for n in range(12))


def as_tsv() -> str:
    return "".join("\t".join(row) + "\n" for row in _examples())


def as_json_lines() -> str:
    return "".join(
        json.dumps({"query": query, "positive": positive, "negatives": [negative]}, ensure_ascii=False) + "\n"
        for query, positive, negative in _examples()
    )


def as_json() -> str:
    return "[" + ",\n".join(as_json_lines().splitlines()) + "]\n"


def as_csv() -> str:
    rows = "".join(",".join(f'"{field}"' for field in row) + "\n" for row in _examples())
    return "query,positive,negative\n" + rows


def read_examples(source: str, skips: Skips) -> Rows:
    rows = list(example_rows.examples(source, skips))
    with TemporaryDirectory() as folder:
        examples.save(rows, source, None, Path(folder))
    return {"examples": rows}


def as_judgments() -> str:
    kind = {(3, 3): "weak", (4, 3): "weak"}
    rows = [
        f'q{query},m{model},{(query + model) % 3},"ask, {words(query, 3)}",{kind.get((query, model), "original")},0.5\n'
        for query in range(5)
        for model in range(4)
    ]
    return "query_id,llm_id,qrel,query_text,source,confidence\n" + "".join(rows)


def read_judgments(source: str, skips: Skips) -> Rows:
    rows: list[Any] = []
    collector = Collector()

    def take(row: JudgmentRow) -> None:
        collector.add(row)
        rows.append(row)

    csv_rows(source, CsvReading(gains={0.0: 0.0, 1.0: 1.0, 2.0: 0.7}), take, skips)
    collector.judgments(source)
    return {"judgments": rows}


# Collections.


def write_beir(folder: Path) -> str:
    documents = [{"_id": f"d{n}", "title": "t", "text": words(n, 6)} for n in range(8)]
    queries = [{"_id": f"q{n}", "text": f"what {words(n, 2)}"} for n in range(4)]
    write_text(folder, "x/corpus.jsonl", "".join(json.dumps(line) + "\n" for line in documents))
    write_text(folder, "x/queries.jsonl", "".join(json.dumps(line) + "\n" for line in queries))
    rows = "".join(f"q{n}\td{2 * n + m}\t{2 - m}\n" for n in range(4) for m in range(2))
    write_text(folder, "x/qrels/test.tsv", "query-id\tcorpus-id\tscore\n" + rows)
    return str(folder / "x")


def write_cranfield(folder: Path) -> str:
    (folder / "x").mkdir()
    documents = "".join(f".I {n}\n.T\n{words(n, 2)}\n.A\n{words(n, 1)}\n.W\n{words(n, 5)}\n" for n in range(1, 7))
    write_text(folder, "x/cran.all.1400", documents)
    write_text(folder, "x/cran.qry", "".join(f".I {2 * n:03}\n.W\nwhat {words(n, 3)}\n" for n in range(1, 7)))
    write_text(folder, "x/cranqrel", "".join(f"{n} {1 + (n + m) % 6} {m + 1}\n" for n in range(1, 7) for m in range(2)))
    return f"cranfield:{folder / 'x'}"


def write_foldoc(folder: Path) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    content, index = b"", ""
    for number in range(8):
        raw = f"term {number}\n\n   {words(number, 12)}\n\n\n".encode()
        places = "\t".join(digits[place // 64] + digits[place % 64] for place in (len(content), len(raw)))
        index, content = f"{index}term {number}\t{places}\n", content + raw
    write_text(folder, "x/foldoc.index", index)
    write_text(folder, "x/foldoc.dict.dz", "")
    (folder / "x" / "foldoc.dict.dz").write_bytes(gzip.compress(content, mtime=0))
    return f"foldoc:{folder / 'x'}"


def read_collection(source: str, skips: Skips) -> Rows:
    rows: dict[str, list[Any]] = {}
    for split in ("train", "test"):
        if source.startswith(foldoc.FOLDOC):
            rows[split] = list(foldoc.articles(Path(source.removeprefix(foldoc.FOLDOC)), split))
            continue
        if not source.startswith(cranfield.CRANFIELD) and split == "train":
            continue
        read = cranfield.read if source.startswith(cranfield.CRANFIELD) else beir.read
        own = Skips(skips.most)  # each split is prepared by itself
        found = beir.expect_documents(read(source, split, own), source)
        for skip in own.skipped:
            if skip not in skips.skipped:
                skips.add(skip)
        with TemporaryDirectory() as folder:
            collection.save(found, source, Path(folder))
        rows[f"{split} documents"] = list(found.documents.items())
        rows[f"{split} queries"] = list(found.queries.items())
        judged = ((query, name, grade) for query, grades in found.grades.items() for name, grade in grades.items())
        rows[f"{split} judgments"] = list(judged)
    return rows


def _readers() -> Iterable[Reader]:
    lines, checksums = "lines", "checksums"
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        tags = {"files", checksums} if kind == "PNG" else {"files"}
        yield Reader(
            name=f"{kind} in folders", write=partial(write_folder, kind=kind), read=read_images, tags=frozenset(tags)
        )
    yield Reader(name="shards", write=write_shards, read=read_images, tags=frozenset({"tar"}))
    for name, save in (("npz", np.savez), ("small npz", np.savez_compressed)):
        tags = {"npz", checksums}
        yield Reader(name=name, write=partial(write_archive, save=save), read=read_images, tags=frozenset(tags))
    yield Reader(name="records", write=write_records, read=read_records, tags=frozenset({checksums}))
    yield Reader(name="texts", write=write_texts, read=read_texts, tags=frozenset({lines, "texts"}), rows_hit=2)
    for suffix, text in (("tsv", as_tsv), ("jsonl", as_json_lines), ("json", as_json), ("csv", as_csv)):
        for end in ("", ".gz"):
            yield Reader(
                name=f"{suffix}{end}",
                write=lambda folder, name=f"x.{suffix}{end}", text=text: write_text(folder, name, text()),  # type: ignore[misc]
                read=read_examples,
                tags=frozenset({checksums, f"{suffix}.gz"} if end else {lines, suffix}),
            )
    for end in ("", ".gz"):
        yield Reader(
            name=f"judgments{end}",
            write=lambda folder, name=f"x.csv{end}": write_text(folder, name, as_judgments()),  # type: ignore[misc]
            read=read_judgments,
            tags=frozenset({checksums} if end else {lines, "ids", "csv"}),
        )
    yield Reader(name="beir", write=write_beir, read=read_collection, tags=frozenset({lines, "ids"}))
    yield Reader(name="cranfield", write=write_cranfield, read=read_collection, tags=frozenset({lines, "numbers"}))
    yield Reader(name="foldoc", write=write_foldoc, read=read_collection, tags=frozenset({"foldoc"}))


READERS: Mapping[str, Reader] = {reader.name: reader for reader in _readers()}
