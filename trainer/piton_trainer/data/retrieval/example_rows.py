"""Training examples in the formats that people have them in: a query, a passage that answers it, some that do not.

    *.tsv     query <tab> positive [<tab> negative …]                        as MS MARCO's triples
    *.jsonl   {"query": "…", "positive": "…", "negative": "…"}               or "negatives": ["…", …]
    *.json    a list of such objects
    *.csv     query,positive[,negative…]                                     with a header

What the user can mend is a `BadConfig` that names file and line.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from piton.contract import InputError
from piton_trainer.data.csv_table import read_csv, refuse_twice
from piton_trainer.data.retrieval.beir import Beir
from piton_trainer.data.retrieval.json_lines import (
    expect_object,
    fields_of,
    json_object,
    lossless,
    parsed,
    text_of,
    value_of,
)
from piton_trainer.data.skipped import NO_SKIPS, Contradiction, Skip, Skips
from piton_trainer.data.stream import DAMAGED, open_text, users_fault
from piton_trainer.errors import BadConfig

NEGATIVES = ("negatives", "negative")
_HEADER_WORDS = (
    frozenset({"query", "queries", "question", "anchor"}),
    frozenset({"positive", "pos", "passage", "answer", "document", "text"}),
)
"""First two fields of a header; a TSV has none."""
_COLUMN_WORDS = (
    "query|queries|question|anchor|positive|pos|passage|answer|document|doc|text|negative|neg|hard|corpus|sentence|"
    "premise|hypothesis|title|body|context|response|prompt|input|output|source|target|label|score|relevance|rank|id"
)
_COLUMN = re.compile(rf"(({_COLUMN_WORDS})s?([ _.-]?([0-9]+|(?={_COLUMN_WORDS})))?)+|[qpdnucsta]id")
_MADE_NAME = re.compile(r"\S*([_.-]|[0-9]|id|Id|ID)\S*|[a-z]+([A-Z][a-z]+)+")
"""A name that a program may have, and no word that a text is."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def examples(source: str, skips: Skips = NO_SKIPS) -> Iterator[Example]:
    """Return the rows of a file or object, by the end of its name.

    Raises:
        BadConfig: it is not there, or a row is wrong and `skips` does not take it.
    """
    name = source.removesuffix(".gz")
    if name.endswith(".tsv"):
        return _from_tsv(source, skips)
    if name.endswith(".jsonl"):
        return parsed(source, lambda line: _from_json(json_object(line)), skips)
    return read_csv(source, _columns, skips) if name.endswith(".csv") else _from_list(source, skips)


def of_collection(found: Beir) -> Iterator[Example]:
    """Yield a row for each relevant document; what was judged irrelevant is the negatives."""
    for query, text in found.queries.items():
        grades = {name: grade for name, grade in found.grades[query].items() if name in found.documents}
        negatives = tuple(found.documents[name] for name, grade in grades.items() if grade <= 0)
        for name, grade in grades.items():
            if grade > 0:
                yield Example(query=text, positive=found.documents[name], negatives=negatives)


def _from_tsv(source: str, skips: Skips) -> Iterator[Example]:
    """Yield the rows of a TSV. Different numbers of negatives are said, as a lost line break looks the same.

    Quotes are said where a program for CSV must have put them, because they become a part of the text.
    """
    number, first, odd, quoted = 0, 0, 0, 0

    def parse(line: str) -> Example:
        nonlocal number, first, odd, quoted
        fields = line.split("\t")
        number, first = number + 1, first or len(fields)
        if number == 1:
            _expect_no_header(fields, source)
        odd = odd or (number if len(fields) != first else 0)
        quoted = quoted or (number if any(_is_quoted(field) for field in fields) else 0)
        return _example(fields)

    yield from parsed(source, parse, skips)
    if odd:
        _log.warning("%s: its rows have different numbers of fields; row %d is the first that differs", source, odd)
    if quoted:
        _log.warning(
            "%s: row %d has a text in quotes as in a CSV; a TSV has none, so they count as text", source, quoted
        )


