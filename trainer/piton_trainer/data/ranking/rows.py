"""Rows of judgments, and how to read them from CSV: on a disk or in a bucket, compressed or not, as a stream.

    query_id,llm_id,qrel,query_text[,source][,confidence]

What the user can mend is a `BadConfig` that names file, line and column.
"""

import csv
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches

from piton.contract import InputError
from piton_trainer.data.stream import open_text, users_fault
from piton_trainer.errors import BadConfig

ORIGINAL = "original"
"""The source of a row that somebody judged; every other source is a guess, and never validated on."""
REQUIRED = ("query_id", "llm_id", "qrel", "query_text")
OPTIONAL = ("source", "confidence")
LONGEST_FIELD = 10_000_000
"""Characters in one field; the csv module stops at 131,072 by default."""


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


def csv_rows(source: str, reading: CsvReading, take: Callable[[JudgmentRow], None]) -> None:
    """Hand every row of a CSV file or object to `take`, which raises ValueError for what does not fit.

    Raises:
        BadConfig: it is not there, or a row is wrong.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line = 1
    with users_fault(source), ExitStack() as stack:
        table = csv.reader(open_text(source, stack), strict=True)
        try:
            columns = _columns(next(table, []))
            line = table.line_num + 1
            for fields in table:
                if fields:
                    take(_row(fields, columns, reading))
                line = table.line_num + 1
        except UnicodeDecodeError as error:
            raise BadConfig(f"trainer.config.data: {source} is not UTF-8 text after line {line}") from error
        except (ValueError, csv.Error) as error:
            raise BadConfig(f"trainer.config.data: {source}, line {line}: {error}") from error
        except (OSError, EOFError) as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read after line {line}: {error}") from error


def _columns(header: list[str]) -> dict[str, int]:
    """Return the position of each known column. Others are ignored, unless one looks like a misspelt known one."""
    places = {name.strip(): place for place, name in enumerate(header)}
    if len(places) < len(header):
        raise InputError(f"a column stands twice in the header {','.join(header)}")
    missing = [name for name in REQUIRED if name not in places]
    if missing:
        raise InputError(
            f"there is no column {missing[0]}; the header has to be {','.join(REQUIRED)}[,source,confidence]"
        )
    for name in set(OPTIONAL) - set(places):
        if close := get_close_matches(name, set(places) - {*REQUIRED, *OPTIONAL}, n=1, cutoff=0.8):
            raise InputError(f"column {close[0]}: did you mean {name}?")
    return {name: places[name] for name in (*REQUIRED, *OPTIONAL) if name in places} | {"": len(header)}


def _row(fields: list[str], columns: dict[str, int], reading: CsvReading) -> JudgmentRow:
    if len(fields) != columns[""]:
        raise InputError(f"it has {len(fields)} fields, and the header {columns['']}")
    query, name, grade, text = (_text(fields[columns[column]], column) for column in REQUIRED)
    source = (fields[columns["source"]] if "source" in columns else "") or reading.source
    original = source == ORIGINAL
    confidence = fields[columns["confidence"]] if "confidence" in columns else ""
    return JudgmentRow(
        query=query,
        id=name,
        text=text,
        gain=_gain(grade, reading.gains),
        original=original,
        confidence=1.0 if original or not confidence else _confidence(confidence),
    )


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
        return float(field)
    except ValueError:
        raise _WrongError(column, f"has to be a number, not {field!r}") from None
