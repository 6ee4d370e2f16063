"""Text from wherever it lies: Python's own documentation, a file, a directory, an S3 prefix.

One string comes out, the same on every rank and in every attempt as long as the source is the same. What the user can
mend (no such bucket, nothing in it, not UTF-8) is a `BadConfig`; a bucket that is away is `DataUnavailable`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from piton_trainer.data.folders import HIDDEN, LeftOut, files_below, is_hidden, printable
from piton_trainer.data.skipped import NO_SKIPS, Skip, Skips
from piton_trainer.data.stream import users_fault
from piton_trainer.errors import BadConfig
from piton_trainer.s3 import S3_SCHEME

PYDOC = "pydoc"
SUFFIXES = (".txt", ".md")
"""Suffixes of text files in a directory or below an S3 prefix."""
BETWEEN = "\n\n"
"""Between two texts: a blank line, as between paragraphs."""
DOCUMENT = "\N{START OF TEXT}"
"""The character that begins a document, for models that are to know its start."""


def read_text(source: str, skips: Skips = NO_SKIPS) -> str:
    """Return all text of a source: `pydoc`, a file, a directory or `s3://bucket/prefix`.

    Raises:
        BadConfig: there is nothing to read there, or a file is no text and `skips` does not take it.
    """
    if source == PYDOC:
        return pydoc_text()
    if source.startswith(S3_SCHEME):
        return _joined(source, _objects(source), skips)
    return _joined(source, _files(Path(source)), skips)


def pydoc_text() -> str:
    """Return the topics of Python's `help()`: the language reference, which comes with every CPython.

    In the alphabet's order the end would be about sequence types alone, and topics quote each other. So they lie in the
    order of their digests and every paragraph stands once: then the end is a fair sample that training has not seen.
    """
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    return BETWEEN.join(dict.fromkeys(part.strip("\n") for name in names for part in topics[name].split(BETWEEN)))


def as_documents(text: str) -> str:
    """Return the text with each document's beginning marked, instead of the blank lines before it."""
    return DOCUMENT + re.sub(r"\r?\n(?:[ \t]*\r?\n)+", DOCUMENT, text.strip("\r\n"))


def _objects(uri: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the object of that name, or of the text objects below that prefix, in the order of the keys.

    Raises:
        BadConfig: no such bucket, or no permission.
        DataUnavailable: the bucket does not answer, and the cache has not all of it.
    """
    from piton_trainer.data.cache_folder import cache_folder
    from piton_trainer.s3.cache import Cache

    bucket, _, prefix = uri.removeprefix(S3_SCHEME).partition("/")
    with users_fault(uri):
        try:
            cache = Cache(cache_folder())
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: cannot read {uri}: {error}") from error
        below = cache.below(bucket, prefix)
        remotes = [remote for remote in below if _wanted(remote.key, prefix)]
        _left_out((remote.key for remote in below), prefix).say(uri)
        for remote, path in zip(remotes, cache.fetch(remotes, uri), strict=True):
            yield str(remote), path.read_bytes()


def _wanted(key: str, prefix: str) -> bool:
    """True if an object is the one named, or a text in that folder (`s3://b/day` means no object of `daylight/`).

    Names with a leading dot are no texts, as in a folder on a disk.
    """
    folder = _folder(prefix)
    below = key.removeprefix(folder)
    return key == prefix or (key.startswith(folder) and key.endswith(SUFFIXES) and not is_hidden(below))


def _left_out(keys: Iterable[str], prefix: str) -> LeftOut:
    """Count the objects in a folder that are no texts."""
    left_out = LeftOut()
    for key in keys:
        below = key.removeprefix(_folder(prefix))
        if key.startswith(_folder(prefix)) and not _wanted(key, prefix) and not key.endswith("/"):
            if is_hidden(below):
                left_out.counts[HIDDEN] += 1
            else:
                left_out.add(below)
    return left_out


def _folder(prefix: str) -> str:
    return prefix if prefix.endswith("/") or not prefix else f"{prefix}/"


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            left_out = LeftOut()
            paths = files_below(path, SUFFIXES, left_out, any_case=False)
            left_out.say(str(path))
        else:
            paths = [path]
        for file in paths:
            yield printable(file), file.read_bytes()
    except OSError as error:
        raise BadConfig(
            f"trainer.config.data: cannot read {printable(error.filename or path)}: {error.strerror}"
        ) from error


def _joined(source: str, parts: Iterable[tuple[str, bytes]], skips: Skips) -> str:
    texts = [text for name, content in parts for text in _decoded(name, content, skips)]
    if not any(texts):
        raise BadConfig(f"trainer.config.data: there is no text in {source} (*.txt and *.md count)")
    return BETWEEN.join(texts)


def _decoded(name: str, content: bytes, skips: Skips) -> list[str]:
    """Return the text of a file; nothing where it is skipped."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        told = f"is not UTF-8 text (byte {error.start})"
    else:
        if "\0" not in text:
            return [text]
        told = f"has a character 0 at byte {content.index(0)}, so it is no UTF-8 text; is it UTF-16, or was it cut?"
    skips.add(Skip(file=name, why=f"it {told}"), f"{name} {told}")
    return []
