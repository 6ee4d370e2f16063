"""Collections as BEIR has them: documents, queries, and who judged what, in a folder on a disk or in a bucket.

corpus.jsonl       {"_id": "d1", "title": "…", "text": "…"}       a document's text is both
queries.jsonl      {"_id": "q1", "text": "…"}
qrels/test.tsv     query-id  corpus-id  score                     more than 0 is relevant
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from piton.contract import InputError
from piton_trainer.data.numbers import whole_number
from piton_trainer.data.retrieval.json_lines import id_of, json_object, parsed, text_of, value_of
from piton_trainer.data.skipped import NO_SKIPS, Contradiction, Skips
from piton_trainer.errors import BadConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beir:
    """A collection as it was read; queries without judgments are left out."""

    documents: dict[str, str]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]
    """Of the documents that were judged for a query, some of which may be missing."""


def read(folder: str, split: str, skips: Skips = NO_SKIPS) -> Beir:
    """Return the collection of a folder or of `s3://bucket/folder`.

    A query whose line is skipped is left out with its judgments: they are one example.

    Raises:
        BadConfig: it is not there, or a line is wrong and `skips` does not take it.
    """
    root = folder.rstrip("/")
    grades = _grades(f"{root}/qrels/{split}.tsv", skips)
    before = skips.count
    texts = _texts(f"{root}/queries.jsonl", _query, skips)
    lost = skips.count - before
    missing = [query for query in grades if query not in texts]
    if len(missing) > lost:
        raise BadConfig(f"trainer.config.data: query {missing[lost]} has judgments in {root}, and no text")
    for query in missing:
        del grades[query]
    queries = {query: texts[query] for query in grades}
    return Beir(documents=_texts(f"{root}/corpus.jsonl", _document, skips), queries=queries, grades=grades)


def expect_documents(beir: Beir, source: str) -> Beir:
    """Return the collection; judgments of documents that it lacks are said.

    They count as answers that nobody finds. A few are usual, and BEIR counts them so; with more of them than of others
    the metric would say more about what is missing than about the model.

    Raises:
        BadConfig: most judgments are of that kind.
    """
    relevant = [(query, name) for query, judged in beir.grades.items() for name, grade in judged.items() if grade > 0]
    missing = [(query, name) for query, name in relevant if name not in beir.documents]
    if not relevant and beir.queries:
        raise BadConfig(
            f"trainer.config.data: not one judgment of {source} has a grade above 0, so nothing can be found"
        )
    if missing:
        told = f"{len(missing)} of {len(relevant)} relevant judgments of {source} name documents that it does not have"
        told = f"{told}, the first {missing[0][1]} for query {missing[0][0]}"
        if 2 * len(missing) > len(relevant):
            raise BadConfig(f"trainer.config.data: {told}; bring the documents or leave out the judgments")
        _log.warning("%s", told)
    return beir


def _texts(source: str, parse: Callable[[str], tuple[str, str]], skips: Skips) -> dict[str, str]:
    """Return texts by their names.

    Raises:
        BadConfig: a line is wrong, or a name has two texts.
    """
    texts: dict[str, str] = {}

    def add(line: str) -> None:
        name, text = parse(line)
        if texts.setdefault(name, text) != text:
            raise Contradiction(f"{name} stands twice, and with another text before")

    for _ in parsed(source, add, skips):
        pass
    return texts


def _query(line: str) -> tuple[str, str]:
    fields = json_object(line)
    text = text_of(fields, "text")
    if not text.strip():
        raise InputError("field text: it is empty, and a query needs a text")
    return id_of(fields, "_id"), text


def _document(line: str) -> tuple[str, str]:
    fields = json_object(line)
    title = "" if value_of(fields, "title") in (None, "") else id_of(fields, "title")
    return id_of(fields, "_id"), f"{title} {text_of(fields, 'text')}".strip()


def _grades(source: str, skips: Skips) -> dict[str, dict[str, int]]:
    """Return the grade of each judged document, by query.

    Raises:
        BadConfig: a line is wrong, or a pair has two grades.
    """
    grades: dict[str, dict[str, int]] = {}

    def add(line: str) -> None:
        if judgment := _judgment(line):
            query, document, grade = judgment
            if grades.setdefault(query, {}).setdefault(document, grade) != grade:
                raise Contradiction(
                    f"query {query} and document {document} are judged twice, with another grade before"
                )

    for _ in parsed(source, add, skips):
        pass
    return grades


def _judgment(line: str) -> tuple[str, str, int] | None:
    fields = line.split("\t")
    if len(fields) != 3:
        raise InputError(f"it has {len(fields)} fields, and query-id, corpus-id and score are 3")
    if fields[0] == "query-id":
        return None
    return fields[0], fields[1], whole_number(fields[2])
