"""Training data in a bucket: which faults are the user's to mend, and an object as a file read from front to end.

A network that is down is not the user's fault, and passes through.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from piton_trainer.errors import BadConfig

S3_SCHEME = "s3://"
PART_BYTES = 16 << 20
"""Fetched at once: long enough that the request's own time does not count, and little beside what training needs."""
_TRIES = 5
"""For a part whose transfer was cut off; boto3 itself only repeats requests that were not answered."""

_USERS_TO_MEND = {
    "403",
    "404",
    "AccessDenied",
    "InvalidAccessKeyId",
    "NoSuchBucket",
    "NoSuchKey",
    "SignatureDoesNotMatch",
}


def s3_client() -> Any:
    """A client that follows the usual environment, AWS_ENDPOINT_URL included."""
    import boto3

    return boto3.client("s3")


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn what the user can mend about a place in a bucket into BadConfig."""
    from botocore.exceptions import ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise BadConfig(f"trainer.config.data: no AWS credentials to read {uri} with") from error
    except ClientError as error:
        if error.response["Error"]["Code"] not in _USERS_TO_MEND:
            raise
        raise BadConfig(f"trainer.config.data: cannot read {uri}: {error.response['Error']['Message']}") from error


def version_of(uri: str, client: Any = None) -> str:
    """Changes when the object does.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    with reading(uri):
        tag: str = (client or s3_client()).head_object(Bucket=bucket, Key=key)["ETag"]
    return tag


def open_object(uri: str, client: Any = None) -> IO[bytes]:
    """An object as a stream of which a few megabytes are in memory.

    Raises:
        BadConfig: there is no such object, or no permission.
    """
    return io.BufferedReader(_Object(uri, client or s3_client()), buffer_size=1 << 20)


class _Object(io.RawIOBase):
    """Part after part of one version of an object."""

    def __init__(self, uri: str, client: Any) -> None:
        super().__init__()
        self._uri = uri
        self._bucket, _, self._key = uri.removeprefix(S3_SCHEME).partition("/")
        self._client = client
        with reading(uri):
            head = client.head_object(Bucket=self._bucket, Key=self._key)
        self._version, self._size = head["ETag"], head["ContentLength"]
        self._part, self._place, self._fetched = b"", 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the part reaches; 0 at the end of the object."""
        if self._place == len(self._part):
            self._part, self._place = self._next_part(), 0
        data = self._part[self._place : self._place + len(buffer)]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _next_part(self) -> bytes:
        if self._fetched == self._size:
            return b""
        last = min(self._fetched + PART_BYTES, self._size) - 1
        part = self._fetch(f"bytes={self._fetched}-{last}")
        self._fetched += len(part)
        return part

    def _fetch(self, span: str) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for tries_left in reversed(range(_TRIES)):
            try:
                with reading(self._uri):
                    answer = self._client.get_object(
                        Bucket=self._bucket, Key=self._key, Range=span, IfMatch=self._version
                    )
                data: bytes = answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):
                if not tries_left:
                    raise
            else:
                return data
        raise AssertionError
