"""Checks that examples and collections exist where a config names them.

No torch or numpy here: a config is checked on machines that do not train.
"""

from pathlib import Path

from piton.contract import InputError
from piton_trainer.data.retrieval import cranfield, foldoc
from piton_trainer.s3 import S3_SCHEME

EXAMPLE_SUFFIXES = (".tsv", ".jsonl", ".json", ".csv")
"""Of files with examples; what ends otherwise is a collection."""


def is_examples(source: str) -> bool:
    """True if it is a file with examples, going by its name."""
    return source.removesuffix(".gz").endswith(EXAMPLE_SUFFIXES)


def files_of(source: str, split: str) -> list[str]:
    """Return the files and objects that a collection is read from.

    Raises:
        ValueError: one sentence, if they are not installed.
    """
    if source.startswith(foldoc.FOLDOC):
        folder = foldoc.folder_of(source)
        if folder is None:
            raise InputError(f"{source} is not on this machine; say {foldoc.INSTALL}, which gets it from Debian")
        return [str(path) for path in foldoc.files(folder)]
    if source.startswith(cranfield.CRANFIELD):
        return [str(path) for path in cranfield.files(source)]
    root = source.rstrip("/")
    return [f"{root}/corpus.jsonl", f"{root}/queries.jsonl", f"{root}/qrels/{split}.tsv"]


def check_examples(source: str, split: str) -> str | None:
    """Return the missing part, as far as it shows without reading; None: nothing is missing."""
    if not is_examples(source):
        return check_collection(source, split)
    if source.startswith(S3_SCHEME) or Path(source).is_file():
        return None
    return f"there is no file {source}; give one, s3://bucket/key, a folder as BEIR has them, or {foldoc.FOLDOC}"


def check_collection(source: str, split: str) -> str | None:
    """Return the missing part of a collection; None: nothing is missing."""
    try:
        files = files_of(source, split)
    except ValueError as error:
        return str(error)
    missing = [path for path in files if not path.startswith(S3_SCHEME) and not Path(path).is_file()]
    return f"{source} is no collection: there is no file {missing[0]}" if missing else None
