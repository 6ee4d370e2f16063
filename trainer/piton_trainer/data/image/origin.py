"""The files that a finished file of records was made of, and whether they are still the same.

    name.records.origin    JSON: a digest of the names, sizes and times of the files, and one of what they hold

A listing is cheap, and shows each change but one that keeps size and time. It also differs for a copy of the same
files. So where it differs, the content decides.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from piton_trainer.data.content import replace_text
from piton_trainer.data.folders import is_hidden
from piton_trainer.data.image.image_files import IMAGES, digest_of
from piton_trainer.data.image.packages import PACKAGES
from piton_trainer.data.image.shards import SHARD

ORIGIN = ".origin"
_THREADS = 16
"""For listings of folders, which wait for a file server."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The state of a source when its records were made."""

    listing: str
    content: str

    @classmethod
    def load(cls, records: Path) -> Self | None:
        """Read the note beside a file of records; None where there is none, as earlier versions of Piton wrote none."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(_note(records).read_text(encoding="utf-8")))
        return None

    def save(self, records: Path) -> None:
        """Write the note, in one step.

        Raises:
            OSError: it does not fit onto the disk.
        """
        replace_text(_note(records), json.dumps(asdict(self)))


def _note(records: Path) -> Path:
    return records.with_name(records.name + ORIGIN)


def content_of(source: str, stamps: Iterable[bytes]) -> str:
    """Return the digest of what a source with this digest holds, from the stamps of all its images."""
    return digest_of([source, *(stamp.hex() for stamp in stamps)])


def listing_of(name: str) -> str | None:
    """Return the digest of names, sizes and times of the files of a source; None where it has none any more."""
    root = Path(name)
    if name in PACKAGES or not root.exists():
        return None
    with suppress(OSError):
        if not root.is_dir():
            return digest_of([_line_of(root)])
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="piton-listing") as pool:
            entries = [entry for entry in sorted(root.iterdir()) if not is_hidden(entry.name)]
            parts = pool.map(_lines_of, entries)
            return digest_of(line for part in parts for line in part)
    return None


def _lines_of(entry: Path) -> list[str]:
    """Return a line for each image or shard that an entry of a source is or holds, sorted."""
    if entry.is_dir():
        return sorted(_line_of(path) for path in _below(entry))
    return [_line_of(entry)] if entry.suffix.lower() in {*IMAGES, SHARD} else []


def _below(folder: Path) -> Iterator[Path]:
    # This is not `folders.files_below`, because that stats each name, and `_line_of` does so anyway.
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(place, name) for name in names if Path(name).suffix.lower() in IMAGES and not is_hidden(name))


def _line_of(path: Path) -> str:
    """Return name, size and time of a file."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} is not there"
    return f"{path} {status.st_size} {status.st_mtime_ns}"
