"""Checksums that S3 keeps of an object, computed from a file.

An object that was sent in one piece has the SHA-256 of its bytes. An object that was sent in parts has the SHA-256 of
the digests of its parts, followed by their number. The size of the object and of a part determine the kind.
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from s3transfer.utils import ChunksizeAdjuster

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.s3 import uncounted

_READ_BYTES = 1 << 20


def fingerprint(
    path: Path, chunk_bytes: int, like: FileEntry | None = None, *, hashed: Callable[[int], object] = uncounted
) -> tuple[FileEntry, str]:
    """Return the manifest entry of a file, and the checksum that S3 will have after its upload.

    `hashed` is called with the number of bytes as they are read.
    """
    size = path.stat().st_size
    chunk = ChunksizeAdjuster().adjust_chunksize(chunk_bytes, size)
    whole, parts = FileDigest(like), []
    with path.open("rb") as file:
        for start in range(0, max(size, 1), chunk):
            part = hashlib.sha256()
            for offset in range(start, min(start + chunk, size), _READ_BYTES):
                data = file.read(min(_READ_BYTES, start + chunk - offset))
                whole.update(data)
                part.update(data)
                hashed(len(data))
            parts.append(part.digest())
    entry = FileEntry(size=size, digest=whole.text())
    if size < chunk_bytes:
        return entry, as_s3_writes(parts[0])
    return entry, f"{as_s3_writes(hashlib.sha256(b''.join(parts)).digest())}-{len(parts)}"


def as_s3_writes(digest: bytes) -> str:
    """Encode a digest as S3 does."""
    return base64.b64encode(digest).decode()
