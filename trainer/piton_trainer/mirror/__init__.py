"""A second copy of the checkpoints in a bucket. It follows commits, and training never waits for it.

    client     interface of the session: runs a separate process, notifies it of commits, reads its progress
    messages   messages between the two
    process    entry point of the process
    sync       work of the process: keeps the bucket in sync with the volume
    upload     upload of checkpoints to the bucket, and deletion in it
    restore    download of the newest checkpoint from the bucket to a volume
    transfer   progress of a transfer
    bucket     objects under one prefix
    keys       layout of keys, and the only mutable record (pure)
    ownership  ownership of the bucket (pure)
    health     failures by class, and the reason why nothing is mirrored (pure)
    inspect    contents of the bucket, for the command line
    probe      one object that is written and deleted, for `piton preflight`

Nothing here needs torch. Credentials and endpoint come from the environment, as for every AWS tool.
"""

from dataclasses import dataclass

from piton_trainer.s3.errors import Remedy, S3Error

OTHER = "other"
ERROR_CLASSES = (*(remedy.name.lower() for remedy in Remedy), OTHER)
"""Classes by which failures are counted: those of `s3/errors.py`, and all that is no error of S3."""


def class_of(error: Exception) -> str:
    """Return the class by which a failure is counted."""
    return error.remedy.name.lower() if isinstance(error, S3Error) else OTHER


@dataclass(frozen=True, kw_only=True)
class Lag:
    """Lag of the bucket behind the volume."""

    steps: int
    seconds: float
    """Seconds since the oldest commit that is newer than everything in the bucket; 0 if there is none."""
