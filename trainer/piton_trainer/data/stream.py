"""An object in S3 as a file that is read once from front to end, of which some megabytes are in memory; or a file.

What is read once per run and kept in another form needs no copy of the original, unlike what `s3.cache` keeps. What the
user can mend (no such object, no permission) is a `BadConfig`; a bucket that is away is `DataUnavailable`.
"""

import gzip
import hashlib
import io
import logging
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from piton.contract import InputError
from piton_trainer.data.content import content_digest, write_note
from piton_trainer.data.skipped import NO_SKIPS, Skip, Skips
from piton_trainer.errors import BadConfig, DataUnavailable
from piton_trainer.s3 import S3_SCHEME, ObjectNotFound, S3Error, Tuning

logger = logging.getLogger(__name__)

DAMAGED = (OSError, EOFError, zlib.error)
"""Raised while a file is read that is cut off, damaged, or no compressed one."""


def version_of(source: str, memory: Path | None = None) -> str:
    """Return what changes when the content of the file or object does: a digest, or the ETag.

    The folder `memory` remembers digests, so that a file is read once. It also remembers the ETag: while the bucket
    does not answer, what was made of that version and kept is used.

    Raises:
        BadConfig: there is no such file or object, or no permission.
        DataUnavailable: the bucket does not answer, and no version is remembered.
    """
    if not source.startswith(S3_SCHEME):
        return content_digest(Path(source), memory)
    if memory is None:
        return str(_look(source)[1]["ETag"])
    file = memory / f"version-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    try:
        version = str(_look(source)[1]["ETag"])
    except DataUnavailable as trouble:
        with suppress(OSError, UnicodeDecodeError):
            version = file.read_text(encoding="utf-8")
            logger.warning("%s: what was made of it before is used: %s", source, trouble)
            return version
        raise
    write_note(file, version)
    return version


def earlier_version_of(source: str, version: str) -> str:
    """Return the version that Piton had of a source before it read the content of files: size and modification time.

    Anything but a file keeps its `version`.
    """
    with suppress(OSError):
        if not source.startswith(S3_SCHEME):
            found = Path(source).stat()
            return f"{found.st_size} {found.st_mtime_ns}"
    return version


def open_text(source: str, stack: ExitStack, *, errors: str = "strict") -> IO[str]:
    """Open a file or an object as UTF-8 text, compressed or not; read it under `users_fault`.

    With `errors="surrogateescape"` a line with other bytes is read as well, and `expect_utf8` refuses it.

    Raises:
        BadConfig: it is not there.
    """
    file = stack.enter_context(open_object(source) if source.startswith(S3_SCHEME) else _open_file(Path(source)))
    binary = stack.enter_context(gzip.GzipFile(fileobj=file)) if source.endswith(".gz") else file
    return stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline=""))


def expect_utf8(text: str) -> None:
    """Refuse text with bytes that are not UTF-8, or with zeros, which a text of 16 bits has.

    Raises:
        ValueError: it has some.
    """
    if "\0" in text:
        raise InputError("it has a character 0, so it is no UTF-8 text; is it UTF-16?")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"it is not UTF-8 text (character {error.start + 1})") from None


def lines(source: str, skips: Skips = NO_SKIPS) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file or an object that are not empty, each with its number.

    Raises:
        BadConfig: it is not there, or a line is no text.
    """
    number = 0
    with users_fault(source), ExitStack() as stack:
        try:
            for number, line in enumerate(open_text(source, stack, errors="surrogateescape"), start=1):
                if stripped := line.rstrip("\r\n"):
                    try:
                        expect_utf8(stripped)
                    except InputError as error:
                        skips.add(Skip(file=source, place=f"line {number}", why=str(error)))
                    else:
                        yield number, stripped
        except DAMAGED as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read after line {number}: {error}") from error


def open_object(uri: str) -> IO[bytes]:
    """Open an object, in the version of this moment; read it under `users_fault`.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    from piton_trainer.s3.reader import ObjectReader

    connection, head = _look(uri)
    bucket, key = _place(uri)
    source = ObjectReader(connection, bucket, key, size=head["ContentLength"], etag=head["ETag"], tuning=Tuning())
    return io.BufferedReader(_Stream(source))


def _open_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadConfig(f"trainer.config.data: cannot read {path}: {error.strerror}") from error


@contextmanager
def users_fault(uri: str) -> Iterator[None]:
    """Translate errors of a bucket: what the user can mend is BadConfig, and trouble of the bucket DataUnavailable."""
    try:
        yield
    except ObjectNotFound as error:
        raise BadConfig(f"trainer.config.data: there is no object {uri}") from error
    except S3Error as trouble:
        kind = BadConfig if trouble.is_refusal else DataUnavailable
        raise kind(f"trainer.config.data: cannot read {uri}: {trouble}") from trouble


class _Stream(io.RawIOBase):
    """The pieces of a source, one after the other; a few are fetched ahead."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(Tuning().concurrency)
        self._pieces: Iterator[bytes] = source.pieces(self._pool)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the piece reaches; 0 at the end."""
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown(cancel_futures=True)
        super().close()


def _look(uri: str) -> tuple[Any, dict[str, Any]]:
    """Return a connection, and what S3 says of the object."""
    from piton_trainer.s3.answers import no_server
    from piton_trainer.s3.client import S3Connection, head_object

    bucket, key = _place(uri)
    with users_fault(uri):
        try:
            connection = S3Connection(Tuning())
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: cannot read {uri}: {error}") from error
        head = connection.call(lambda client: head_object(client, bucket, key))
        if head.get("ContentType", "").startswith("text/html") and not key.endswith((".html", ".htm")):
            raise no_server("HeadObject", f"{key} is a web page")
        return connection, head


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    return bucket, key
