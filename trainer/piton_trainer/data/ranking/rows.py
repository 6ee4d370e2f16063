"""Rows of judgments, and how to read them from CSV: on a disk or in a bucket, compressed or not, as a stream.

    query_id,llm_id,qrel,query_text[,source][,confidence]

What the user can mend is a `BadConfig` that names file, line and column.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from piton.contract import InputError
from piton_trainer.data.csv_table import read_csv, refuse_twice
from piton_trainer.data.numbers import decimal_number
from piton_trainer.data.skipped import NO_SKIPS, Skips

ORIGINAL = "original"
"""The source of a row that somebody judged; every other source is a guess, and never validated on."""
REQUIRED = ("query_id", "llm_id", "qrel", "query_text")
OPTIONAL = ("source", "confidence")
_SOURCES_TOLD = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JudgmentRow:
    """One judgment as it was read."""

    query: str
    id: str
    text: str
    gain: float
    """The grade of the id for this query, 0 or more."""
    original: bool = True
    confidence: float = 1.0
    """Weight of a guess, above 0 and up to 1."""


@dataclass(frozen=True, kw_only=True)
class CsvReading:
    """The interpretation of the rows of one file."""

    gains: Mapping[float, float]
    """Gain of each grade."""
    source: str = ORIGINAL
    """Source of rows that name none."""


class _WrongError(ValueError):
    """A row that cannot be understood: the column and the sentence about it."""

    def __init__(self, column: str, sentence: str) -> None:
        super().__init__(f"column {column}: {sentence}")


def csv_rows(source: str, reading: CsvReading, take: Callable[[JudgmentRow], None], skips: Skips = NO_SKIPS) -> None:
    """Hand every row of a CSV file or object to `take`, which raises ValueError for what does not fit.

    Raises:
        BadConfig: it is not there, or a row is wrong and `skips` does not take it.
    """
    guesses = Counter[str]()

    def begin(header: list[str]) -> Callable[[list[str]], None]:
        columns = _columns(header)
        return lambda fields: take(_row(fields, columns, reading, guesses))

    for _ in read_csv(source, begin, skips):
        pass
    if guesses:
        told = ", ".join(f"{count} of {name}" for name, count in guesses.most_common(_SOURCES_TOLD))
        _log.info("%s: %d rows are guesses, by their source: %s", source, guesses.total(), told)


def _columns(header: list[str]) -> dict[str, int]:
    """Return the position of each known column. Others are ignored, unless one looks like a misspelt known one."""
    places = {name: place for place, name in enumerate(header)}
    refuse_twice(header, set(header))
    missing = [name for name in REQUIRED if name not in places]
    if missing:
        raise InputError(
            f"there is no column {missing[0]}; the header has to be {','.join(REQUIRED)}[,source,confidence]"
        )
    for name in set(OPTIONAL) - set(places):
        if close := get_close_matches(name, set(places) - {*REQUIRED, *OPTIONAL}, n=1, cutoff=0.8):
            raise InputError(f"column {close[0]}: did you mean {name}?")
    return {name: places[name] for name in (*REQUIRED, *OPTIONAL) if name in places}


def _row(fields: list[str], columns: dict[str, int], reading: CsvReading, guesses: Counter[str]) -> JudgmentRow:
    query, name, grade, text = (_text(fields[columns[column]], column) for column in REQUIRED)
    source = (fields[columns["source"]] if "source" in columns else "") or reading.source
    original = _is_original(source)
    if not original:
        guesses[source] += 1
    confidence = fields[columns["confidence"]] if "confidence" in columns else ""
    return JudgmentRow(
        query=query,
        id=name,
        text=text,
        gain=_gain(grade, reading.gains),
        original=original,
        confidence=1.0 if original or not confidence else _confidence(confidence),
    )


@lru_cache(maxsize=1000)
def _is_original(source: str) -> bool:
    """True if a row of this source was judged.

    Raises:
        ValueError: it is nearly written so, and the row would be taken for a guess without a word.
    """
    if source != ORIGINAL and get_close_matches(source.strip().casefold(), [ORIGINAL], cutoff=0.8):
        raise _WrongError("source", f"{source!r} is neither {ORIGINAL} nor the name of a guess; write {ORIGINAL}")
    return source == ORIGINAL


def _text(field: str, column: str) -> str:
    text = field.strip()
    if not text:
        raise _WrongError(column, "it is empty")
    return text


def _gain(grade: str, gains: Mapping[float, float]) -> float:
    value = _number(grade, "qrel")
    if value not in gains:
        known = ", ".join(f"{grade:g}" for grade in sorted(gains))
        raise _WrongError("qrel", f"there is no gain for grade {grade}; trainer.config.gains has {known}")
    return gains[value]


def _confidence(field: str) -> float:
    value = _number(field, "confidence")
    if not 0 < value <= 1:
        raise _WrongError("confidence", f"has to be above 0 and at most 1, not {field}")
    return value


def _number(field: str, column: str) -> float:
    try:
        return decimal_number(field)
    except ValueError:
        raise _WrongError(column, f"has to be a number, not {field!r}") from None
