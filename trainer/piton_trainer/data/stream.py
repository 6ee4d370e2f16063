"""An object in S3 as a file that is read once from front to end, of which some megabytes are in memory; or a file.

What is read once per run and kept in another form needs no copy of the original, unlike what `s3.cache` keeps. What the
user can mend (no such object, no permission) is a `BadConfig`; a network that is down passes through.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from piton_trainer.errors import BadConfig
from piton_trainer.s3 import S3_SCHEME, ObjectNotFound, S3Error, Tuning

DAMAGED = (OSError, EOFError, zlib.error)
"""Raised while a file is read that is cut off, damaged, or no compressed one."""


def version_of(source: str) -> str:
    """Changes when the file or object does.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    if source.startswith(S3_SCHEME):
        return str(_look(source)[1]["ETag"])
    found = Path(source).stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def open_text(source: str, stack: ExitStack) -> IO[str]:
    """A file or an object as UTF-8 text, compressed or not; read it under `users_fault`.

    Raises:
        BadConfig: it is not there.
    """
    file = stack.enter_context(open_object(source) if source.startswith(S3_SCHEME) else _open_file(Path(source)))
    binary = stack.enter_context(gzip.GzipFile(fileobj=file)) if source.endswith(".gz") else file
    return stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""))


def lines(source: str) -> Iterator[tuple[int, str]]:
    """The lines of a file or an object that are not empty, each with its number.

    Raises:
        BadConfig: it is not there, or no text.
    """
    number = 0
    with users_fault(source), ExitStack() as stack:
        try:
            for number, line in enumerate(open_text(source, stack), start=1):
                if stripped := line.rstrip("\r\n"):
                    yield number, stripped
        except UnicodeDecodeError as error:
            raise BadConfig(f"trainer.config.data: {source} is not UTF-8 text after line {number}") from error
        except DAMAGED as error:
            raise BadConfig(f"trainer.config.data: {source} cannot be read after line {number}: {error}") from error


def open_object(uri: str) -> IO[bytes]:
    """The object, in the version of this moment; read it under `users_fault`.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    from piton_trainer.s3.reader import ObjectReader

    client, head = _look(uri)
    bucket, key = _place(uri)
    source = ObjectReader(client, bucket, key, size=head["ContentLength"], etag=head["ETag"], tuning=Tuning())
    return io.BufferedReader(_Stream(source))


def _open_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadConfig(f"trainer.config.data: cannot read {path}: {error.strerror}") from error


@contextmanager
def users_fault(uri: str) -> Iterator[None]:
    """Turn what the user can mend into BadConfig."""
    try:
        yield
    except ObjectNotFound as error:
        raise BadConfig(f"trainer.config.data: there is no object {uri}") from error
    except S3Error as trouble:
        if not trouble.is_refusal:
            raise
        raise BadConfig(f"trainer.config.data: cannot read {uri}: {trouble}") from trouble


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
    """A client, and what S3 says of the object."""
    from piton_trainer.s3.client import connect, translate_errors

    bucket, key = _place(uri)
    with users_fault(uri):
        try:
            client = connect(Tuning())
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: cannot read {uri}: {error}") from error
        with translate_errors():
            return client, client.head_object(Bucket=bucket, Key=key)


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    return bucket, key
