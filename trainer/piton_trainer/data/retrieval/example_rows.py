"""Training examples in the formats that people have them in: a query, a passage that answers it, some that do not.

    *.tsv     query <tab> positive [<tab> negative …]                        as MS MARCO's triples
    *.jsonl   {"query": "…", "positive": "…", "negative": "…"}               or "negatives": ["…", …]
    *.json    a list of such objects
    *.csv     query,positive[,negative…]                                     with a header

What the user can mend is a `BadConfig` that names file and line.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from piton.contract import InputError
from piton_trainer.data.ranking.rows import LONGEST_FIELD
from piton_trainer.data.retrieval.beir import Beir, json_object, parsed, text_of
from piton_trainer.data.stream import open_text, users_fault
from piton_trainer.errors import BadConfig


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def examples(source: str) -> Iterator[Example]:
    """The rows of a file or object, by the end of its name.

    Raises:
        BadConfig: it is not there, or a row is wrong.
    """
    name = source.removesuffix(".gz")
    if name.endswith(".tsv"):
        return parsed(source, lambda line: _example(line.split("\t")))
    if name.endswith(".jsonl"):
        return parsed(source, lambda line: _from_json(json_object(line)))
    return _from_csv(source) if name.endswith(".csv") else _from_list(source)


def of_collection(found: Beir) -> Iterator[Example]:
    """A row for each relevant document; what was judged irrelevant is the negatives."""
    for query, text in found.queries.items():
        grades = {name: grade for name, grade in found.grades[query].items() if name in found.documents}
        negatives = tuple(found.documents[name] for name, grade in grades.items() if grade <= 0)
        for name, grade in grades.items():
            if grade > 0:
                yield Example(query=text, positive=found.documents[name], negatives=negatives)


def _example(fields: list[str]) -> Example:
    if len(fields) < 2:
        raise InputError("it has one field; query, positive and maybe negatives are wanted")
    query, positive, *negatives = (field.strip() for field in fields)
    if not query or not positive:
        raise InputError("query or positive is empty")
    return Example(query=query, positive=positive, negatives=tuple(text for text in negatives if text))


def _from_json(found: dict[str, Any]) -> Example:
    negatives = found.get("negatives", found.get("negative")) or []
    told = negatives if isinstance(negatives, list) else [negatives]
    if not all(isinstance(text, str) for text in told):
        raise InputError("field negatives: there are other things than texts in it")
    return _example([text_of(found, "query"), text_of(found, "positive"), *told])


def _from_list(source: str) -> Iterator[Example]:
    with users_fault(source), ExitStack() as stack:
        try:
            found = json.load(open_text(source, stack))
        except (ValueError, OSError, EOFError) as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read as JSON: {error}") from error
    yield from _rows(source, found if isinstance(found, list) else [found], "entry", _from_json)


def _from_csv(source: str) -> Iterator[Example]:
    csv.field_size_limit(LONGEST_FIELD)
    with users_fault(source), ExitStack() as stack:
        try:
            table = csv.reader(open_text(source, stack), strict=True)
            header = [name.strip() for name in next(table, [])]
            wanted = [name for name in header if name.startswith("negative")]
            if not {"query", "positive"} <= set(header):
                raise BadConfig(f"trainer.config.data: {source} has no columns query and positive in its header")
            places = [header.index(name) for name in ("query", "positive", *wanted)]
            rows = (fields for fields in table if fields)
            yield from _rows(source, rows, "row", lambda fields: _example([fields[place] for place in places]))
        except (csv.Error, UnicodeDecodeError, OSError, EOFError) as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read as CSV: {error}") from error


def _rows(source: str, rows: Iterable[Any], what: str, parse: Any) -> Iterator[Example]:
    for number, row in enumerate(rows, start=1):
        try:
            yield parse(row)
        except (ValueError, IndexError, AttributeError) as error:
            raise BadConfig(f"trainer.config.data: {source}, {what} {number}: {error}") from error
