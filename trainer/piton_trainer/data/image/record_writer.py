"""Writes a file of records so that a kill at any moment costs nothing but the record under way.

    name.records.part      the start and every record so far; what is torn at its end is cut off by whoever goes on
    name.records.made      a stamp of what each record so far was made of
    name.records.skipped   the damaged images so far, a line of JSON each: number in the source, stamp, reason
    name.records           the same with its index and its end: flushed, then renamed

Who continues reads the heads and compares every checksum: that costs one reading of what is there, and finds what a
crash of the machine left unwritten in its middle. The stamps say up to which record the source is still the same. They
may lag behind, be damaged or be lost: records without their stamp are written anew, and so are the lines.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from piton_trainer.data.image.records import (
    END,
    END_MAGIC,
    HEAD,
    INDEX,
    JPEG,
    MARK,
    PIXELS,
    About,
    checksum,
    skipped_to_bytes,
)
from piton_trainer.data.skipped import NO_SKIPS, Skip, Skips

PART, MADE, SKIPPED = ".part", ".made", ".skipped"
STAMP = 32
"""Bytes of a stamp."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as it is stored."""

    label: int
    height: int
    width: int
    channels: int
    content: bytes
    is_jpeg: bool
    stamp: bytes = bytes(STAMP)
    """Says what it was made of; it stands beside the records, not in them."""
    remark: str | None = None
    """Something to say about the file that it was made of."""

    def head(self) -> np.void:
        """Return the header that precedes its bytes."""
        kind = JPEG if self.is_jpeg else PIXELS
        fields = (MARK, self.label, self.height, self.width, self.channels, kind, len(self.content), 0)
        head: np.void = np.array([fields], HEAD)[0]
        head["crc"] = checksum(head, self.content)
        return head


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """A damaged image that is left out of the records."""

    number: int
    """In its source."""
    stamp: bytes
    """Says what it holds."""
    skip: Skip

    def to_line(self) -> bytes:
        """Return a line of JSON."""
        fields = {"number": self.number, "stamp": self.stamp.hex(), "skip": asdict(self.skip)}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Read such a line.

        Raises:
            ValueError, KeyError, TypeError: it is none, or torn.
        """
        fields = json.loads(line)
        return cls(number=int(fields["number"]), stamp=bytes.fromhex(fields["stamp"]), skip=Skip(**fields["skip"]))


class Recorder:
    """Appends pictures. Use it as a context manager; only `finish` makes a file that can be read."""

    def __init__(self, path: Path, about: About) -> None:
        """Go on with what an earlier process left of the same, or start afresh.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path = path
        self._part = path.with_name(path.name + PART)
        self._index = bytearray()
        beginning = about.to_bytes()
        self._first = len(beginning)
        self._end = self._scan(beginning) if self._part.exists() else 0
        self._file = self._open(beginning)
        self._made = path.with_name(path.name + MADE)
        self._stamps = self._made.open("a+b", buffering=0)
        self._stamps.truncate(len(self) * STAMP)  # zeros, which no file has, where they lag behind
        self._skipped = path.with_name(path.name + SKIPPED)
        if not self._is_continued:
            self._skipped.unlink(missing_ok=True)  # of another source

    def stamps(self) -> list[bytes]:
        """Return the stamps of the records that are there; zeros where one is lost."""
        self._stamps.seek(0)
        content = self._stamps.read(len(self) * STAMP)
        return [content[first : first + STAMP] for first in range(0, len(content), STAMP)]

    def skipped(self) -> dict[int, SkippedImage]:
        """Return the damaged images that were left out so far, by their number in the source."""
        found: dict[int, SkippedImage] = {}
        with suppress(OSError):
            for line in self._skipped.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    image = SkippedImage.from_line(line)
                    found[image.number] = image
        return found

    def skip(self, image: SkippedImage) -> None:
        """Note a damaged image that is left out.

        Raises:
            OSError: it does not fit onto the disk.
        """
        with self._skipped.open("ab") as file:
            file.write(image.to_line())

    def keep(self, count: int, skipped: Iterable[SkippedImage]) -> None:
        """Forget all records but the first `count`, and all damaged images but these."""
        lines = b"".join(image.to_line() for image in skipped)
        if lines or self._skipped.exists():
            self._skipped.write_bytes(lines)
        count = min(count, len(self))
        del self._index[count * INDEX.itemsize :]
        last = np.frombuffer(self._index[-INDEX.itemsize :], INDEX) if count else None
        self._end = self._first if last is None else int(last[0]["offset"]) + int(last[0]["head"]["size"])
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._stamps.truncate(count * STAMP)

    def __len__(self) -> int:
        return len(self._index) // INDEX.itemsize

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        self._stamps.close()

    def append(self, picture: Picture) -> None:
        """Write one more.

        Raises:
            OSError: it does not fit onto the disk.
        """
        head = picture.head()
        self._file.write(head.tobytes() + picture.content)
        self._note(head, self._end + HEAD.itemsize)
        self._stamps.write(picture.stamp)

    def finish(self, skips: Skips = NO_SKIPS) -> None:
        """Write index, what was skipped, and end, and give the file its name."""
        end = np.array((self._end, len(self), zlib.crc32(self._index), END_MAGIC), END)
        self._file.write(self._index + skipped_to_bytes(skips) + end.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self.path)
        self._made.unlink(missing_ok=True)
        self._skipped.unlink(missing_ok=True)

    def _note(self, head: np.void, offset: int) -> None:
        self._index += np.array((head, offset), INDEX).tobytes()
        self._end = offset + int(head["size"])

    def _open(self, beginning: bytes) -> IO[bytes]:
        self._is_continued = self._end > 0
        if not self._is_continued:
            self._part.write_bytes(beginning)
            self._end = len(beginning)
        file = self._part.open("r+b")
        file.truncate(self._end)
        file.seek(self._end)
        return file

    def _scan(self, beginning: bytes) -> int:
        """Note the whole records that are there; where they end, or 0 when they are of something else."""
        with self._part.open("rb") as file:
            if file.read(len(beginning)) != beginning:
                return 0
            self._end = len(beginning)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for head, offset in _whole_records(content, self._end):
                    self._note(head, offset)
        return self._end


def _whole_records(content: mmap.mmap, first: int) -> Iterator[tuple[np.void, int]]:
    """Head and place of every record up to the first that is not whole."""
    while first + HEAD.itemsize <= len(content):
        head: np.void = np.frombuffer(content[first : first + HEAD.itemsize], HEAD)[0]
        offset = first + HEAD.itemsize
        first = offset + int(head["size"])
        if head["mark"] != MARK or first > len(content) or checksum(head, content[offset:first]) != head["crc"]:
            return
        yield head, offset
