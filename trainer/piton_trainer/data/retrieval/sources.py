"""Examples and collections from the places that a config names: read once on the volume that all attempts share."""

from collections.abc import Iterable
from pathlib import Path

from piton_trainer.data.prepared import Key, VersionOf, prepare_folder
from piton_trainer.data.retrieval import collection, cranfield, examples, foldoc
from piton_trainer.data.retrieval.beir import Beir, expect_documents
from piton_trainer.data.retrieval.beir import read as read_beir
from piton_trainer.data.retrieval.collection import Collection
from piton_trainer.data.retrieval.example_rows import Example, of_collection
from piton_trainer.data.retrieval.example_rows import examples as rows_of
from piton_trainer.data.retrieval.examples import Examples
from piton_trainer.data.retrieval.locations import files_of, is_examples
from piton_trainer.data.skipped import SkippedData, Skips
from piton_trainer.run_cache import RunCache

_FORMAT = 1
"""Changes when the same files make other examples or collections."""


def examples_of(
    source: str, split: str, limit: int | None, run_cache: RunCache, skipped_data: SkippedData | None = None
) -> tuple[Key, Examples]:
    """Return a key that says which examples they are, and the examples.

    Raises:
        BadConfig: they are not there, or more are wrong than `skipped_data` accepts.
    """
    is_file = is_examples(source)

    def make(folder: Path, skips: Skips) -> None:
        rows: Iterable[Example] = rows_of(source, skips) if is_file else of_collection(_read(source, split, skips))
        examples.save(rows, source, limit, folder)

    def parts(version_of: VersionOf) -> object:
        return [*_parts(source, split, [source] if is_file else files_of(source, split), version_of), limit]

    key, folder = prepare_folder("examples", parts, make, run_cache, skipped_data)
    return key, Examples.load(folder)


def collection_of(source: str, split: str, run_cache: RunCache, skipped_data: SkippedData | None = None) -> Collection:
    """Return a collection with the judgments of one split.

    Raises:
        BadConfig: it is not there, or more lines are wrong than `skipped_data` accepts.
    """

    def make(folder: Path, skips: Skips) -> None:
        collection.save(_read(source, split, skips), source, folder)

    def parts(version_of: VersionOf) -> object:
        return _parts(source, split, files_of(source, split), version_of)

    _, folder = prepare_folder("collection", parts, make, run_cache, skipped_data)
    return Collection.load(folder)


def _read(source: str, split: str, skips: Skips) -> Beir:
    return expect_documents(_collection(source, split, skips), source)


def _collection(source: str, split: str, skips: Skips) -> Beir:
    if source.startswith(cranfield.CRANFIELD):
        return cranfield.read(source, split, skips)
    if not source.startswith(foldoc.FOLDOC):
        return read_beir(source, split, skips)
    folder = foldoc.folder_of(source)
    assert folder is not None  # `files_of` has looked
    articles = list(foldoc.articles(folder, split))
    return Beir(
        documents={f"d{name}": text for name, _, text in articles},
        queries={f"q{name}": term for name, term, _ in articles},
        grades={f"q{name}": {f"d{name}": 1} for name, _, _ in articles},
    )


def _parts(source: str, split: str, files: list[str], version_of: VersionOf) -> list[object]:
    """Return what examples or a collection depend on."""
    return [_FORMAT, source, split, [version_of(file) for file in files]]
