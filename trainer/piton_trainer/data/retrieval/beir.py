"""Collections as BEIR has them: documents, queries, and who judged what, in a folder on a disk or in a bucket.

corpus.jsonl       {"_id": "d1", "title": "…", "text": "…"}       a document's text is both
queries.jsonl      {"_id": "q1", "text": "…"}
qrels/test.tsv     query-id  corpus-id  score                     more than 0 is relevant
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from piton.contract import InputError
from piton_trainer.data.stream import lines
from piton_trainer.errors import BadConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Beir:
    """A collection as it was read; queries without judgments are left out."""

    documents: dict[str, str]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]
    """Of the documents that were judged for a query, some of which may be missing."""


def read(folder: str, split: str) -> Beir:
    """The collection of a folder or of `s3://bucket/folder`.

    Raises:
        BadConfig: it is not there, or a line is wrong.
    """
    root = folder.rstrip("/")
    grades: dict[str, dict[str, int]] = {}
    for query, document, grade in _judgments(f"{root}/qrels/{split}.tsv"):
        grades.setdefault(query, {})[document] = grade
    texts = dict(parsed(f"{root}/queries.jsonl", _query))
    missing = next((query for query in grades if query not in texts), None)
    if missing is not None:
        raise BadConfig(f"trainer.config.data: query {missing} has judgments in {root}, and no text")
    queries = {query: texts[query] for query in grades}
    return Beir(documents=dict(parsed(f"{root}/corpus.jsonl", _document)), queries=queries, grades=grades)


def _query(line: str) -> tuple[str, str]:
    found = json_object(line)
    return str(found["_id"]), text_of(found, "text")


def _document(line: str) -> tuple[str, str]:
    found = json_object(line)
    return str(found["_id"]), f"{found.get('title') or ''} {text_of(found, 'text')}".strip()


def json_object(line: str) -> dict[str, Any]:
    """A line of JSON.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(line)
    if not isinstance(found, dict):
        raise InputError("it is no JSON object")
    return found


def text_of(found: dict[str, Any], name: str) -> str:
    """A field that has to be a text.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(found.get(name), str):
        raise InputError(f"field {name}: there is no text in it")
    text: str = found[name]
    return text


def _judgments(source: str) -> Iterator[tuple[str, str, int]]:
    rows = parsed(source, _judgment)
    return (row for row in rows if row is not None)


def _judgment(line: str) -> tuple[str, str, int] | None:
    fields = line.split("\t")
    if len(fields) != 3:
        raise InputError(f"it has {len(fields)} fields, and query-id, corpus-id and score are 3")
    if fields[0] == "query-id":
        return None
    return fields[0], fields[1], int(fields[2])


def parsed(source: str, parse: Callable[[str], T]) -> Iterator[T]:
    """The lines of a file or object, each as `parse` understands it.

    Raises:
        BadConfig: it is not there, or a line is wrong.
    """
    for number, line in lines(source):
        try:
            yield parse(line)
        except KeyError as error:
            raise BadConfig(f"trainer.config.data: {source}, line {number}: there is no field {error}") from error
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: {source}, line {number}: {error}") from error
