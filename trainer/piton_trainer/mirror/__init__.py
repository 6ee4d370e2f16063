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
    inspect    contents of the bucket, for the command line

Nothing here needs torch. Credentials and endpoint come from the environment, as for every AWS tool.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lag:
    """Lag of the bucket behind the volume."""

    steps: int
    seconds: float
    """Seconds since the oldest commit that is newer than everything in the bucket; 0 if there is none."""
    errors: int = 0
    """Number of failed uploads so far."""
