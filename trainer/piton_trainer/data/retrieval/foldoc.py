"""FOLDOC, the Free On-line Dictionary of Computing, as a collection: which definition belongs to a term.

It comes with Debian's `dict-foldoc` (GFDL), in dictd's format: a compressed file of articles, and an index of places in
it. `make datasets`, or `python -m piton_trainer.data.retrieval.foldoc`, gets it without installing it.

    query    the first name of an article        document    the article, in which its own names are "it"

An eighth of the articles is for the `test` split, by the digest of its name; a split has its own documents only.
"""

import gzip
import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from piton.contract import InputError
from piton_trainer.data.debian import data_folder, fetch
from piton_trainer.data.stream import DAMAGED
from piton_trainer.errors import BadConfig

FOLDOC = "foldoc:"
PACKAGE = "dict-foldoc"
INSTALL = "python -m piton_trainer.data.retrieval.foldoc"
_INDEX, _ARTICLES = "foldoc.index", "foldoc.dict.dz"
_SYSTEM = Path("/usr/share/dictd")
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_WORDS_MIN = 8
"""Shorter articles only point to others."""
_TEST_SHARE = 8
_DATE = re.compile(r"\(\d{4}-\d\d-\d\d\)\s*$")


def folder_of(source: str) -> Path | None:
    """Return the folder of the two files of `foldoc:` or `foldoc:FOLDER`; None: they are not found."""
    named = source.removeprefix(FOLDOC)
    places = [Path(named)] if named else [_SYSTEM, data_folder(PACKAGE)]
    return next((place for place in places if all(path.is_file() for path in files(place))), None)


def files(folder: Path) -> tuple[Path, Path]:
    """Return the index and the articles."""
    return folder / _INDEX, folder / _ARTICLES


def articles(folder: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Yield a name for each article of a split (a term may have two), its term and its text.

    Raises:
        BadConfig: the files are not dictd's.
    """
    index, compressed = files(folder)
    try:
        with gzip.open(compressed) as file:
            content = file.read()
        places = sorted({_place(line) for line in index.read_text(encoding="utf-8").splitlines()})
        _expect_whole(places, len(content), index)
        for start, length in places:
            names, text = _article(content[start : start + length].decode())
            if len(text.split()) >= _WORDS_MIN and _split(names[0]) == split:
                yield f"{start:07d}", names[0], _masked(text, names)
    except (ValueError, *DAMAGED) as error:
        raise BadConfig(f"trainer.config.data: {folder} holds no dictionary that can be read: {error}") from error


def _expect_whole(places: list[tuple[int, int]], size: int, index: Path) -> None:
    """Refuse an index with a damaged number, which would cut an article wrong: one begins where another ends.

    Raises:
        ValueError: it is damaged.
    """
    ends = [0, *(start + length for start, length in places)]
    if [start for start, _ in places] + [size] != ends:
        raise InputError(f"the places in {index.name} do not cover {_ARTICLES} from its start to its end")


def _place(line: str) -> tuple[int, int]:
    _, start, length = line.split("\t")
    return _number(start), _number(length)


def _number(digits: str) -> int:
    """Dictd's numbers to the base of 64."""
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS.index(digit)
    return value


def _article(raw: str) -> tuple[list[str], str]:
    """Its names, a line each, and after the first empty line its text on one line, without the date of the entry."""
    head, _, body = raw.strip("\n").partition("\n\n")
    text = " ".join(body.replace("{", "").replace("}", "").split())
    return [" ".join(name.split()) for name in head.split("\n")], _DATE.sub("", text).strip()


def _masked(text: str, names: list[str]) -> str:
    """Longest names first, so that no part of one is left."""
    told = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{told})(?!\w)", "it", text, flags=re.IGNORECASE)


def _split(term: str) -> str:
    digest = hashlib.sha256(term.encode()).digest()
    return "test" if digest[0] % _TEST_SHARE == 0 else "train"


def main() -> None:
    """Fetch the files to where `foldoc:` looks for them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        found = folder_of(FOLDOC) or fetch(PACKAGE, [str(path)[1:] for path in files(_SYSTEM)])
    except BadConfig as error:
        sys.exit(error.detail)
    logging.getLogger(__name__).info("FOLDOC is in %s", found)


if __name__ == "__main__":
    main()
