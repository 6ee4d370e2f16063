"""Rows of a CSV file or object with a header, on a disk or in a bucket, compressed or not, as a stream.

A row has as many fields as the header. A field more is a comma that nobody quoted: what stands behind it would be left
out without a word, so the row is refused. Fields without content at the end of a row are padding of a spreadsheet.
"""

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from piton.contract import InputError
from piton_trainer.data.skipped import NO_SKIPS, Contradiction, Skip, Skips
from piton_trainer.data.stream import DAMAGED, expect_utf8, open_text, users_fault
from piton_trainer.errors import BadConfig

if TYPE_CHECKING:
    from _csv import Reader as Table

T = TypeVar("T")
_BAD_QUOTE = "expected after"
"""In the error of a row with something behind the quote that ends a field. The next row begins at the next line."""
LONGEST_FIELD = 10_000_000
"""Characters in one field; the csv module stops at 131,072 by default."""


def read_csv(
    source: str, begin: Callable[[list[str]], Callable[[list[str]], T]], skips: Skips = NO_SKIPS
) -> Iterator[T]:
    """Yield each row as the function understands it that `begin` returns for the header.

    Both raise ValueError for what does not fit.

    Raises:
        BadConfig: the file is not there, its header is wrong, or a row that `skips` does not take.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line = 1
    with users_fault(source), ExitStack() as stack:
        table = csv.reader(open_text(source, stack, errors="surrogateescape"), strict=True)
        try:
            header = [name.strip() for name in next(table, [])]
            expect_utf8(",".join(header))
            while header and not header[-1]:
                header.pop()  # padding, under which no row has a text
            parse = begin(header)
            line = table.line_num + 1
            while (fields := _next_row(table, source, line, skips)) is not None:
                try:
                    row = [parse(_fitted(fields, header))] if fields else []
                except Contradiction:
                    raise
                except ValueError as error:
                    if [field.strip() for field in fields[: len(header)]] == header:
                        raise Contradiction(str(error)) from error  # two files in one: nothing is damaged
                    # Of a row with the wrong number of fields each line may have been a row.
                    ends_at = table.line_num if isinstance(error, _UnfitError) else line
                    skips.add(_lines(source, line, ends_at, str(error)), f"{source}, line {line}: {error}")
                    row = []
                yield from row
                line = table.line_num + 1
        except (ValueError, csv.Error) as error:
            raise BadConfig(f"trainer.config.data: {source}, line {line}: {error}") from error
        except DAMAGED as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read after line {line}: {error}") from error


def _next_row(table: "Table", source: str, line: int, skips: Skips) -> list[str] | None:
    """Return the fields of the next row, [] where its quotes are damaged; None at the end.

    Raises:
        BadConfig: its quotes are damaged, and `skips` does not take it.
        csv.Error: nobody knows where it ends.
    """
    try:
        return next(table, None)
    except csv.Error as error:
        if _BAD_QUOTE not in str(error):
            raise
        skips.add(_lines(source, line, table.line_num, str(error)), f"{source}, line {line}: {error}")
        return []


def _lines(source: str, first: int, last: int, why: str) -> Skip:
    """Return the skip of the lines from `first` to `last`, from 1 on. Each of them counts."""
    place = f"line {first}" if first == last else f"lines {first} to {last}"
    return Skip(file=source, place=place, why=why, examples=last - first + 1)


class _UnfitError(InputError):
    """A row that is damaged as a row, whatever its fields say."""


def _fitted(fields: list[str], header: list[str]) -> list[str]:
    """Return the fields that belong to the columns; empty ones behind them are left out.

    Raises:
        ValueError: their number is another one, or a field is no UTF-8 text.
    """
    width = len(header)
    if len(fields) < width or any(fields[width:]):
        advice = "; put quotes around a text with commas" if len(fields) > width else ""
        raise _UnfitError(f"it has {len(fields)} fields, and the header {width}{advice}")
    for field in fields:
        expect_utf8(field)
    return fields[:width]


def refuse_twice(header: list[str], names: set[str]) -> None:
    """Refuse a header in which one of these columns stands twice.

    Raises:
        ValueError: one does.
    """
    named = [name for name in header if name in names]
    if len(set(named)) < len(named):
        raise InputError(f"a column stands twice in the header {','.join(header)}")
