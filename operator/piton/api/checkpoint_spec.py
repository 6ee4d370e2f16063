"""Models of a spec's `checkpoint`, beside its volume.

    Every    interval of saves
    Keep     number of checkpoints that are kept
    Mirror   second copy in an object store, and its encryption

The volume is in `spec.py`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from piton.api.fields import Model


class Every(Model):
    """Save interval; the limit that is reached first triggers a save."""

    minutes: int | None = Field(default=None, ge=1, le=10_080, description="Minutes between saves.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps between saves.")


class Keep(Model):
    """Number of checkpoints to keep."""

    last: int = Field(default=2, ge=2, le=1000, description="Newest ones. At least 2: one alone may turn out bad.")
    best: int = Field(default=1, ge=0, le=1000, description="Best ones by the objective's metric.")
    weights_only: int = Field(default=0, ge=0, le=1000, description="Older ones of which the weights are kept.")


class EncryptionType(StrEnum):
    """Holder of the key by which a bucket encrypts objects."""

    SSE_S3 = "SSE-S3"
    SSE_KMS = "SSE-KMS"


class MirrorEncryption(Model):
    """Server-side encryption of the objects that a run writes to a bucket."""

    type: EncryptionType = Field(
        description="SSE-S3 encrypts with keys of the object store, SSE-KMS with a key of your key management service."
    )
    key_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:/_.@+=,-]+$", max_length=512)] | None = Field(
        default=None,
        description="ID, ARN or alias of the key, e.g. alias/checkpoints; for SSE-KMS only, which needs one. The "
        "identity of the pods needs kms:GenerateDataKey and kms:Decrypt of it.",
    )


class Mirror(Model):
    """A second copy of the checkpoints in an object store."""

    uri: Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/.*)?$", max_length=1024)] = Field(
        description="Bucket and prefix, e.g. s3://bucket/prefix; the namespace and the name of the run are added."
    )
    max_megabytes_per_second: int | None = Field(
        default=None, ge=1, le=1_000_000, description="At most so much of the network, for uploads."
    )
    encryption: MirrorEncryption | None = Field(
        default=None,
        description="Encryption that is asked for with each object; without it the bucket does what it does by "
        "itself. Objects that are there already stay as they are.",
    )
