"""Many images in one file, which is mapped into memory and read in any order.

    start      magic, version, sizes and checksum of what follows
    about      JSON: where the images come from, names of the classes
    record     head (label, shape, kind, size, checksum), then its bytes: a JPEG, or pixels row by row
    ...
    index      the heads again, each with the place of its bytes
    skipped    JSON: the damaged images that are left out, and its checksum; missing where none is
    end        place, size and checksum of the index, magic

The heads stand before their bytes as well, so that a file that was cut off while it was written can be continued (see
`record_writer`); only one with an end is read. Nothing here knows where images come from or what they are trained for.
"""

import hashlib
import json
import mmap
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piton.contract import InputError
from piton_trainer.data.skipped import Skip, Skips, skipped_from_wire
from piton_trainer.errors import BadConfig

START = np.dtype([("magic", "S8"), ("version", "<u4"), ("about_size", "<u4"), ("about_crc", "<u4")])
HEAD = np.dtype(
    [
        ("mark", "S4"),
        ("label", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("channels", "u1"),
        ("kind", "u1"),
        ("size", "<u4"),
        ("crc", "<u4"),
    ]
)
INDEX = np.dtype([("head", HEAD), ("offset", "<u8")])
END = np.dtype([("index_offset", "<u8"), ("count", "<u8"), ("index_crc", "<u4"), ("magic", "S8")])

MAGIC, END_MAGIC, MARK = b"PITONREC", b"PITONEND", b"REC1"
VERSION = 1
_CRC = 4
"""Bytes of the checksum of the list of what is skipped."""
JPEG, PIXELS = 0, 1
"""Kinds of records."""
SUFFIX = ".records"


@dataclass(frozen=True, kw_only=True)
class About:
    """The header of a file of records."""

    source: str
    """Digest of what the images were made from, and how; a file is only continued from the same."""
    classes: tuple[str, ...] = ()
    """Their names, in the order of the labels; none where only numbers are known."""

    def to_bytes(self) -> bytes:
        """Return the beginning of a file."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        start = np.array((MAGIC, VERSION, len(text), zlib.crc32(text)), START)
        return start.tobytes() + text

    @classmethod
    def from_bytes(cls, content: bytes | mmap.mmap) -> tuple[Self, int]:
        """Read the header of a file, and the offset of its records.

        Raises:
            ValueError: it is none of ours, or damaged.
        """
        if len(content) < START.itemsize or content[:8] != MAGIC:
            raise InputError("it does not begin as one")
        start = np.frombuffer(content[: START.itemsize], START)[0]
        if start["version"] != VERSION:
            raise InputError(f"it has version {start['version']}, and this Piton reads version {VERSION}")
        first = START.itemsize + int(start["about_size"])
        text = content[START.itemsize : first]
        if zlib.crc32(text) != start["about_crc"]:
            raise InputError("its beginning is damaged")
        fields: dict[str, Any] = json.loads(text)
        return cls(source=fields["source"], classes=tuple(fields["classes"])), first


def skipped_to_bytes(skips: Skips) -> bytes:
    """Return the list of what is left out, with its checksum; nothing where nothing is."""
    if not skips.skipped:
        return b""
    text = json.dumps(skips.to_wire(), ensure_ascii=False).encode()
    return text + zlib.crc32(text).to_bytes(_CRC, "little")


def _skipped_from_bytes(content: bytes) -> tuple[Skip, ...]:
    """Read that list.

    Raises:
        ValueError: it is damaged.
    """
    if not content:
        return ()
    text = content[:-_CRC]
    if zlib.crc32(text) != int.from_bytes(content[-_CRC:], "little"):
        raise InputError("its list of skipped images is damaged")
    return skipped_from_wire(json.loads(text))


def checksum(head: np.void, content: bytes | memoryview) -> int:
    """Compute the CRC-32 of the bytes of a record and of what its head says about them."""
    return zlib.crc32(content, zlib.crc32(head.tobytes()[: -HEAD["crc"].itemsize]))


class Records:
    """A finished file of records, open for reading from any number of threads."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            BadConfig: it is not there, or no finished file of records.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.about, _ = About.from_bytes(self._map)
            self._index, self.skipped = self._read_index()
        except OSError as error:
            raise BadConfig(f"trainer.config.data: cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: {path} is no file of records: {error}") from error
        self._heads = self._index["head"]
        self.labels: NDArray[np.int64] = self._heads["label"].astype(np.int64)
        """(count,), of the records."""

    def __len__(self) -> int:
        return len(self._index)

    def _read_index(self) -> "tuple[NDArray[np.void], tuple[Skip, ...]]":
        """Return the index (count,), and the damaged images that were left out."""
        if len(self._map) < END.itemsize:
            raise InputError("it is cut off")
        end = np.frombuffer(self._map[-END.itemsize :], END)[0]
        if end["magic"] != END_MAGIC:
            raise InputError("it is cut off")
        first = int(end["index_offset"])
        last = first + int(end["count"]) * INDEX.itemsize
        index = self._map[first:last]
        if zlib.crc32(index) != end["index_crc"]:
            raise InputError("its index is damaged")
        return np.frombuffer(index, INDEX), _skipped_from_bytes(self._map[last : -END.itemsize])

    @property
    def classes(self) -> int:
        """Return the number of classes: those with a name, or up to the highest label."""
        return len(self.about.classes) or int(self.labels.max(initial=-1)) + 1

    @cached_property
    def digest(self) -> str:
        """Digest of the images and their order."""
        return hashlib.sha256(self._index.tobytes()).hexdigest()

    def shape(self, number: int) -> tuple[int, int, int]:
        """Height, width and channels of a record."""
        head = self._heads[number]
        return int(head["height"]), int(head["width"]), int(head["channels"])

    def is_jpeg(self, number: int) -> bool:
        """True if a record is a JPEG and not pixels."""
        return bool(self._heads[number]["kind"] == JPEG)

    def read(self, number: int) -> bytes:
        """Return the bytes of a record.

        Raises:
            BadConfig: they are not the bytes that were written.
        """
        head, offset = self._heads[number], int(self._index[number]["offset"])
        content = self._map[offset : offset + int(head["size"])]
        if checksum(head, content) != head["crc"]:
            raise BadConfig(
                f"trainer.config.data: record {number} of {self.path} is damaged; delete the file and prepare it again"
            )
        return content
