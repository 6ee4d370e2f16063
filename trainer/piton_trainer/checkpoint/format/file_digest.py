"""What a manifest says of a file's bytes: `blake3:<hex>`, or `sha256:<hex>` where an older version has saved it.

BLAKE3 is as hard to fool as SHA-256, and takes a quarter of the processor's time, which training has a use for.
"""

import hashlib

from blake3 import blake3

from piton.contract.manifest import BLAKE3, FileEntry


class FileDigest:
    """Grows with a file. Large pieces are hashed while other threads have the interpreter."""

    def __init__(self, like: FileEntry | None = None) -> None:
        """The kind of digest that this entry has; without one, the kind of new checkpoints."""
        self._algorithm = BLAKE3 if like is None else like.algorithm
        self._hash = blake3() if self._algorithm == BLAKE3 else hashlib.new(self._algorithm)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next piece."""
        self._hash.update(data)

    def text(self) -> str:
        """As a manifest has it."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def digest_of(data: bytes | memoryview, like: FileEntry | None = None) -> str:
    """The digest of bytes that are at hand."""
    digest = FileDigest(like)
    digest.update(data)
    return digest.text()
