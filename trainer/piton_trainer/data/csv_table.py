"""Rows of a CSV file or object with a header, on a disk or in a bucket, compressed or not, as a stream.

A row has as many fields as the header. A field more is a comma that nobody quoted: what stands behind it would be left
out without a word, so the row is refused. Fields without content at the end of a row are padding of a spreadsheet.
"""

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from piton.contract import InputError
from piton_trainer.data.stream import DAMAGED, open_text, users_fault
from piton_trainer.errors import BadConfig

T = TypeVar("T")
LONGEST_FIELD = 10_000_000
"""Characters in one field; the csv module stops at 131,072 by default."""


def read_csv(source: str, begin: Callable[[list[str]], Callable[[list[str]], T]]) -> Iterator[T]:
    """Yield each row as the function understands it that `begin` returns for the header.

    Both raise ValueError for what does not fit.

    Raises:
        BadConfig: the file is not there, or a row is wrong.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line = 1
    with users_fault(source), ExitStack() as stack:
        table = csv.reader(open_text(source, stack), strict=True)
        try:
            header = [name.strip() for name in next(table, [])]
            parse = begin(header)
            line = table.line_num + 1
            for fields in table:
                if fields:
                    yield parse(_fitted(fields, header))
                line = table.line_num + 1
        except UnicodeDecodeError as error:
            raise BadConfig(f"trainer.config.data: {source} is not UTF-8 text after line {line}") from error
        except (ValueError, csv.Error) as error:
            raise BadConfig(f"trainer.config.data: {source}, line {line}: {error}") from error
        except DAMAGED as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read after line {line}: {error}") from error


def _fitted(fields: list[str], header: list[str]) -> list[str]:
    width = len(header)
    if len(fields) < width or any(fields[width:]):
        advice = "; put quotes around a text with commas" if len(fields) > width else ""
        raise InputError(f"it has {len(fields)} fields, and the header {width}{advice}")
    return fields[:width]


def refuse_twice(header: list[str], names: set[str]) -> None:
    """Refuse a header in which one of these columns stands twice.

    Raises:
        ValueError: one does.
    """
    named = [name for name in header if name in names]
    if len(set(named)) < len(named):
        raise InputError(f"a column stands twice in the header {','.join(header)}")
