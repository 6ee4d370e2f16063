"""The part of S3 that the trainer needs, with its own exceptions.

    client     a connection, and the rules for retries
    reader     objects, piece by piece
    cache      objects as files on this node
    checksums  checksums of S3, computed from a file

ObjectNotFound        there is no such object
PreconditionFailed    another process has written the object meanwhile
S3Error               anything else: it may work later; if `is_refusal` is set, only after a change by the user

This file needs no boto3. Credentials and endpoint come from the environment, as for every AWS tool.
"""

from dataclasses import dataclass

S3_SCHEME = "s3://"

_REFUSALS = frozenset(
    {
        "403",
        "AccessDenied",
        "InvalidAccessKeyId",
        "InvalidBucketName",
        "NoCredentialsError",
        "NoSuchBucket",
        "ParamValidationError",
        "PartialCredentialsError",
        "PermanentRedirect",
        "ProfileNotFound",
        "SignatureDoesNotMatch",
    }
)


def uncounted(size: int) -> None:
    """Ignore a number of bytes: the default for progress callbacks."""


def always() -> bool:
    """Return True: the default for conditions."""
    return True


class ObjectNotFound(Exception):  # noqa: N818 - a fact, as on a disk
    """There is no such object."""


class PreconditionFailed(Exception):  # noqa: N818 - a fact
    """The object is not the one that was read."""


class S3Error(Exception):
    """A request to S3 failed."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.is_refusal = kind in _REFUSALS


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
