"""Examples and collections from the places that a config names: read once on the volume that all attempts share."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from piton_trainer.data.retrieval import collection, cranfield, examples, foldoc
from piton_trainer.data.retrieval.beir import Beir, expect_documents
from piton_trainer.data.retrieval.beir import read as read_beir
from piton_trainer.data.retrieval.collection import Collection
from piton_trainer.data.retrieval.example_rows import Example, of_collection
from piton_trainer.data.retrieval.example_rows import examples as rows_of
from piton_trainer.data.retrieval.examples import Examples
from piton_trainer.data.retrieval.locations import files_of, is_examples
from piton_trainer.data.stream import version_of
from piton_trainer.run_cache import RunCache

_FORMAT = 1
"""Changes when the same files make other examples or collections."""


def examples_of(source: str, split: str, limit: int | None, run_cache: RunCache) -> tuple[str, Examples]:
    """A key that says which ones they are, and the examples.

    Raises:
        BadConfig: they are not there, or one is wrong.
    """
    files = [source] if is_examples(source) else None
    memory = run_cache.directory
    key = run_cache.on_main(lambda: _key(memory, source, split, files or files_of(source, split), limit))

    def rows() -> Iterable[Example]:
        return rows_of(source) if files else of_collection(_read(source, split))

    folder = run_cache.folder(f"examples-{key}", lambda into: examples.save(rows(), source, limit, into))
    return key, Examples.load(folder)


def collection_of(source: str, split: str, run_cache: RunCache) -> Collection:
    """A collection, each with the judgments of one split.

    Raises:
        BadConfig: it is not there, or a line is wrong.
    """
    key = run_cache.on_main(lambda: _key(run_cache.directory, source, split, files_of(source, split)))
    name = f"collection-{key}"
    return Collection.load(run_cache.folder(name, lambda into: collection.save(_read(source, split), source, into)))


def _read(source: str, split: str) -> Beir:
    return expect_documents(_collection(source, split), source)


def _collection(source: str, split: str) -> Beir:
    if source.startswith(cranfield.CRANFIELD):
        return cranfield.read(source, split)
    if not source.startswith(foldoc.FOLDOC):
        return read_beir(source, split)
    folder = foldoc.folder_of(source)
    assert folder is not None  # `files_of` has looked
    articles = list(foldoc.articles(folder, split))
    return Beir(
        documents={f"d{name}": text for name, _, text in articles},
        queries={f"q{name}": term for name, term, _ in articles},
        grades={f"q{name}": {f"d{name}": 1} for name, _, _ in articles},
    )


def _key(memory: Path, source: str, split: str, files: list[str], *settings: object) -> str:
    parts = [_FORMAT, source, split, [version_of(file, memory) for file in files], *settings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
