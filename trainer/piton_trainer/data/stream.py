"""An object in S3 as a file that is read once from front to end, of which some megabytes are in memory.

What is read once per run and kept in another form needs no copy of the original, unlike what `remote` keeps. What the
user can mend (no such object, no permission) is a `BadConfig`; a network that is down passes through.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

from piton_trainer.data.text import S3_SCHEME
from piton_trainer.errors import BadConfig
from piton_trainer.s3 import Missing, Trouble, Tuning


def version_of(uri: str) -> str:
    """Changes when the object does.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    return str(_look(uri)[1]["ETag"])


def open_object(uri: str) -> IO[bytes]:
    """The object, in the version of this moment; read it under `users_fault`.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    from piton_trainer.s3.reading import Source

    client, head = _look(uri)
    bucket, key = _place(uri)
    source = Source(client, bucket, key, size=head["ContentLength"], etag=head["ETag"], tuning=Tuning())
    return io.BufferedReader(_Stream(source))


@contextmanager
def users_fault(uri: str) -> Iterator[None]:
    """Turn what the user can mend into BadConfig."""
    try:
        yield
    except Missing as error:
        raise BadConfig(f"trainer.config.data: there is no object {uri}") from error
    except Trouble as trouble:
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
    from piton_trainer.s3.client import connect, in_our_words

    bucket, key = _place(uri)
    with users_fault(uri):
        try:
            client = connect(Tuning())
        except ValueError as error:
            raise BadConfig(f"trainer.config.data: cannot read {uri}: {error}") from error
        with in_our_words():
            return client, client.head_object(Bucket=bucket, Key=key)


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    return bucket, key
