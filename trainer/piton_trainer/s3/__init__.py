"""S3, as little of it as the trainer needs, with its errors in our words.

    client     a connection, and what counts as worth another try
    reader     objects, piece by piece
    cache      objects as files on this machine
    checksums  what S3 says of an object's bytes, and the same of a file

Missing      there is no such object
Overtaken    somebody else wrote it in between
Trouble      anything else: it may work later; `is_refusal` says that it will not without a person

This file needs no boto3. Credentials and endpoint come from the environment, the way every AWS tool has them.
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
    """Hear of so many bytes, and do nothing."""


def always() -> bool:
    """Yes."""
    return True


class ObjectNotFound(Exception):  # noqa: N818 - a fact, as on a disk
    """There is no such object."""


class PreconditionFailed(Exception):  # noqa: N818 - a fact
    """The object is not the one that was read."""


class S3Error(Exception):
    """The bucket did not do it."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.is_refusal = kind in _REFUSALS


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How hard to try."""

    chunk_bytes: int = 32 << 20
    """Size of a part; what is smaller goes in one piece."""
    concurrency: int = 8
    bytes_per_second: int | None = None
    """For uploads; None does not hold back."""
    tries: int = 4
    """Of one request, with a back-off of seconds between them."""
    connect_seconds: float = 5.0
    read_seconds: float = 30.0