def _expect_no_header(fields: list[str], source: str) -> None:
    """Refuse a first row that is a header without doubt, and say one that may be, or that has ids in place of texts.

    Raises:
        Contradiction: it is a header.
    """
    names = [field.strip() for field in fields]
    told = " and ".join(names)
    columns = [name for name in names if _COLUMN.fullmatch(name.casefold())]
    if len(columns) > 1 and columns[:2] == names[:2] and any(_MADE_NAME.fullmatch(name) for name in columns):
        raise Contradiction(f"{told} are names of columns and no example; remove the line")
    if len(columns) == len(names):
        _log.warning("%s: its first row is %s; remove the line if these are names of columns", source, told)
    if all(name.replace(".", "").isdecimal() for name in names):
        _log.warning("%s: its first row is %s; texts are wanted, and not the ids of texts", source, told)


def _is_quoted(field: str) -> bool:
    """True for a text in quotes in which all quotes are doubled, as a program for CSV writes one with quotes."""
    inner = field.strip()[1:-1]
    is_framed = field.strip() == f'"{inner}"'
    return is_framed and '""' in inner and '"' not in inner.replace('""', "")


def _example(fields: list[str]) -> Example:
    if len(fields) < 2:
        raise InputError("it has one field; query, positive and maybe negatives are wanted")
    query, positive, *negatives = (field.strip() for field in fields)
    if not query or not positive:
        raise InputError("query or positive is empty")
    if all(field.casefold() in words for field, words in zip((query, positive), _HEADER_WORDS, strict=True)):
        raise Contradiction(f"{query} and {positive} are names of columns and no example; remove the line")
    return Example(query=query, positive=positive, negatives=tuple(text for text in negatives if text))


def _from_json(fields: dict[str, Any]) -> Example:
    if misspelt := _misspelt(fields.keys() - {"query", "positive"}):
        raise InputError(f"field {misspelt}: did you mean negatives?")
    negatives = [text for name in NEGATIVES for text in _negatives(value_of(fields, name), name)]
    return _example([text_of(fields, "query"), text_of(fields, "positive"), *negatives])


def _negatives(told: Any, name: str) -> list[str]:
    """Return the texts of a field: one, several or none.

    Raises:
        ValueError: there is something else in it.
    """
    texts = told if isinstance(told, list) else [] if told is None else [told]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"field {name}: there are other things than texts in it")
    return [lossless(text, name) for text in texts]


def _misspelt(names: set[str]) -> str | None:
    """Return a name that is nearly that of the negatives, where they are missing."""
    if names.isdisjoint(NEGATIVES):
        for name in sorted(names):
            if get_close_matches(name, NEGATIVES, cutoff=0.87):  # one letter is another one, missing or too many
                return name
    return None


def _from_list(source: str, skips: Skips) -> Iterator[Example]:
    with users_fault(source), ExitStack() as stack:
        try:
            content = json.load(open_text(source, stack), object_pairs_hook=fields_of)
        except (ValueError, RecursionError, *DAMAGED) as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read as JSON: {error}") from error
    for number, entry in enumerate(content if isinstance(content, list) else [content], start=1):
        try:
            example = _from_json(expect_object(entry))
        except Contradiction as error:
            raise BadConfig(f"trainer.config.data: {source}, entry {number}: {error}") from error
        except ValueError as error:
            skips.add(Skip(file=source, place=f"entry {number}", why=str(error)))
        else:
            yield example


def _columns(header: list[str]) -> Callable[[list[str]], Example]:
    if not {"query", "positive"} <= set(header):
        raise InputError("there are no columns query and positive in its header")
    refuse_twice(header, {"query", "positive"})
    negatives = [place for place, name in enumerate(header) if name.startswith("negative")]
    if not negatives and (misspelt := _misspelt(set(header) - {"query", "positive"})):
        raise InputError(f"column {misspelt}: did you mean negative?")
    places = [header.index("query"), header.index("positive"), *negatives]
    return lambda fields: _example([fields[place] for place in places])
