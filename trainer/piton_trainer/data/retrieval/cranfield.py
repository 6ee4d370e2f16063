"""The Cranfield collection in its original form: 1,400 abstracts, 225 questions, graded judgments of all pairs.

    cran.all.1400    documents        cran.qry    queries        cranqrel    query, document, grade

Its traps: the numbers in cran.qry are not those that cranqrel means, which counts the queries from 1; grade 1 is the
best and 4 the worst, 5 and -1 are irrelevant; and documents and queries have the same numbers, so that a rule against
finding oneself would delete real answers. Every third query is for the `test` split, the others for `train`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from piton_trainer.data.numbers import whole_number
from piton_trainer.data.retrieval.beir import Beir
from piton_trainer.data.skipped import NO_SKIPS, Skip, Skips
from piton_trainer.errors import BadConfig

CRANFIELD = "cranfield:"
_BEST = 5
"""Grades 1 to 4 become 4 to 1."""
_TEST_EVERY = 3
_FIELD = re.compile(r"^\.([A-Z])\b", re.MULTILINE)


def files(source: str) -> tuple[Path, Path, Path]:
    """Documents, queries and judgments of `cranfield:FOLDER`."""
    folder = Path(source.removeprefix(CRANFIELD))
    return folder / "cran.all.1400", folder / "cran.qry", folder / "cranqrel"


def read(source: str, split: str, skips: Skips = NO_SKIPS) -> Beir:
    """Return the collection; each split has all documents.

    Only judgments are skipped: a record that is lost would shift the numbers of all that follow.

    Raises:
        BadConfig: the files cannot be read, or a line is wrong and `skips` does not take it.
    """
    documents, questions, judgments = files(source)
    texts = [text for _, text in _records(questions)]
    queries = {f"q{number}": text for number, text in enumerate(texts, start=1) if _split(number) == split}
    grades: dict[str, dict[str, int]] = {}
    for number, document, grade in _judgments(judgments, len(texts), skips):
        if f"q{number}" in queries:
            grades.setdefault(f"q{number}", {})[f"d{document}"] = _BEST - grade if 1 <= grade < _BEST else 0
    found = {f"d{number}": text for number, text in _records(documents, step=1)}
    judged = {name: text for name, text in queries.items() if name in grades}
    return Beir(documents=found, queries=judged, grades=grades)


def _split(number: int) -> str:
    return "test" if number % _TEST_EVERY == 0 else "train"


def _judgments(path: Path, queries: int, skips: Skips) -> Iterator[tuple[int, int, int]]:
    """Yield query, document and grade of each line; a query is a number up to that of the last one."""
    for place, line in enumerate(_read(path).splitlines(), start=1):
        try:
            number, document, grade = (whole_number(field) for field in line.split())
        except ValueError as error:
            why = f"query, document and grade are three numbers: {error}"
        else:
            if 1 <= number <= queries:
                yield number, document, grade
                continue
            why = f"there are {queries} queries, and none is number {number}"
        skips.add(Skip(file=str(path), place=f"line {place}", why=why))


def _records(path: Path, step: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield number and text of each record; a document's text begins with its title.

    A record whose first line is damaged would join the one before it, and all queries that follow would be counted
    wrong. Documents are numbered without a gap (`step`); numbers of queries only grow, but each has one text.
    """
    before, content = 0, _read(path)
    if not content.startswith(".I "):
        raise BadConfig(f"trainer.config.data: {path}: begins with {content[:20]!r} and not with a record, .I 1")
    for record in re.split(r"^(?=\.I )", content, flags=re.MULTILINE)[1:]:
        parts = _FIELD.split(record)
        fields = {letter: " ".join(text.split()) for letter, text in zip(parts[1::2], parts[2::2], strict=True)}
        number = int(fields["I"]) if fields["I"].isdecimal() else 0
        grows = number > before if step is None else number == before + step
        if not grows or "W" not in fields or (step is None and parts.count("W") > 1):
            line = content.count("\n", 0, content.index(record)) + 1
            raise BadConfig(
                f"trainer.config.data: {path}, line {line}: here begins record {fields['I'] or '?'}, after "
                f"record {before}, with .{', .'.join(parts[1::2])}; a record or its text is missing"
            )
        before = number
        yield number, fields["W"]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise BadConfig(f"trainer.config.data: {path} cannot be read as Cranfield: {error}") from error
