"""The part of S3 that the trainer needs, with its own exceptions.

    errors     the classes of errors, with a sentence for each (pure)
    client     a connection, and the rules for retries
    answers    checks that an answer comes from an S3 server
    reader     objects, piece by piece
    cache      objects as files on this node
    checksums  checksums of S3, computed from a file

ObjectNotFound        there is no such object
PreconditionFailed    another process has written the object meanwhile
S3Error               anything else; its `remedy` says what may help

This file needs no boto3. Credentials and endpoint come from the environment, as for every AWS tool.
"""

from dataclasses import dataclass

from piton_trainer.s3.errors import ObjectNotFound as ObjectNotFound
from piton_trainer.s3.errors import PreconditionFailed as PreconditionFailed
from piton_trainer.s3.errors import Remedy as Remedy
from piton_trainer.s3.errors import S3Error as S3Error

S3_SCHEME = "s3://"


def uncounted(size: int) -> None:
    """Ignore a number of bytes: the default for progress callbacks."""


def always() -> bool:
    """Return True: the default for conditions."""
    return True


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Part sizes, concurrency, rate limit, retries and timeouts."""

    chunk_bytes: int = 32 << 20
    """Size of a part; smaller files are uploaded in one piece."""
    concurrency: int = 8
    bytes_per_second: int | None = None
    """Rate limit for uploads; None for no limit."""
    tries: int = 4
    """Number of tries of one request, with a back-off of seconds between them."""
    connect_seconds: float = 5.0
    read_seconds: float = 30.0
